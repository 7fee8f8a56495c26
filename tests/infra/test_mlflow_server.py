"""A real MLflow server as the image starts it: rows in Postgres, artifacts in S3, both read back by another process."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import boto3
import psycopg2
import pytest

from slingstone.runtime import tracking
from tests.infra import services

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not services.has_postgres(), reason="Debian's postgresql is not installed: make infra-services, as root"
    ),
]
BUCKET = "mlflow"
READ_BACK = """
import json, sys
from mlflow import MlflowClient
uri, run_id = sys.argv[1:]
client = MlflowClient(uri)
run = client.get_run(run_id)
losses = [(point.step, point.value) for point in client.get_metric_history(run_id, "loss/assistant")]
summary = open(client.download_artifacts(run_id, "summary.json")).read()
print(json.dumps({"status": run.info.status, "params": run.data.params, "losses": losses, "summary": summary,
                  "artifact_uri": run.info.artifact_uri}))
"""


class Server(NamedTuple):
    """What a test talks to."""

    uri: str
    database: str
    bucket: Any


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    logs = tmp_path_factory.mktemp("services")
    with services.postgres() as database, services.s3(logs / "s3.log") as endpoint:
        store = boto3.resource(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=services.KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=services.KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=services.KEYS["AWS_DEFAULT_REGION"],
        )
        bucket = store.create_bucket(Bucket=BUCKET)
        with services.mlflow(database, endpoint, BUCKET, logs / "mlflow.log") as uri:
            yield Server(uri, database, bucket)


def test_what_a_run_logs_comes_back_from_the_server(server, tmp_path):
    logged = tracking.create_run(server.uri, "slingstone", "micro", {"seed": "0"}, {}, None)
    for images in (8, 16, 24):
        logged.metrics({"loss/assistant": 1 / images}, images)
    (tmp_path / "summary.json").write_text('{"images": 24}')
    logged.artifact(tmp_path / "summary.json")
    logged.end("FINISHED")

    read = [sys.executable, "-c", READ_BACK, server.uri, logged.run_id]
    done = subprocess.run(read, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["status"], found["params"]) == ("FINISHED", {"seed": "0"})
    assert found["losses"] == [[images, 1 / images] for images in (8, 16, 24)]
    assert found["summary"] == '{"images": 24}'

    assert urlsplit(found["artifact_uri"]).scheme == "mlflow-artifacts", "clients need no credentials of the store"
    (key,) = (entry.key for entry in server.bucket.objects.all())
    assert key.endswith(f"{logged.run_id}/artifacts/summary.json")
    with psycopg2.connect(server.database) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from metrics where run_uuid = %s", (logged.run_id,))
        assert cursor.fetchone() == (3,), "in Postgres, not in a file"

"""A run against a real MLflow server: rows in Postgres, artifacts in S3, both read back by another process."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import boto3
import psycopg2
import pytest

from slingstone.config import flatten
from slingstone.runtime import launch
from tests.infra import services
from tests.rewards.conftest import rewards_root  # noqa: F401  (a fixture)
from tests.runtime.conftest import micro, micro_checkpoints, micro_tree, write_run  # noqa: F401  (fixtures)

pytestmark = [
    pytest.mark.ray,
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
print(json.dumps({"status": run.info.status, "params": run.data.params, "metrics": run.data.metrics, "losses": losses,
                  "summary": json.loads(summary), "artifact_uri": run.info.artifact_uri}))
"""


class Server(NamedTuple):
    """What a test talks to."""

    uri: str
    database: str
    bucket: object


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


@pytest.mark.usefixtures("cluster")
def test_metrics_and_artifacts_of_a_run_come_back_from_the_server(server, micro, tmp_path):  # noqa: F811
    run = micro(
        f"tracking.uri={server.uri}",
        "rewards.backend=in_process",
        "evaluation.reference=null",
        "evaluation.num_prompts=2",
    )
    summary = launch.align(run, print)
    assert not (tmp_path / "mlflow.db").exists(), "nothing is kept beside the server"

    read = [sys.executable, "-c", READ_BACK, server.uri, summary["mlflow_run_id"]]
    done = subprocess.run(read, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == "FINISHED"
    assert found["params"] == flatten(run)
    assert [step for step, _ in found["losses"]] == [8, 16, 24, 32]
    assert found["metrics"]["aligned/rewards/pickscore"] == summary["aligned"]["rewards"]["pickscore"]
    assert found["summary"] == summary

    assert urlsplit(found["artifact_uri"]).scheme == "mlflow-artifacts", "clients need no credentials of the store"
    keys = {entry.key for entry in server.bucket.objects.all()}  # type: ignore[attr-defined]
    for name in ("summary.json", "config.yaml", "pipeline/model_index.json"):
        assert any(key.endswith(f"{summary['mlflow_run_id']}/artifacts/{name}") for key in keys), name
    local = Path(tmp_path / "align" / "micro" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    (weights,) = (key for key in keys if key.endswith("unet/diffusion_pytorch_model.safetensors"))
    stored = server.bucket.Object(weights).get()["Body"].read()  # type: ignore[attr-defined]
    assert stored == local.read_bytes(), "bit for bit"

    with psycopg2.connect(server.database) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from metrics where run_uuid = %s", (summary["mlflow_run_id"],))
        (rows,) = cursor.fetchone() or (0,)
    assert rows >= 4 * 3, "in Postgres, not in a file"

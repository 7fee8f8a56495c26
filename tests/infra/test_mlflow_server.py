"""A real MLflow server as the image starts it: rows in Postgres, artifacts in S3, read back by other processes.

And a run whose checkpoints lie in a bucket of the same S3.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import boto3
import psycopg2
import pytest
import torch
from safetensors.torch import load, load_file

from slingstone import tracking
from tests.infra import services
from tests.infra.facts import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not services.has_postgres(), reason="Debian's postgresql is not installed: make infra-services, as root"
    ),
]
ARTIFACTS, CHECKPOINTS = "mlflow", "checkpoints"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
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


# A stranger's process, which knows the server's address and nothing else: every alias draws.
DRAW = """
import io, json, sys
import mlflow, numpy, pandas, PIL.Image
mlflow.set_tracking_uri(sys.argv[1])
client = mlflow.MlflowClient()
found = {"aliases": {k: str(v) for k, v in client.get_registered_model("pictures").aliases.items()}, "drawn": {}}
for version in ("@init", "@best", "/latest"):
    model = mlflow.pyfunc.load_model(f"models:/pictures{version}")
    (png,) = model.predict(pandas.DataFrame({"prompt": ["a red disc"], "seed": [7]}))["png"]
    found["drawn"][version] = numpy.asarray(PIL.Image.open(io.BytesIO(png))).tolist()
found["slingstone"] = "slingstone" in sys.modules
print(json.dumps(found))
"""


class Server(NamedTuple):
    """What a test talks to."""

    uri: str
    database: str
    endpoint: str
    store: Any


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
        for bucket in (ARTIFACTS, CHECKPOINTS):
            store.create_bucket(Bucket=bucket)
        with services.mlflow(database, endpoint, ARTIFACTS, logs / "mlflow.log") as uri:
            yield Server(uri, database, endpoint, store)


def read(script: str, *arguments: str, cwd: Path) -> dict[str, Any]:
    """Return what another process finds."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_what_a_run_logs_comes_back_from_the_server(server, tmp_path):
    logged = tracking.create_run(server.uri, "slingstone", "micro", {"seed": "0"}, {}, tmp_path)
    for images in (8, 16, 24):
        logged.metrics({"loss/assistant": 1 / images}, images)
    (tmp_path / "summary.json").write_text('{"images": 24}')
    logged.artifact(tmp_path / "summary.json")
    logged.end("FINISHED")

    found = read(READ_BACK, server.uri, logged.run_id, cwd=tmp_path)
    assert (found["status"], found["params"]) == ("FINISHED", {"seed": "0"})
    assert found["losses"] == [[images, 1 / images] for images in (8, 16, 24)]
    assert found["summary"] == '{"images": 24}'

    assert urlsplit(found["artifact_uri"]).scheme == "mlflow-artifacts", "clients need no credentials of the store"
    keys = [entry.key for entry in server.store.Bucket(ARTIFACTS).objects.all() if logged.run_id in entry.key]
    assert [key.rpartition(logged.run_id)[2] for key in keys] == ["/artifacts/summary.json"]
    with psycopg2.connect(server.database) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from metrics where run_uuid = %s", (logged.run_id,))
        assert cursor.fetchone() == (3,), "in Postgres, not in a file"


@pytest.mark.ray
def test_a_run_registers_its_models_there_and_continues_from_a_bucket_as_if_never_stopped(server, write_run, tmp_path):
    def align(name: str, images: int) -> tuple[str, dict[str, Any]]:
        """Run the job as its user does, on a Ray cluster of its own; the store's keys are in the environment alone."""
        asked = [f"name={name}", f"training.num_images={images}", "training.keep_checkpoints=1"]
        asked += ["rewards.backend=in_process", "evaluation.reference=null", "evaluation.num_prompts=2"]
        asked += [f"recovery.checkpoints=s3://{CHECKPOINTS}/runs"]
        asked += ["tracking.registry={name: pictures, metric: rewards/pickscore}"]
        env = os.environ | services.KEYS | {"AWS_ENDPOINT_URL": server.endpoint, "MLFLOW_TRACKING_URI": server.uri}
        env |= {"RAY_worker_niceness": "0", "RAY_memory_monitor_refresh_ms": "0"}  # as busy as this machine may be
        done = subprocess.run(
            [sys.executable, str(ROOT / "jobs" / "align.py"), str(write_run()), *asked],
            env=env,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout, json.loads((tmp_path / "align" / name / "summary.json").read_text())

    _, whole = align("whole", 32)
    _, stopped = align("parted", 16)
    said, parted = align("parted", 32)
    assert "resumed at 16 images" in said
    assert parted["mlflow_run_id"] == stopped["mlflow_run_id"] != whole["mlflow_run_id"]
    assert parted["aligned"]["rewards"] == whole["aligned"]["rewards"]
    assert not list((tmp_path / "align").glob("*/checkpoints")), "they are in the bucket"
    held = [entry.key for entry in server.store.Bucket(CHECKPOINTS).objects.all()]
    assert {key.rpartition("/")[0] for key in held if key.endswith("manifest.json")} == {
        f"runs/align/{name}/checkpoints/000000000032" for name in ("whole", "parted")
    }
    local = [load_file(tmp_path / "align" / name / "pipeline" / WEIGHTS) for name in ("whole", "parted")]
    assert all(torch.equal(local[0][name], local[1][name]) for name in local[0])

    found = read(READ_BACK, server.uri, parted["mlflow_run_id"], cwd=tmp_path)
    assert found["status"] == "FINISHED"
    assert json.loads(found["summary"]) == parted
    assert [images for images, _ in found["losses"]] == [8, 16, 24, 32], "no step twice, none lost"
    kept = server.store.Object(ARTIFACTS, f"{urlsplit(found['artifact_uri']).path.lstrip('/')}/pipeline/{WEIGHTS}")
    stored = load(kept.get()["Body"].read())
    assert all(torch.equal(stored[name], local[1][name]) for name in stored)

    drawn = read(DRAW, server.uri, cwd=tmp_path)
    assert not drawn["slingstone"]
    assert drawn["aliases"]["init"] == "1"
    better = max((0, whole["init"]), (1, whole["aligned"]), key=lambda one: one[1]["rewards"]["pickscore"])[0]
    names = ("@init", "/latest")
    assert drawn["drawn"]["@init"] != drawn["drawn"]["/latest"]
    assert drawn["drawn"]["@best"] == drawn["drawn"][names[better]]

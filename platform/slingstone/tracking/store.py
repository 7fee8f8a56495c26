"""Opens MLflow runs: where they are stored, their params and tags, and what may be said of a URI."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock

from slingstone import atomic
from slingstone.config import Experiment, RewardComparison, TrainingJob, flatten
from slingstone.config.comparison import Comparison
from slingstone.config.credentials import concealed, redacted
from slingstone.config.paths import absolute_uri
from slingstone.tracking.provenance import sources
from slingstone.tracking.run import Run, new_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARAM_VALUE_LIMIT = 6000
PARAMS_A_BATCH = 100
KIND, MODEL_TRAINING = "mlflow.experimentKind", "custom_model_development"
"""Tag by which the UI shows an experiment as model training; without it it guesses, and may show GenAI evaluations."""
MIGRATION_TIMEOUT_S = 600.0
"""How long a job waits while another one makes the tables of a database; that takes some ten seconds."""


def open_run(job: TrainingJob, uri: str, directory: Path, run_id: str | None = None, parent: str | None = None) -> Run:
    """Create the MLflow run of a job that writes to a directory, or reopen one to continue it.

    Artifacts of a database without a server go beside the directory; `parent` is the run that it is shown under, as a
    sweep's.
    """
    if run_id is not None and (run := reopened(uri, run_id)) is not None:
        return run
    tags = {"kind": job.job, "directory": str(directory)}
    if isinstance(job, Experiment):
        tags |= {"algorithm": algorithm(job), "model_family": model_family(job.models.reference)}
    tags |= {} if parent is None else {"mlflow.parentRunId": parent, "parent": parent}
    return create_run(uri, job.tracking.experiment, job.name, flatten(job), tags, directory.parents[1])


def algorithm(experiment: Experiment) -> str:
    """Return what a table of runs calls the objective, such as `diff-instruct* pseudo_huber inner`."""
    objective = experiment.objective
    name = "diff-instruct++" if objective.distance.kind == "kl" else "diff-instruct*"
    if objective.reward_weight == 0:
        name = "diff-instruct" if objective.distance.kind == "kl" else "score implicit matching"
    flow = "" if objective.flow == "full" else f" {objective.flow}"
    guidance = f" {objective.guidance.kind}" if objective.guidance.scale else ""
    return f"{name} {objective.distance.kind}{guidance}{flow}"


def model_family(reference: str) -> str:
    """Return the class of the reference's pipeline; of a hub id that is not here, the id."""
    index = Path(reference) / "model_index.json"
    return str(json.loads(index.read_text())["_class_name"]) if index.is_file() else reference


def reopened(uri: str, run_id: str) -> Run | None:
    """Return a run that was ended, to continue it; None if it was deleted in MLflow."""
    from mlflow.exceptions import MlflowException

    client = new_client(uri)
    try:
        if client.get_run(run_id).info.lifecycle_stage == "deleted":
            return None
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    client.update_run(run_id, "RUNNING")
    return Run(uri, run_id)


def create_run(
    uri: str, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str], storage: Path
) -> Run:
    """Create a run with its params, tagged with its sources, and the MLflow experiment if there is none of this name.

    A database without a server keeps what runs upload below `storage`; a server has a place of its own.
    """
    from mlflow.entities import Param

    client = new_client(uri)
    tags = {"mlflow.user": getuser(), "mlflow.source.name": "slingstone", "mlflow.source.type": "JOB", **tags}
    experiment_id = _experiment_id(client, experiment, storage if _is_database(uri) else None)
    run_id = client.create_run(experiment_id, tags=sources() | dict(tags), run_name=name).info.run_id
    entries = [Param(name, str(value)[:PARAM_VALUE_LIMIT]) for name, value in params.items()]
    for start in range(0, len(entries), PARAMS_A_BATCH):
        client.log_batch(run_id, params=entries[start : start + PARAMS_A_BATCH])
    return Run(uri, run_id)


@contextmanager
def parent_run(kind: str, experiment: Experiment, group: Any, directory: Path) -> Iterator[Run]:
    """Yield the MLflow run under which others are shown, the one of before if they go on; it ends with the block.

    Args:
        kind: what it is, such as `sweep`.
        experiment: whose MLflow it is written to.
        group: configuration of the whole, with `name` and `storage`; its flat dump becomes the params.
        directory: remembers the run.
    """
    uri, path = ready(experiment), directory / "mlflow.json"
    saved = atomic.read_json(path) or {}
    run = reopened(uri, saved["run_id"]) if saved.get("uri") == uri else None
    if run is None:
        tags, name = {"kind": kind, "directory": str(directory)}, f"{kind} {group.name}"
        run = create_run(uri, experiment.tracking.experiment, name, flatten(group), tags, Path(group.storage))
        atomic.write_text(path, json.dumps({"uri": uri, "run_id": run.run_id}))
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        run.end(status)


def end_abandoned(directory: Path) -> bool:
    """End the MLflow run of a directory whose process is gone, as KILLED; return whether it still ran."""
    saved = atomic.read_json(directory / "mlflow.json")
    if saved is None:
        return False
    client = new_client(saved["uri"])
    if client.get_run(saved["run_id"]).info.status != "RUNNING":
        return False
    client.set_terminated(saved["run_id"], "KILLED")
    return True


def tracking_uri(settings: TrainingJob | Comparison | RewardComparison) -> str:
    """Return the configured URI, else MLFLOW_TRACKING_URI, else a SQLite file under `storage`.

    Raises:
        ValueError: MLFLOW_TRACKING_URI means another place in each process.
    """
    if settings.tracking.uri:
        return settings.tracking.uri
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        try:
            here, elsewhere = absolute_uri(given, Path.cwd()), absolute_uri(given, Path("/elsewhere"))
        except ValueError as error:
            raise ValueError(f"MLFLOW_TRACKING_URI = {redacted(given)!r}: {error}") from None
        if here != elsewhere:
            wrong = f"MLFLOW_TRACKING_URI = {redacted(given)!r}: is another place in each process"
            raise ValueError(f"{wrong}; set it to {redacted(here)}")
        return given
    return f"sqlite:///{Path(settings.storage).resolve() / 'mlflow.db'}"


def ready(settings: TrainingJob | Comparison | RewardComparison) -> str:
    """Return the tracking URI once its store answers; jobs call it before they hold anything.

    A fresh SQLite file gets its tables here, from one process at a time: MLflow's migrations break when two run them.

    Raises:
        ValueError: the store does not answer, its experiment was deleted, or MLFLOW_TRACKING_URI means another place
            in each process.
    """
    uri = tracking_uri(settings)
    parts, lock = urlsplit(uri), nullcontext()
    try:
        if parts.scheme.startswith("sqlite"):
            file = Path(parts.path[1:])
            file.parent.mkdir(parents=True, exist_ok=True)  # else MLflow tries again for an hour
            lock = FileLock(f"{file}.lock", timeout=MIGRATION_TIMEOUT_S)
        with lock:
            found = new_client(uri).get_experiment_by_name(settings.tracking.experiment)
    except Exception as error:  # of whatever transport the URI means
        said = " ".join(concealed(str(error).replace(uri, redacted(uri))).split())[:300]
        raise ValueError(
            f"tracking.uri = {redacted(uri)!r}: does not answer; start it, or name another: {said}"
        ) from error
    if found is not None and found.lifecycle_stage == "deleted":
        remedy = f"name another, or restore it: mlflow experiments restore -x {found.experiment_id}"
        raise ValueError(f"tracking.experiment = {settings.tracking.experiment!r}: was deleted in MLflow; {remedy}")
    return uri


def _is_database(uri: str) -> bool:
    return urlsplit(uri).scheme.partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql")


def _experiment_id(client: "MlflowClient", name: str, artifacts: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(name)) is None:
        # MLflow's own default for a local database is ./mlruns of whichever process creates the experiment.
        location = None if artifacts is None else (artifacts / "mlartifacts").resolve().as_uri()
        try:
            return client.create_experiment(name, artifact_location=location, tags={KIND: MODEL_TRAINING})
        except MlflowException:  # another run may have created it in the meantime
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    if KIND not in found.tags:
        client.set_experiment_tag(found.experiment_id, KIND, MODEL_TRAINING)
    return found.experiment_id

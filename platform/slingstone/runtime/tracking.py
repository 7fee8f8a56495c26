"""MLflow behind a few methods: the driver opens and ends a run, rank 0 logs to it by its id."""

import hashlib
import json
import math
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from slingstone.config import Experiment, Tracking, flatten
from slingstone.runtime.journal import Buffer, Journal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL.Image import Image

PARAM_VALUE_LIMIT = 6000
PARAMS_A_BATCH = 100
METRICS_A_BATCH = 1000
FLUSH_AFTER_S = 5.0


class Run:
    """One MLflow run, by its id; usable from any process. The step axis counts images.

    Metrics go to a journal, which a thread delivers every few seconds: a training step waits for no server, and a
    server that is away costs no number.

    Args:
        uri: tracking URI.
        run_id: of the run.
        journal: file that keeps the numbers until they are delivered; None keeps them in memory.
        on_failure: what a server that is away costs: `stop` raises at the next delivery.
    """

    def __init__(self, uri: str, run_id: str, journal: Path | None = None, on_failure: str = "stop") -> None:
        self.uri = uri
        self.run_id = run_id
        self._journal_path = journal
        self._journal: Journal | Buffer | None = None
        self._spools = on_failure == "spool"
        self._client: MlflowClient | None = None
        self._waiting: list[Callable[[MlflowClient], object]] = []
        self._delivering: threading.Thread | None = None
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._flushed = time.monotonic()

    @property
    def client(self) -> "MlflowClient":
        """The client; importing MLflow takes seconds, which only processes that log should pay."""
        if self._client is None:
            self._client = _client(self.uri)
        return self._client

    @property
    def journal(self) -> Journal | Buffer:
        """The journal; read when the first number comes."""
        if self._journal is None:
            self._journal = Buffer() if self._journal_path is None else Journal(self._journal_path)
        return self._journal

    def metrics(self, values: Mapping[str, float], images: int) -> None:
        """Record numbers at a position; what is not finite has no place in a chart and is left out.

        Raises:
            Exception: MLflow's, if a delivery failed and this is to stop the run.
        """
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.journal.record(finite, images, int(time.time() * 1000))
        if time.monotonic() - self._flushed > FLUSH_AFTER_S:
            self._flushed = time.monotonic()
            self._raise_failure()
            if self._delivering is None or not self._delivering.is_alive():
                self._delivering = threading.Thread(target=self._try_to_deliver, daemon=True)
                self._delivering.start()

    def flush(self) -> bool:
        """Send what waits, and return whether it arrived.

        Raises:
            Exception: MLflow's, if a delivery failed and this is to stop the run.
        """
        self._try_to_deliver()
        self._raise_failure()
        return self._failure is None

    def artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file, or a directory with all it holds, once the server is there."""

        def upload(client: "MlflowClient") -> None:
            log = client.log_artifacts if path.is_dir() else client.log_artifact
            log(self.run_id, str(path), folder or None)

        self._once_there(upload)

    def picture(self, picture: "Image", key: str, images: int) -> None:
        """Record a picture at a position, for the UI to lay the runs' side by side, once the server is there."""
        self._once_there(lambda client: client.log_image(self.run_id, picture, key=key, step=images, synchronous=True))

    def watch_system(self) -> None:
        """Record the use of this node until the run or this process ends."""
        import logging

        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
        SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self.uri).start()

    def tag(self, name: str, value: str) -> None:
        """Set a tag, once the server is there."""
        self._once_there(lambda client: client.set_tag(self.run_id, name, value))

    def end(self, status: str) -> bool:
        """Flush and close the run as FINISHED, FAILED or KILLED; return whether the server heard it."""
        try:
            arrived = self.flush()
            self.client.set_terminated(self.run_id, status)
        except Exception:  # of whatever transport the URI means
            if not self._spools:
                raise
            return False
        return arrived

    def _once_there(self, send: "Callable[[MlflowClient], object]") -> None:
        with self._lock:
            self._waiting.append(send)
        self.flush()

    def _raise_failure(self) -> None:
        if self._failure is not None and not self._spools:
            raise self._failure

    def _try_to_deliver(self) -> None:
        try:
            with self._lock:
                self._deliver()
            self._failure = None
        except Exception as error:  # of whatever transport the URI means
            self._failure = error

    def _deliver(self) -> None:
        from mlflow.entities import Metric

        waiting, mark = self.journal.undelivered()
        for start in range(0, len(waiting), METRICS_A_BATCH):
            batch = [Metric(*point) for point in waiting[start : start + METRICS_A_BATCH]]
            self.client.log_batch(self.run_id, metrics=batch)
        if waiting:
            self.journal.deliver(mark)
        while self._waiting:
            self._waiting[0](self.client)
            self._waiting.pop(0)


def open_run(
    experiment: Experiment, uri: str, directory: Path, run_id: str | None = None, parent: str | None = None
) -> Run:
    """Create the MLflow run of an experiment, or reopen one to continue it.

    Args:
        experiment: its flat dump becomes the run's params.
        uri: tracking URI, see `tracking_uri`.
        directory: where the run writes; artifacts of a file-based store go beside it.
        run_id: of the run to continue.
        parent: id of the run that this one is shown under, such as a sweep's.
    """
    if run_id is not None:
        return reopened(uri, run_id)
    artifacts = None if experiment.tracking.uri or "MLFLOW_TRACKING_URI" in os.environ else directory.parents[1]
    tags = {"kind": "align", "directory": str(directory), "algorithm": algorithm(experiment)}
    tags |= {"model_family": model_family(experiment.models.reference)}
    tags |= {} if parent is None else {"mlflow.parentRunId": parent, "parent": parent}
    name = experiment.tracking.experiment
    return create_run(uri, name, experiment.name, flatten(experiment), tags, artifacts)


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


def reopened(uri: str, run_id: str) -> Run:
    """Return a run that was ended, to continue it."""
    _client(uri).update_run(run_id, "RUNNING")
    return Run(uri, run_id)


def create_run(
    uri: str, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str], artifacts: Path | None
) -> Run:
    """Create a run with its params, tagged with the sources that it is made by.

    Args:
        uri: tracking URI.
        experiment: MLflow experiment; created if there is none of this name.
        name: what the run is shown as.
        params: flat.
        tags: more than those of the sources.
        artifacts: directory beside which a file-based store keeps them; None leaves it to the server.
    """
    client = _client(uri)
    created = client.create_run(
        _experiment_id(client, experiment, artifacts), tags=sources() | dict(tags), run_name=name
    )
    _log_params(client, created.info.run_id, params)
    return Run(uri, created.info.run_id)


def tracking_uri(experiment: Experiment) -> str:
    """Return the URI of a run, see `tracking_uri_of`."""
    return tracking_uri_of(experiment.tracking, experiment.storage)


def tracking_uri_of(settings: Tracking, storage: str) -> str:
    """Return the configured URI, else MLFLOW_TRACKING_URI, else a SQLite file under `storage`."""
    default = f"sqlite:///{Path(storage).resolve() / 'mlflow.db'}"
    return settings.uri or os.environ.get("MLFLOW_TRACKING_URI") or default


def redacted(uri: str) -> str:
    """Return a URI without the credentials that it may carry: for whatever is written down or shown."""
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite") or (parts.username is None and parts.password is None and not parts.query):
        return uri
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def sources() -> dict[str, str]:
    """Return what a run is made by: the commit of this source and the hash of its dependencies' versions."""
    return {"git_commit": git_commit(), "lock_sha256": lock_hash()}


def git_commit() -> str:
    """Return the commit of this source; a submitted job, which has no .git, is told by its submitter."""
    if told := os.environ.get("SLINGSTONE_GIT_COMMIT"):
        return told
    command = ["git", "-C", str(_root()), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def lock_hash() -> str:
    """Return the SHA-256 of constraints.txt, which names every dependency's version."""
    lock = _root() / "constraints.txt"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else "unknown"


def _root() -> Path:
    return Path(__file__).resolve().parents[3]


def _client(uri: str) -> "MlflowClient":
    import logging

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # The journal tries again for as long as it takes; within one try, MLflow's own minutes would only stand in the way.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow.store.db.utils", "mlflow.store.db"):
        logging.getLogger(name).setLevel(logging.WARNING)  # schema migrations are no news to a user
    return MlflowClient(tracking_uri=uri)


def _experiment_id(client: "MlflowClient", name: str, artifacts: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(name)) is not None:
        return found.experiment_id
    # MLflow's own default for a local database is ./mlruns of whichever process creates the experiment.
    location = None if artifacts is None else (artifacts / "mlartifacts").resolve().as_uri()
    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException:  # another run created it in the meantime
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


def _log_params(client: "MlflowClient", run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    entries = [Param(name, str(value)[:PARAM_VALUE_LIMIT]) for name, value in params.items()]
    for start in range(0, len(entries), PARAMS_A_BATCH):
        client.log_batch(run_id, params=entries[start : start + PARAMS_A_BATCH])

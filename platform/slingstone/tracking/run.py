"""One MLflow run by its id, usable from any process: numbers, pictures, files, tags."""

import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from slingstone.tracking.journal import Journal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL.Image import Image

METRICS_A_BATCH = 1000
FLUSH_AFTER_S = 5.0


class Run:
    """One MLflow run, by its id; usable from any process. The step axis counts images.

    Metrics go to a journal, a temporary one by default, which a thread delivers every few seconds: no training step
    waits for a server. What delivers raises MLflow's exceptions, unless `on_failure` is `spool`: it tries again later.
    """

    def __init__(self, uri: str, run_id: str, journal: Path | None = None, on_failure: str = "stop") -> None:
        self.uri = uri
        self.run_id = run_id
        self._journal_path = journal
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
            self._client = new_client(self.uri)
        return self._client

    @cached_property
    def journal(self) -> Journal:
        """The journal; read when the first number comes."""
        if self._journal_path is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="slingstone-")
            self._journal_path = Path(self._scratch.name) / "metrics.jsonl"
        return Journal(self._journal_path)

    def metrics(self, values: Mapping[str, float], images: int) -> None:
        """Record numbers at a position; what is not finite has no place in a chart and is left out."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.journal.record(finite, images, int(time.time() * 1000))
        if time.monotonic() - self._flushed > FLUSH_AFTER_S:
            self._flushed = time.monotonic()
            self._raise_failure()
            if self._delivering is None or not self._delivering.is_alive():
                self._delivering = threading.Thread(target=self._try_to_deliver, daemon=True)
                self._delivering.start()

    def flush(self) -> bool:
        """Send what waits, and return whether it arrived."""
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
        """Record a picture at a position, once the server is there; the UI shows those of several runs side by side."""
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
            return arrived
        except Exception:  # of whatever transport the URI means
            if not self._spools:
                raise
            return False

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

        points, mark = self.journal.undelivered()
        for start in range(0, len(points), METRICS_A_BATCH):
            batch = [Metric(*point) for point in points[start : start + METRICS_A_BATCH]]
            self.client.log_batch(self.run_id, metrics=batch)
        if points:
            self.journal.deliver(mark)
        while self._waiting:
            self._waiting[0](self.client)
            self._waiting.pop(0)


def new_client(uri: str) -> "MlflowClient":
    """Return a client that gives up within seconds, and says nothing of migrations."""
    import logging

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # The journal tries again for as long as it takes; within one try, MLflow's own minutes would only stand in the way.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow.store.db.utils", "mlflow.store.db"):
        logging.getLogger(name).setLevel(logging.WARNING)  # schema migrations are no news to a user
    return MlflowClient(tracking_uri=uri)

"""What a replica counts, for Prometheus: Ray exports it from every node, labelled with the reward."""

from ray.util.metrics import Counter, Histogram

from reward_services.batching import Pass

_SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
_IMAGES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]


class ServiceMetrics:
    """The instruments of one reward: `ray_reward_batch_images`, `_queue_seconds`, `_compute_seconds`, `_errors`."""

    def __init__(self, reward: str):
        self._images = Histogram("reward_batch_images", "Pictures computed together.", _IMAGES, ("reward",))
        queued, computed = "From a request's arrival at a replica to its computation.", "Computation of a batch."
        self._queue = Histogram("reward_queue_seconds", queued, _SECONDS, ("reward",))
        self._compute = Histogram("reward_compute_seconds", computed, _SECONDS, ("reward",))
        self._errors = Counter("reward_errors", "Requests that ended with an error.", ("reward", "error"))
        for instrument in (self._images, self._queue, self._compute, self._errors):
            instrument.set_default_tags({"reward": reward})

    def passed(self, done: Pass) -> None:
        """Take note of a batch."""
        self._images.observe(done.num_images)
        self._compute.observe(done.compute_s)
        for queued_s in done.queued_s:
            self._queue.observe(queued_s)

    def failed(self, error: Exception) -> None:
        """Take note of a request that ended with an error."""
        self._errors.inc(tags={"error": type(error).__name__})

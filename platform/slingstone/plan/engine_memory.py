"""Bytes of one trained network under each engine, as DeepSpeed 0.19 and torch allocate them. Imports no torch.

`tests/plan/test_engine_memory.py` counts them on two ranks, at every stage.
"""

from dataclasses import dataclass

from slingstone.config import Runtime

BUCKET = 500_000_000
"""Most weights whose gradients DeepSpeed reduces together; it sets aside memory for so many."""
MESSAGE = 500_000_000
"""Weights whose gradients it sends together at stage 0, where no bucket is configured."""
GATHERED = 1_000_000_000
"""Most weights that ZeRO-3 keeps gathered at a time: DeepSpeed's default."""
FETCHED = 50_000_000
"""Weights that ZeRO-3 fetches at a time, and copies once on their way: DeepSpeed's default."""


@dataclass(frozen=True)
class Engine:
    """Bytes of one trained network on one rank.

    The first three and `host` are there all the time. Of `gathered`, `backward` and `update` each is the most at a
    moment of its own, beyond those.

    Attributes:
        weights: in the run's precision.
        optimizer: fp32 copies of the weights, and moments.
        kept: gradients and buffers that are not freed between steps.
        gathered: ZeRO-3's whole weights, while the network runs.
        backward: gradients and what they are sent in, while they arrive and are reduced.
        update: gradients and the optimizer's temporaries, while it steps.
        host: in host memory.
        host_update: in host memory while the optimizer steps there.
    """

    weights: int
    optimizer: int
    kept: int
    gathered: int
    backward: int
    update: int
    host: int = 0
    host_update: int = 0


def engine_bytes(weights: int, runtime: Runtime) -> Engine:
    """Return what an engine over so many weights holds."""
    if runtime.engine == "torch" or runtime.zero_stage == 0:
        return _replicated(weights, runtime)
    if runtime.offload == "cpu":
        return _offloaded(weights, runtime)
    size, part, bucket = number_bytes(runtime), -(-weights // runtime.num_workers), min(BUCKET, weights)
    stepping = 4 * part + _temporaries(part, runtime)
    if runtime.zero_stage == 1 and runtime.precision == "bf16":
        # DeepSpeed's optimizer for bf16 keeps fp32 gradients of all weights.
        return Engine(2 * weights, 12 * part, 4 * weights, 0, 2 * weights, 2 * weights + _temporaries(part, runtime))
    if runtime.zero_stage == 1:
        return Engine(4 * weights, 12 * part, 0, 0, 4 * weights + 4 * bucket, stepping)
    if runtime.zero_stage == 2:
        return Engine(size * weights, 12 * part, 0, 0, _to_owners(part, bucket, runtime), stepping)
    return Engine(size * part, 12 * part, 4 * part + size * bucket, _gathered(weights, size), 0, stepping)


def _replicated(weights: int, runtime: Runtime) -> Engine:
    """Of engines whose optimizer is whole on every rank; gradients are averaged in messages of their own."""
    cast, masters = (2 * weights, 4 * weights) if runtime.precision == "bf16" else (0, 0)
    message = 4 * (weights if runtime.engine == "torch" else min(MESSAGE, weights))
    sent = message if runtime.num_workers > 1 else 0
    temporaries = 4 * weights if runtime.use_gpu else 0  # of all weights together; on CPUs one weight at a time
    update = 4 * weights + max(sent, temporaries)
    return Engine(number_bytes(runtime) * weights, 8 * weights + masters, 0, 0, 4 * weights + cast, update)


def _offloaded(weights: int, runtime: Runtime) -> Engine:
    """Of an optimizer in host memory: masters, moments, gradients, and the weights on their way back."""
    size, part, bucket = number_bytes(runtime), -(-weights // runtime.num_workers), min(BUCKET, weights)
    temporaries = 8 * part
    if runtime.zero_stage == 3:
        kept = size * bucket
        return Engine(size * part, 0, kept, _gathered(weights, size), 0, 0, (12 + 4 + 4) * part, temporaries)
    host = (12 + 4 + size) * part
    compact = 4 * part if runtime.precision == "bf16" else 0  # the fp32 gradients of the rank's own part
    if runtime.zero_stage == 2:
        host += 0 if compact else 4 * part  # fp32 ones go there as they arrive
        backward = compact + _buckets(runtime) * size * bucket
        return Engine(size * weights, 0, 0, 0, backward, compact, host, temporaries)
    backward = 4 * weights + compact + (6 if compact else 4) * bucket
    return Engine(size * weights, 0, 0, 0, backward, compact, host, temporaries)


def _to_owners(part: int, bucket: int, runtime: Runtime) -> int:
    """Of ZeRO-2's backward pass: gradients of the rank's own part, and the last bucket on its way."""
    arrived = part if runtime.precision == "bf16" else part - bucket // runtime.num_workers
    return 4 * arrived + _buckets(runtime) * number_bytes(runtime) * bucket


def _buckets(runtime: Runtime) -> int:
    """Of ZeRO-2: one bucket and its copy that is sent; on GPUs the next is filled meanwhile."""
    return 3 if runtime.use_gpu else 2


def _gathered(weights: int, size: int) -> int:
    return size * (min(GATHERED, weights) + min(FETCHED, weights))


def _temporaries(part: int, runtime: Runtime) -> int:
    """Of torch's Adam over one flat tensor: the denominator, on CPUs in two stages."""
    return (4 if runtime.use_gpu else 8) * part


def average_bytes(weights: int, runtime: Runtime) -> int:
    """Return what the generator's fp32 average takes on one device."""
    sharded = runtime.engine == "deepspeed" and runtime.zero_stage == 3
    return 4 * (-(-weights // runtime.num_workers) if sharded else weights)


def number_bytes(runtime: Runtime) -> int:
    """Return the bytes of one weight in the run's precision."""
    return 2 if runtime.precision == "bf16" else 4

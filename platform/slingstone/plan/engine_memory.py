"""Bytes of one trained network under each engine, as DeepSpeed 0.19 and torch allocate them. Imports no torch.

`tests/plan/test_engine_memory.py` counts them on two ranks, at every stage.
"""

from dataclasses import dataclass

from slingstone.config import Runtime

BUCKET = 500_000_000
"""Most weights whose gradients are reduced together; DeepSpeed sets aside memory for so many."""
MESSAGE = 500_000_000
"""Weights whose gradients it sends together at stage 0, where no bucket is configured."""
GATHERED = 1_000_000_000
"""Most weights that ZeRO-3 keeps gathered at a time: DeepSpeed's default."""
FETCHED = 50_000_000
"""Weights that ZeRO-3 fetches at a time, and copies once on their way: DeepSpeed's default."""


@dataclass(frozen=True)
class EngineBytes:
    """Bytes of one trained network on one rank.

    The first three and `host` are there all the time; each of the others is the most at a moment of its own.

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


def engine_bytes(weights: int, runtime: Runtime) -> EngineBytes:
    """Return what an engine over so many weights holds."""
    if runtime.engine == "torch" or runtime.zero_stage == 0:
        return _replicated(weights, runtime)
    size, bf16 = number_bytes(runtime), runtime.precision == "bf16"
    part, bucket = -(-weights // runtime.num_workers), min(BUCKET, weights)
    gathered = size * (min(GATHERED, weights) + min(FETCHED, weights))
    # Of ZeRO-2: one bucket and its copy that is sent; on GPUs the next is filled meanwhile.
    buckets = (3 if runtime.use_gpu else 2) * size * bucket
    # Of torch's Adam over one flat tensor: the denominator, on CPUs in two stages.
    temporaries = (4 if runtime.use_gpu else 8) * part
    if runtime.offload == "cpu":
        # In host memory: masters, moments, gradients, and the weights on their way back.
        compact = 4 * part if bf16 else 0  # the fp32 gradients of the rank's own part
        host, host_update = (16 + size) * part, 8 * part
        if runtime.zero_stage == 3:
            return EngineBytes(size * part, 0, size * bucket, gathered, 0, 0, 20 * part, host_update)
        if runtime.zero_stage == 2:
            host += 4 * part - compact  # fp32 ones go there as they arrive
            return EngineBytes(size * weights, 0, 0, 0, compact + buckets, compact, host, host_update)
        backward = 4 * weights + compact + (6 if bf16 else 4) * bucket
        return EngineBytes(size * weights, 0, 0, 0, backward, compact, host, host_update)
    if runtime.zero_stage == 1 and bf16:
        # DeepSpeed's optimizer for bf16 keeps fp32 gradients of all weights.
        return EngineBytes(2 * weights, 12 * part, 4 * weights, 0, 2 * weights, 2 * weights + temporaries)
    update = 4 * part + temporaries
    if runtime.zero_stage == 1:
        return EngineBytes(4 * weights, 12 * part, 0, 0, 4 * weights + 4 * bucket, update)
    if runtime.zero_stage == 2:
        arrived = part if bf16 else part - bucket // runtime.num_workers  # gradients of the rank's own part
        return EngineBytes(size * weights, 12 * part, 0, 0, 4 * arrived + buckets, update)
    return EngineBytes(size * part, 12 * part, 4 * part + size * bucket, gathered, 0, update)


def _replicated(weights: int, runtime: Runtime) -> EngineBytes:
    """Of engines whose optimizer is whole on every rank; gradients are averaged in messages of their own."""
    cast, masters = (2 * weights, 4 * weights) if runtime.precision == "bf16" else (0, 0)
    message = 4 * (weights if runtime.engine == "torch" else min(MESSAGE, weights))
    sent = message if runtime.num_workers > 1 else 0
    # Of all weights together; torch's engine has none in its fused kernel, and on CPUs those of one weight at a time.
    temporaries = 4 * weights if runtime.use_gpu and runtime.engine == "deepspeed" else 0
    update = 4 * weights + max(sent, temporaries)
    return EngineBytes(number_bytes(runtime) * weights, 8 * weights + masters, 0, 0, 4 * weights + cast, update)


def average_bytes(weights: int, runtime: Runtime) -> int:
    """Return what one rank's part of the generator's fp32 average takes, where the optimizer's fp32 copies lie."""
    return 4 * -(-weights // runtime.num_workers)


def number_bytes(runtime: Runtime) -> int:
    """Return the bytes of one weight in the run's precision."""
    return 2 if runtime.precision == "bf16" else 4

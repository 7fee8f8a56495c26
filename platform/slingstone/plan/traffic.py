"""Bytes that a step sends and a checkpoint holds, by ZeRO stage."""

from slingstone.config import KL, Experiment, Runtime
from slingstone.plan.engine_memory import number_bytes


def sent_bytes(experiment: Experiment, weights: int) -> float:
    """Return what one GPU sends in one step, as a ring sends it: a whole costs `(n - 1) / n` of its bytes.

    DeepSpeed all-reduces the gradients at stages 0 to 2 (twice a whole), and at 1 and 2 gathers the updated weights.
    At stage 3 it gathers the weights for each pass and scatters the gradients. What a pass finds gathered already
    (`stage3_max_reuse_distance`, a billion weights) is counted again here, so that this is the most.
    """
    runtime = experiment.runtime
    if runtime.num_workers == 1:
        return 0.0
    size = 4 if runtime.engine == "torch" else number_bytes(runtime)
    whole = size * weights * (runtime.num_workers - 1) / runtime.num_workers
    updates = experiment.training.assistant_updates
    if runtime.engine == "torch" or runtime.zero_stage == 0:
        return 2 * whole * (updates + 1)
    if runtime.zero_stage < 3:
        return 3 * whole * (updates + 1)
    # The reference is whole everywhere; the assistant is borrowed by the generator's step.
    recomputed = experiment.objective.gradient == "recomputed"
    borrowed = 1 if isinstance(experiment.objective.distance, KL) else 3 if recomputed else 2
    gathered = 3 * updates + 2 + borrowed
    return whole * (updates + 1 + gathered)


def checkpoint_bytes(runtime: Runtime, weights: int) -> int:
    """Return the bytes of a checkpoint: both networks' weights, optimizers and fp32 copies, and the fp32 average."""
    size = number_bytes(runtime)
    if runtime.engine == "torch" or runtime.zero_stage == 0:
        engine = size + 8 + (4 if runtime.precision == "bf16" else 0)
    else:
        # At stage 3 the weights themselves are left out: the fp32 copies hold them.
        engine = (0 if runtime.zero_stage == 3 else size) + 12
    return (2 * engine + 4) * weights

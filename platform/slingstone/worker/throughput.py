"""How fast training goes, how much of the device it uses, and which parts of a step take longest."""

import resource
from collections import Counter
from collections.abc import Mapping

import torch

from slingstone.config import Experiment
from slingstone.networks.protocol import DTYPES
from slingstone.networks.sampling import now
from slingstone.plan.work import useful_passes, work_of

GIB = 2**30
STAGES = "seconds/"
WHOLE = "seconds/step"


class Throughput:
    """Pictures a second, the share of the device's ceiling, memory; and sums of a run's stages.

    The ceiling is a large matrix product in the run's precision, measured once. FLOPs are those that the algorithm asks
    for: what is computed twice to save memory counts once. Networks whose FLOPs are not known have no share.
    """

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        self._experiment, self._cuda = experiment, device.type == "cuda"
        self._ceiling = ceiling(device, DTYPES[experiment.runtime.precision])
        try:
            self._work = work_of(experiment)
        except ValueError:
            self._work = None
        self._seconds: Counter[str] = Counter()

    def of(self, metrics: Mapping[str, float], num_images: int) -> dict[str, float]:
        """Return `images_per_second` of all workers; `mfu` and `memory/peak_gib` of this one, since the step before."""
        self._seconds.update({name: value for name, value in metrics.items() if name.startswith(STAGES)})
        found = {"images_per_second": num_images / metrics[WHOLE], "memory/peak_gib": self._peak_bytes() / GIB}
        if self._work is not None:
            useful = useful_passes(self._experiment)
            of_generator = "grad_norm/generator" in metrics
            flops = (useful.network if of_generator else useful.assistant) * self._work.network
            flops += of_generator * useful.decoder * self._work.decoder
            found["mfu"] = self._experiment.pictures * flops / metrics[WHOLE] / self._ceiling
        return found

    def largest(self, count: int = 2) -> dict[str, float]:
        """Return the stages that took longest so far, as shares of all steps."""
        stages = Counter({name.removeprefix(STAGES): s for name, s in self._seconds.items() if name != WHOLE})
        return {name: seconds / self._seconds[WHOLE] for name, seconds in stages.most_common(count)}

    def _peak_bytes(self) -> int:
        """Return the most that tensors on the GPU took since it was last asked, or the process on a CPU ever."""
        if not self._cuda:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large square matrix product, the best of a few."""
    side = 8192 if device.type == "cuda" else 1024
    draw = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, device=device, generator=draw).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        start = now(device)
        _ = left @ right
        seconds.append(now(device) - start)
    return 2 * side**3 / min(seconds)

"""Where the tests of this directory run, and how they say what they measured.

On a GPU they run at real size; with SLINGSTONE_GPU_REHEARSAL=1 the same code runs on the CPU with tiny networks.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

GIB = 2**30
REHEARSAL = "SLINGSTONE_GPU_REHEARSAL"


@dataclass(frozen=True)
class Place:
    """A device, and whether it is the real one."""

    device: torch.device
    real: bool

    @property
    def memory_gib(self) -> float:
        """What the device has; a rehearsal wants for nothing."""
        return torch.cuda.get_device_properties(self.device).total_memory / GIB if self.real else float("inf")

    def wait(self) -> None:
        """Let the device finish what it was given."""
        if self.real:
            torch.cuda.synchronize(self.device)

    @contextmanager
    def peak(self, title: str) -> Iterator[list[float]]:
        """Say what the block took; the list receives its seconds and peak GiB, 0 in a rehearsal."""
        found: list[float] = []
        if self.real:
            torch.cuda.init()  # without a context there are no statistics to reset
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        yield found
        self.wait()
        found += [time.perf_counter() - start, torch.cuda.max_memory_allocated(self.device) / GIB if self.real else 0.0]
        say(f"{title}: {found[0]:.2f} s, peak {found[1]:.1f} GiB")


def here() -> Place | None:
    """Return the place of this process; None where there is no GPU and nothing is rehearsed."""
    if os.environ.get(REHEARSAL):
        return Place(torch.device("cpu"), real=False)
    return Place(torch.device("cuda", 0), real=True) if torch.cuda.is_available() else None


def say(line: str) -> None:
    """Show a line at once, whatever comes after it."""
    print(f"  {line}", flush=True)


def relative(found: Tensor, expected: Tensor) -> float:
    """Return `|found - expected| / |expected|`, of whole tensors, in float64."""
    wide, exact = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((wide - exact).norm() / exact.norm())


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute convolutions in fp32 proper. PyTorch lets cuDNN round their inputs to TF32's 10 bits, products not."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before

"""What all tests on a GPU share."""

import gc
from collections.abc import Iterator

import pytest

from tests.gpu.place import REHEARSAL, Place, here, say


@pytest.fixture(scope="session")
def place() -> Place:
    """The GPU, or the CPU where the tests are rehearsed."""
    found = here()
    if found is None:
        pytest.skip(f"needs a CUDA device; {REHEARSAL}=1 runs the same with tiny networks on the CPU")
    return found


@pytest.fixture(autouse=True)
def _announced(request: pytest.FixtureRequest, place: Place) -> Iterator[None]:
    """Say which test begins, and leave the device's memory to the next one and to other processes."""
    import torch

    print(f"\n{request.node.name}", flush=True)
    yield
    gc.collect()
    if place.real:
        torch.cuda.empty_cache()
        if (held := torch.cuda.memory_allocated()) > 2**28:
            say(f"still allocated: {held / 2**30:.2f} GiB")

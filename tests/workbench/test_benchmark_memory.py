"""What saves memory does save it, on a random SDXL-like network."""

import pytest

from workbench.benchmark.architecture import sdxl_like
from workbench.benchmark.memory import measure, table


@pytest.mark.slow
def test_one_graph_at_a_time_takes_less_than_all_and_checkpointing_less_still() -> None:
    found = measure(sdxl_like(side=16, width=32, depth=1), batch=2)
    direct, recomputed, checkpointed, lora = (value["peak"] for value in found.values())
    # Three score graphs, the generator's and the decoder's, against the generator's and one other.
    assert recomputed < 0.75 * direct
    assert checkpointed < 0.75 * recomputed
    # Adapters leave out the gradients and the optimizer's temporaries of whole networks.
    assert lora < checkpointed
    *whole, adapters = (value["resting"] for value in found.values())
    assert len(set(whole)) == 1, "between steps nothing else differs"
    # Three networks, two optimizers of two moments each and an average, against one network and what little is trained.
    assert adapters < 0.5 * whole[0]
    assert table(found).splitlines()[1].count("1.000") == 3

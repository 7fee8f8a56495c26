"""What a trace of a run's steps shows."""

import json

import pytest

from workbench.trace_steps import trace

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_trace_of_three_steps_names_their_stages(cluster, micro):
    said: list[str] = []
    path = trace(micro("runtime.engine=torch"), said.append)
    names = [event.get("name") for event in json.loads(path.read_text())["traceEvents"]]
    stages = ("text", "assistant", "generator", "divergence", "decode", "reward_wait", "pull", "optimizer", "ema")
    assert {stage: names.count(stage) for stage in ("divergence", "ema")} == {"divergence": 3, "ema": 3}
    assert set(stages) <= set(names)
    assert "conv" in "\n".join(said), "the operations that took longest"

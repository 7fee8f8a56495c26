"""Arguments that come in one text, as make's ARGS."""

import pytest

from slingstone.arguments import expanded


def test_spaces_within_brackets_and_quotes_tear_nothing():
    text = "rewards.services=[{name: a, model: 'x y'}] seed=3 name=\"my run\" --dry-run"
    words = ["rewards.services=[{name: a, model: 'x y'}]", "seed=3", "name=my run", "--dry-run"]
    assert expanded(["align", "c.yaml", "--args", text, "--submit"]) == ["align", "c.yaml", *words, "--submit"]
    assert expanded(["align", "c.yaml", "--args", "  "]) == ["align", "c.yaml"]


@pytest.mark.parametrize("text", ["a=[1, 2", "name='x"])
def test_what_is_left_open_is_named(text: str):
    with pytest.raises(ValueError, match="is left open; close it"):
        expanded(["--args", text])

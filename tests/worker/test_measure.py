"""How evaluations ask the rewards."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slingstone.worker.measure import judge


def test_an_evaluation_asks_all_rewards_for_scores_alone_before_it_waits_for_one():
    said: list[str] = []

    class Client:
        def __init__(self, name: str) -> None:
            self.name = name

        def submit(self, images: Tensor, prompts: Sequence[str]):
            raise AssertionError("no gradient is wanted")

        def submit_for_scores(self, images: Tensor, prompts: Sequence[str]) -> "Client":
            said.append(f"ask {self.name}")
            return self

        def result(self) -> Tensor:
            said.append(f"wait for {self.name}")
            return torch.full((2,), float(len(self.name)))

    found = judge({name: Client(name) for name in ("hps", "pickscore")})(torch.rand(2, 3, 4, 4), ["a", "b"])
    assert said == ["ask hps", "ask pickscore", "wait for hps", "wait for pickscore"]
    assert {name: scores.tolist() for name, scores in found.items()} == {"hps": [3.0, 3.0], "pickscore": [9.0, 9.0]}

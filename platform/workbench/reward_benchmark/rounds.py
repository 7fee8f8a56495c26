"""Taking the measures: a model in this process and its services, in turns."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
from ray import serve
from torch import Tensor

from reward_services.client import ServeClient
from reward_services.gradient import score_and_gradient
from reward_services.http_client import HttpClient
from reward_services.prepared import PreparingClient
from reward_services.preprocess import Preprocess
from reward_services.protocol import RewardClient, RewardModel
from reward_services.spec import RewardSpec
from workbench.reward_benchmark.statistics import BATCH, CLIENTS, SIDE, Round, Side, Trip

PROMPTS = [f"a red circle on a blue square {'a ' * number}" for number in range(BATCH)]
_DEADLINE_S = 600.0


def pictures(seed: int = 0) -> Tensor:
    """Return 16 pictures of 512 pixels."""
    return torch.rand(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


class Asker:
    """A trainer's worker that does nothing but ask; lives in a process of its own."""

    def __init__(self, name: str, seed: int):
        self._client = ServeClient(name, _DEADLINE_S)
        self._images = pictures(seed)

    def ask(self, times: int) -> None:
        """Ask one request after the other."""
        for _ in range(times):
            # As a new tensor each time, so that it is stored each time, as a trainer's are.
            self._client.submit(self._images.view_as(self._images), PROMPTS).result()


class Bench:
    """Everything that the rounds need, deployed and warmed up.

    Args:
        model: in this process; the same that `spec` has deployed.
        spec: of the service, with one replica that takes 16 pictures a pass.
        quick: of a service with the same input that hardly computes.
        url: of the HTTP proxy behind which `quick` has a route.
    """

    def __init__(self, model: RewardModel, spec: RewardSpec, quick: RewardSpec, url: str):
        self._model = model
        self._images = pictures()
        self._handle: Any = serve.get_app_handle(spec.app_name)
        actor: Any = ray.remote(num_cpus=0)(Asker)
        self._askers = [actor.remote(spec.name, seed) for seed in range(CLIENTS)]
        rule = Preprocess(**ServeClient(quick.name).describe()["rule"])
        self._clients: dict[tuple[str, str], RewardClient] = {
            ("serve", "service"): ServeClient(quick.name, _DEADLINE_S),
            ("serve", "client"): PreparingClient(ServeClient(quick.name, _DEADLINE_S, prepared=True), rule),
            ("http", "service"): HttpClient(url, quick.name, _DEADLINE_S),
            ("http", "client"): PreparingClient(HttpClient(url, quick.name, _DEADLINE_S, prepared=True), rule),
        }

    def round(self, number: int, batches: int) -> Round:
        """Measure everything once.

        Args:
            number: odd rounds run backwards, so that no measure always follows the same one.
            batches: of the throughput's measures; a multiple of the clients.
        """
        found: dict[str, Any] = {}
        measures: list[tuple[str, Callable[[], object]]] = [
            ("in_process", lambda: self._in_process(max(1, batches // 2))),
            ("served", lambda: self._served(batches)),
            ("trip", self._trip),
            ("sides", lambda: {key: self._side(client) for key, client in self._clients.items()}),
        ]
        for name, measure in measures[:: -1 if number % 2 else 1]:
            found[name] = measure()
        return Round(**found)

    def _in_process(self, batches: int) -> float:
        start = time.perf_counter()
        for _ in range(batches):
            score_and_gradient(self._model, self._images, PROMPTS)
        return (time.perf_counter() - start) / batches

    def _served(self, batches: int) -> float:
        times = math.ceil(batches / CLIENTS)
        start = time.perf_counter()
        ray.get([asker.ask.remote(times) for asker in self._askers])
        return (time.perf_counter() - start) / (times * CLIENTS)

    def _trip(self) -> Trip:
        pixels = self._images.numpy()
        start = time.time()
        reference = ray.put(pixels)
        sent = time.time()
        *answer, visit = self._handle.timed.remote(reference, PROMPTS).result(timeout_s=_DEADLINE_S)
        received = time.time()
        taken = [np.array(part) for part in answer]
        end = time.time()
        own = pixels.copy()  # what the replica also did, within the pass
        copied_s = time.time() - end
        assert own.nbytes == taken[1].nbytes
        legs = {
            "put": sent - start,
            "way": visit.arrived - sent,
            "wait": visit.answered - visit.arrived - visit.compute_s,
            "own": copied_s,
            "answer": received - visit.answered,
            "take": end - received,
        }
        return Trip(visit.compute_s - copied_s, legs)

    def _side(self, client: RewardClient) -> Side:
        images = self._images.view_as(self._images)
        start, busy = time.perf_counter(), time.process_time()
        client.submit(images, PROMPTS).result()
        return Side(time.perf_counter() - start, time.process_time() - busy)

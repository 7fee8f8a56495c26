"""What asking a reward service costs beside computing in process, as ratios of one run on this machine."""

import logging
import math
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
import transformers
from ray import serve
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from reward_services.client import ServeClient
from reward_services.deployment import build
from reward_services.gradient import score_and_gradient
from reward_services.http_client import HttpClient
from reward_services.models import load
from reward_services.models.writers import write_pickscore
from reward_services.prepared import PreparingClient
from reward_services.preprocess import Preprocess
from reward_services.protocol import RewardClient, RewardModel
from reward_services.spec import HttpSpec, RewardSpec
from workbench.local_cluster import local_cluster
from workbench.parity.tiny import clip_tokenizer

BATCH, CLIENTS, SIDE = 16, 4, 512
THROUGHPUT_FLOOR, OVERHEAD_CEILING = 0.9, 0.15
VIT_B_32 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
PROMPTS = [f"a red circle on a blue square {'a ' * number}" for number in range(BATCH)]
DEADLINE_S = 600.0


@dataclass(frozen=True)
class Call:
    """One request, preprocessed at the service or at the client.

    Attributes:
        total: seconds until the answer was there.
        busy: of them, seconds of the caller's own processor time.
    """

    total: float
    busy: float


@dataclass(frozen=True)
class Round:
    """What was measured within a minute or so, in seconds a batch of 16 pictures of 512 pixels.

    Attributes:
        in_process: in this process.
        served: by the service with all clients at work.
        alone: by the service with a single client.
        calls: of a reward that hardly computes, by way in (`serve`, `http`) and place of the preprocessing.
    """

    in_process: float
    served: float
    alone: float
    calls: dict[tuple[str, str], Call]


@dataclass(frozen=True)
class Summary:
    """Medians of the ratios within each round, since a machine is not the same a minute later.

    Attributes:
        throughput: of the service with 4 clients, over that in process.
        overhead: of a single client's call, over the same batch in process.
        compute_s: of a batch in process.
        calls: as in `Round`.
    """

    throughput: float
    overhead: float
    compute_s: float
    calls: dict[tuple[str, str], Call]

    @property
    def met(self) -> bool:
        """Whether both bounds hold."""
        return self.throughput >= THROUGHPUT_FLOOR and self.overhead <= OVERHEAD_CEILING


def summarise(rounds: Sequence[Round]) -> Summary:
    """Return the medians."""
    return Summary(
        throughput=median(one.in_process / one.served for one in rounds),
        overhead=median(one.alone / one.in_process - 1 for one in rounds),
        compute_s=median(one.in_process for one in rounds),
        calls={
            key: Call(median(one.calls[key].total for one in rounds), median(one.calls[key].busy for one in rounds))
            for key in rounds[0].calls
        },
    )


def table(summary: Summary) -> str:
    """Return what a user reads."""
    lines = [
        f"{CLIENTS} clients through Serve: {summary.throughput:.1%} of the throughput in process"
        f" (at least {THROUGHPUT_FLOOR:.0%}: {'yes' if summary.throughput >= THROUGHPUT_FLOOR else 'NO'})",
        f"overhead of a call: {summary.overhead:.1%} of its compute, {summary.compute_s:.2f} s"
        f" (at most {OVERHEAD_CEILING:.0%}: {'yes' if summary.overhead <= OVERHEAD_CEILING else 'NO'})",
        "",
        "a call of a reward that hardly computes, by where the pictures are preprocessed:",
    ]
    for way in dict.fromkeys(way for way, _ in summary.calls):
        service, client = summary.calls[way, "service"], summary.calls[way, "client"]
        lines.append(
            f"  {way:5}  service {service.total:.3f} s, client {client.total:.3f} s, {client.total / service.total:.0%}"
            f";  the caller's own time {service.busy:.3f} s and {client.busy:.3f} s"
        )
    return "\n".join(lines)


def pictures(seed: int = 0) -> Tensor:
    """Return 16 pictures of 512 pixels."""
    return torch.rand(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


class Asker:
    """A trainer's worker that does nothing but ask; lives in a process of its own."""

    def __init__(self, name: str, seed: int):
        self._client = ServeClient(name, DEADLINE_S)
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
        actor: Any = ray.remote(num_cpus=0)(Asker)
        self._askers = [actor.remote(spec.name, seed) for seed in range(CLIENTS)]
        rule = Preprocess(**ServeClient(quick.name).describe()["rule"])
        self._clients: dict[tuple[str, str], RewardClient] = {
            ("serve", "service"): ServeClient(quick.name, DEADLINE_S),
            ("serve", "client"): PreparingClient(ServeClient(quick.name, DEADLINE_S, prepared=True), rule),
            ("http", "service"): HttpClient(url, quick.name, DEADLINE_S),
            ("http", "client"): PreparingClient(HttpClient(url, quick.name, DEADLINE_S, prepared=True), rule),
        }

    def round(self, number: int, batches: int) -> Round:
        """Measure everything once.

        Args:
            number: odd rounds run backwards, so that no measure always follows the same one.
            batches: of the throughput's measures; a multiple of the clients.
        """
        measures: dict[str, Callable[[], Any]] = {
            "in_process": lambda: self._in_process(max(1, batches // 2)),
            "alone": lambda: self._served(max(1, batches // 2), clients=1),
            "served": lambda: self._served(batches, CLIENTS),
            "calls": lambda: {key: self._call(client) for key, client in self._clients.items()},
        }
        order = list(measures)[:: -1 if number % 2 else 1]
        return Round(**{name: measures[name]() for name in order})

    def _in_process(self, batches: int) -> float:
        start = time.perf_counter()
        for _ in range(batches):
            score_and_gradient(self._model, self._images, PROMPTS)
        return (time.perf_counter() - start) / batches

    def _served(self, batches: int, clients: int) -> float:
        times = math.ceil(batches / clients)
        start = time.perf_counter()
        ray.get([asker.ask.remote(times) for asker in self._askers[:clients]])
        return (time.perf_counter() - start) / (times * clients)

    def _call(self, client: RewardClient) -> Call:
        images = self._images.view_as(self._images)
        start, busy = time.perf_counter(), time.process_time()
        client.submit(images, PROMPTS).result()
        return Call(time.perf_counter() - start, time.process_time() - busy)


def write_checkpoint(directory: Path, tower: dict[str, int]) -> Path:
    """Write a PickScore for pictures of 224 pixels, cut into patches of 32; its text tower hardly costs anything."""
    tokenizer = clip_tokenizer(directory.with_name("tokenizer"))
    text = {**SMALL, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    vision = {**tower, "image_size": 224, "patch_size": 32}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=32))
    write_pickscore(model.eval(), tokenizer, directory)
    return directory


def run(rounds: int, batches: int, say: Callable[[str], None]) -> Summary:
    """Measure a PickScore of ViT-B/32's size, one thread each, in this process and on a Ray cluster of its own.

    Args:
        rounds: to take the median of, after one that is not counted.
        batches: of 16 pictures that a round asks of the service.
        say: shows a line to the user.
    """
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with TemporaryDirectory() as scratch, _cluster() as url:
        specs = [
            RewardSpec(
                name=name,
                model="pickscore",
                checkpoint=str(write_checkpoint(Path(scratch, name), tower)),
                max_batch_images=BATCH,
                http=HttpSpec(access="loopback"),
            )
            for name, tower in (("vit-b", VIT_B_32), ("quick", SMALL))
        ]
        for spec in specs:
            serve.run(build(spec), name=spec.app_name, route_prefix=f"/{spec.app_name}")
        bench = Bench(load(specs[0]), *specs, url=url)
        found = []
        for number in range(rounds + 1):
            say(f"round {number} of {rounds}" if number else "warming up")
            found.append(bench.round(number, batches if number else 1))
    summary = summarise(found[1:])
    say(f"\n{table(summary)}")
    return summary


@contextmanager
def _cluster() -> Iterator[str]:
    """Have a Ray cluster in this process; yield the address of its HTTP proxy."""
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # its news go to its own log files
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with local_cluster(port):
        yield f"http://127.0.0.1:{port}"

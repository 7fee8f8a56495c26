"""500 votes while everything that can die is killed: what was acknowledged is there, each vote once."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from slingstone.arena.client import ArenaClient, ArenaError
from slingstone.arena.store import Store
from tests.infra.services import free_port, has_postgres, postgres

pytestmark = [pytest.mark.slow, pytest.mark.ray]
ROOT = Path(__file__).resolve().parents[2]
SCENES = ROOT / "platform" / "slingstone" / "world" / "scenes"
CHOICES = ("left", "right", "tie", "both_bad")
VOTES, VOTERS, KILLS = 500, 8, 20
TITLES = {
    "generator": "ServeReplica:arena-survivor:generator",
    "door": "ServeReplica:arena-survivor:door",
    "proxy": "ray::ProxyActor",
    "store": "postgres: mlflow",
}
UP_S = 300


def tree(storage: Path, votes: str | None, port: int) -> dict[str, Any]:
    """Two generators that differ in their timestep alone, each in a process of its own, behind two doors."""
    generators = [
        {
            "kind": "generator",
            "name": f"at{timestep}",
            "models": {
                "reference": str(SCENES / "reference"),
                "generator": str(SCENES / "generator"),
                "generator_timestep": timestep,
            },
        }
        for timestep in (625, 500)
    ]
    return {
        "name": "survivor",
        "storage": str(storage),
        "generators": generators,
        "prompts": str(SCENES / "prompts" / "heldout.txt"),
        "votes": votes,
        "pairs": {"seeds": 1},
        "drawers": {"num_cpus": 0},
        "door": {"port": port, "requests_per_minute": 100_000, "replicas": 2},
    }


@contextmanager
def opened(config: Path, port: int) -> Iterator[psutil.Process]:
    """Open the arena as a user does; yield its process, whose children are the head's and all that it started."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, str(ROOT / "jobs" / "arena.py"), str(config)]
    with (config.parent / "arena.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
    try:
        client = ArenaClient(f"http://127.0.0.1:{port}", retries=0)
        deadline = time.monotonic() + UP_S
        while not _answers(client):
            assert process.poll() is None, (config.parent / "arena.log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _answers(client: ArenaClient) -> bool:
    try:
        return bool(client.about())
    except ArenaError:
        return False


def _those(head: psutil.Process, title: str) -> list[psutil.Process]:
    """Return the processes of such a title; a Postgres is nobody's child."""
    found = []
    for process in psutil.process_iter() if title.startswith("postgres") else head.children(recursive=True):
        with suppress(psutil.Error):
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found


class Voters:
    """Threads that vote; each goes on with its pair until it is told that the vote is taken, as a person would."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._asked = 0
        self.acknowledged: list[str] = []

    def vote(self, number: int) -> None:
        """Vote until all votes are there."""
        draw, client = random.Random(number), ArenaClient(self._url, retries=3)
        while self._another():
            pair = _insisted(lambda: client.pair(f"voter{number}"))
            choice = draw.choice(CHOICES)
            taken = _insisted(lambda pair=pair, choice=choice: client.vote(pair["token"], choice))
            with self._lock:
                self.acknowledged.append(taken["vote"])

    def _another(self) -> bool:
        with self._lock:
            self._asked += 1
            return self._asked <= VOTES


def _insisted(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    deadline = time.monotonic() + UP_S
    while True:
        try:
            return ask()
        except ArenaError as error:
            if 400 <= error.status < 500 or time.monotonic() > deadline:
                raise
            time.sleep(1)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_500_votes_outlive_20_kills_and_the_death_of_the_head(database, tmp_path):
    if database == "postgres" and not has_postgres():
        pytest.skip("needs Debian's Postgres: make infra-services")
    port, draw = free_port(), random.Random(0)
    config, voters = tmp_path / "arena.yaml", Voters(f"http://127.0.0.1:{port}")
    with postgres() if database == "postgres" else nullcontext(None) as found:
        uri = None if found is None else found.replace("postgresql:", "postgresql+psycopg2:", 1)
        config.write_text(yaml.safe_dump(tree(tmp_path, uri, port)))
        victims: dict[str, int] = {}

        def kill(head: psutil.Process, kind: str) -> None:
            if those := _those(head, TITLES[kind]):
                with suppress(psutil.NoSuchProcess):
                    draw.choice(those).kill()
                    victims[kind] = victims.get(kind, 0) + 1

        kinds = [kind for kind in TITLES if uri or kind != "store"]  # SQLite lives in the door's processes

        def disturb(head: psutil.Process, up_to: int, kills: int) -> None:
            """Kill so many processes, evenly over the votes up to a number of them."""
            start, before = len(voters.acknowledged), sum(victims.values())
            while (found := len(voters.acknowledged)) < up_to:
                for one in voting:
                    if one.done():
                        one.result()
                done = sum(victims.values()) - before
                if done < kills and found >= start + (done + 1) * (up_to - start) // (kills + 1):
                    kill(head, kinds[sum(victims.values()) % len(kinds)])
                time.sleep(0.1)

        with ThreadPoolExecutor(VOTERS) as threads:
            with opened(config, port) as head:
                voting = [threads.submit(voters.vote, number) for number in range(VOTERS)]
                disturb(head, VOTES // 2, KILLS // 2)
                for process in [*_those(head, "gcs_server"), *_those(head, "raylet/raylet"), head]:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            with opened(config, port) as head:
                disturb(head, VOTES - VOTERS, KILLS - KILLS // 2)
                for one in voting:
                    one.result()
        store = Store(uri or f"sqlite:///{tmp_path}/arena/survivor/votes.db", tmp_path / "arena/survivor/pictures")
        kept = [vote["vote"] for vote in store.votes()]
        store.close()
    assert sum(victims.values()) == KILLS
    assert victims.keys() == set(kinds)
    assert sorted(kept) == sorted(voters.acknowledged)
    assert len(set(kept)) == len(kept) == VOTES

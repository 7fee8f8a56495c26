"""An arena: which generators draw, who may come in, and how votes on their pictures are taken."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from slingstone.config.comparison import Model
from slingstone.config.contradictions import Contradiction, refuse, shared_names
from slingstone.config.paths import PathText, Storage, StoreUri
from slingstone.config.rewards import Rewards
from slingstone.config.tree import Name, Section


class Door(Section):
    """Where the arena listens, whom it lets in, and how much each may ask."""

    host: str = "127.0.0.1"
    """Interface of Serve's proxies; 0.0.0.0 is every one: put a proxy that speaks TLS in front of it."""
    port: Annotated[int, Field(ge=1, lt=65536)] = 8400
    """TCP port."""
    access: Literal["token", "loopback"] = "loopback"
    """`token`: only who sends the bearer token of the environment's SLINGSTONE_ARENA_TOKEN; `loopback`: also anybody on
    the proxy's own machine."""
    max_prompt_characters: PositiveInt = 1000
    """Longest prompt."""
    max_body_kib: PositiveInt = 64
    """Longest request."""
    requests_per_minute: PositiveInt = 600
    """Of one address, at each replica of the door."""
    replicas: PositiveInt = 1
    """Processes that answer; more need a database that is not SQLite if they lie on several nodes."""


class Drawers(Section):
    """Where pictures are drawn; changes speed, not what is drawn."""

    num_replicas: PositiveInt = 1
    """Processes of each generator; with max_replicas, the fewest."""
    max_replicas: PositiveInt | None = None
    """Most processes, started and stopped by load; null keeps num_replicas."""
    num_cpus: NonNegativeFloat = 1.0
    """CPUs that each reserves, 0 for none; also its torch threads, at least 1."""
    num_gpus: NonNegativeFloat = 0.0
    """Share of a GPU that each reserves."""
    max_batch: PositiveInt = 8
    """Most pictures of one pass."""
    batch_wait_s: NonNegativeFloat = 0.0
    """How long a request waits for others to share a pass; those that arrive during a pass share the next anyway."""
    max_queued: PositiveInt = 64
    """Most requests that wait for a generator; others are told to come again."""
    deadline_s: PositiveFloat = 120.0
    """A request gives up after this long."""
    resident: PositiveInt | None = None
    """Generators share processes, and each keeps so many of them in memory; null gives each generator its own."""
    open_cluster: bool = False
    """Whether it also runs on a Ray cluster without token authentication, where whoever reaches a port of it runs code
    as its user."""


class Pairs(Section):
    """Which two pictures are compared next."""

    choose: Literal["random", "active"] = "random"
    """`random`: generators and prompts in turn, so that all get as many votes; `active`: the two generators whose order
    the next vote tells most about."""
    within: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of pairs of one generator with itself, by two seeds: votes that teach a reward, and rank nobody."""
    again: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of pairs that the voter has judged before, with sides changed: how far he agrees with himself."""
    seeds: PositiveInt = 4
    """Different pictures of a prompt; few of them mean that several voters judge the same pair."""


class Arena(Section):
    """One arena, complete and nameable."""

    name: Name
    """The arena lies under `<storage>/arena/<name>`; the same name goes on with its votes."""
    storage: Storage = "outputs"
    """Directory under which everything is written; all nodes must see it."""
    generators: Annotated[tuple[Model, ...], Field(min_length=1)]
    """Who draws."""
    skip_absent: bool = False
    """Whether runs that have not exported anything yet are left out."""
    prompts: PathText
    """What is drawn in comparisons, and offered as examples: a file in the formats of `data.prompts`."""
    column: str | None = None
    """As `data.column`."""
    typed_prompts: bool = True
    """Whether people may have their own prompts drawn."""
    rewards: Rewards = Rewards()
    """Whose scores are shown beside pictures, in one process; weights mean nothing here."""
    votes: StoreUri | None = None
    """Database of the votes, by SQLAlchemy; null is a SQLite file in the arena's directory, for one node."""
    pairs: Pairs = Pairs()
    """Which two pictures are compared next."""
    drawers: Drawers = Drawers()
    """Where pictures are drawn, and judged."""
    door: Door = Door()
    """Who may come in."""

    @model_validator(mode="after")
    def _agree(self) -> "Arena":
        found = list(shared_names("generators", self.generators))
        if self.rewards.services and self.rewards.backend == "serve" and self.rewards.lifecycle == "managed":
            remedy = "take in_process, or lifecycle: external for services that run"
            found.append(Contradiction("rewards.backend", "serve", remedy))
        refuse(found)
        return self

"""What the benchmark's rounds say: medians of ratios within a round, since a machine is not the same a minute later."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

BATCH, CLIENTS, SIDE = 16, 4, 512
THROUGHPUT_FLOOR, OVERHEAD_CEILING = 0.9, 0.15
LEGS = {
    "put": "serialisation: the pictures into the object store",
    "answer": "serialisation: scores and gradient out of the replica",
    "way": "queue: from the handle to the replica's code",
    "wait": "queue: the check of the contract, and the wait for a pass",
    "own": "copy: the replica's own, writable pictures",
    "take": "copy: the client's own, writable answer",
}


@dataclass(frozen=True)
class Trip:
    """One request of 16 pictures of 512 pixels by the only client, in seconds.

    Attributes:
        compute: the pass.
        legs: everything else, by the names of LEGS.
    """

    compute: float
    legs: dict[str, float]


@dataclass(frozen=True)
class Side:
    """One request, preprocessed at one of the two sides.

    Attributes:
        total: seconds until the answer was there.
        busy: of them, seconds of the caller's own processor time.
    """

    total: float
    busy: float


@dataclass(frozen=True)
class Round:
    """What was measured within a minute or so.

    Attributes:
        in_process: seconds a batch in this process.
        served: seconds a batch with all clients at work.
        trip: of a single client.
        sides: by way in (`serve`, `http`) and place of the preprocessing (`service`, `client`).
    """

    in_process: float
    served: float
    trip: Trip
    sides: dict[tuple[str, str], Side]


@dataclass(frozen=True)
class Summary:
    """Medians over the rounds.

    Attributes:
        throughput: of the service with 4 clients, over that in process.
        overhead: of a call, over the compute of its pass.
        legs: the parts of that overhead, by the names of LEGS; medians, which need not add up exactly.
        compute_s: of a pass.
        sides: as in `Round`.
    """

    throughput: float
    overhead: float
    legs: dict[str, float]
    compute_s: float
    sides: dict[tuple[str, str], Side]

    @property
    def met(self) -> bool:
        """Whether both bounds hold."""
        return self.throughput >= THROUGHPUT_FLOOR and self.overhead <= OVERHEAD_CEILING


def summarise(rounds: Sequence[Round]) -> Summary:
    """Return the medians."""
    return Summary(
        throughput=median(one.in_process / one.served for one in rounds),
        overhead=median(sum(one.trip.legs.values()) / one.trip.compute for one in rounds),
        legs={leg: median(one.trip.legs[leg] / one.trip.compute for one in rounds) for leg in LEGS},
        compute_s=median(one.trip.compute for one in rounds),
        sides={
            key: Side(median(one.sides[key].total for one in rounds), median(one.sides[key].busy for one in rounds))
            for key in rounds[0].sides
        },
    )


def table(summary: Summary) -> str:
    """Return what a user reads."""
    lines = [
        f"{CLIENTS} clients through Serve: {summary.throughput:.1%} of the throughput in process"
        f" (at least {THROUGHPUT_FLOOR:.0%}: {'yes' if summary.throughput >= THROUGHPUT_FLOOR else 'NO'})",
        f"overhead of a call: {summary.overhead:.1%} of its compute, {summary.compute_s:.2f} s"
        f" (at most {OVERHEAD_CEILING:.0%}: {'yes' if summary.overhead <= OVERHEAD_CEILING else 'NO'}), of which",
        *(f"  {share:6.2%}  {LEGS[leg]}" for leg, share in summary.legs.items()),
        "",
        "a call of a reward that hardly computes, by where the pictures are preprocessed:",
    ]
    for way in dict.fromkeys(way for way, _ in summary.sides):
        service, client = summary.sides[way, "service"], summary.sides[way, "client"]
        lines.append(
            f"  {way:5}  service {service.total:.3f} s, client {client.total:.3f} s, {client.total / service.total:.0%}"
            f";  the caller's own time {service.busy:.3f} s and {client.busy:.3f} s"
        )
    return "\n".join(lines)

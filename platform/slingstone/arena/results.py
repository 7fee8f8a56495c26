"""What the votes say: who is preferred and how surely, how far voters agree, and whether the side mattered."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slingstone.evaluation.strength import Duel, Interval, Winner, counted, rate, share

SCALE = 400 / np.log(10)
MEAN = 1000.0
"""Of the ratings; 400 more is 10 to 1, as usual in arenas."""
LATEST = 12
CHANCE = 0.5
_WINNERS: Mapping[str, Winner] = {"first": "first", "second": "second"}


def duels_of(votes: Sequence[Mapping[str, Any]]) -> list[Duel]:
    """Return the votes of `Store.votes` for `strength`; `both_bad` ranks nobody, like a tie."""
    return [
        Duel(
            vote["first"].model or "unknown",
            vote["second"].model or "unknown",
            _WINNERS.get(vote["choice"], "neither"),
            vote["voter"],
            vote["first"].prompt,
        )
        for vote in votes
    ]


def results(votes: Sequence[Mapping[str, Any]], models: Sequence[str]) -> dict[str, Any]:
    """Return plain values for the page and for tables.

    Args:
        votes: of `Store.votes`.
        models: who draws now; others that have votes follow.
    """
    duels = duels_of(votes)
    names = list(dict.fromkeys([*models, *(name for duel in duels for name in (duel.first, duel.second))]))
    return {
        "votes": len(votes),
        "voters": len({duel.voter for duel in duels}),
        "prompts": len({duel.prompt for duel in duels}),
        "choices": dict(Counter(vote["choice"] for vote in votes)),
        "generators": _ranked(duels, names),
        "matrix": _matrix(duels, names),
        "days": _days(votes),
        "position": _position(votes),
        "agreement": _agreement(votes),
        "latest": [_told(vote) for vote in votes[: -LATEST - 1 : -1]],
    }


def _ranked(duels: Sequence[Duel], names: Sequence[str]) -> list[dict[str, Any]]:
    strengths = rate(duels, names) if names else {}
    wins, ties = counted([duel for duel in duels if duel.first != duel.second], names)
    rows = []
    for place, name in enumerate(names):
        rating = [round(MEAN + SCALE * value, 1) for value in strengths[name]]
        won, lost, tied = wins[place].sum(), wins[:, place].sum(), ties[place].sum()
        rows.append(
            {"name": name, "rating": rating[0], "low": rating[1], "high": rating[2]}
            | {"wins": int(won), "losses": int(lost), "ties": int(tied)}
            | {"win_share": _plain(share(won + tied / 2, int(won + lost + tied)))}
        )
    return sorted(rows, key=lambda row: -row["rating"])


def _matrix(duels: Sequence[Duel], names: Sequence[str]) -> dict[str, Any]:
    wins, ties = counted([duel for duel in duels if duel.first != duel.second], names)
    votes = wins + wins.T + ties
    points = wins + ties / 2
    cells = [
        [None if votes[i, j] == 0 else round(float(points[i, j] / votes[i, j]), 4) for j in range(len(names))]
        for i in range(len(names))
    ]
    return {"names": list(names), "share": cells, "votes": votes.astype(int).tolist()}


def _days(votes: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    days = Counter(vote["time"].date().isoformat() for vote in votes if vote["time"] is not None)
    return [[day, days[day]] for day in sorted(days)]


def _position(votes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the share of decided votes that went to the left picture; a half is no bias."""
    decided = [vote for vote in votes if vote["shown_left"] and vote["choice"] in _WINNERS]
    return _plain(share(sum(vote["choice"] == vote["shown_left"] for vote in decided), len(decided)))


def _agreement(votes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how often voters agree with the others on the same pictures, and with themselves."""
    said: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
    for vote in votes:
        if vote["choice"] in _WINNERS:
            pair = vote["first"].digest, vote["second"].digest
            chosen = pair[0] if vote["choice"] == "first" else pair[1]
            said[(vote["first"].prompt, *sorted(pair))].append((vote["voter"], chosen))
    others, own, both = defaultdict(list), [], []
    for given in said.values():
        for place, (voter, chosen) in enumerate(given):
            for rival, other in given[place + 1 :]:
                if rival == voter:
                    own.append(chosen == other)
                else:
                    both.append(chosen == other)
                    others[voter].append(chosen == other)
                    others[rival].append(chosen == other)
    voters = Counter(vote["voter"] for vote in votes)
    rows = []
    for voter, count in voters.most_common():
        found = share(sum(others[voter]), len(others[voter]))
        # Whose interval lies below what others reach, and holds chance, answers as a coin would.
        doubtful = bool(others[voter]) and found.low <= CHANCE and found.high < share(sum(both), len(both)).value
        rows.append({"voter": voter, "votes": count, "agrees": _plain(found), "at_chance": doubtful})
    return {
        "between_voters": _plain(share(sum(both), len(both))),
        "with_themselves": _plain(share(sum(own), len(own))),
        "voters": rows,
    }


def _told(vote: Mapping[str, Any]) -> dict[str, Any]:
    sides = [{"model": vote[side].model, "picture": vote[side].digest} for side in ("first", "second")]
    time = vote["time"].isoformat(timespec="seconds") if vote["time"] else None
    return {"prompt": vote["first"].prompt, "sides": sides, "choice": vote["choice"], "time": time}


def _plain(found: Interval) -> dict[str, float]:
    return {name: round(value, 4) for name, value in found._asdict().items()}

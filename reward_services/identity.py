"""Which reward it is: what decides its scores, files by their contents. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from reward_services.contents import digest, digest_of, local_path
from reward_services.spec import RewardSpec

_SETTINGS = ("model", "backend", "preprocess", "dtype")
_FILES = ("checkpoint", "tokenizer")


def identity(spec: RewardSpec) -> dict[str, str]:
    """Return what decides the scores of a reward by field.

    Model, backend, preprocessing and dtype are as in the spec. Of the checkpoint and the tokenizer it is a digest of
    the files that lie here, or else the text, such as a hub id. Device and versions decide no more than rounding.
    """
    return {name: getattr(spec, name) for name in _SETTINGS} | {name: _contents(getattr(spec, name)) for name in _FILES}


def differences(spec: RewardSpec, described: Mapping[str, Any]) -> list[str]:
    """Return in words what makes a service another reward than a spec means; nothing if it is the same.

    A spec that knows its `self_test_score` need not have the files: then the score says which they are.

    Args:
        spec: what is meant.
        described: what the service says of itself, see `RewardService.describe`.
    """
    own, served, score = identity(spec), described.get("identity", {}), described["self_test_score"]
    known = spec.self_test_score
    if known is not None and not spec.same_score(score, known):
        return [f"the test picture scores {score:.6g} there, self_test_score is {known:.6g}"]
    found = []
    for name, mine in own.items():
        theirs = served.get(name)
        if theirs == mine or (known is not None and name in _FILES):
            continue
        if name in _SETTINGS:
            found.append(f"{name} is {theirs!r} there, {mine!r} here")
            continue
        text, said = getattr(spec, name), described["spec"][name]
        if text is not None and local_path(text) is None:
            remedy = f"give the files, or, if it is the one you mean, self_test_score={score:.6g}"
            found.append(f"{name} {text!r} is not here, and {said!r} is served; {remedy}")
        else:
            found.append(f"{name} {text!r} has other contents than the {said!r} that is served")
    return found


def _contents(text: str | None) -> str:
    """Return what a checkpoint or tokenizer is; a file goes with the small ones that are read beside it."""
    place = local_path(text) if text is not None else None
    if place is None:
        return str(text)
    if place.is_dir():
        return digest_of(place)
    beside = sorted(file for kind in ("*.json", "*.txt") for file in place.parent.glob(kind))
    return digest([digest_of(file) for file in (place, *beside)])

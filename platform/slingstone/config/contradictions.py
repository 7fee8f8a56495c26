"""Values that are right alone and wrong together."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pydantic_core import PydanticCustomError


class Contradiction(NamedTuple):
    """A value that is right alone and wrong beside another one."""

    path: str
    value: Any
    message: str


def refuse(contradictions: Iterable[Contradiction]) -> None:
    """Refuse a section in which values contradict each other; the error names all of them."""
    if found := list(contradictions):
        raise PydanticCustomError("contradictions", "sections contradict each other", {"found": found})


def shared_names(path: str, entries: Iterable[Any]) -> Iterator[Contradiction]:
    """Yield the names that several entries of a list have."""
    for name, count in sorted(Counter(entry.name for entry in entries).items()):
        if count > 1:
            yield Contradiction(path, name, f"is the name of two {path.rpartition('.')[2]}; rename one")

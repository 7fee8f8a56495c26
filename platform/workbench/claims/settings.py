"""A set of studies: runs that differ in one thing, repeated over seeds, and what is to be learned from them."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from slingstone.config.contradictions import Contradiction
from slingstone.config.tree import Name, PathText, Section


class Arm(Section):
    """One way of training."""

    name: Name
    """What tables call it."""
    overrides: tuple[str, ...] = ()
    """`dotted.path=value`: in what it differs from the other arms."""
    vary: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Dotted paths and the values that each takes in turn; of several paths, every combination."""


class Study(Section):
    """One question."""

    name: Name
    """Of its pictures."""
    title: Annotated[str, Field(min_length=1)]
    """Heading of its section."""
    claim: str = ""
    """What is claimed, and where."""
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    """What is compared; arms that come to the same run share it."""
    matched: bool = False
    """Whether arms are compared at equal trained reward, by linear interpolation between the values of `vary`."""
    discussion: str = ""
    """What people conclude from the numbers; stands below them."""


class Claims(Section):
    """All studies, complete and nameable."""

    name: Name
    """Results lie under `<storage>/claims/<name>`, the runs under `<storage>/align/<name>-<digest>`; the same name goes
    on where it was interrupted."""
    storage: PathText = "outputs"
    """Directory under which everything is written; all nodes must see it."""
    run: PathText
    """YAML file of the run that all arms vary, such as configs/align/scenes.yaml."""
    overrides: tuple[str, ...] = ()
    """`dotted.path=value` for all arms."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    """Each becomes `seed` and `evaluation.seed` of every arm; standard errors are over them."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("diversity",)
    """Numbers of the final evaluation that tables and pictures show beside the trained reward."""
    studies: Annotated[tuple[Study, ...], Field(min_length=1)]
    """The questions."""
    sheet_prompts: PositiveInt = 6
    """Rows of the sheets of pictures; at most `evaluation.grid_prompts`."""
    max_concurrent: PositiveInt | None = None
    """Most runs at a time; null is as many as the cluster holds."""

    @model_validator(mode="after")
    def _agree(self) -> "Claims":
        found = list(_contradictions(self))
        if found:
            raise PydanticCustomError("contradictions", "sections contradict each other", {"found": found})
        return self


def _contradictions(claims: Claims) -> Iterator[Contradiction]:
    for path, entries in (("studies", claims.studies), *((f"studies.{s.name}.arms", s.arms) for s in claims.studies)):
        names = [entry.name for entry in entries]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield Contradiction(path, name, "is the name of two; rename one")
    for study in claims.studies:
        for arm in study.arms:
            if study.matched and not any(len(values) > 1 for values in arm.vary.values()):
                remedy = "give it two values or more of objective.reward_weight"
                yield Contradiction(f"studies.{study.name}.arms.{arm.name}.vary", None, f"cannot be matched; {remedy}")

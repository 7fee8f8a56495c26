"""One vote on a pair of pictures: the record that every format, the trainer and the arena share. Imports no torch."""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Literal

import pyarrow as pa
from PIL import Image, UnidentifiedImageError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeFloat, ValidationError

from reward_services.unicode import HALF_PAIR

Choice = Literal["first", "second", "tie", "both_bad"]
LABELS: Mapping[Choice, tuple[float, float]] = {
    "first": (1.0, 0.0),
    "second": (0.0, 1.0),
    "tie": (0.5, 0.5),
    "both_bad": (0.5, 0.5),
}
"""pickapic_v2's `label_0` and `label_1` of each choice; both bad is a tie to those who do not know it."""

_MODEL = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
_INTEGER = re.compile(r"\d{1,18}")


def _written(text: str) -> str:
    if "\0" in text or HALF_PAIR.search(text):
        raise ValueError("holds a NUL or half of a surrogate pair, so it is no text; remove that")
    return text


def _spoken(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank; a picture is judged against its prompt")
    return _written(text)


def _picture(data: bytes) -> bytes:
    opened(data).close()
    return data


def _utc(time: Any) -> Any:
    return time.replace(tzinfo=UTC) if isinstance(time, datetime) and time.tzinfo is None else time


Text = Annotated[str, Field(min_length=1), AfterValidator(_written)]
Id = Annotated[Text, Field(max_length=200)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Picture(BaseModel):
    """A picture as its file's bytes, and how it was made as far as that is known."""

    model_config = _MODEL

    data: Annotated[bytes, AfterValidator(_picture)]
    """PNG, JPEG or WebP, whose header can be read."""
    model: Text | None = None
    """Who drew it."""
    weights: Text | None = None
    """Digest of that model's weights."""
    seed: Int64 | None = None
    """Of the noise."""
    steps: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Denoising steps."""
    sampler: Text | None = None
    """Such as `one_step` or `dpmsolver++`."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the bytes: the picture's identity."""
        return hashlib.sha256(self.data).hexdigest()


class Preference(BaseModel):
    """One vote: which of two pictures of a prompt somebody prefers."""

    model_config = _MODEL

    vote_id: Id
    """Unique; the same vote has the same id in every copy."""
    prompt: Annotated[str, AfterValidator(_spoken)]
    """What the pictures were to show."""
    first: Picture
    second: Picture
    choice: Choice
    """Of the two as they are named here, wherever they stood on the screen."""
    voter: Id
    """Pseudonym."""
    time: Annotated[datetime, BeforeValidator(_utc)] | None = None
    """When; without a zone it is UTC."""
    seconds: NonNegativeFloat | None = None
    """How long the voter took."""
    shown_left: Literal["first", "second"] | None = None
    """Which of the two stood on the left of the screen."""

    @property
    def pictures(self) -> tuple[Picture, Picture]:
        """First and second."""
        return self.first, self.second

    @property
    def labels(self) -> tuple[float, float]:
        """Share of the vote that each picture has."""
        return LABELS[self.choice]


SCHEMA = pa.schema(
    {
        # pickapic_v2's columns
        "are_different": pa.bool_(),
        "best_image_uid": pa.string(),
        "caption": pa.string(),
        "created_at": pa.timestamp("us", tz="UTC"),
        "has_label": pa.bool_(),
        "image_0_uid": pa.string(),
        "image_0_url": pa.string(),
        "image_1_uid": pa.string(),
        "image_1_url": pa.string(),
        "jpg_0": pa.binary(),
        "jpg_1": pa.binary(),
        "label_0": pa.float64(),
        "label_1": pa.float64(),
        "model_0": pa.string(),
        "model_1": pa.string(),
        "ranking_id": pa.int64(),
        "user_id": pa.int64(),
        "num_example_per_prompt": pa.int64(),
        # what those lack
        "vote_id": pa.string(),
        "voter": pa.string(),
        "choice": pa.string(),
        "seconds": pa.float64(),
        "shown_left": pa.string(),
        "weights_0": pa.string(),
        "weights_1": pa.string(),
        "seed_0": pa.int64(),
        "seed_1": pa.int64(),
        "steps_0": pa.int32(),
        "steps_1": pa.int32(),
        "sampler_0": pa.string(),
        "sampler_1": pa.string(),
    }
)
"""Columns and types of the table on disk."""
PROVENANCE = ("model", "weights", "seed", "steps", "sampler")
OPTIONAL = tuple(name for name in SCHEMA.names if name not in ("caption", "jpg_0", "jpg_1", "label_0", "label_1"))
"""What a foreign table may lack."""
OURS = tuple(SCHEMA.names[SCHEMA.names.index("vote_id") :])
"""Columns beside pickapic_v2's."""

BadRow = Callable[[ValueError], None]
"""Is told of a row that cannot be read, by file and row; what it does not raise is skipped."""


def stop(error: ValueError) -> None:
    """Take no bad row."""
    raise error


def to_row(preference: Preference) -> dict[str, Any]:
    """Return a vote as a row of the table; `num_example_per_prompt` is the writer's to count."""
    first, second = (picture.digest for picture in preference.pictures)
    row: dict[str, Any] = {
        "are_different": first != second,
        "best_image_uid": {"first": first, "second": second}.get(preference.choice, "tie"),
        "caption": preference.prompt,
        "created_at": preference.time,
        "has_label": True,
        "ranking_id": _number(preference.vote_id),
        "user_id": _number(preference.voter),
        "vote_id": preference.vote_id,
        "voter": preference.voter,
        "choice": preference.choice,
        "seconds": preference.seconds,
        "shown_left": preference.shown_left,
    }
    for side, (picture, label) in enumerate(zip(preference.pictures, preference.labels, strict=True)):
        row |= {f"image_{side}_uid": picture.digest, f"image_{side}_url": "", f"jpg_{side}": picture.data}
        row |= {f"{name}_{side}": getattr(picture, name) for name in PROVENANCE} | {f"label_{side}": label}
    return row


def from_row(row: Mapping[str, Any], place: str) -> Preference:
    """Return the vote of a row, ours or pickapic_v2's, whose columns may be fewer.

    Args:
        row: by column; null is as good as absent.
        place: file and row, for messages.

    Raises:
        ValueError: the row is no vote; names place, column, value and remedy.
    """
    known = {name: value for name, value in row.items() if value is not None}
    if known.get("choice", "tie") not in LABELS:
        raise ValueError(f"{place}: choice = {known['choice']!r}: is none of {', '.join(LABELS)}; write one of them")
    if "choice" in known and not {"label_0", "label_1"} & known.keys():
        known |= dict(zip(("label_0", "label_1"), LABELS[known["choice"]], strict=True))
    try:
        labels = float(known["label_0"]), float(known["label_1"])
        pictures = [
            {"data": known[f"jpg_{side}"]}
            | {name: known[f"{name}_{side}"] for name in PROVENANCE if f"{name}_{side}" in known}
            for side in (0, 1)
        ]
        vote: dict[str, Any] = {"prompt": known["caption"], "first": pictures[0], "second": pictures[1]}
    except KeyError as error:
        raise ValueError(f"{place}: has no {error.args[0]}; write one in every row") from None
    except (TypeError, ValueError):
        raise ValueError(f"{place}: label_0 or label_1 is no number; write 1 and 0, or .5 and .5 for a tie") from None
    if not known.get("has_label", True):
        raise ValueError(f"{place}: has_label is false, so nobody has voted on it; leave such rows out")
    choice = known.get("choice", "tie") if labels == (0.5, 0.5) else _CHOICES.get(labels)
    if choice is None or known.get("choice", choice) != choice:
        said = f", choice = {known['choice']!r}" if "choice" in known else ""
        raise ValueError(
            f"{place}: labels {labels[0]:g} and {labels[1]:g}{said} are no choice; write 1 and 0, or .5 and .5"
        )
    voter = str(known.get("voter", known.get("user_id", "unknown")))
    vote |= {"choice": choice, "voter": voter, "time": known.get("created_at")}
    vote["vote_id"] = str(known.get("vote_id", known.get("ranking_id")) or _id_of(known, voter))
    vote |= {name: known[name] for name in ("seconds", "shown_left") if name in known}
    return checked(vote, place)


def checked(vote: Mapping[str, Any], place: str) -> Preference:
    """Return a vote from its fields.

    Raises:
        ValueError: a field is not what it should be; names place, field and value.
    """
    try:
        return Preference.model_validate(vote)
    except ValidationError as error:
        found = error.errors()[0]
        field, value = ".".join(map(str, found["loc"])), found["input"]
        shown = f"{len(value)} bytes" if isinstance(value, bytes) else repr(value)[:80]
        raise ValueError(f"{place}: {field} = {shown}: {found['msg'].removeprefix('Value error, ')}") from None


def opened(data: bytes) -> Image.Image:
    """Return a picture whose header was read; its pixels are decoded when they are asked for.

    Raises:
        ValueError: it is no picture.
    """
    try:
        return Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).partition(" <_io")[0]
        raise ValueError(f"is no picture that can be decoded ({reason}); send PNG, JPEG or WebP") from None


def decoded(data: bytes) -> Image.Image:
    """Return a picture in RGB, on white where it is transparent.

    Raises:
        ValueError: it cannot be decoded to its end.
    """
    picture = opened(data)
    try:
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            layer = picture.convert("RGBA")
            picture = Image.new("RGBA", layer.size, "white")
            picture.alpha_composite(layer)
        return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"is a picture that is cut short or damaged ({error}); fetch it again") from None


def decodable(preferences: Iterable[Preference], bad: BadRow = stop) -> Iterator[Preference]:
    """Yield the votes whose pictures can be decoded to their end; `bad` is told of the others."""
    for vote in preferences:
        try:
            for name, picture in zip(("first", "second"), vote.pictures, strict=True):
                try:
                    decoded(picture.data).close()
                except ValueError as error:
                    raise ValueError(f"vote {vote.vote_id}: its {name} picture {error}") from None
        except ValueError as error:
            bad(error)
            continue
        yield vote


_CHOICES: Mapping[tuple[float, float], Choice] = {(1.0, 0.0): "first", (0.0, 1.0): "second"}


def _id_of(row: Mapping[str, Any], voter: str) -> str:
    parts = [str(row["caption"]), voter, str(row.get("created_at", "")), *(repr(row[f"jpg_{side}"]) for side in (0, 1))]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]


def _number(text: str) -> int:
    """Return pickapic_v2's number of a name: itself where it is one, else a stable one."""
    if _INTEGER.fullmatch(text):
        return int(text)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

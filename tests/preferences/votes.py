"""Votes for tests: small pictures that differ, and every field filled."""

import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import cycle
from typing import Any, get_args

from PIL import Image

from slingstone.preferences.table import Choice, Picture, Preference

PROMPTS = ("a red circle", 'quotes "here", and; there', "two\nlines\r\nof it", "emoji 🎈 and ünïcode", "x" * 10_000)
START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def picture(colour: tuple[int, int, int], side: int = 16, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, kind)
    return file.getvalue()


def votes(count: int = 12, **changed: Any) -> Iterator[Preference]:
    choices, prompts = cycle(get_args(Choice)), cycle(PROMPTS)
    for number in range(count):
        first = Picture(
            data=picture((number % 256, 0, 0)), model="a", weights="w1", seed=number, steps=1, sampler="one_step"
        )
        second = Picture(data=picture((0, number % 256, 9), kind="JPEG"), model="b", seed=-number, steps=50)
        fields: dict[str, Any] = {
            "vote_id": f"vote-{number}",
            "prompt": next(prompts),
            "first": first,
            "second": second,
            "choice": next(choices),
            "voter": f"voter-{number % 3}",
            "time": START + timedelta(seconds=number),
            "seconds": number / 3,
            "shown_left": ("first", "second", None)[number % 3],
        }
        yield Preference.model_validate(fields | changed)

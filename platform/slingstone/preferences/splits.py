"""Which votes are held out: by prompt, so that no prompt is on both sides, and the same in every file and order."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from slingstone.preferences.parquet import ParquetWriter
from slingstone.preferences.table import Preference


def held_out(prompt: str, share: float, seed: int = 0) -> bool:
    """Tell whether a prompt's votes are held out; prompts that differ in case and white space alone go together.

    Args:
        prompt: of any vote.
        share: of the prompts, in [0, 1]; so many are held out on average.
        seed: another one holds out others.
    """
    same = " ".join(prompt.casefold().split())
    digest = hashlib.sha256(f"{seed}/{same}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split(preferences: Iterable[Preference], directory: Path, share: float, seed: int = 0) -> dict[str, int]:
    """Write `train.parquet` and `test.parquet`; return how many votes each has.

    Raises:
        ValueError: a side is left without votes; nothing is written.
    """
    with ParquetWriter(directory / "train.parquet") as train, ParquetWriter(directory / "test.parquet") as test:
        for vote in preferences:
            (test if held_out(vote.prompt, share, seed) else train).append(vote)
        counts = {"train": train.count, "test": test.count}
        for side, count in counts.items():
            if count == 0:
                raise ValueError(
                    f"share = {share}: leaves no votes to {side}; take another share or seed, or more prompts"
                )
    return counts

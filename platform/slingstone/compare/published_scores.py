"""The paper's tables, to stand beside ours: authors' numbers, of another harness."""

from typing import NamedTuple

SOURCE = "arXiv:2410.20898"

PARTI_COLUMNS = {"imagereward": "ImageReward", "aesthetic": "Aesthetic", "pickscore": "PickScore", "clip": "CLIP"}
"""Headings by the kind of reward whose scores stand under them."""

HPSV2_STYLES = {"anime": "anime", "concept-art": "concept", "paintings": "painting", "photo": "photo"}
"""Headings by the style of the benchmark's prompts."""


class Published(NamedTuple):
    """A row of a table: the model, its steps and size, then the scores in the order of the headings."""

    model: str
    steps: int
    parameters: str
    scores: tuple[str, ...]
    seconds_per_10_images: str = ""


PARTI = (
    Published("SDXL-base", 50, "2.6B", (".887", "5.72", ".2274", "32.72"), "111"),
    Published("SD3.5-large", 28, "8B", ("1.133", "5.70", ".2306", "32.70"), "66.23"),
    Published("FLUX-dev", 50, "12B", ("1.132", "5.90", ".2317", "31.70"), "118.64"),
    Published("DMD2-SDXL", 1, "2.6B", (".930", "5.51", ".2249", "32.97"), "2.22"),
    Published("Diff-Instruct", 1, "2.6B", ("1.058", "5.60", ".2253", "33.02"), "2.22"),
    Published("SIM", 1, "2.6B", ("1.049", "5.66", ".2273", "32.93"), "2.22"),
    Published("DI++", 1, "2.6B", ("1.061", "5.58", ".2260", "32.94"), "2.22"),
    Published("DI*", 1, "2.6B", ("1.067", "5.74", ".2304", "32.82"), "2.22"),
    Published("DI* longer", 1, "2.6B", ("1.140", "5.83", ".2331", "32.75"), "2.22"),
)
"""PartiPrompts, 1024 px."""

HPSV2 = (
    Published("SDXL-base", 50, "2.6B", ("30.85", "29.30", "28.98", "27.05", "29.05")),
    Published("SD3.5-large", 28, "8B", ("31.89", "30.19", "30.39", "28.01", "30.12")),
    Published("FLUX-dev", 50, "12B", ("32.09", "30.44", "31.17", "29.09", "30.70")),
    Published("DMD2-SDXL", 1, "2.6B", ("29.72", "27.96", "27.64", "26.55", "27.97")),
    Published("SIM", 1, "2.6B", ("31.97", "30.46", "30.13", "28.08", "30.16")),
    Published("DI++", 1, "2.6B", ("31.19", "29.88", "29.61", "28.21", "29.72")),
    Published("DI*", 1, "2.6B", ("32.26", "30.57", "30.10", "27.95", "30.22")),
    Published("DI* longer", 1, "2.6B", ("33.22", "31.67", "31.25", "28.62", "31.19")),
)
"""HPSv2.1 by style and on average."""

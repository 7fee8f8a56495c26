"""Where things are: paths of a configuration, made absolute once; what a job recorded of sources that moved since."""

import re
from pathlib import Path

from slingstone.config.tree import Models

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(/.+\.(safetensors|bin|pt|pth))?")
"""A repository, or a file of weights in one."""


ROOT = Path(__file__).resolve().parents[3]


UNPACKED = re.compile(r"^/.*/working_dir_files/[^/]+/")
"""Where Ray unpacks a job's working directory."""


def located(path: str) -> str:
    """Return the absolute path of what exists in the working directory or beside the source; else the text itself.

    What a job recorded of sources that were unpacked for it, and are gone since, is found beside this source.
    """
    for place in (Path.cwd() / path, ROOT / path, ROOT / of_sources(path)):
        if place.exists():
            return str(place.resolve())
    return path


def located_models(models: Models) -> Models:
    """Return the models with absolute paths, hub ids as they are."""
    parts = ("reference", "generator", "assistant", "reward_decoder")
    return models.model_copy(update={name: located(value) for name, value in models if name in parts and value})


def of_sources(value: str) -> str:
    """Return a value; of a path into the sources, what comes after the place where a process found them.

    Each cluster unpacks the sources that come with a job into a directory of its own.
    """
    return UNPACKED.sub("", value.removeprefix(f"{ROOT}/"))

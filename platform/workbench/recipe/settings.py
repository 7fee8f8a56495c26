"""The numbers of the world's build, one YAML file."""

from pathlib import Path

from pydantic import PositiveFloat, PositiveInt

from slingstone.config import Section


class Training(Section):
    """How long and how fast one network learns."""

    steps: PositiveInt
    batch: PositiveInt
    learning_rate: PositiveFloat


class Reference(Training):
    """Stage 2; `pictures` are drawn once and seen `steps * batch / pictures` times."""

    pictures: PositiveInt


class Preferences(Training):
    """A phase of a reward's training; `batch` counts captions, each with `candidates` pictures."""

    captions: PositiveInt
    candidates: PositiveInt


class WorldBuild(Section):
    """All stages; files of finished stages in `work` are kept, so an interrupted build goes on."""

    seed: int
    work: Path
    output: Path
    autoencoder: Training
    decoder: Training
    reference: Reference
    generator: Path
    drawn_preferences: Preferences
    generated_preferences: Preferences
    train_prompts: PositiveInt
    heldout_prompts: PositiveInt

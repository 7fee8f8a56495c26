"""The numbers of the world's build, one YAML file."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from slingstone.config.tree import Section


class Training(Section):
    """How long and how fast one network learns."""

    steps: PositiveInt
    batch: PositiveInt
    learning_rate: PositiveFloat
    keep_every: PositiveInt = 250
    """Steps between two writings of the state from which an interrupted training goes on."""


class Autoencoder(Training):
    """Stage 1."""

    channels: tuple[PositiveInt, ...] = (16, 32, 64)
    """Of each level; every level after the first halves the picture."""
    latent_channels: PositiveInt = 4
    start: Path | None = None
    """An autoencoder of these levels, which other pictures taught, to go on from; null starts from random weights."""


class Reference(Training):
    """Stage 2; `pictures` are drawn once and seen `steps * batch / pictures` times."""

    pictures: PositiveInt
    channels: tuple[PositiveInt, ...] = (48, 112)
    """Of the denoiser's levels; every level after the first halves the latents."""
    attention: tuple[bool, ...] = (False, True)
    """Which levels attend to the caption."""
    text: Training | None = None
    """Teaches the text encoder what stands where, and freezes it; null trains it with the denoiser."""


class Tower(Section):
    """Size of a reward's picture tower."""

    patch: PositiveInt
    """Side in pixels."""
    layers: PositiveInt
    width: PositiveInt = 96
    """Of both towers."""


class Towers(Section):
    """Of each reward."""

    pickscore: Tower = Tower(patch=6, layers=3)
    hps: Tower = Tower(patch=8, layers=4)
    imagereward: Tower = Tower(patch=6, layers=3)


class Preferences(Training):
    """A phase of a reward's training; `batch` counts captions, each with `candidates` pictures."""

    captions: PositiveInt
    candidates: PositiveInt
    miscounted: float = Field(default=0.0, ge=0, le=1)
    """Share of the false drawings in which a thing is missing or doubled."""


class Voting(Section):
    """The shipped votes of simulated voters, on pictures of the world's own generators."""

    captions: PositiveInt
    """Captions with pictures; a third of them is held out."""
    candidates: PositiveInt
    """Pictures of each caption that the generator draws, and as many drawings with flaws."""
    train: PositiveInt
    """Votes to learn from."""
    test_pairs: PositiveInt
    """Held-out pairs, each seen by three voters."""
    voters: PositiveInt
    """Pseudonyms."""
    taste: Literal["vivid", "light", "large", "high", "tidy"] = "vivid"
    """What voters like beside the utility."""


class WorldBuild(Section):
    """All stages; files of finished stages in `work` are kept, so an interrupted build goes on."""

    edition: Literal["scenes", "open_scenes"] = "scenes"
    seed: int
    work: Path
    output: Path
    autoencoder: Autoencoder
    decoder: Training
    reference: Reference
    generator: Path
    towers: Towers = Towers()
    reading: Training | None = None
    """Teaches rewards to tell right captions from near ones before they see votes; null starts with the votes."""
    drawn_preferences: Preferences
    generated_preferences: Preferences
    votes: Voting
    train_prompts: PositiveInt
    heldout_prompts: PositiveInt

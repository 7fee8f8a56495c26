"""The numbers of the world's build, one YAML file."""

from pathlib import Path

from pydantic import PositiveFloat, PositiveInt

from slingstone.config.tree import Section


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
    votes: Voting
    train_prompts: PositiveInt
    heldout_prompts: PositiveInt

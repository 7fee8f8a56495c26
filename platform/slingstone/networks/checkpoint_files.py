"""Reads the parts of a diffusers pipeline, and says in one sentence what is wrong with one that cannot be read."""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ModelMixin
from huggingface_hub import HfApi, try_to_load_from_cache
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
HUB_TIMEOUT_S = 10
UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError)
"""What the libraries raise over files that are missing, cut short, of another model, or that need another package."""

Model = TypeVar("Model", bound=ModelMixin | PreTrainedModel)
Tokenizer = TypeVar("Tokenizer", bound=PreTrainedTokenizerBase)


def one_line(error: Exception) -> str:
    """Return what an error says, without its line breaks."""
    return " ".join(str(error).split())


@dataclass(frozen=True)
class PipelineFiles:
    """A pipeline of a known class, by the role it plays in the run and its directory or hub id.

    Attributes:
        role: "reference", "generator" or "assistant".
        location: a directory or a hub id.
        index: what its model_index.json says.
    """

    role: str
    location: str
    index: dict[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"{self.role} {self.location!r}"

    @classmethod
    def find(cls, role: str, location: str, kinds: Collection[str]) -> "PipelineFiles":
        """Check that a pipeline of one of the classes `kinds` lies at `location`, a directory or a hub id.

        Raises:
            ValueError: if none does; names `role` and `location`.
        """
        files = cls(role, location, cls(role, location)._read_index())
        if files.kind not in kinds:
            raise ValueError(
                f"{files} is a {files.kind}, not a {' or '.join(sorted(kinds))}: give a checkpoint of that class"
            )
        return files

    @property
    def kind(self) -> str:
        """The pipeline's class."""
        return str(self.index.get("_class_name"))

    def model(self, part: str, kind: type[Model]) -> Model:
        """Load the weights of a part in fp32, in evaluation mode; every one of them must be in the file."""
        with self.reading(part):
            found: Any = kind
            model, info = found.from_pretrained(
                self.location, subfolder=part, dtype=torch.float32, output_loading_info=True
            )
        if wrong := sorted(map(str, info["missing_keys"] or info["mismatched_keys"])):
            raise ValueError(
                f"{self}: the weights in {part}/ do not fit {part}/config.json: {len(wrong)} missing or of another "
                f"shape, the first is {wrong[0]}"
            )
        return model

    def tokenizer(self, part: str, kind: type[Tokenizer]) -> Tokenizer:
        """Load a tokenizer that knows words."""
        with self.reading(part):
            tokenizer = kind.from_pretrained(self.location, subfolder=part)
        # Without its files, transformers makes one that knows its special tokens only.
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise ValueError(f"{self}: {part} has an empty vocabulary; copy or export the checkpoint again")
        return tokenizer

    def parts(self, kinds: Mapping[str, type[Any]]) -> dict[str, Any]:
        """Load tokenizers, and models without gradient, by their names in the pipeline."""
        return {
            part: self.tokenizer(part, kind)
            if issubclass(kind, PreTrainedTokenizerBase)
            else self.model(part, kind).requires_grad_(False)
            for part, kind in kinds.items()
        }

    def scheduler_config(self) -> dict[str, Any]:
        """Return the configuration of the pipeline's scheduler."""
        with self.reading("scheduler"):
            config: Any = DDIMScheduler.load_config(self.location, subfolder="scheduler")
            return config

    def _read_index(self) -> dict[str, Any]:
        directory = Path(self.location)
        if not directory.exists():
            self._ask_hub()
        elif not (directory / "model_index.json").is_file():
            raise ValueError(
                f"{self} is no diffusers pipeline: it has no model_index.json; "
                "give a directory that save_pretrained wrote, or a hub id"
            )
        with self.reading("model_index.json"):
            config: Any = DiffusionPipeline.load_config(self.location)
            return config

    def _ask_hub(self) -> None:
        """Fail at once where the download would: it tries for half a minute, for what is often a mistyped directory."""
        if not HUB_ID.fullmatch(self.location):
            raise ValueError(f"{self}: no such directory; give a diffusers pipeline directory or a hub id")
        if isinstance(try_to_load_from_cache(self.location, "model_index.json"), str):
            return
        try:
            HfApi().model_info(self.location, timeout=HUB_TIMEOUT_S)
        # Its kinds are those of whatever transport the hub's client uses.
        except Exception as error:
            raise ValueError(
                f"{self} is no directory here, and no hub repository that can be read: {one_line(error)}"
            ) from error

    @contextmanager
    def reading(self, part: str) -> Iterator[None]:
        """Turn whatever the libraries raise into one error about `part`, and keep their progress bars off the log."""
        directory = Path(self.location)
        if directory.is_dir() and not (directory / part).exists():
            raise ValueError(f"{self} is incomplete: {part} is missing; copy or export the checkpoint again")
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            yield
        except UNREADABLE as error:
            raise ValueError(f"{self}: {part} cannot be used: {one_line(error)}") from error
        finally:
            if bars:
                logging.enable_progress_bar()

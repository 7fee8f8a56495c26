"""Prompts that are longer than what reads them takes: text encoders and rewards drop the rest without a word."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reward_services.spec import RewardSpec
from slingstone.config import Experiment
from slingstone.plan.memory import local_pipeline
from slingstone.prompts.files import read_prompts

Counts = dict[str, dict[str, dict[str, Any]]]
"""By set of prompts and reader: how many of the prompts are cut, and at how many tokens; or why that is not known."""
BATCH = 4096
SPECIAL = 3
"""Most tokens that a tokenizer adds to those of a text's letters."""


def cut_prompts(experiment: Experiment) -> Counts:
    """Return the counts of a run's training and evaluation prompts, for its text encoders and its rewards."""
    data, evaluation = experiment.data, experiment.evaluation
    sets = {
        "data": read_prompts(data.prompts, data.column),
        "evaluation": read_prompts(evaluation.prompts, evaluation.column)[: evaluation.num_prompts],
    }
    return counted(sets, {"": experiment.models.reference}, [entry.spec for entry in experiment.rewards.services])


def counted(sets: Mapping[str, Sequence[str]], pipelines: Mapping[str, str], rewards: Sequence[RewardSpec]) -> Counts:
    """Return the counts of sets of prompts, for the text encoders of pipelines (by any prefix) and for rewards."""
    readers = dict([*_encoders(pipelines), *_rewards(rewards)])
    return {
        name: {
            reader: {"unknown": found} if isinstance(found, str) else _cut(found, prompts)
            for reader, found in readers.items()
        }
        for name, prompts in sets.items()
    }


def told(counts: Counts) -> list[str]:
    """Return the counts as lines, one a reader and set of which something is cut or unknown; else one that says so."""
    lines = []
    for name, readers in counts.items():
        for reader, found in readers.items():
            if "unknown" in found:
                lines.append(f"  {name}: not known of {reader}, {found['unknown']}")
            elif found["cut"]:
                lines.append(
                    f"  {name}: {found['cut']} of {found['prompts']} beyond the {found['tokens']} tokens of {reader}"
                )
    return ["prompts that are cut:", *lines] if lines else ["no prompt is cut"]


def _cut(window: Any, prompts: Sequence[str]) -> dict[str, Any]:
    cut = 0
    for start in range(0, len(prompts), BATCH):
        cleaned = (window.clean(prompt) for prompt in prompts[start : start + BATCH])
        # What is shorter in letters has no more tokens: a quick look spares most of the work.
        texts = [text for text in cleaned if not text.isascii() or len(text) + SPECIAL > window.tokens]
        if not texts:
            continue
        rows = window.tokenizer(texts, verbose=False, split_special_tokens=True)["input_ids"]
        cut += sum(len(row) > window.tokens for row in rows)
    return {"cut": cut, "prompts": len(prompts), "tokens": window.tokens}


def _rewards(rewards: Sequence[RewardSpec]) -> Iterator[tuple[str, Any]]:
    from reward_services.models.windows import window

    for spec in rewards:
        try:
            found = window(spec)
        except (OSError, ValueError, KeyError) as error:
            found = " ".join(str(error).split())
        if found is not None:
            yield f"reward {spec.name}", found


def _encoders(pipelines: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for prefix, location in pipelines.items():
        directory = local_pipeline(location)
        if directory is None:
            yield f"{prefix} text encoders".strip(), f"{location} is not here"
            continue
        for part, window in _windows(directory):
            yield f"{prefix} {part}".strip(), window


def _windows(directory: Path) -> Iterator[tuple[str, Any]]:
    """Yield the text encoders of a pipeline that cut prompts, by their names, with what they take."""
    from transformers import CLIPTokenizer, T5Tokenizer

    from reward_services.models.windows import Window
    from slingstone.networks.text import PIXART_TOKENS, SD3_T5_TOKENS, clip_length, pixart_text

    index = json.loads((directory / "model_index.json").read_text())
    t5_tokens = {"PixArtAlphaPipeline": PIXART_TOKENS, "StableDiffusion3Pipeline": SD3_T5_TOKENS}
    for name in index:
        if not name.startswith("tokenizer") or not (directory / name).is_dir():
            continue
        encoder = name.replace("tokenizer", "text_encoder")
        described = json.loads((directory / encoder / "config.json").read_text())
        if described.get("model_type", "").startswith("clip"):
            tokenizer = CLIPTokenizer.from_pretrained(directory / name)
            yield encoder, Window(tokenizer, clip_length(tokenizer, described["max_position_embeddings"]))
        elif index["_class_name"] in t5_tokens:
            clean = pixart_text if index["_class_name"] == "PixArtAlphaPipeline" else str
            yield encoder, Window(T5Tokenizer.from_pretrained(directory / name), t5_tokens[index["_class_name"]], clean)

"""The model card of an export: what the generator is, how it was trained, what it scored, and how it is run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from slingstone.config import Experiment, to_yaml
from slingstone.config.paths import HUB_ID
from slingstone.evaluation.table import final_table


@dataclass(frozen=True)
class Provenance:
    """Where exported weights come from.

    Attributes:
        images: that they were trained on.
        weights: `ema` or `raw`.
        sources: see `tracking.provenance`.
        results: evaluations by label, of this very state; empty if it was not evaluated.
    """

    images: int
    weights: str
    sources: Mapping[str, str]
    results: Mapping[str, Mapping[str, Any]]


def model_card(experiment: Experiment, of: Provenance) -> str:
    """Return the text of README.md, with the metadata that the Hugging Face hub reads."""
    metadata: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["one-step", "diff-instruct-star", "slingstone"],
    }
    if HUB_ID.fullmatch(experiment.models.reference):
        metadata["base_model"] = experiment.models.reference
    facts = "\n".join(f"| {name} | {value} |" for name, value in _recipe(experiment, of).items())
    measured = f"```\n{final_table(of.results)}\n```" if of.results else "This state of the weights was not evaluated."
    judged = experiment.evaluation
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False)}---

# {experiment.name}

A one-step text-to-image generator, aligned by score-based preference optimisation
([Diff-Instruct*](https://arxiv.org/abs/2410.20898)) with slingstone.

## Use

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("path or hub id of this directory")
image = pipeline("a prompt", num_inference_steps=1, guidance_scale=0).images[0]
```

The scheduler beside the weights makes one step the generator's own. Another scheduler, guidance or more steps do
not fit.

## Recipe

| | |
|---|---|
{facts}

## Measured

{measured}

Prompts: `{judged.prompts}`, {judged.images_per_prompt} pictures each, seed {judged.seed}.

## The whole run

```yaml
{to_yaml(experiment).strip()}
```
"""


def _recipe(experiment: Experiment, of: Provenance) -> dict[str, str]:
    objective, models = experiment.objective, experiment.models
    rewards = [f"{entry.name} ({entry.model}), weight {entry.weight:g}" for entry in experiment.rewards.services]
    return {
        "reference": f"`{models.reference}`",
        "generator started from": f"`{models.generator}`",
        "generator's call": f"timestep {models.generator_timestep}, {models.generator_input} noise",
        "distance": objective.distance.kind,
        "guidance": f"{objective.guidance.kind}, {objective.guidance.scale:g}",
        "weight of the rewards": f"{objective.reward_weight:g}",
        "rewards": "; ".join(rewards) or "none",
        "trained": f"LoRA of rank {models.lora.rank}, merged" if models.lora else "all of the network",
        "images": f"{of.images:,}",
        "weights": "exponential moving average" if of.weights == "ema" else "raw",
        "seed": str(experiment.seed),
        "commit": f"`{of.sources.get('git_commit', 'unknown')}`",
        "lock": f"`{of.sources.get('lock_sha256', 'unknown')}`",
    }

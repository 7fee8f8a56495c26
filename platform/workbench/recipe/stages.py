"""The stages of the build, in order; each writes its result once and is skipped when that is there."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_model, save_model
from torch import nn

from slingstone.networks.pipelines import write_pipeline
from slingstone.world.captions import held_out_scenes, sample_scenes
from workbench.recipe.autoencoder import sharpen_decoder, train_autoencoder
from workbench.recipe.preferences import Candidates, drawn_candidates, generated_candidates, merged
from workbench.recipe.reference import train_reference
from workbench.recipe.rewards import Reward, new_reward, train_reward, write_reward
from workbench.recipe.settings import WorldBuild

REWARDS = ("pickscore", "hps", "imagereward")


def build_world(build: WorldBuild) -> None:
    """Run every stage that has not run yet."""
    write_prompts(build)
    vae = build_autoencoder(build)
    build_reference(build, vae)
    build_generator(build)
    build_rewards(build)


def write_prompts(build: WorldBuild) -> None:
    """Write the prompt files: for training half with one thing; held out, all 40 with one thing and distinct others."""
    directory = build.output / "prompts"
    directory.mkdir(parents=True, exist_ok=True)
    trained = sample_scenes(build.train_prompts, build.seed, held_out=False)
    held_out = held_out_scenes(build.heldout_prompts, build.seed)
    for name, scenes in (("train", trained), ("heldout", held_out)):
        text = "".join(f"{scene.caption}\n" for scene in scenes)
        (directory / f"{name}.txt").write_text(text, encoding="utf-8")


def build_autoencoder(build: WorldBuild) -> AutoencoderKL:
    """Stage 1."""
    path = build.work / "autoencoder"
    if not path.exists():
        vae = train_autoencoder(build.autoencoder, build.seed)
        sharpen_decoder(vae, build.decoder, build.seed + 1)
        vae.save_pretrained(path)
    return AutoencoderKL.from_pretrained(path).eval().requires_grad_(False)


def build_reference(build: WorldBuild, vae: AutoencoderKL) -> None:
    """Stage 2."""
    path = build.output / "reference"
    if not path.exists():
        pipeline = train_reference(vae, build.reference, build.seed, build.work / "tokenizer")
        write_half_precision(pipeline, path)


def build_generator(build: WorldBuild) -> None:
    """Stage 3: the job's own distillation, without rewards, from the reference's weights."""
    path = build.output / "generator"
    if not path.exists():
        settings = {
            "storage": build.work,
            "models.reference": build.output / "reference",
            "models.generator": build.output / "reference",
            "data.prompts": build.output / "prompts" / "train.txt",
            "evaluation.prompts": build.output / "prompts" / "heldout.txt",
        }
        overrides = [f"{key}={value.resolve()}" for key, value in settings.items()]
        job = [sys.executable, "jobs/align.py", str(build.generator), *overrides]
        subprocess.run(job, check=True)
        exported = build.work / "align" / build.generator.stem / "pipeline"
        write_half_precision(StableDiffusionPipeline.from_pretrained(exported), path)


def build_rewards(build: WorldBuild) -> None:
    """Stage 4: preferences on drawings first, then on the generators' own pictures and drawings together."""
    missing = [name for name in REWARDS if not (build.output / "rewards" / name).exists()]
    if not missing:
        return
    generated = build.generated_preferences
    pictures = _made_once(
        build.work / "generated.pt",
        lambda: generated_candidates(build.output, generated.captions, generated.candidates, build.seed + 1),
    )
    for name in missing:
        reward = build_drawn_reward(build, name)
        train_reward(reward, merged([drawings(build), pictures]), generated, build.seed + 2)
        write_reward(reward, build.output / "rewards" / name)


def build_drawn_reward(build: WorldBuild, name: str) -> Reward:
    """First half of stage 4, which needs no generator: one reward, trained on preferences among drawings."""
    directory = build.work / "rewards" / name
    reward = new_reward(name, directory, build.seed + 1)
    path = directory / "drawn.safetensors"
    if not path.exists():
        train_reward(reward, drawings(build), build.drawn_preferences, build.seed + 1)
        save_model(reward, str(path))
    load_model(reward, str(path))
    return reward.eval().requires_grad_(False)


def drawings(build: WorldBuild) -> Candidates:
    """Return the drawn candidates, made once."""
    drawn = build.drawn_preferences
    return _made_once(build.work / "drawn.pt", lambda: drawn_candidates(drawn.captions, drawn.candidates, build.seed))


def _made_once(path: Path, make: Callable[[], Candidates]) -> Candidates:
    """Read candidates from an earlier build, or make and keep them."""
    if not path.exists():
        made = make()
        torch.save({"captions": made.captions, "pictures": made.pictures, "utility": made.utility}, path)
    return Candidates(**torch.load(path, weights_only=True))


def write_half_precision(pipeline: StableDiffusionPipeline, directory: Path) -> None:
    """Write the pipeline's networks in fp16."""
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert isinstance(part, nn.Module)
        part.to(torch.float16)
    write_pipeline(pipeline, directory)

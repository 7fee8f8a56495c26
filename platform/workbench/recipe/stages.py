"""The stages of the build, in order; each writes its result once and is skipped when that is there."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import nn

from reward_services.models import load
from reward_services.spec import RewardSpec
from slingstone.atomic import write_text
from slingstone.networks.pipelines import write_pipeline
from slingstone.preferences.parquet import write_parquet
from slingstone.preferences.splits import held_out
from slingstone.world.captions import held_out_scenes, sample_scenes
from slingstone.world.editions import EDITIONS
from workbench.recipe.autoencoder import sharpen_decoder, train_autoencoder
from workbench.recipe.measuring import measured_autoencoder, measured_generators, measured_rewards
from workbench.recipe.preferences import Candidates, beside, chosen, drawn_candidates, generated_candidates, merged
from workbench.recipe.reading import teach_reading
from workbench.recipe.reference import train_reference
from workbench.recipe.rewards import Reward, new_reward, write_reward
from workbench.recipe.settings import Preferences, WorldBuild
from workbench.recipe.votes import all_votes, simulated_votes, with_taste

REWARDS = ("pickscore", "hps", "imagereward")


def build_world(build: WorldBuild) -> None:
    """Run every stage that has not run yet."""
    write_prompts(build)
    vae = build_autoencoder(build)
    build_reference(build, vae)
    build_generator(build)
    build_rewards(build)
    build_votes(build)
    measure(build, vae)


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
    path, edition = build.work / "autoencoder", EDITIONS[build.edition]
    if not path.exists():
        vae = train_autoencoder(build.autoencoder, edition, build.seed, build.work / "autoencoder.pt")
        sharpen_decoder(vae, build.decoder, edition, build.seed + 1, build.work / "decoder.pt")
        vae.save_pretrained(path)
    return AutoencoderKL.from_pretrained(path).eval().requires_grad_(False)


def build_reference(build: WorldBuild, vae: AutoencoderKL) -> None:
    """Stage 2."""
    path = build.output / "reference"
    if not path.exists():
        work = build.work / "tokenizer"
        pipeline = train_reference(vae, EDITIONS[build.edition], build.reference, build.seed, work)
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
    """Stage 4: fitted by the job for rewards to votes on drawings, then to votes on generated pictures and drawings."""
    missing = [name for name in REWARDS if not (build.output / "rewards" / name).exists()]
    if not missing:
        return
    generated = build.generated_preferences
    pictures = _made_once(
        build.work / "generated.pt",
        lambda: generated_candidates(
            build.output, EDITIONS[build.edition], generated.captions, generated.candidates, build.seed + 1
        ),
    )
    phases = {"drawn": drawings(build), "generated": merged([drawings(build), pictures])}
    for name in missing:
        start = build.work / "rewards" / name
        if not (start / "untrained").exists():
            write_reward(untrained_reward(build, name, start), start / "untrained")
        checkpoint = start / "untrained"
        for phase, settings in (("drawn", build.drawn_preferences), ("generated", generated)):
            votes = build.work / "votes" / f"{phase}.parquet"
            if not votes.exists():
                write_parquet(votes, all_votes(phases[phase], build.seed))
            checkpoint = fit_reward(build, name, phase, checkpoint, votes, settings)
        fitted = load(RewardSpec(name=name, model=name, checkpoint=str(checkpoint)))
        assert isinstance(fitted, Reward)
        write_reward(fitted, build.output / "rewards" / name)


def untrained_reward(build: WorldBuild, name: str, directory: Path) -> Reward:
    """Return a reward that has seen no vote; if the build says so, one that reads."""
    edition = EDITIONS[build.edition]
    reward = new_reward(name, getattr(build.towers, name), edition.size, directory / "tokenizer", build.seed + 1)
    if build.reading:
        teach_reading(reward, edition, build.reading, build.seed + 1, directory / "reading.pt")
    return reward


def fit_reward(build: WorldBuild, name: str, phase: str, checkpoint: Path, votes: Path, settings: Preferences) -> Path:
    """Run jobs/reward.py on votes, from a checkpoint; return where the fitted reward lies. A finished fit is kept."""
    pairs = settings.candidates * (settings.candidates - 1) // 2
    votes_a_step = settings.batch * pairs
    given = {
        "name": f"{name}-{phase}",
        "seed": build.seed,
        "storage": build.work.resolve(),
        "reward.model": name,
        "reward.checkpoint": checkpoint.resolve(),
        "reward.preprocess": "smooth",
        "votes.train": votes.resolve(),
        "votes.test": "null",
        "votes.held_out": 0.05,
        "loss": "soft",
        "training.batch_size": votes_a_step,
        "training.num_votes": settings.steps * votes_a_step,
        "training.validate_every_votes": max(1, settings.steps // 5) * votes_a_step,
        "training.patience": "null",
        "training.optimizer.lr": settings.learning_rate,
        "training.optimizer.warmup_steps": settings.steps // 10,
        "training.optimizer.cosine_steps": settings.steps,
    }
    overrides = [f"{key}={value}" for key, value in given.items()]
    job = [sys.executable, "jobs/reward.py", "configs/reward/scenes.yaml", *overrides]
    subprocess.run(job, check=True)
    return build.work / "reward" / f"{name}-{phase}" / "reward"


def drawings(build: WorldBuild) -> Candidates:
    """Return the drawn candidates, made once."""
    drawn, edition = build.drawn_preferences, EDITIONS[build.edition]

    def make() -> Candidates:
        return drawn_candidates(drawn.captions, drawn.candidates, build.seed, edition, drawn.miscounted)

    return _made_once(build.work / "drawn.pt", make)


def build_votes(build: WorldBuild) -> None:
    """Stage 5: simulated votes on pictures of the generator and on drawings, for `configs/reward/scenes.yaml`."""
    directory, settings = build.output / "votes", build.votes
    if directory.exists():
        return
    pictures = voted_pictures(build)
    held = [row for row, caption in enumerate(pictures.captions) if held_out(caption, 1 / 3)]
    rest = [row for row in range(len(pictures.captions)) if row not in set(held)]
    models = ["generator"] * settings.candidates + ["drawing"] * settings.candidates
    train = simulated_votes(chosen(pictures, rest), models, settings.train, settings.voters, build.seed)
    test = simulated_votes(chosen(pictures, held), models, settings.test_pairs, settings.voters, build.seed + 1, 3)
    write_parquet(directory / "train.parquet", train)
    write_parquet(directory / "test.parquet", test)


def voted_pictures(build: WorldBuild) -> Candidates:
    """Return the pictures that simulated voters see, made once."""
    captions, candidates, seed = build.votes.captions, build.votes.candidates, build.seed + 7
    edition = EDITIONS[build.edition]

    def make() -> Candidates:
        generated = generated_candidates(build.output, edition, captions, candidates, seed, one_step=True)
        drawn = drawn_candidates(captions, candidates, seed, edition)
        return with_taste(beside(generated, drawn), build.votes.taste)

    return _made_once(build.work / "voted.pt", make)


def measure(build: WorldBuild, vae: AutoencoderKL) -> None:
    """Stage 6: write `measured.json`, the numbers of the model card."""
    path, edition = build.work / "measured.json", EDITIONS[build.edition]
    if path.exists():
        return
    found = {
        "autoencoder": measured_autoencoder(vae, edition),
        **measured_generators(build.output, edition),
        **measured_rewards(build.output, edition, REWARDS),
    }
    write_text(path, json.dumps(found, indent=2) + "\n")


def _made_once(path: Path, make: Callable[[], Candidates]) -> Candidates:
    """Read candidates from an earlier build, or make and keep them."""
    if not path.exists():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"captions": made.captions, "pictures": made.pictures, "utility": made.utility}, path)
    return Candidates(**torch.load(path, weights_only=True))


def write_half_precision(pipeline: StableDiffusionPipeline, directory: Path) -> None:
    """Write the pipeline's networks in fp16."""
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert isinstance(part, nn.Module)
        part.to(torch.float16)
    write_pipeline(pipeline, directory)

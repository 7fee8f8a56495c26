"""The process that draws and judges: one model at a time, piece by piece."""

import json
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from slingstone.compare.pieces import Piece, Plan, aligned_models
from slingstone.config import Models
from slingstone.config.comparison import AlignedRun, Features, OneStep, Stock
from slingstone.evaluation.grids import sample_columns
from slingstone.evaluation.protocol import Evaluation, Scorer, evaluate
from slingstone.networks.features import load_extractor
from slingstone.networks.latent_diffusion import load
from slingstone.networks.sampling import Sampler, one_step_sampler
from slingstone.networks.stock_pipelines import stock_sampler
from slingstone.worker.measure import oracle, scorer
from slingstone.worker.rewards import clients


class Worker:
    """Draws with one model after another; a Ray actor when there are several."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        workers = plan.settings.workers
        torch.set_num_threads(workers.threads_per_worker)
        self._device = torch.device("cuda" if workers.use_gpu else "cpu")
        self._held: tuple[int, Sampler] | None = None
        self._rewards: Mapping[str, Scorer] | None = None

    def evaluate(self, piece: Piece) -> int:
        """Evaluate a piece and write it down; return the number of its pictures."""
        settings = self._plan.settings
        prompts = self._plan.prompt_set(settings.prompts[piece.prompts]).prompts
        features: list[Tensor] = []
        found = evaluate(
            self._sampler(piece.model),
            prompts,
            rewards=self._scorers(),
            oracle=oracle(settings.oracle),
            images_per_prompt=settings.images_per_prompt,
            seed=settings.seed,
            batch_size=settings.batch_size,
            diversity=settings.diversity,
            shard=(piece.number, piece.total),
            see=lambda images: features.append(self._features(images)),
        )
        path = Path(piece.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if settings.features is not None:
            torch.save(torch.cat(features), path.with_suffix(".pt"))
        write_json(path, found.to_dict())  # last, since it says that the piece is done
        return len(found.rows)

    def real_features(self, path: Path) -> None:
        """Write down the features of the real pictures."""
        settings = self._plan.settings.features
        assert settings is not None
        parts = [self._features(batch) for batch in _real_pictures(settings, self._plan.settings.batch_size)]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.cat(parts), path)

    def sheet(self, model: int, prompts: Sequence[str], path: Path) -> None:
        """Write down the first picture of each prompt, in 8 bits."""
        sampler, settings = self._sampler(model), self._plan.settings
        size = settings.batch_size
        batches = [list(prompts[start : start + size]) for start in range(0, len(prompts), size)]
        drawn = torch.cat([sample_columns({"": sampler}, batch, settings.seed)[""].cpu() for batch in batches])
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save((drawn.clamp(0, 1) * 255).round().to(torch.uint8), partial)
        partial.replace(path)

    def speed(self, model: int, prompts: Sequence[str]) -> dict[str, float]:
        """Return seconds a picture by batch size, and the peak memory of a process that does nothing else."""
        latency = self._plan.settings.latency
        assert latency is not None
        sampler = self._sampler(model)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found = {}
        for size in latency.batches:
            seconds = []
            for repeat in range(latency.repeats + 1):
                # Other prompts each time, so that no text encoder remembers them.
                batch = [f"{prompts[(repeat * size + place) % len(prompts)]} {repeat}" for place in range(size)]
                start = self._now()
                sampler(batch, list(range(size)))
                seconds.append(self._now() - start)
            found[f"latency/seconds_per_image_batch_{size}"] = statistics.median(seconds[1:]) / size
        found["latency/peak_memory_gib"] = self._peak_memory_gib()
        return found

    def _sampler(self, model: int) -> Sampler:
        if self._held is None or self._held[0] != model:
            self._held = None  # first, so that two models are never held at once
            self._held = model, load_sampler(self._plan.settings.models[model], self._device)
        return self._held[1]

    def _scorers(self) -> Mapping[str, Scorer]:
        if self._rewards is None:
            asked = clients(self._plan.settings.rewards, self._device)
            self._rewards = {name: scorer(client) for name, client in asked.items()}
        return self._rewards

    def _features(self, images: Float[Tensor, "batch 3 rows columns"]) -> Tensor:
        features = self._plan.settings.features
        if features is None:
            return torch.empty(0)
        return cache_extractor(features.kind, features.checkpoint, str(self._device))(images)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _peak_memory_gib(self) -> float:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


cache_extractor = cache(load_extractor)


def load_sampler(entry: AlignedRun | OneStep | Stock, device: torch.device) -> Sampler:
    """Return the sampler of a model; our own generators by the code that a run evaluates them with."""
    if isinstance(entry, Stock):
        return stock_sampler(
            entry.location,
            entry.steps,
            entry.guidance,
            scheduler=entry.scheduler,
            weights=entry.weights,
            call=entry.call,
            dtype=entry.dtype,
            device=device,
        )
    models: Models = aligned_models(entry.run) if isinstance(entry, AlignedRun) else entry.models
    family = load(
        models.reference,
        models.generator,
        generator_timestep=models.generator_timestep,
        generator_input=models.generator_input,
        generator_noise_level=models.generator_noise_level,
        decode_chunk=models.decode_chunk,
        device=device,
    )
    return one_step_sampler(family, family.generator.requires_grad_(False).eval())


def read_piece(piece: Piece) -> Evaluation:
    """Return what `evaluate` wrote down."""
    return Evaluation.from_dict(json.loads(Path(piece.path).read_text()))


def read_sheet(path: Path) -> Float[Tensor, "batch 3 rows columns"]:
    """Return what `Worker.sheet` wrote down."""
    return torch.load(path, weights_only=True).float() / 255


def write_json(path: Path, plain: Any) -> None:
    """Write a file that is whole or not there."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(plain))
    partial.replace(path)


def _real_pictures(settings: Features, batch_size: int) -> Any:
    """Yield batches of the real pictures."""
    files = sorted(
        file for file in Path(settings.images).rglob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg")
    )
    if len(files) < 2:
        raise ValueError(f"features.images = {settings.images!r}: holds {len(files)} pictures; give .png or .jpg files")
    for start in range(0, len(files), batch_size):
        yield torch.stack([_picture(file, settings.resize) for file in files[start : start + batch_size]])


def _picture(file: Path, side: int | None) -> Float[Tensor, "3 rows columns"]:
    picture = Image.open(file).convert("RGB")
    if side is not None:
        picture = ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255

"""The process that draws and judges: one model at a time, shard by shard."""

import json
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from slingstone.atomic import replacing
from slingstone.compare.shards import LOADED, Shard, grouped_prompts, models_of
from slingstone.config import Comparison
from slingstone.config.comparison import Features, Model, Stock
from slingstone.evaluation.grids import first_pictures, from_picture
from slingstone.evaluation.protocol import Evaluation, Judge, evaluate
from slingstone.networks.features import Extractor, load_extractor
from slingstone.networks.latent_diffusion import load
from slingstone.networks.sampling import Sampler, one_step_sampler
from slingstone.networks.stock_pipelines import stock_sampler
from slingstone.worker.measure import judge, oracle, require_finite
from slingstone.worker.rewards import clients


class Evaluator:
    """Draws with one model after another and has the pictures judged; a Ray actor when there are several."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        torch.set_num_threads(comparison.workers.threads_per_worker)
        self._device = torch.device("cuda" if comparison.workers.use_gpu else "cpu")
        self._loaded: tuple[str, Sampler] | None = None

    def evaluate(self, shard: Shard) -> int:
        """Evaluate a shard and write it down; return the number of its pictures."""
        comparison = self._comparison
        prompts = next(entry for entry in comparison.prompts if entry.name == shard.prompts)
        features: list[Tensor] = []
        found = evaluate(
            self._sampler(shard.model),
            list(grouped_prompts(prompts)),
            rewards=self._rewards,
            oracle=oracle(comparison.oracle),
            images_per_prompt=comparison.images_per_prompt,
            seed=comparison.seed,
            batch_size=comparison.batch_size,
            diversity=comparison.diversity,
            shard=(shard.number, shard.total),
            see=lambda images: features.append(self._extractor(images)),
        )
        require_finite(f"the generator {shard.model!r}", found.summary())
        if comparison.features is not None:
            with replacing(shard.features) as path:
                torch.save(torch.cat(features), path)
        with replacing(shard.path) as path:  # last, since it says that the shard is done
            path.write_text(json.dumps(found.to_dict()))
        return len(found.rows)

    def real_features(self, file: Path) -> None:
        """Write down the features of the real pictures."""
        settings = self._comparison.features
        assert settings is not None
        parts = [self._extractor(batch) for batch in _real_pictures(settings, self._comparison.batch_size)]
        with replacing(file) as path:
            torch.save(torch.cat(parts), path)

    def sheets(self, sheets: Sequence[tuple[str, Sequence[str], Path]]) -> None:
        """Write down the first picture of each prompt, in 8 bits, for every (model, prompts, file)."""
        size, seed = self._comparison.batch_size, self._comparison.seed
        for model, prompts, file in sheets:
            sampler = self._sampler(model)
            batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
            drawn = torch.cat([first_pictures(sampler, batch, seed).cpu() for batch in batches])
            with replacing(file) as path:
                torch.save((drawn.clamp(0, 1) * 255).round().to(torch.uint8), path)

    def speed(self, model: str, prompts: Sequence[str]) -> dict[str, float]:
        """Return seconds a picture by batch size, and the peak memory of a process that does nothing else."""
        latency = self._comparison.latency
        assert latency is not None
        sampler = self._sampler(model)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found = {}
        for size in latency.batches:
            seconds = []
            batch = [prompts[place % len(prompts)] for place in range(size)]
            for _ in range(latency.repeats + 1):
                start = self._now()
                sampler(batch, list(range(size)))
                seconds.append(self._now() - start)
            found[f"latency/seconds_per_image_batch_{size}"] = statistics.median(seconds[1:]) / size
        found["latency/peak_memory_gib"] = self._peak_memory_gib()
        return found

    def _sampler(self, model: str) -> Sampler:
        if self._loaded is None or self._loaded[0] != model:
            self._loaded = None  # first, so that two models are never in memory at once
            entry = next(entry for entry in self._comparison.models if entry.name == model)
            self._loaded = model, load_sampler(entry, self._device)
        return self._loaded[1]

    @cached_property
    def _rewards(self) -> Judge:
        return judge(clients(self._comparison.rewards, self._device))

    @cached_property
    def _extractor(self) -> Extractor:
        features = self._comparison.features
        if features is None:
            return lambda images: torch.empty(len(images), 0)
        return load_extractor(features.kind, features.checkpoint, self._device)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _peak_memory_gib(self) -> float:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def load_sampler(entry: Model, device: torch.device) -> Sampler:
    """Return the sampler of a model; our own generators by the code that a run evaluates them with."""
    if isinstance(entry, Stock):
        return stock_sampler(**entry.model_dump(exclude={"kind", "name", "parameters"}), device=device)
    family = load(**models_of(entry).model_dump(include=LOADED), device=device)
    return one_step_sampler(family, family.generator.requires_grad_(False).eval())


def read_shard(shard: Shard) -> Evaluation:
    """Return what `Evaluator.evaluate` wrote down."""
    return Evaluation.from_dict(json.loads(shard.path.read_text()))


def read_sheet(file: Path) -> Float[Tensor, "batch 3 rows columns"]:
    """Return what `Evaluator.sheets` wrote down."""
    return torch.load(file, weights_only=True).float() / 255


def _real_pictures(settings: Features, batch_size: int) -> Iterator[Float[Tensor, "batch 3 rows columns"]]:
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
    return from_picture(picture)

"""What the ranks of the memory tests run: bytes of an engine alone, and of a whole trainer, under any engine."""

import gc
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slingstone.config import Experiment, Optimizer, Runtime, load
from slingstone.engines import deepspeed_engine
from slingstone.engines.engine import build_engine
from slingstone.engines.family import load_family, round_frozen
from slingstone.networks.adapters import sharing_copy
from slingstone.networks.footprint import LiveBytes
from slingstone.plan import engine_memory
from workbench.benchmark.architecture import trainer_of

SCENES = Path(__file__).resolve().parents[2] / "configs" / "align" / "scenes.yaml"
WIDTH, LAYERS = 128, 18
WEIGHTS = LAYERS * WIDTH**2


def engine_alone(_directory: Path, runtime: Runtime) -> dict[str, object]:
    """Measure an engine whose gradients fit into one bucket, and one that needs six, as a large network would."""
    whole = engine_memory.BUCKET
    found = {}
    for name, bucket in {"one bucket": whole, "six buckets": WEIGHTS // 6}.items():
        deepspeed_engine.BUCKET = engine_memory.BUCKET = bucket
        found[name] = _engine_bytes(runtime) | {"expected": vars(engine_memory.engine_bytes(WEIGHTS, runtime))}
    deepspeed_engine.BUCKET = engine_memory.BUCKET = whole
    return found


def _engine_bytes(runtime: Runtime) -> dict[str, Any]:
    image = torch.ones(1, WIDTH, dtype=torch.bfloat16 if runtime.precision == "bf16" else torch.float32)
    with LiveBytes("cpu") as live:
        network = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
        built = build_engine(network, Optimizer(lr=1e-3), runtime, 1.0)
        most = []
        for _ in range(4):
            gc.collect()  # what the step before left in cycles is not this one's
            live.peak = live.now
            resting = live.now
            built.backward(built(image).sum())
            built.step()
            most.append(live.peak - resting)
    # The first step makes what stays. In a later one the thread that sends may free a message a moment too late.
    return {"resting": resting, "most": min(most[1:])}


def whole_trainer(directory: Path, runtime: Runtime) -> dict[str, object]:
    """Measure the second step of a trainer over the pipeline that lies beside the results."""
    batch = int(directory.name.rsplit("-", 1)[1])
    run = experiment(directory.parent / "pipeline", runtime, batch)
    with LiveBytes("cpu") as live:
        family = load_family(run, torch.device("cpu"))
        averaged = sharing_copy(family.generator)
        round_frozen(family, run)
        trainer = trainer_of(family, "recomputed", batch, runtime)
        trainer.step()
        gc.collect()
        resting, live.peak = live.now, live.now
        trainer.step()
    assert averaged is not family.generator
    return {"resting": resting, "most": live.peak}


def experiment(pipeline: Path, runtime: Runtime, batch: int) -> Experiment:
    """Return the run whose rank takes so many pictures a step under a runtime."""
    models = [f"models.reference={pipeline}", f"models.generator={pipeline}", f"models.decode_chunk={batch}"]
    sizes = [f"training.batch_size={batch * runtime.num_workers}", "objective.gradient=recomputed"]
    keys = ("engine", "zero_stage", "precision", "offload", "num_workers")
    return load(SCENES, [*models, *sizes, *(f"runtime.{key}={getattr(runtime, key)}" for key in keys)])

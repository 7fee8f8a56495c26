"""What a run ships is what its table measured: exports scored again under diffusers' own code, for every engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from reward_services import models
from slingstone.cli import main
from slingstone.config import Experiment
from slingstone.driver import launch
from slingstone.evaluation.protocol import evaluate
from slingstone.networks.stock_pipelines import stock_sampler
from slingstone.prompts.files import read_prompts

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
PLAIN = ("rewards.backend=in_process", "evaluation.reference=null", "evaluation.num_prompts=4")
ADAPTERS = ("models.lora={rank: 4, target_modules: [to_q, to_v]}",)
ENGINES = {
    "torch": ("runtime.num_workers=1", "runtime.engine=torch"),
    **{f"zero{stage}": ("runtime.num_workers=2", f"runtime.zero_stage={stage}") for stage in range(4)},
}


def rewards_of(pipeline: str | Path, run: Experiment) -> dict[str, float]:
    """Return the mean rewards of a pipeline's pictures of the run's held-out prompts, drawn by diffusers alone."""
    judges = {entry.name: models.load(entry.spec) for entry in run.rewards.services}

    @torch.no_grad()
    def scores(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {name: model.score(images, prompts) for name, model in judges.items()}

    prompts = read_prompts(run.evaluation.prompts)[: run.evaluation.num_prompts]
    return evaluate(
        stock_sampler(str(pipeline), 1, 0.0),
        prompts,
        rewards=scores,
        images_per_prompt=run.evaluation.images_per_prompt,
        seed=run.evaluation.seed,
        batch_size=run.evaluation.batch_size,
    ).summary()["rewards"]


def unet(pipeline: Path) -> dict[str, Tensor]:
    return load_file(pipeline / "unet" / "diffusion_pytorch_model.safetensors")


def check_shipped(run: Experiment, summary: dict[str, Any], target: Path) -> None:
    """Check the pipeline that a run exported, and that of `slingstone export`, against the run's table."""
    exported = Path(run.storage) / "align" / run.name / "pipeline"
    # A last digit may move a pixel by a step of the 8-bit grid. Rounding to bf16 moves these scores by .001 and more.
    assert rewards_of(exported, run) == pytest.approx(summary["aligned"]["rewards"], rel=0, abs=3e-4)
    assert main(["export", str(exported.parent), str(target)]) == 0
    assert (target / "README.md").read_text() == (exported / "README.md").read_text(), "the model card"
    again, shipped, start = unet(target), unet(exported), unet(Path(run.models.generator))
    assert again.keys() == shipped.keys() == start.keys()
    assert all(torch.equal(again[name], weight) for name, weight in shipped.items())
    moved = {name for name, weight in shipped.items() if not torch.equal(weight, start[name])}
    assert moved, "nothing was learnt"
    if run.models.lora is not None:
        adapted = {name for name in start if name.endswith(tuple(f".{layer}.weight" for layer in ("to_q", "to_v")))}
        assert moved <= adapted, "a layer without adapter has moved"


def cases() -> list[Any]:
    """Every engine and precision, whole and by adapters, less what a run refuses; test_align has an everyday one."""
    found = []
    for engine, runtime in ENGINES.items():
        for precision in ("fp32", "bf16"):
            for kind, lora in (("whole", ()), ("adapters", ADAPTERS)):
                if (engine, kind) == ("zero3", "adapters") or (engine, precision) == ("zero0", "bf16"):
                    continue
                label = f"{engine} {precision} {kind}"
                overrides = (*runtime, f"runtime.precision={precision}", *lora)
                found.append(pytest.param(overrides, id=label, marks=pytest.mark.slow))
    return found


@pytest.mark.parametrize("overrides", cases())
def test_the_exported_pipeline_scores_what_the_table_says(micro, tmp_path, overrides):
    run = micro(*PLAIN, *overrides)
    summary = launch.align(run, print)
    assert summary["aligned"]["rewards"] != summary["init"]["rewards"]
    check_shipped(run, summary, tmp_path / "again")


@pytest.mark.slow
@pytest.mark.parametrize("lora", [(), ADAPTERS], ids=["whole", "adapters"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ["torch", "zero2"])
def test_a_run_that_cannot_learn_anything_is_told_as_its_own_start(micro, engine, precision, lora):
    still = [f"training.{name}_optimizer.lr=1e-12" for name in ("generator", "assistant")]
    run = micro(*PLAIN, *ENGINES[engine], f"runtime.precision={precision}", *lora, *still)
    summary = launch.align(run, print)
    assert summary["aligned"]["rewards"] == pytest.approx(summary["init"]["rewards"], rel=0, abs=1e-6)

"""The plan's model against what can be counted on tiny networks and two ranks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from slingstone.config import Experiment, Runtime, load
from slingstone.engines.engine import TorchEngine, build_engine
from slingstone.engines.family import load_family
from slingstone.networks import latent_diffusion
from slingstone.networks.adapters import trained_part
from slingstone.plan import cost, memory, report, traffic, work
from slingstone.plan.published_sizes import PUBLISHED
from slingstone.step.panel import RewardPanel
from slingstone.step.trainer import Trainer
from slingstone.worker.assembly import step_settings
from tests import tiny, tiny_sdxl
from tests.plan import traffic as measured
from tests.step.conftest import linear_reward

ROOT = Path(__file__).resolve().parents[2]
SDXL = ROOT / "configs" / "align" / "sdxl.yaml"
SCENES = ROOT / "configs" / "align" / "scenes.yaml"
H100 = cost.Assumptions(cost.DEVICES["h100"])
PLAIN = ("runtime.gradient_checkpointing=false", "training.assistant_updates=1")
WAYS = {
    "kl": (("objective.distance={kind: kl}",), 6),
    "direct": (("objective.gradient=direct",), 9),
    "recomputed": (("objective.gradient=recomputed",), 12),
    "detached": (("objective.gradient=direct", "objective.flow=detach_distance"), 7),
}


class WholeProgram:
    """In the place of the counter's own tracker of modules, which cannot follow `torch.autograd.grad`."""

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


@pytest.mark.parametrize("way", WAYS)
def test_passes_of_a_generator_step_are_those_of_the_algorithms_own_account(way):
    overrides, expected = WAYS[way]
    counted = work.passes(load(SDXL, [*PLAIN, *overrides]))
    assert counted.generator + counted.divergence == expected
    assert counted.assistant == 4, "a picture drawn, then forward, and back to input and weights"


@pytest.mark.parametrize("checkpointed", ["false", "true"])
@pytest.mark.parametrize("way", WAYS)
def test_flops_of_a_step_are_those_that_torch_counts(tmp_path: Path, way: str, checkpointed: str) -> None:
    """Within a tenth, an eighth with checkpointing.

    The backward pass of attention costs more than twice the forward pass, the first layer's less; what lies outside of
    the blocks is not checkpointed.
    """
    directory = str(tiny_sdxl.write_pipeline(tmp_path / "sdxl"))
    overrides = [f"models.reference={directory}", f"models.generator={directory}", "models.generator_timestep=399"]
    overrides += ["runtime.num_workers=1", "training.batch_size=4", "training.warmup_images=0"]
    overrides += ["training.assistant_updates=2", f"runtime.gradient_checkpointing={checkpointed}", *WAYS[way][0]]
    run = load(SCENES, overrides)
    family = latent_diffusion.load(
        directory, directory, generator_timestep=399, gradient_checkpointing=checkpointed == "true", decode_chunk=4
    )
    panel = RewardPanel([linear_reward("any", torch.ones(3))])
    prompts = iter([["a red disc"] * 4] * 8)
    engines = [
        TorchEngine(network, run.training.generator_optimizer, "fp32", 1.0)
        for network in (family.generator, family.assistant)
    ]
    trainer = Trainer(family, *engines, panel, prompts, step_settings(run, 1), torch.Generator().manual_seed(0))
    family.text_encoder.encode(["", "a red disc"])  # remembered, as in a run
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = WholeProgram()  # type: ignore[assignment]
    with sdpa_kernel(SDPBackend.MATH), counter:  # the CPU's own kernel is not counted
        trainer.step()
    expected = 4 * work.step_flops(run, work.work_of(run))
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.125 if checkpointed == "true" else 0.1)


def test_the_tables_are_what_the_published_architectures_give() -> None:
    def flops(forward: Any) -> float:
        with FlopCounterMode(display=False) as counter:
            forward()
        return counter.get_total_flops()

    with torch.device("meta"):
        t = torch.zeros(1, dtype=torch.int64)
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        decoder = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14
            )
        ).requires_grad_(False)
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
        )
        latents, words = torch.empty(1, 4, 64, 64), torch.empty(1, 77, 768)
        picture = torch.empty(1, 3, 224, 224, requires_grad=True)
        found = PUBLISHED["stable-diffusion-v1-5/stable-diffusion-v1-5"].work
        assert flops(lambda: unet(latents, t, encoder_hidden_states=words)) == pytest.approx(found.network, rel=1e-3)
        assert flops(lambda: decoder.decode(latents)) == pytest.approx(found.decoder, rel=1e-3)
        asked = flops(lambda: tower(picture).pooler_output.sum().backward())
        asked += flops(lambda: text(torch.zeros(1, 77, dtype=torch.int64)))
        assert asked == pytest.approx(work.REWARDS["pickscore"], rel=1e-2)


RUNTIMES = {
    "torch": Runtime(num_workers=2, engine="torch"),
    "zero2": Runtime(num_workers=2, zero_stage=2),
    "zero3": Runtime(num_workers=2, zero_stage=3),
    "bf16_zero1": Runtime(num_workers=2, zero_stage=1, precision="bf16"),
}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> dict[str, dict[str, int]]:
    directory = tmp_path_factory.mktemp("traffic")
    mp.spawn(measured.run, (2, str(directory), RUNTIMES), nprocs=2)
    return json.loads((directory / "traffic.json").read_text())


def like(runtime: Runtime) -> Experiment:
    """Return a run of one assistant's update whose divergence is direct, as the ranks' is."""
    overrides = ["training.assistant_updates=1", "objective.gradient=direct", "training.batch_size=2"]
    return load(SCENES, overrides).model_copy(update={"runtime": runtime})


@pytest.mark.parametrize("label", ["torch", "zero2", "bf16_zero1"])
def test_traffic_is_what_the_collectives_of_two_ranks_send(two_ranks, label):
    sent = sum(bytes for name, bytes in two_ranks[label].items() if name != "checkpoint")
    assert sent == pytest.approx(traffic.sent_bytes(like(RUNTIMES[label]), measured.WEIGHTS), rel=0.01)


def test_traffic_of_stage_3_is_at_most_what_the_plan_says_and_most_of_it(two_ranks):
    """Small networks stay gathered between a forward pass and its backward pass: five gatherings instead of six."""
    sent = sum(bytes for name, bytes in two_ranks["zero3"].items() if name != "checkpoint")
    expected = traffic.sent_bytes(like(RUNTIMES["zero3"]), measured.WEIGHTS)
    assert 0.7 * expected <= sent <= 1.01 * expected


@pytest.mark.parametrize("label", RUNTIMES)
def test_a_checkpoint_takes_the_bytes_that_the_plan_says(two_ranks, label):
    """Of two engines, without the average; file formats add a few thousand bytes to a quarter of a million weights."""
    expected = traffic.checkpoint_bytes(RUNTIMES[label], measured.WEIGHTS) - 4 * measured.WEIGHTS
    assert two_ranks[label]["checkpoint"] == pytest.approx(expected, rel=0.05)


def test_the_bytes_of_adapters_are_those_of_adapters_on_disk_and_on_the_links(micro, tmp_path):
    run = micro("models.lora={rank: 2}", "runtime.num_workers=1", "runtime.engine=torch")
    family = load_family(run, torch.device("cpu"))
    engines = [
        build_engine(trained_part(network), run.training.generator_optimizer, run.runtime, 1.0)
        for network in (family.generator, family.assistant)
    ]
    weights = sum(fragment.values.numel() for fragment in engines[0].masters().values())
    for side, engine in enumerate(engines):
        for name, tree in engine.snapshot().items():
            torch.save(tree, tmp_path / f"{side}-{name.replace('/', '-')}")
    written = sum(file.stat().st_size for file in tmp_path.glob("[01]-*")) + 4 * weights
    known = memory.sizes(run)
    found = cost.cost(run, 1, work.work_of(run), known, H100)
    assert found.checkpoint_gib * cost.GIB == pytest.approx(written, rel=0.5), "names take as much as small weights"
    assert known.trained == weights < known.network / 5
    two = cost.on(run, 2)
    seconds = traffic.sent_bytes(two, weights) / (450e9 * 0.7)
    assert cost.cost(run, 2, work.work_of(run), known, H100).traffic_s == pytest.approx(seconds)


def plan(gpus: int, *overrides: str, assumed: cost.Assumptions = H100) -> cost.Cost:
    run = load(SDXL, overrides)
    return cost.cost(run, gpus, work.work_of(run), memory.sizes(run), assumed)


def test_more_gpus_share_the_batch_until_each_has_one_picture():
    few, many, most = plan(8), plan(64), plan(1024)
    assert few.compute_s == pytest.approx(8 * many.compute_s)
    assert (few.batch, many.batch, most.batch) == (128, 128, 1024), "a multiple of the GPUs"
    assert plan(1).traffic_s == 0
    assert many.traffic_s > few.traffic_s, "out of the node the links are slower"


def test_memory_is_the_dry_runs():
    run = cost.on(load(SDXL), 64)
    assert plan(64).memory_gib == memory.estimate(run, memory.sizes(run)).most / cost.GIB
    assert plan(64, "runtime.zero_stage=3").memory_gib < plan(64).memory_gib


def test_with_the_replicas_that_the_plan_asks_for_the_rewards_cost_no_time_and_with_one_less_they_do():
    needed = plan(64).replicas["pickscore"]
    assert needed > 1
    assert plan(64).exposed_s > 0
    assert plan(64, f"rewards.services.pickscore.num_replicas={needed}").exposed_s == 0
    assert plan(64, f"rewards.services.pickscore.num_replicas={needed - 1}").exposed_s > 0


def test_the_job_prints_the_plan_and_marks_published_numbers_as_their_authors():
    done = subprocess.run(
        [sys.executable, "jobs/plan.py", "configs/align/sdxl.yaml", "--gpus", "64", "runtime.zero_stage=3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "on 64 GPUs, 128 pictures a step (2 a GPU)" in done.stdout
    assert "assumed, not measured" in done.stdout
    assert "authors' own numbers: DMD2" in done.stdout
    assert "64 GPUs x 57 h, 3,072,000 pictures: 0.23 a GPU and second" in done.stdout
    assert [
        line.split()[0] for line in done.stdout.splitlines() if "GPUs" not in line and line[:6].strip().isdigit()
    ] == [str(2**power) for power in range(11)]


def test_networks_that_are_not_known_are_said_to_be():
    with pytest.raises(ValueError, match=r"models.reference = 'some/model': is no directory and in no table"):
        report.scaling(load(SDXL, ["models.reference=some/model"]), 8, H100)


def test_a_tiny_pipeline_is_counted_from_its_configuration(tmp_path: Path) -> None:
    directory = tiny.write_pipeline(tmp_path / "sd")
    run = load(SCENES, [f"models.reference={directory}", f"models.generator={directory}"])
    family = latent_diffusion.load(str(directory), str(directory), generator_timestep=625)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        family.decoder.decode(torch.randn(1, *family.latent_shape))
    assert work.work_of(run).decoder == counter.get_total_flops()
    assert work.work_of(run).side == tiny.IMAGE_SIZE

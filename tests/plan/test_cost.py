"""The plan's model against what can be counted on tiny networks and two ranks."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.multiprocessing as mp
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from slingstone.config import Experiment, Runtime, load
from slingstone.engines.engine import build_engine
from slingstone.engines.family import load_family
from slingstone.networks import latent_diffusion
from slingstone.networks.adapters import trained_part
from slingstone.plan import cost, memory, report, traffic, work
from slingstone.plan.published_sizes import PUBLISHED
from slingstone.step.panel import RewardPanel
from slingstone.worker.assembly import assemble
from slingstone.worker.assignment import Assignment
from tests import tiny
from tests.plan import traffic as measured
from tests.step.conftest import linear_reward

ROOT = Path(__file__).resolve().parents[2]
SDXL = ROOT / "configs" / "align" / "sdxl.yaml"
SCENES = ROOT / "configs" / "align" / "scenes.yaml"
H100 = cost.Assumptions(cost.DEVICES["h100"])
ROOMY = ("objective.gradient=direct", "runtime.gradient_checkpointing=false")
RECOMPUTED = ("objective.gradient=recomputed", "runtime.gradient_checkpointing=false")
SPARING = ("objective.gradient=recomputed", "runtime.gradient_checkpointing=true")
STEPS = {
    "KL": (*ROOMY, "objective.distance={kind: kl}"),
    "one network differentiated": (*ROOMY, "objective.flow=detach_distance"),
    "direct": ROOMY,
    "recomputed": RECOMPUTED,
    "recomputed, checkpointed": SPARING,
    "the same by micro-batches": (*SPARING, "runtime.micro_batch_size=2"),
    "the same, decoder's graph kept": (*SPARING, "runtime.keep_decoder_graph=true"),
    "the same, reference in one pass": (*SPARING, "runtime.joint_reference=true"),
    "the same by adapters": (*SPARING, "models.lora={rank: 1}"),
    "the same by adapters, merged": (*SPARING, "models.lora={rank: 1}", "runtime.merge_adapters=true"),
}
"""Overrides by the rows of docs/scaling.md's table of passes."""


class Row(NamedTuple):
    """A row of that table: passes of a picture's step through a network and the decoder, and their sums."""

    forward: int
    to_input: int
    to_weights: int
    decoder_forward: int
    decoder_back: int
    network: int
    decoder: int


def documented() -> dict[str, Row]:
    """Return the table of passes."""
    page = (ROOT / "docs" / "scaling.md").read_text()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| "]
    return {name: Row(*map(int, cells)) for name, *cells in lines if name in STEPS}


class WholeProgram:
    """In the place of the counter's own tracker of modules, which cannot follow `torch.autograd.grad`."""

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


class Remembered:
    """Conditions that were encoded before: text is no part of the count."""

    def __init__(self, encoder: Any, prompts: list[str]) -> None:
        self.condition, self.empty = encoder.encode(prompts), encoder.null(len(prompts))

    def encode(self, prompts: list[str]) -> Any:
        return self.condition

    def null(self, batch: int) -> Any:
        return self.empty


def flops(call: Callable[[], object]) -> int:
    """Return the FLOPs that torch counts."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = WholeProgram()  # type: ignore[assignment]
    with sdpa_kernel(SDPBackend.MATH), counter:  # the CPU's own kernel is not counted
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", STEPS)
def test_a_step_takes_the_passes_of_the_table_and_not_one_more(micro, tmp_path: Path, name: str) -> None:
    run = micro(
        *("runtime.engine=torch", "rewards.backend=in_process", "training.batch_size=4", "training.warmup_images=0"),
        *("objective.guidance={kind: inner, scale: 1.5}", "models.decode_chunk=4", *STEPS[name]),
    )
    trainer = assemble(Assignment(run, str(tmp_path), "", "", None), 0, 1, torch.device("cpu")).trainer
    trainer.rewards = RewardPanel([linear_reward("any", torch.ones(3))])
    text = Remembered(trainer.family.text_encoder, ["a red disc"] * 4)
    trainer.family = replace(trainer.family, text_encoder=text)
    reference, decoder, assistant = trainer.family.reference, trainer.family.decoder, trainer.assistant
    x, t = torch.randn(4, *trainer.family.latent_shape), torch.tensor([500] * 4)
    leaf = x.clone().requires_grad_()

    table = documented()[name]
    forward = flops(lambda: reference(x, t, text.condition))
    to_input = flops(lambda: reference(leaf, t, text.condition).sum().backward()) - forward
    to_weights = flops(lambda: assistant.backward(assistant(x, t, text.condition).sum())) - forward
    picture = flops(lambda: decoder.decode(x))
    decoder_back = flops(lambda: decoder.decode(leaf).sum().backward()) - picture
    assistant.step()
    expected = table.forward * forward + table.to_input * to_input + table.to_weights * to_weights
    expected += table.decoder_forward * picture + table.decoder_back * decoder_back
    # The least pass, one through the decoder, is 4 % of a step; adapters of rank 1 take 2 %.
    assert flops(trainer.step) == pytest.approx(expected, rel=0.02)

    counted = work.passes(run)
    assert (counted.network, counted.decoder) == (table.network, table.decoder)
    again = run.runtime.gradient_checkpointing
    weights = 1 if run.models.lora else 2
    assert table.network == table.forward + (1 + again) * table.to_input + (weights + again) * table.to_weights
    again = again and not run.runtime.keep_decoder_graph
    assert table.decoder == table.decoder_forward + (1 + again) * table.decoder_back


def test_what_is_recomputed_to_save_memory_is_no_use() -> None:
    run = load(SCENES, ["runtime.micro_batch_size=2", *SPARING, "runtime.num_workers=1"])
    roomy = load(SCENES, [*ROOMY, "runtime.num_workers=1"])
    assert work.passes(run).network > work.passes(roomy).network
    assert work.useful_passes(run) == work.passes(roomy)


def test_the_tables_are_what_the_published_architectures_give() -> None:
    def flops(forward: Any) -> float:  # on the meta device, whose attention is counted
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

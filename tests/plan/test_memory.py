"""The estimate of a dry run against bytes that were counted."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from slingstone.config import ATTENTION, Experiment, load
from slingstone.networks import latent_diffusion
from slingstone.networks.adapters import Adapter, sharing_copy
from slingstone.networks.footprint import LiveBytes, graph_bytes
from slingstone.plan import memory, report
from slingstone.plan.published_sizes import PUBLISHED
from tests import tiny, tiny_pixart, tiny_sd3, tiny_sdxl
from workbench.benchmark.architecture import trainer_of

ROOT = Path(__file__).resolve().parents[2]
SCENES = ROOT / "configs" / "align" / "scenes.yaml"
SPARING = ("objective.gradient=recomputed",)
FAMILIES: dict[str, tuple[ModuleType, int]] = {
    "sd": (tiny, 625),
    "sdxl": (tiny_sdxl, 399),
    "pixart": (tiny_pixart, 440),
    "sd3": (tiny_sd3, 999),
}


def run_of(directory: str, *overrides: str) -> Experiment:
    models = [f"models.reference={directory}", f"models.generator={directory}"]
    return load(SCENES, [*models, "runtime.num_workers=1", "runtime.engine=torch", *overrides])


def numbers(module: torch.nn.Module) -> int:
    """Return how many numbers a file of the module's weights holds; buffers lie in it, too, tied weights once."""
    return sum({tensor.data_ptr(): tensor.numel() for tensor in module.state_dict().values()}.values())


@pytest.mark.parametrize("checkpointed", ["true", "false"])
@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_and_activations_are_those_of_the_loaded_networks(tmp_path: Path, name: str, checkpointed: str) -> None:
    module, timestep = FAMILIES[name]
    directory = str(module.write_pipeline(tmp_path / name))
    run = run_of(directory, f"runtime.gradient_checkpointing={checkpointed}")
    known = memory.sizes(run)
    family = latent_diffusion.load(
        directory, directory, generator_timestep=timestep, gradient_checkpointing=checkpointed == "true"
    )
    assert known.network == numbers(family.reference)
    assert known.vae == numbers(family.decoder.vae)
    assert known.text == numbers(family.text_encoder)

    noise = torch.randn(1, *family.latent_shape)
    t, condition = torch.tensor([500]), family.text_encoder.encode(["a red disc"])
    latents = noise.clone().requires_grad_()
    measured = {
        "trained": graph_bytes(family.assistant, lambda: family.assistant(noise, t, condition)),
        "frozen": graph_bytes(family.reference, lambda: family.reference(latents, t, condition)),
        "decoder": graph_bytes(family.decoder, lambda: family.decoder.decode(latents)),
    }
    for part, graph in measured.items():
        found = getattr(known.activations, part)
        assert found.held == pytest.approx(graph.held, rel=0.1), part
        assert found.peak == pytest.approx(graph.peak, rel=0.1), part


def test_direct_gradients_hold_every_graph_and_recomputed_ones_the_largest(tmp_path: Path) -> None:
    directory = str(tiny.write_pipeline(tmp_path / "sd"))
    run = run_of(directory, "training.batch_size=6", "models.decode_chunk=2", "objective.gradient=direct")
    one = memory.sizes(run).activations
    direct = memory.score_phase_bytes(run, one)
    assert direct > 6 * (one.trained.held + 3 * one.frozen.held + one.decoder.held)
    recomputed = memory.score_phase_bytes(
        run_of(directory, "training.batch_size=6", "models.decode_chunk=2", *SPARING), one
    )
    assert recomputed == 6 * one.trained.held + max(6 * one.frozen.peak, 2 * one.decoder.peak)
    kl = run_of(directory, "training.batch_size=6", "objective.distance={kind: kl}", "objective.reward_weight=0")
    assert memory.score_phase_bytes(kl, one) == 6 * one.trained.held, "KL differentiates no score network"


def test_the_table_of_published_networks_is_what_their_architecture_gives() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        latents, text, t = torch.empty(1, 4, 64, 64), torch.empty(1, 77, 768), torch.zeros(1, dtype=torch.int64)
    torch.nn.Module.to(unet, torch.bfloat16).eval()
    latents, text = latents.bfloat16(), text.bfloat16()
    found = PUBLISHED["stable-diffusion-v1-5/stable-diffusion-v1-5"]
    assert found.network == sum(weight.numel() for weight in unet.parameters())
    graph = graph_bytes(unet, lambda: unet(latents, t, encoder_hidden_states=text, return_dict=False)[0])
    assert (graph.held, graph.peak) == pytest.approx(found.plain.trained, rel=0.01)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompts_embeddings_are_counted_as_the_encoder_makes_them(tmp_path: Path, name: str) -> None:
    module, timestep = FAMILIES[name]
    directory = str(module.write_pipeline(tmp_path / name))
    known = memory.sizes(run_of(directory))
    family = latent_diffusion.load(directory, directory, generator_timestep=timestep)
    condition = family.text_encoder.encode(["a red disc"])
    assert known.prompt.numbers == sum(condition[key].numel() for key in ("text", "pooled") if key in condition)
    assert known.prompt.tokens == condition["text"].shape[1]


def test_prompts_beyond_the_limit_are_not_encoded_ahead_and_the_dry_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (memory, report):
        monkeypatch.setattr(module, "EMBEDDINGS_LIMIT", 64 * 2**20)

    def of(count: int) -> Experiment:
        prompts = tmp_path / f"{count}.txt"
        prompts.write_text("".join(f"picture {number}\n" for number in range(count)))
        run = run_of("stabilityai/stable-diffusion-xl-base-1.0", f"data.prompts={prompts}", "runtime.precision=bf16")
        return run.model_copy(update={"models": run.models.model_copy(update={"keep_text_encoder": False})})

    few, many = of(200), of(500)
    # 77 tokens of 2048 and a summary of 1280 numbers, two bytes each.
    assert memory.sizes(many).embeddings(many) == 500 * 2 * (77 * 2048 + 1280)
    assert "500 prompts: embeddings of 0.148 GiB, more than 0.0625 GiB: encoded as training goes" in report.dry_run(
        many
    )
    assert "before the first step" in report.dry_run(few)
    kept = (memory.estimate(one, memory.sizes(one)).resting["weights: text encoders"] for one in (many, few))
    assert list(kept) == [4 * memory.sizes(many).text, 0]


def test_a_reference_of_unknown_size_is_said_to_be_unknown() -> None:
    text = report.dry_run(run_of("some/model"))
    assert "not known" in text
    assert all(line.startswith("#") for line in text.splitlines())


@pytest.mark.parametrize("checkpointed", ["true", "false"])
@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_are_counted_and_their_graph_is_that_of_the_adapted_network(
    tmp_path: Path, name: str, checkpointed: str
) -> None:
    module, timestep = FAMILIES[name]
    directory = str(module.write_pipeline(tmp_path / name))
    run = run_of(directory, "models.lora={rank: 4}", f"runtime.gradient_checkpointing={checkpointed}")
    known = memory.sizes(run)
    family = latent_diffusion.load(
        directory,
        directory,
        generator_timestep=timestep,
        gradient_checkpointing=checkpointed == "true",
        lora=Adapter(4, 4.0, ATTENTION),
    )
    trained = [weight for weight in family.assistant.parameters() if weight.requires_grad]
    assert known.trained == sum(weight.numel() for weight in trained)
    assert known.network == numbers(family.reference), "the base is as large as ever"
    noise, t = torch.randn(1, *family.latent_shape), torch.tensor([500])
    condition = family.text_encoder.encode(["a red disc"])
    graph = graph_bytes(family.assistant, lambda: family.assistant(noise, t, condition))
    assert known.activations.trained.held == pytest.approx(graph.held, rel=0.1)
    assert known.activations.trained.peak == pytest.approx(graph.peak, rel=0.1)


def test_networks_that_start_from_the_reference_or_its_lora_have_no_base_of_their_own(tmp_path: Path) -> None:
    reference = tiny.write_pipeline(tmp_path / "reference")
    other = tiny.write_pipeline(tmp_path / "other", seed=1)
    lora, whole = tmp_path / "fast.safetensors", tmp_path / "unet.safetensors"
    save_file({"unet.to_q.lora_A.weight": torch.ones(1)}, lora)
    save_file({"conv_in.weight": torch.ones(1)}, whole)
    starts = {str(reference): 0, str(lora): 0, "ByteDance/Hyper-SD/Hyper-SD15-1step-lora.safetensors": 0}
    starts |= {str(other): 1, str(whole): 1, "tianweiy/DMD2/dmd2_sdxl_1step_unet_fp16.bin": 1}
    for start, bases in starts.items():
        run = run_of(str(reference), "models.lora={rank: 4}", f"models.generator={start}")
        assert memory.own_bases(run) == bases, start
    both = run_of(str(reference), "models.lora={rank: 4}", f"models.generator={other}", f"models.assistant={other}")
    assert memory.own_bases(both) == 2
    assert memory.own_bases(run_of(str(reference), f"models.generator={other}")) == 0, (
        "without adapters nothing is a base"
    )
    parts = memory.estimate(both, memory.sizes(both)).resting
    assert parts["weights: bases of their own"] == 2 * parts["weights: reference"]


@pytest.mark.parametrize("merged", ["false", "true"])
def test_a_step_of_adapters_holds_what_the_estimate_says(tmp_path: Path, merged: str) -> None:
    directory = str(tiny.write_pipeline(tmp_path / "sd"))
    overrides = ["models.lora={rank: 4}", f"runtime.merge_adapters={merged}", "training.batch_size=2"]
    run = run_of(directory, *overrides, "models.decode_chunk=2", *SPARING)
    known = memory.sizes(run)
    expected = memory.estimate(run, known)
    with LiveBytes("cpu") as live:
        adapter = Adapter(4, 4.0, ATTENTION)
        family = latent_diffusion.load(directory, directory, generator_timestep=625, decode_chunk=2, lora=adapter)
        averaged = sharing_copy(family.generator)
        trainer = trainer_of(family, "recomputed", batch=2, runtime=run.runtime)
        trainer.step()
        resting = live.now
    assert averaged is not family.generator
    assert resting == pytest.approx(expected.between_steps, rel=0.1)
    assert live.peak == pytest.approx(expected.most, rel=0.1)

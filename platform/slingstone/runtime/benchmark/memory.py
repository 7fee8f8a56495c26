"""Peak memory of one generator update, with and without what saves it, on a random SDXL-like network.

Bytes are those of tensors: every operation's results, from when they are made until they are freed
(`networks.activations.LiveBytes`). What kernels use inside, and what an allocator keeps, is not seen.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from slingstone.config import ATTENTION, Optimizer, Runtime
from slingstone.networks.activations import LiveBytes
from slingstone.networks.adapters import Adapter, add_adapter, sharing_copy, trained_part
from slingstone.networks.decoder import VaeDecoder
from slingstone.networks.denoiser import OneStepGenerator, ScoreNetwork
from slingstone.networks.outputs import unet_output
from slingstone.networks.protocol import Condition, ModelFamily
from slingstone.objectives.diffusion import NoiseSchedule
from slingstone.objectives.divergence import Divergence, Guidance
from slingstone.objectives.reward import Scored
from slingstone.panel import RewardPanel, RewardTerm
from slingstone.runtime.engine import build_engine
from slingstone.trainer import StepSettings, Timesteps, Trainer


@dataclass(frozen=True)
class Size:
    """Of the random network.

    Attributes:
        side: of the latents.
        width: channels of the first level; the others have two and four times as many.
        depth: transformer blocks of the deepest level.
        batch: pictures of a step.
    """

    side: int = 32
    width: int = 64
    depth: int = 2
    batch: int = 2


class Variant(NamedTuple):
    """The way of the gradients, whether activations are checkpointed, and whether adapters alone are trained."""

    gradient: Literal["direct", "recomputed"]
    checkpointed: bool
    lora: bool


VARIANTS = {
    "direct": Variant("direct", False, False),
    "recomputed": Variant("recomputed", False, False),
    "recomputed, checkpointed": Variant("recomputed", True, False),
    "LoRA, recomputed, checkpointed": Variant("recomputed", True, True),
}


PLAIN = Runtime(engine="torch", num_workers=1)
"""One worker without DeepSpeed."""

PARTS = ("resting", "peak")
"""Of a measurement: bytes between steps, and the most beyond them."""


def measure(size: Size) -> dict[str, dict[str, int]]:
    """Return, by variant, the bytes that rest between steps and the most of a generator's update beyond them."""
    return {name: _peak(size, variant) for name, variant in VARIANTS.items()}


def table(found: dict[str, dict[str, int]]) -> str:
    """Return the measurement as lines, with each number as a ratio of the first line's."""
    first = next(iter(found.values()))
    lines = [f"{'':<32}{'resting MiB':>12}{'ratio':>8}{'peak MiB':>12}{'ratio':>8}{'together':>10}"]
    for name, value in found.items():
        cells = "".join(f"{value[part] / 2**20:>12.1f}{value[part] / first[part]:>8.3f}" for part in PARTS)
        lines.append(f"{name:<32}{cells}{sum(value.values()) / sum(first.values()):>10.3f}")
    return "\n".join(lines)


def _peak(size: Size, variant: Variant) -> dict[str, int]:
    with LiveBytes("cpu") as live:
        trainer = trainer_of(random_family(size, variant), variant.gradient, size.batch, decode_chunk=1)
        # The first step makes what stays: the optimizers' moments.
        trainer.step()
        resting, live.peak = live.now, live.now
        trainer._update_generator()
    return {"resting": resting, "peak": live.peak - resting}


def trainer_of(
    family: ModelFamily,
    gradient: Literal["direct", "recomputed"],
    batch: int,
    decode_chunk: int,
    runtime: Runtime = PLAIN,
) -> Trainer:
    """Return a trainer under an engine, whose reward is brightness, on the family's device."""
    adam = Optimizer(lr=1e-5)
    span = Timesteps(20, 979)
    settings = StepSettings(
        batch_size=batch,
        generator_timesteps=span,
        assistant_timesteps=span,
        divergence=replace(Divergence(), gradient=gradient, guidance=Guidance("inner", 7.5)),
        reward_weight=1.0,
        decode_chunk=decode_chunk,
    )
    parts = (trained_part(family.generator), trained_part(family.assistant))
    generator, assistant = (build_engine(part, adam, runtime, 10.0) for part in parts)
    reward = RewardTerm("brightness", 1.0, lambda images, _: _Brightness(images))
    rng = torch.Generator(next(family.reference.parameters()).device).manual_seed(0)
    panel, prompts = RewardPanel([reward]), _prompts(batch)
    return Trainer(family, generator, assistant, panel, prompts, settings, rng, generator.named_parameters)


def random_family(size: Size, variant: Variant) -> ModelFamily:
    """Return SDXL's architecture at a fraction of its width, with random weights and conditions."""
    torch.manual_seed(0)
    schedule = NoiseSchedule.from_alphas_cumprod(torch.linspace(0.9999, 0.005, 1000))
    networks = three_networks(_unet(size), variant.lora)
    kind: Any = AutoencoderKL
    vae = kind(
        block_out_channels=(size.width // 2, size.width, size.width, size.width),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=16,
    )
    if variant.checkpointed:
        for module in (*networks, vae):
            module.enable_gradient_checkpointing()
    return ModelFamily(
        generator=OneStepGenerator(networks[0], unet_output, "eps", schedule, 399, "unscaled"),
        assistant=ScoreNetwork(networks[1], unet_output, "eps", schedule),
        reference=ScoreNetwork(networks[2], unet_output, "eps", schedule),
        text_encoder=_Conditions(),
        decoder=VaeDecoder(vae),
        schedule=schedule,
        latent_shape=(4, size.side, size.side),
    )


LORA = Adapter(rank=8, alpha=8.0, target_modules=ATTENTION)
"""Adapters of the measurement: of an eighth of the width's rank, on attention."""


def three_networks(reference: Any, lora: bool) -> list[Any]:
    """Return generator, assistant and reference: three whole networks, or one with two adapters."""
    if not lora:
        return [copy.deepcopy(reference), copy.deepcopy(reference), reference]
    reference.requires_grad_(False)
    adapted = [sharing_copy(reference), sharing_copy(reference)]
    for network in adapted:
        add_adapter(network, LORA)
    return [*adapted, reference]


def _unet(size: Size) -> Any:
    kind: Any = UNet2DConditionModel
    made = kind(
        sample_size=size.side,
        block_out_channels=(size.width, 2 * size.width, 4 * size.width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, size.depth),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=64,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        norm_num_groups=16,
    )
    return made.eval()


class _Conditions:
    def encode(self, prompts: Sequence[str]) -> Condition:
        return self.null(len(prompts))

    def null(self, batch: int) -> Condition:
        return {"text": torch.ones(batch, 77, 64), "pooled": torch.ones(batch, 16), "time_ids": torch.ones(batch, 6)}


class _Brightness:
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def result(self) -> Scored:
        return self.images.mean((1, 2, 3)), torch.full_like(self.images, 1 / self.images[0].numel())


def _prompts(batch: int) -> Iterator[list[str]]:
    while True:
        yield [""] * batch

"""Random networks of any size, and a trainer over them: what the benchmarks measure without weights."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any, Literal, NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from slingstone.config import ATTENTION, Optimizer, Runtime
from slingstone.engines.engine import build_engine
from slingstone.engines.family import arrange
from slingstone.networks.adapters import Adapter, add_adapter, called, cast_frozen, sharing_copy, trained_part
from slingstone.networks.decoder import VaeDecoder, reward_decoder
from slingstone.networks.denoiser import OneStepGenerator, ScoreNetwork, unet_output
from slingstone.networks.protocol import DTYPES, Condition, ModelFamily
from slingstone.objectives.diffusion import NoiseSchedule
from slingstone.objectives.divergence import Divergence, Guidance
from slingstone.objectives.reward import Scored
from slingstone.step.panel import RewardPanel, RewardTerm
from slingstone.step.trainer import StepSettings, Timesteps, Trainer

Gradient = Literal["direct", "recomputed"]
TOKENS = 77
"""Of a prompt."""


@dataclass(frozen=True)
class Architecture:
    """Arguments of diffusers' `UNet2DConditionModel` and `AutoencoderKL`, the side of latents, the rank of adapters."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    side: int
    rank: int = 64


class Variant(NamedTuple):
    """The way of the gradients, whether activations are checkpointed, and whether adapters alone are trained.

    Attributes:
        levers: keys of `Runtime` that make it faster or smaller.
        decoder: dtype of the reward's decoder.
    """

    gradient: Gradient
    checkpointed: bool
    lora: bool
    levers: Mapping[str, Any] = {}
    decoder: torch.dtype = torch.float32


VARIANTS = {
    "direct": Variant("direct", False, False),
    "recomputed": Variant("recomputed", False, False),
    "recomputed, checkpointed": Variant("recomputed", True, False),
    "LoRA, recomputed, checkpointed": Variant("recomputed", True, True),
}

PLAIN = Runtime(engine="torch", num_workers=1)
"""One worker without DeepSpeed."""

_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
SD15 = Architecture({"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}, _VAE, side=64)
"""Stable Diffusion 1.5 at 512 px, as its published configuration describes it."""
SDXL = Architecture(
    {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + 1280,
    },
    _VAE,
    side=128,
)
"""SDXL at 1024 px, likewise."""


def sdxl_like(side: int, width: int, depth: int) -> Architecture:
    """Return SDXL's architecture, smaller.

    Args:
        side: of the latents; divisible by 4.
        width: channels of the first level, divisible by 32; the others have two and four times as many.
        depth: transformer blocks of the deepest level.
    """
    unet = {
        **SDXL.unet,
        "sample_size": side,
        "block_out_channels": (width, 2 * width, 4 * width),
        "transformer_layers_per_block": (1, 1, depth),
        "attention_head_dim": (1, 2, 4),
        "cross_attention_dim": 64,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
        "norm_num_groups": 16,
    }
    channels = (width // 2, width, width, width)
    vae = {**_VAE, "block_out_channels": channels, "layers_per_block": 1, "norm_num_groups": 16}
    return Architecture(unet, vae, side, rank=8)


def random_family(architecture: Architecture, variant: Variant, device: torch.device | str = "cpu") -> ModelFamily:
    """Return a family with random weights and conditions, all of it in fp32."""
    torch.manual_seed(0)
    schedule = NoiseSchedule.from_alphas_cumprod(torch.linspace(0.9999, 0.005, 1000)).to(device)
    with torch.device(device):
        unet, vae = UNet2DConditionModel(**architecture.unet).eval(), AutoencoderKL(**architecture.vae)
    networks = _three(unet, Adapter(architecture.rank, float(architecture.rank), ATTENTION) if variant.lora else None)
    if variant.checkpointed:
        for module in (*networks, vae):
            module.enable_gradient_checkpointing()
    return ModelFamily(
        generator=OneStepGenerator(networks[0], unet_output, "eps", schedule, 399, "unscaled"),
        assistant=ScoreNetwork(networks[1], unet_output, "eps", schedule),
        reference=ScoreNetwork(networks[2], unet_output, "eps", schedule),
        text_encoder=_Conditions(unet.config, torch.device(device)),
        decoder=VaeDecoder(vae, chunk=1),
        schedule=schedule,
        latent_shape=(4, architecture.side, architecture.side),
    )


def _three(reference: Any, lora: Adapter | None) -> list[Any]:
    """Return generator, assistant and reference: three whole networks, or one with two adapters."""
    if lora is None:
        copies = [copy.deepcopy(reference), copy.deepcopy(reference)]
        return [*copies, reference.requires_grad_(False)]
    reference.requires_grad_(False)
    adapted = [sharing_copy(reference), sharing_copy(reference)]
    for network in adapted:
        add_adapter(network, lora)
    return [*adapted, reference]


def trainer_of(
    family: ModelFamily,
    gradient: Gradient,
    batch: int,
    runtime: Runtime = PLAIN,
    decoder_dtype: torch.dtype = torch.float32,
) -> Trainer:
    """Return a trainer under an engine, whose reward is brightness; what is frozen is rounded to its precision."""
    adam = Optimizer(lr=1e-5)
    span = Timesteps(20, 979)
    settings = StepSettings(
        batch_size=batch,
        generator_timesteps=span,
        assistant_timesteps=span,
        divergence=replace(Divergence(), gradient=gradient, guidance=Guidance("inner", 7.5)),
        reward_weight=1.0,
        micro_batch_size=runtime.micro_batch_size or 0,
        joint_reference=runtime.joint_reference,
        decoder_graph="kept" if runtime.keep_decoder_graph or gradient == "direct" else "recomputed",
    )
    networks = (family.generator, family.assistant)
    parts = [trained_part(network, runtime.merge_adapters) for network in networks]
    for frozen in (family.reference, *(network for network in networks if network not in parts)):
        cast_frozen(frozen, DTYPES[runtime.precision])
    assert isinstance(family.decoder, VaeDecoder)
    checkpointed = family.decoder.vae.is_gradient_checkpointing and not runtime.keep_decoder_graph
    decoder = reward_decoder(family.decoder, None, decoder_dtype, checkpointed)
    arrange([family.reference, *chain(*map(called, parts))], decoder, runtime)
    generator, assistant = (build_engine(part, adam, runtime, 10.0) for part in parts)
    reward = RewardTerm("brightness", 1.0, lambda images, _: _Brightness(images))
    rng = torch.Generator(next(family.reference.parameters()).device).manual_seed(0)
    prompts, panel = repeat([""] * batch), RewardPanel([reward])
    return Trainer(replace(family, decoder=decoder), generator, assistant, panel, prompts, settings, rng)


class _Conditions:
    """As wide as the UNet asks for; SDXL's are told sizes and a pooled prompt, too."""

    def __init__(self, config: Any, device: torch.device) -> None:
        self.width, self.device = config["cross_attention_dim"], device
        added = config["projection_class_embeddings_input_dim"]
        self.pooled = added and added - 6 * config["addition_time_embed_dim"]

    def encode(self, prompts: Sequence[str]) -> Condition:
        return self.null(len(prompts))

    def null(self, batch: int) -> Condition:
        with self.device:
            text = {"text": torch.ones(batch, TOKENS, self.width)}
            if not self.pooled:
                return text
            return text | {"pooled": torch.ones(batch, self.pooled), "time_ids": torch.ones(batch, 6)}


@dataclass(frozen=True)
class _Brightness:
    images: Tensor

    def result(self) -> Scored:
        return self.images.mean((1, 2, 3)), torch.full_like(self.images, 1 / self.images[0].numel())

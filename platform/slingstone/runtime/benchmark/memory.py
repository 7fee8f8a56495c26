"""Peak memory of one generator update, with and without what saves it, on a random SDXL-like network.

Bytes are those of tensors: every operation's results, from when they are made until they are freed
(`networks.activations.LiveBytes`). What kernels use inside, and what an allocator keeps, is not seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from slingstone.config import Optimizer
from slingstone.networks.activations import LiveBytes
from slingstone.networks.decoder import VaeDecoder
from slingstone.networks.denoiser import OneStepGenerator, ScoreNetwork
from slingstone.networks.outputs import unet_output
from slingstone.networks.protocol import Condition, ModelFamily
from slingstone.objectives.diffusion import NoiseSchedule
from slingstone.objectives.divergence import Divergence, Guidance
from slingstone.objectives.reward import Scored
from slingstone.panel import RewardPanel, RewardTerm
from slingstone.runtime.engine import TorchEngine
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


VARIANTS = {
    "direct": ("direct", False),
    "recomputed": ("recomputed", False),
    "recomputed, checkpointed": ("recomputed", True),
}
"""By name: the way of the gradients, and whether activations are checkpointed."""


def measure(size: Size) -> dict[str, dict[str, int]]:
    """Return, by variant, the bytes that rest between steps and the most of a generator's update beyond them."""
    return {name: _peak(size, *variant) for name, variant in VARIANTS.items()}


def table(found: dict[str, dict[str, int]]) -> str:
    """Return the measurement as lines, with each peak as a ratio of the first."""
    first = next(iter(found.values()))["peak"]
    lines = [f"{'':<28}{'resting MiB':>12}{'peak MiB':>12}{'ratio':>8}"]
    for name, value in found.items():
        mib = [value[part] / 2**20 for part in ("resting", "peak")]
        lines.append(f"{name:<28}{mib[0]:>12.1f}{mib[1]:>12.1f}{value['peak'] / first:>8.3f}")
    return "\n".join(lines)


def _peak(size: Size, gradient: Any, checkpointed: bool) -> dict[str, int]:
    with LiveBytes("cpu") as live:
        trainer = _trainer(size, gradient, checkpointed)
        # The first step makes what stays: the optimizers' moments.
        trainer.step()
        resting, live.peak = live.now, live.now
        trainer._update_generator()
    return {"resting": resting, "peak": live.peak - resting}


def _trainer(size: Size, gradient: Any, checkpointed: bool) -> Trainer:
    family = random_family(size, checkpointed)
    adam = Optimizer(lr=1e-5)
    span = Timesteps(20, 979)
    settings = StepSettings(
        batch_size=size.batch,
        generator_timesteps=span,
        assistant_timesteps=span,
        divergence=replace(Divergence(), gradient=gradient, guidance=Guidance("inner", 7.5)),
        reward_weight=1.0,
        decode_chunk=1,
    )
    generator, assistant = (TorchEngine(part, adam, "fp32", 10.0) for part in (family.generator, family.assistant))
    reward = RewardTerm("brightness", 1.0, lambda images, _: _Brightness(images))
    rng = torch.Generator().manual_seed(0)
    return Trainer(family, generator, assistant, RewardPanel([reward]), _prompts(size), settings, rng)


def random_family(size: Size, checkpointed: bool) -> ModelFamily:
    """Return SDXL's architecture at a fraction of its width, with random weights and conditions."""
    torch.manual_seed(0)
    schedule = NoiseSchedule.from_alphas_cumprod(torch.linspace(0.9999, 0.005, 1000))
    networks = [_unet(size) for _ in range(3)]
    kind: Any = AutoencoderKL
    vae = kind(
        block_out_channels=(size.width // 2, size.width, size.width, size.width),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=16,
    )
    if checkpointed:
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


def _prompts(size: Size) -> Iterator[list[str]]:
    while True:
        yield [""] * size.batch

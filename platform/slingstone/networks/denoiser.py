"""Denoising networks as a run needs them: how each kind is called, the score network, the one-step generator."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from slingstone.networks.protocol import Condition
from slingstone.objectives.diffusion import NoiseSchedule, Prediction, eps_from, x0_from

GeneratorInput = Literal["scaled", "unscaled"]
"""What a one-step generator is fed at its timestep T: `sigma_T z`, or `z` itself."""

Output = Callable[[Any, Tensor, Tensor, Condition], Tensor]
"""`(network, x_t, t, condition) -> prediction`: how a kind of network is called; its prediction in fp32, latents only.
Inputs are cast to the weights' dtype, so that an engine may train in bf16."""


def unet_output(
    unet: UNet2DConditionModel,
    x_t: Float[Tensor, "batch channel height width"],
    t: Int[Tensor, " batch"],
    condition: Condition,
) -> Float[Tensor, "batch channel height width"]:
    """Return the prediction of a UNet of Stable Diffusion or SDXL.

    SDXL's are told `pooled` and `time_ids` as well; the ids are sizes in pixels, which stay in fp32.
    """
    dtype = next(unet.parameters()).dtype
    added = (
        {"text_embeds": condition["pooled"].to(dtype), "time_ids": condition["time_ids"]}
        if "pooled" in condition
        else None
    )
    text = condition["text"].to(dtype)
    output = unet(x_t.to(dtype), t, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)
    return output[0].float()


def pixart_output(
    transformer: PixArtTransformer2DModel,
    x_t: Float[Tensor, "batch channel height width"],
    t: Int[Tensor, " batch"],
    condition: Condition,
) -> Float[Tensor, "batch channel height width"]:
    """Return the prediction of PixArt-alpha's transformer: the first half of its channels, the others are a variance.

    Only transformers for 1024 px listen to the size and the aspect ratio.
    """
    dtype = next(transformer.parameters()).dtype
    output = transformer(
        x_t.to(dtype),
        encoder_hidden_states=condition["text"].to(dtype),
        encoder_attention_mask=condition["mask"],
        timestep=t,
        added_cond_kwargs={name: condition[name] for name in ("resolution", "aspect_ratio")},
        return_dict=False,
    )[0]
    return output[:, : x_t.shape[1]].float()


@dataclass(frozen=True)
class Sd3Output:
    """The flow `eps - x0` of Stable Diffusion 3's transformer, which is told `1000 sigma_t` where others are told t."""

    schedule: NoiseSchedule

    def __call__(
        self,
        transformer: SD3Transformer2DModel,
        x_t: Float[Tensor, "batch channel height width"],
        t: Int[Tensor, " batch"],
        condition: Condition,
    ) -> Float[Tensor, "batch channel height width"]:
        """Return the transformer's prediction."""
        dtype = next(transformer.parameters()).dtype
        output = transformer(
            hidden_states=x_t.to(dtype),
            timestep=1000 * self.schedule.sigma.to(t.device)[t],
            encoder_hidden_states=condition["text"].to(dtype),
            pooled_projections=condition["pooled"].to(dtype),
            return_dict=False,
        )
        return output[0].float()


class ScoreNetwork(nn.Module):
    """Noise prediction `(x_t, t, condition) -> eps` of a network of any kind and prediction type.

    The schedule is no buffer: an engine that casts the module to bf16 must not round `alpha_t` and `sigma_t`.
    """

    def __init__(self, network: nn.Module, output: Output, prediction: Prediction, schedule: NoiseSchedule):
        super().__init__()
        self.network = network
        self.output = output
        self.prediction: Prediction = prediction
        self.schedule = schedule

    def forward(
        self, x_t: Float[Tensor, "batch channel height width"], t: Int[Tensor, " batch"], condition: Condition
    ) -> Float[Tensor, "batch channel height width"]:
        """Return eps in fp32; the score is `-eps / sigma_t`."""
        output = self.output(self.network, x_t, t, condition)
        return eps_from(self.prediction, output, x_t, *self.schedule.at(t))


class OneStepGenerator(nn.Module):
    """One-step generator `(z, condition) -> x0`: the network's x0 prediction at one fixed timestep T.

    For an eps-network: `x0 = (x - sigma_T e(x, T)) / alpha_T`, with `x = sigma_T z` (scaled) or `x = z` (unscaled).

    Args:
        network: whose weights these are.
        output: how it is called.
        prediction: what it predicts.
        schedule: of the reference.
        timestep: T, what the network is told.
        generator_input: what it is fed; weights made for one input do not work with the other.
        noise_level: `sigma_T / alpha_T`, where the checkpoint was made for one that lies between timesteps; None takes
            the schedule's at T.

    Source: the published one-step recipes, SiD-LSG (arXiv:2406.01561: scaled, T = 625) and DMD2
    (arXiv:2405.14867: unscaled, T = 399).
    """

    def __init__(
        self,
        network: nn.Module,
        output: Output,
        prediction: Prediction,
        schedule: NoiseSchedule,
        timestep: int,
        generator_input: GeneratorInput,
        noise_level: float | None = None,
    ):
        super().__init__()
        self.network = network
        self.output = output
        self.prediction: Prediction = prediction
        self.schedule = schedule
        self.timestep = timestep
        self.generator_input: GeneratorInput = generator_input
        self.noise_level = noise_level

    def forward(
        self, z: Float[Tensor, "batch channel height width"], condition: Condition
    ) -> Float[Tensor, "batch channel height width"]:
        """Return latents x0 in fp32 from standard normal `z`."""
        t = torch.full((len(z),), self.timestep, dtype=torch.int64, device=z.device)
        alpha, sigma = self.schedule.at(t)
        if self.noise_level is not None:
            alpha = torch.full_like(alpha, (1 + self.noise_level**2) ** -0.5)
            sigma = self.noise_level * alpha
        x = sigma * z if self.generator_input == "scaled" else z
        return x0_from(self.prediction, self.output(self.network, x, t, condition), x, alpha, sigma)

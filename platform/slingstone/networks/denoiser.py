"""Denoising networks as a run needs them: the score network and the one-step generator."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from slingstone.networks.protocol import Condition
from slingstone.objectives.diffusion import NoiseSchedule, Prediction, eps_from, x0_from

GeneratorInput = Literal["scaled", "unscaled"]
"""What a one-step generator is fed at its timestep T: `sigma_T z`, or `z` itself."""

Output = Callable[[Any, Tensor, Tensor, Condition], Tensor]
"""`(network, x_t, t, condition) -> prediction`: how a kind of network is called, see `outputs`; fp32, latents only."""


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

"""Flow matching as diffusers schedules it: `x_t = (1 - sigma_t) x0 + sigma_t eps`; the network predicts `eps - x0`."""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor

from slingstone.networks.denoiser import GeneratorInput
from slingstone.networks.protocol import Solver
from slingstone.objectives.diffusion import NoiseSchedule, Prediction


def flow_prediction(config: dict[str, Any]) -> Prediction:
    """Return what every flow-matching network predicts."""
    return "flow"


def flow_schedule(config: dict[str, Any]) -> NoiseSchedule:
    """Return the scheduler's shifted sigmas, from the smallest to 1.

    Raises:
        ValueError: if the scheduler is no flow's, or its shift depends on the size of the pictures.
    """
    name = FlowMatchEulerDiscreteScheduler.__name__
    if config.get("_class_name") != name:
        raise ValueError(f"{config.get('_class_name')} is no {name}, so no flow-matching schedule")
    if config.get("use_dynamic_shifting"):
        raise ValueError("use_dynamic_shifting is true, so there is no one schedule; set it to false, and a shift")
    return NoiseSchedule.from_flow_sigmas(_sigmas(config).flip(0))


def flow_solver(config: dict[str, Any], kind: Solver) -> FlowMatchEulerDiscreteScheduler:
    """Return the many-step solver: Euler's, which is DDIM's step in a flow.

    Raises:
        ValueError: if another solver is asked for.
    """
    if kind != "ddim":
        raise ValueError(f"solver is {kind!r}, but flow-matching models are sampled by 'ddim' (Euler's step) only")
    return _euler(config)


def flow_one_step(
    config: dict[str, Any],
    kind: Prediction,
    timestep: int,
    generator_input: GeneratorInput,
    noise_level: float | None = None,
) -> FlowMatchEulerDiscreteScheduler:
    """Return the stock scheduler, whose only step starts from pure noise.

    Raises:
        ValueError: if the generator starts elsewhere; `num_inference_steps=1` cannot say where.
    """
    last = len(_sigmas(config)) - 1
    if timestep != last or noise_level is not None:
        raise ValueError(
            f"generator_timestep is {timestep}, but a flow-matching pipeline takes its one step from pure noise: "
            f"only generators of timestep {last}, without a noise level of their own, can be exported"
        )
    return _euler(config)


def _euler(config: dict[str, Any]) -> FlowMatchEulerDiscreteScheduler:
    made: Any = FlowMatchEulerDiscreteScheduler.from_config(config)
    return made


def _sigmas(config: dict[str, Any]) -> Float[Tensor, " steps"]:
    sigmas: Any = _euler(config).sigmas
    return sigmas

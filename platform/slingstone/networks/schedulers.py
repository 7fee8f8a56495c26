"""What the configuration of a checkpoint's scheduler says: tables, many-step solvers and one-step schedulers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)
from jaxtyping import Float
from torch import Tensor

from slingstone.networks.denoiser import GeneratorInput
from slingstone.networks.protocol import Solver
from slingstone.objectives.diffusion import NoiseSchedule, Prediction

PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
"""What diffusers calls each prediction type."""


@dataclass(frozen=True)
class Process:
    """How the configuration of a scheduler is read.

    Attributes:
        schedule: its `alpha_t`, `sigma_t`.
        prediction: what the networks predict.
        solver: the many-step solver.
        one_step: the scheduler under which a stock pipeline takes the generator's step.
    """

    schedule: Callable[[dict[str, Any]], NoiseSchedule]
    prediction: Callable[[dict[str, Any]], Prediction]
    solver: Callable[[dict[str, Any], Solver], Any]
    one_step: Callable[[dict[str, Any], Prediction, int, GeneratorInput, float | None], Any]


def _prediction(config: dict[str, Any]) -> Prediction:
    """Return what the checkpoint's network predicts.

    Raises:
        ValueError: if it is of no known type.
    """
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise ValueError(f"prediction_type is {kind!r}, must be one of {sorted(PREDICTIONS)}")
    return PREDICTIONS[kind]


def _noise_schedule(config: dict[str, Any]) -> NoiseSchedule:
    """Return `alpha_t`, `sigma_t` by diffusers' own reading of the betas.

    Raises:
        ValueError: if the configuration has none, as a flow model's.
    """
    if "beta_schedule" not in config:
        raise ValueError(f"{config.get('_class_name')} has no beta_schedule, so no variance-preserving schedule")
    return NoiseSchedule.from_alphas_cumprod(_ddim(config).alphas_cumprod)


def _many_step_solver(config: dict[str, Any], kind: Solver) -> Any:
    """Return a deterministic many-step solver over the checkpoint's schedule."""
    if kind == "ddim":
        return _ddim(config)
    return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++")


def _one_step_scheduler(
    config: dict[str, Any],
    kind: Prediction,
    timestep: int,
    generator_input: GeneratorInput,
    noise_level: float | None,
) -> EulerDiscreteScheduler | LCMScheduler:
    """Return a stock scheduler that makes `num_inference_steps=1` the one-step generator's call at `timestep`.

    Its table is the checkpoint's own, cut after `timestep`, so that the only step begins there; its last beta is such
    that `sigma / alpha` ends at `noise_level`, where one is given. For scaled input it
    is Euler's, with trailing spacing: it starts from `(sigma/alpha) z` and feeds the network
    `(sigma/alpha) z / sqrt((sigma/alpha)^2 + 1) = sigma z`. For unscaled input it is LCM's, which feeds z as it is;
    its boundary condition mixes in `0.25 / (10 T)^2` of the input: 1.6e-8 at T = 399.
    """
    betas = _ddim(config).betas.double()[: timestep + 1]
    if noise_level is not None:
        betas[-1] = 1 - 1 / ((1 + noise_level**2) * (1 - betas[:-1]).prod())
    shared: dict[str, Any] = {
        "num_train_timesteps": timestep + 1,
        "trained_betas": betas.tolist(),
        "prediction_type": {name: spelling for spelling, name in PREDICTIONS.items()}[kind],
        # StableDiffusionPipeline calls any other offset outdated, and changes it.
        "steps_offset": 1,
    }
    if generator_input == "scaled":
        return EulerDiscreteScheduler(**shared, timestep_spacing="trailing")
    return LCMScheduler(**shared, original_inference_steps=1)


def _ddim(config: dict[str, Any]) -> Any:
    # It clips by default, which is for pixels; the configuration of another scheduler does not say so.
    return DDIMScheduler.from_config(config, clip_sample=False)


def _flow_schedule(config: dict[str, Any]) -> NoiseSchedule:
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


def _flow_solver(config: dict[str, Any], kind: Solver) -> FlowMatchEulerDiscreteScheduler:
    """Return Euler's solver, which is DDIM's step in a flow.

    Raises:
        ValueError: if another solver is asked for.
    """
    if kind != "ddim":
        raise ValueError(f"solver is {kind!r}, but flow-matching models are sampled by 'ddim' (Euler's step) only")
    return _euler(config)


def _flow_one_step(
    config: dict[str, Any],
    kind: Prediction,
    timestep: int,
    generator_input: GeneratorInput,
    noise_level: float | None,
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


def _euler(config: dict[str, Any]) -> Any:
    return FlowMatchEulerDiscreteScheduler.from_config(config)


def _sigmas(config: dict[str, Any]) -> Float[Tensor, " steps"]:
    return _euler(config).sigmas


VARIANCE_PRESERVING = Process(_noise_schedule, _prediction, _many_step_solver, _one_step_scheduler)
FLOW_MATCHING = Process(_flow_schedule, lambda _: "flow", _flow_solver, _flow_one_step)
"""`x_t = (1 - sigma_t) x0 + sigma_t eps`; the networks predict `eps - x0`."""

"""From the configuration of a checkpoint's scheduler to tables, many-step solvers and one-step schedulers."""

from typing import Any

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, LCMScheduler

from slingstone.networks.denoiser import GeneratorInput
from slingstone.networks.protocol import Solver
from slingstone.objectives.diffusion import NoiseSchedule, Prediction

PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
"""What diffusers calls each prediction type."""


def prediction(config: dict[str, Any]) -> Prediction:
    """Return what the checkpoint's UNet predicts.

    Raises:
        ValueError: if it is of no known type.
    """
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise ValueError(f"prediction_type is {kind!r}, must be one of {sorted(PREDICTIONS)}")
    return PREDICTIONS[kind]


def noise_schedule(config: dict[str, Any]) -> NoiseSchedule:
    """Return `alpha_t`, `sigma_t` by diffusers' own reading of the betas.

    Raises:
        ValueError: if the configuration has none, as a flow model's.
    """
    if "beta_schedule" not in config:
        raise ValueError(f"{config.get('_class_name')} has no beta_schedule, so no variance-preserving schedule")
    return NoiseSchedule.from_alphas_cumprod(_ddim(config).alphas_cumprod)


def many_step_solver(config: dict[str, Any], kind: Solver) -> DDIMScheduler | DPMSolverMultistepScheduler:
    """Return a deterministic many-step solver over the checkpoint's schedule."""
    if kind == "ddim":
        return _ddim(config)
    made: Any = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++")
    return made


def one_step_scheduler(
    config: dict[str, Any],
    kind: Prediction,
    timestep: int,
    generator_input: GeneratorInput,
    noise_level: float | None = None,
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


def _ddim(config: dict[str, Any]) -> DDIMScheduler:
    # It clips by default, which is for pixels; the configuration of another scheduler does not say so.
    made: Any = DDIMScheduler.from_config(config, clip_sample=False)
    return made

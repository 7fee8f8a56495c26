"""The adapters against direct computations with diffusers' own scheduler objects."""

import copy
from typing import Literal

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel

from slingstone.networks.denoiser import OneStepGenerator, ScoreNetwork, unet_output
from slingstone.networks.protocol import ModelFamily
from tests import tiny

SPELLINGS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("generator_input", ["scaled", "unscaled"])
def test_one_step_output_is_the_schedulers_predicted_original_sample(
    family: ModelFamily, kind: Literal["eps", "v", "x0"], generator_input: Literal["scaled", "unscaled"]
) -> None:
    unet = family.generator.network
    generator = OneStepGenerator(unet, unet_output, kind, family.schedule, 625, generator_input)
    z, condition = draw(3, *tiny.LATENT_SHAPE), family.text_encoder.encode(["a red disc", "a ring", ""])
    scheduler = DDIMScheduler.from_config(family.pipeline.scheduler_config, prediction_type=SPELLINGS[kind])
    scheduler.set_timesteps(1000)
    x = (1 - scheduler.alphas_cumprod[625]).sqrt() * z if generator_input == "scaled" else z
    with torch.no_grad():
        output = unet(x, torch.tensor(625), encoder_hidden_states=condition["text"]).sample
        expected = scheduler.step(output, torch.tensor(625), x).pred_original_sample
        # fp32: x0 divides by alpha = 0.37.
        torch.testing.assert_close(generator(z, condition), expected, rtol=1e-5, atol=1e-5)


def test_eps_of_an_eps_unet_is_its_output(family: ModelFamily) -> None:
    x, t = draw(3, *tiny.LATENT_SHAPE), torch.tensor([0, 500, 999])
    condition = family.text_encoder.encode(["a red disc", "a ring", ""])
    with torch.no_grad():
        expected = family.reference.network(x, t, encoder_hidden_states=condition["text"]).sample
        assert torch.equal(family.reference(x, t, condition), expected)


@pytest.mark.parametrize("kind", ["v", "x0"])
def test_eps_of_other_predictions_inverts_the_schedulers_targets(family: ModelFamily, kind: Literal["v", "x0"]) -> None:
    """A network that answers with diffusers' training target of known x0 and eps must be read as that eps."""

    class Answer(UNet2DConditionModel):
        def forward(self, *_: object, **__: object) -> tuple[torch.Tensor]:
            return (target,)

    scheduler = DDPMScheduler.from_config(family.pipeline.scheduler_config)
    x0, eps, t = draw(4, *tiny.LATENT_SHAPE), draw(4, *tiny.LATENT_SHAPE, seed=1), torch.tensor([20, 300, 625, 979])
    x_t = scheduler.add_noise(x0, eps, t)
    target = scheduler.get_velocity(x0, eps, t) if kind == "v" else x0
    network = ScoreNetwork(Answer.from_config(family.reference.network.config), unet_output, kind, family.schedule)
    # x0 to eps divides by sigma = 0.2 at t = 20, so that fp32 rounding of x_t - alpha x0 grows fivefold.
    torch.testing.assert_close(network(x_t, t, family.text_encoder.null(4)).detach(), eps, rtol=1e-5, atol=5e-6)


def test_schedule_is_the_schedulers(family: ModelFamily) -> None:
    scheduler = DDIMScheduler.from_config(family.pipeline.scheduler_config)
    torch.testing.assert_close(family.schedule.alpha, scheduler.alphas_cumprod.sqrt(), rtol=1e-6, atol=0)
    # Published for Stable Diffusion: sigma_625 / alpha_625 = 2.50.
    assert float(family.schedule.sigma[625] / family.schedule.alpha[625]) == pytest.approx(2.50, abs=5e-3)


def test_weights_in_bf16_give_fp32_results_and_leave_the_schedule_exact(family: ModelFamily) -> None:
    generator = copy.deepcopy(family.generator).bfloat16()
    z, condition = draw(2, *tiny.LATENT_SHAPE), family.text_encoder.encode(["a red disc", "a ring"])
    with torch.no_grad():
        rounded, exact = generator(z, condition), family.generator(z, condition)
    assert rounded.dtype == torch.float32
    assert torch.equal(generator.schedule.alpha, family.schedule.alpha)
    # bf16 keeps 8 bits; x0 = (x - sigma e) / alpha magnifies e's error by sigma / alpha = 2.5.
    assert 0 < float((rounded - exact).abs().max()) < 0.1


def test_gradients_reach_weights_noise_and_condition(family: ModelFamily) -> None:
    z = draw(2, *tiny.LATENT_SHAPE).requires_grad_()
    text = family.text_encoder.encode(["a red disc", "a ring"])["text"].requires_grad_()
    direction = draw(2, *tiny.LATENT_SHAPE, seed=2)
    value = (family.generator(z, {"text": text}) * direction).sum()
    weight = family.generator.network.conv_out.bias
    to_z, to_text, to_bias = torch.autograd.grad(value, [z, text, weight])
    sigma, alpha = family.schedule.sigma[625], family.schedule.alpha[625]
    # The bias of the last layer is added to e, and x0 = ... - sigma / alpha e.
    torch.testing.assert_close(to_bias, -sigma / alpha * direction.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)
    step = 1e-2 * draw(2, *tiny.LATENT_SHAPE, seed=3)
    with torch.no_grad():
        change = (family.generator(z + step, {"text": text}) - family.generator(z - step, {"text": text})) * direction
    # Central difference: the error is of third order in a step of 1 %.
    assert float((to_z * step).sum() * 2) == pytest.approx(float(change.sum()), rel=1e-2)
    assert float(to_text.abs().sum()) > 0


def test_gradient_checkpointing_changes_memory_and_not_gradients(family: ModelFamily) -> None:
    generator = copy.deepcopy(family.generator)
    generator.network.enable_gradient_checkpointing()
    z, condition = draw(2, *tiny.LATENT_SHAPE), family.text_encoder.encode(["a red disc", "a ring"])
    gradients = []
    for module in (family.generator, generator):
        saved = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = module(z, condition).square().sum()
        gradients.append((saved, torch.autograd.grad(value, list(module.parameters()))))
    (plain, expected), (checkpointed, found) = gradients
    assert checkpointed < 0.7 * plain
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

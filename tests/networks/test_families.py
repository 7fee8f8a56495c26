"""What training asks of every family: bf16 weights, gradients that reach all of them, checkpointed activations."""

import copy
from types import ModuleType

import pytest
import torch

from slingstone.networks.latent_diffusion import load
from slingstone.networks.protocol import ModelFamily
from slingstone.networks.sampling import noise_of_seeds
from tests import tiny, tiny_pixart, tiny_sd3, tiny_sdxl

PROMPTS = ["a red disc", "a white ring"]
FAMILIES: dict[str, tuple[ModuleType, int]] = {
    "sd": (tiny, 625),
    "sdxl": (tiny_sdxl, 399),
    "pixart": (tiny_pixart, 440),
    "sd3": (tiny_sd3, 999),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFamily:
    module, timestep = FAMILIES[request.param]
    directory = str(module.write_pipeline(tmp_path_factory.mktemp(request.param) / "pipeline"))
    return load(directory, directory, generator_timestep=timestep)


def test_bf16_weights_give_fp32_results_close_to_the_exact_ones(family: ModelFamily) -> None:
    z, condition = noise_of_seeds([1, 2], family.latent_shape), family.text_encoder.encode(PROMPTS)
    t = torch.tensor([100, 900])
    for network, first in ((family.generator, ()), (family.reference, (t,))):
        half = copy.deepcopy(network).bfloat16()
        with torch.no_grad():
            rounded, exact = half(z, *first, condition), network(z, *first, condition)
        assert rounded.dtype == torch.float32
        # bf16 keeps 8 bits, and x0 = (x - sigma e) / alpha magnifies e's error by up to 2.5.
        assert 0 < float((rounded - exact).abs().mean()) < 0.03


def test_gradients_reach_every_weight_that_can_matter_and_no_encoder(family: ModelFamily) -> None:
    z, condition = noise_of_seeds([1, 2], family.latent_shape), family.text_encoder.encode(PROMPTS)
    family.generator(z, condition).square().sum().backward()
    unreached = {name for name, weight in family.generator.named_parameters() if weight.grad is None}
    family.generator.zero_grad()
    # Stable Diffusion 3's last block throws away what it made of the text.
    assert all("context" in name or "add_" in name for name in unreached), unreached
    assert not any(tensor.requires_grad for tensor in condition.values())


def test_checkpointed_activations_give_the_same_gradients(family: ModelFamily) -> None:
    z, condition = noise_of_seeds([1, 2], family.latent_shape), family.text_encoder.encode(PROMPTS)
    checkpointed = copy.deepcopy(family.generator)
    checkpointed.network.enable_gradient_checkpointing()
    gradients, saved = [], []
    for module in (family.generator, checkpointed):
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = module(z, condition).square().mean()
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        gradients.append([g for g in torch.autograd.grad(value, weights, allow_unused=True) if g is not None])
        saved.append(sum(sizes))
    assert saved[1] < saved[0]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)

import copy

import pytest
import torch

from slingstone.networks.decoder import VaeDecoder
from slingstone.networks.protocol import ModelFamily
from tests import tiny


def latents(count: int) -> torch.Tensor:
    return torch.randn(count, *tiny.LATENT_SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shift", [None, 0.3])
def test_pictures_are_those_of_the_vae(shift: float | None) -> None:
    vae = tiny.pipeline().vae
    vae.register_to_config(shift_factor=shift)
    with torch.no_grad():
        expected = (vae.decode(latents(3) / 0.7 + (shift or 0)).sample / 2 + 0.5).clamp(0, 1)
        found = VaeDecoder(vae).decode(latents(3))
    # Frozen weights take other kernels than trainable ones, equal up to the last digits.
    assert found.shape == (3, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_chunks_change_neither_pictures_nor_gradients(family: ModelFamily) -> None:
    results = []
    for chunk in (None, 2):
        leaf = latents(5).requires_grad_()
        pictures = VaeDecoder(family.decoder.vae, chunk).decode(leaf)
        (gradient,) = torch.autograd.grad(pictures.square().sum(), leaf)
        results.append((pictures.detach(), gradient))
    # Kernels differ with the size of the batch, in the last digits.
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_gradients_flow_to_the_latents_and_not_to_the_weights(family: ModelFamily) -> None:
    double = VaeDecoder(copy.deepcopy(family.decoder.vae).double())
    leaf = latents(2).double().requires_grad_()
    direction = 1e-3 * latents(2).double().flip(0)
    value = double.decode(leaf).square().sum()
    value.backward()
    change = double.decode(leaf + direction).square().sum() - double.decode(leaf - direction).square().sum()
    assert leaf.grad is not None
    # A few pixels cross the clamp within the step: 1 %.
    assert float(2 * (leaf.grad * direction).sum()) == pytest.approx(float(change.detach()), rel=1e-2)
    assert all(weight.grad is None for weight in double.parameters())

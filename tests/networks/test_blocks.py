"""Compiled blocks and other layouts of convolutions compute what they were."""

import copy

import pytest
import torch
from torch import Tensor

from slingstone.config import Runtime
from slingstone.engines.family import arrange
from slingstone.networks.blocks import REPEATED
from slingstone.networks.decoder import VaeDecoder
from slingstone.networks.protocol import ModelFamily


def outputs(family: ModelFamily) -> list[Tensor]:
    """Return the reference's output, a picture and their gradients with respect to what went in."""
    noise = torch.randn(2, *family.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = family.text_encoder.encode(["a red disc", "a white ring"])
    x, latents = noise.clone().requires_grad_(), noise.clone().requires_grad_()
    eps, pictures = family.reference(x, torch.tensor([100, 900]), condition), family.decoder.decode(latents)
    gradients = [
        torch.autograd.grad(output.square().sum(), leaf)[0] for output, leaf in ((eps, x), (pictures, latents))
    ]
    return [eps.detach(), pictures.detach(), *gradients]


@pytest.mark.parametrize(
    "levers", [{"channels_last": True}, pytest.param({"compile": "blocks"}, marks=pytest.mark.slow)], ids=str
)
def test_levers_of_layout_and_compiler_change_roundings_alone(family: ModelFamily, levers: dict) -> None:
    arranged = copy.deepcopy(family)
    assert isinstance(arranged.decoder, VaeDecoder)
    arrange([arranged.reference], arranged.decoder, Runtime(**levers))
    if "compile" in levers:
        found = {type(module).__name__ for module in arranged.reference.modules() if module._compiled_call_impl}
        assert found == {"BasicTransformerBlock", "ResnetBlock2D"} <= set(REPEATED)
    for one, other in zip(outputs(arranged), outputs(family), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))

import copy
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny

from slingstone.networks.decoder import VaeDecoder, reward_decoder
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
    for chunk in (0, 2):
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


def tiny_autoencoder(channels: int) -> AutoencoderTiny:
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    ones = {"num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4}
    return AutoencoderTiny(latent_channels=channels, **blocks, **ones)


def test_rewards_may_see_pictures_of_a_tiny_autoencoder_in_bf16(family: ModelFamily, tmp_path: Path) -> None:
    torch.manual_seed(0)  # some draw pictures that are black all over
    made = tiny_autoencoder(8)
    made.save_pretrained(tmp_path / "tiny")
    before = copy.deepcopy(family.decoder.vae.state_dict())
    with torch.no_grad():
        expected = (made.eval().decode(latents(2)).sample / 2 + 0.5).clamp(0, 1)
    for dtype, atol in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        decoder = reward_decoder(family.decoder, str(tmp_path / "tiny"), dtype, gradient_checkpointing=True)
        leaf = latents(2).requires_grad_()
        pictures = decoder.decode(leaf)
        pictures.sum().backward()
        assert (pictures.dtype, leaf.grad.dtype) == (torch.float32, torch.float32)
        assert leaf.grad.abs().sum() > 0
        torch.testing.assert_close(pictures.detach(), expected, rtol=0, atol=atol)
    half = reward_decoder(family.decoder, None, torch.bfloat16)
    assert half.vae.dtype == torch.bfloat16
    assert all(torch.equal(weight, before[name]) for name, weight in family.decoder.vae.state_dict().items())
    assert reward_decoder(family.decoder, None, torch.float32) is family.decoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_whose_graph_is_kept_recomputes_nothing(family: ModelFamily, dtype: torch.dtype) -> None:
    family.decoder.vae.enable_gradient_checkpointing()
    passes = {}
    for checkpointed in (True, False):
        decoder = reward_decoder(family.decoder, None, dtype, gradient_checkpointing=checkpointed)
        calls = []
        hook = decoder.vae.decoder.mid_block.resnets[0].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        decoder.decode(latents(2).requires_grad_()).sum().backward()
        hook.remove()
        passes[checkpointed] = len(calls)
    assert passes == {True: 2, False: 1}


def test_a_tiny_autoencoder_of_another_family_is_refused(family: ModelFamily, tmp_path: Path) -> None:
    tiny_autoencoder(4).save_pretrained(tmp_path / "tiny")
    with pytest.raises(ValueError, match="latents of 4 channels, the reference's have 8"):
        reward_decoder(family.decoder, str(tmp_path / "tiny"), torch.float32)
    with pytest.raises(ValueError, match="cannot be read as an AutoencoderTiny"):
        reward_decoder(family.decoder, str(tmp_path / "absent"), torch.float32)

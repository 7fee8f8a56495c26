"""Weighted rewards and the chain through the decoder."""

import pytest
import torch
from torch import Tensor

from slingstone.objectives.reward import decoder_vjp, weighted_reward


def decode(latents: Tensor) -> Tensor:
    """Return three nonlinear channels, each image from its own latents."""
    return torch.sigmoid(torch.cat([latents, latents.square(), latents.sin()], 1)).repeat_interleave(2, -1)


def test_the_sum_of_rewards_has_the_gradient_of_the_sum():
    images = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rewards = [lambda x: x.square().flatten(1).sum(1), lambda x: x[:, 0].flatten(1).sin().mean(1)]
    scored = []
    for reward in rewards:
        score = reward(images)
        scored.append((score.detach(), torch.autograd.grad(score.sum(), images)[0]))
    score, gradient = weighted_reward([0.5, -2.0], scored)
    total = 0.5 * rewards[0](images) - 2.0 * rewards[1](images)
    torch.testing.assert_close(score, total.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(total.sum(), images)[0])


@pytest.mark.parametrize(("weights", "results"), [([], 0), ([1.0], 2), ([1.0, 2.0], 1)])
def test_weights_that_do_not_match_the_rewards_are_refused(weights, results):
    scored = [(torch.zeros(1), torch.zeros(1, 3, 2, 2))] * results
    with pytest.raises(ValueError, match=f"{len(weights)} weights for {results} results"):
        weighted_reward(weights, scored)


@pytest.mark.parametrize("graph", ["kept", "recomputed"])
@pytest.mark.parametrize("chunk", [0, 1, 2, 7])
def test_decoding_in_chunks_changes_neither_images_nor_gradients(chunk, graph):
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(5, 1, 3, 3, generator=rng, requires_grad=True)
    cotangent = torch.randn(5, 3, 3, 6, generator=rng)
    images = decode(latents)
    found, pull = decoder_vjp(decode, latents.detach(), chunk, graph)
    assert not found.requires_grad
    torch.testing.assert_close(found, images.detach())
    wanted = torch.autograd.grad(images, latents, cotangent)[0]
    torch.testing.assert_close(pull(cotangent), wanted)


def test_only_the_recomputed_pull_decodes_again():
    calls = {"kept": 0, "recomputed": 0}
    for graph in calls:

        def counted(latents, graph=graph):
            calls[graph] += 1
            return decode(latents)

        _, pull = decoder_vjp(counted, torch.zeros(2, 1, 3, 3), 0, graph)
        pull(torch.ones(2, 3, 3, 6))
    assert calls == {"kept": 1, "recomputed": 2}


@pytest.mark.parametrize("graph", ["kept", "recomputed"])
def test_a_half_precision_decoder_yields_fp32_images_and_takes_fp32_cotangents(graph):
    latents = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    images, pull = decoder_vjp(lambda x: decode(x.bfloat16()), latents, 0, graph)
    pulled = pull(torch.ones(2, 3, 3, 6))
    assert images.dtype == pulled.dtype == torch.float32
    wanted = decoder_vjp(decode, latents)[1](torch.ones(2, 3, 3, 6))
    torch.testing.assert_close(pulled, wanted, rtol=0.05, atol=0.05)  # bf16 keeps 8 bits

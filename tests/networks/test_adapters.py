"""Adapters of low rank: one base in memory, no weight of it ever changed, and a network of its own once merged."""

import copy
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from slingstone.networks.adapters import (
    Adapter,
    TrainedPart,
    cast_frozen,
    merged,
    sharing_copy,
    trained_part,
)
from slingstone.networks.latent_diffusion import load
from slingstone.networks.protocol import ModelFamily
from slingstone.networks.sampling import noise_of_seeds
from tests import tiny, tiny_pixart, tiny_sd3, tiny_sdxl

FAMILIES: dict[str, tuple[ModuleType, int]] = {
    "sd": (tiny, 625),
    "sdxl": (tiny_sdxl, 399),
    "pixart": (tiny_pixart, 440),
    "sd3": (tiny_sd3, 999),
}
LORA = Adapter(rank=4, alpha=8.0, target_modules=("to_q", "to_k", "to_v", "to_out.0"))
PROMPTS = ["a red disc", "a white ring"]


def storages(module: nn.Module) -> dict[int, int]:
    """Return the bytes of each tensor in memory that a module holds, by its address."""
    return {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*module.parameters(), *module.buffers())
    }


def shaken(module: nn.Module) -> nn.Module:
    """Move the trained weights of a module, as steps would."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    return module


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFamily:
    module, timestep = FAMILIES[request.param]
    directory = str(module.write_pipeline(tmp_path_factory.mktemp(request.param) / "pipeline"))
    return load(directory, directory, generator_timestep=timestep, lora=LORA)


def test_three_networks_hold_one_base_and_two_adapters(family: ModelFamily) -> None:
    base = storages(family.reference)
    own = [storages(part).keys() - base.keys() for part in (family.generator, family.assistant)]
    trained = [
        {weight.untyped_storage().data_ptr() for weight in part.parameters() if weight.requires_grad}
        for part in (family.generator, family.assistant)
    ]
    assert own == trained
    assert not own[0] & own[1], "generator and assistant must not share an adapter"
    adapter = sum(storages(family.generator)[address] for address in own[0])
    assert 0 < adapter < 0.5 * sum(base.values())


def test_a_fresh_adapter_changes_nothing_and_a_moved_one_its_own_network_only(family: ModelFamily) -> None:
    family = copy.deepcopy(family)  # of all three at once, which keeps what they share
    z, condition = noise_of_seeds([1, 2], family.latent_shape), family.text_encoder.encode(PROMPTS)
    t = torch.tensor([100, 900])
    with torch.no_grad():
        reference = family.reference(z, t, condition)
        assert torch.equal(family.assistant(z, t, condition), reference)
        generated = family.generator(z, condition)
        shaken(family.generator)
        assert (family.generator(z, condition) - generated).abs().mean() > 1e-3
        assert torch.equal(family.assistant(z, t, condition), reference)
        assert torch.equal(family.reference(z, t, condition), reference)


def test_merged_weights_give_the_adapted_output_and_leave_the_base_alone(family: ModelFamily) -> None:
    generator = shaken(copy.deepcopy(family.generator))
    before = {name: weight.clone() for name, weight in family.reference.state_dict().items()}
    z, condition = noise_of_seeds([1, 2], family.latent_shape), family.text_encoder.encode(PROMPTS)
    alone = sharing_copy(generator)
    alone.network = merged(generator.network)
    assert alone.network.state_dict().keys() == family.reference.network.state_dict().keys()
    with torch.no_grad():
        # (W + s B A) x against W x + s B (A x): another order of sums.
        torch.testing.assert_close(alone(z, condition), generator(z, condition), rtol=0, atol=1e-4)
    for name, weight in family.reference.state_dict().items():
        assert torch.equal(weight, before[name])


def test_passes_that_train_nothing_go_through_one_merged_copy_that_follows_the_adapter(family: ModelFamily) -> None:
    family = copy.deepcopy(family)
    part = trained_part(family.assistant, merge=True)
    z, condition = noise_of_seeds([1, 2], family.latent_shape), family.text_encoder.encode(PROMPTS)
    t, calls = torch.tensor([100, 900]), []
    family.assistant.register_forward_hook(lambda *_: calls.append("adapted"))

    def frozen_pass() -> list[Tensor]:
        part.requires_grad_(False)
        leaf = z.clone().requires_grad_()
        output = part(leaf, t, condition)
        part.requires_grad_(True)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), leaf)]

    for _ in range(2):
        found = frozen_pass()
        assert not calls
        part(z, t, condition)
        assert calls == ["adapted"], "what trains meets the adapter"
        expected = family.assistant(leaf := z.clone().requires_grad_(), t, condition)
        expected = [expected.detach(), *torch.autograd.grad(expected.square().sum(), leaf)]
        # (W + s B A) x against W x + s B (A x): another order of sums.
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        shaken(part)  # a step
        calls.clear()
    saved = {name: torch.zeros_like(weight) for name, weight in part.state_dict().items()}
    moved = frozen_pass()
    part.load_state_dict(saved)
    assert not torch.equal(frozen_pass()[0], moved[0]), "what was loaded is what is run"
    torch.testing.assert_close(frozen_pass()[0], family.reference(z, t, condition).detach(), rtol=0, atol=1e-4)


def test_a_merged_copy_in_bf16_rounds_the_sum_and_not_its_parts(family: ModelFamily) -> None:
    family = copy.deepcopy(family)
    exact = shaken(family.assistant)
    alone = sharing_copy(exact)
    alone.network = merged(exact.network)
    part = trained_part(exact, merge=True)
    for module in (family.reference, exact):
        cast_frozen(module, torch.bfloat16)
    part(
        *(arguments := (noise_of_seeds([1, 2], family.latent_shape), torch.tensor([100, 900]))),
        family.text_encoder.encode(PROMPTS),
    )
    with torch.no_grad():
        part(*arguments, family.text_encoder.encode(PROMPTS))
    assert isinstance(part, TrainedPart)
    run = part.networks()[1].state_dict()
    for name, weight in alone.state_dict().items():
        assert torch.equal(run[name], weight.to(torch.bfloat16)), name


def test_checkpointed_activations_recompute_with_the_adapter_of_their_own_forward_pass(family: ModelFamily) -> None:
    family = copy.deepcopy(family)
    shaken(family.generator)
    z, condition = noise_of_seeds([1, 2], family.latent_shape), family.text_encoder.encode(PROMPTS)
    weights = [weight for weight in family.generator.parameters() if weight.requires_grad]
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            family.generator.network.enable_gradient_checkpointing()
        value = family.generator(z, condition).square().mean()
        family.assistant(z, torch.tensor([100, 900]), condition)
        gradients.append(torch.autograd.grad(value, weights, allow_unused=True))
    for plain, recomputed in zip(*gradients, strict=True):
        assert (plain is None) == (recomputed is None)
        if plain is not None:
            torch.testing.assert_close(plain, recomputed, rtol=1e-4, atol=1e-6)


def test_an_engine_is_given_the_adapter_alone_under_the_names_of_the_whole(family: ModelFamily) -> None:
    part = trained_part(family.generator)
    expected = {name: weight for name, weight in family.generator.named_parameters() if weight.requires_grad}
    assert dict(part.named_parameters()).keys() == expected.keys()
    assert all(weight is expected[name] for name, weight in part.named_parameters())
    z, condition = noise_of_seeds([1, 2], family.latent_shape), family.text_encoder.encode(PROMPTS)
    with torch.no_grad():
        assert torch.equal(part(z, condition), family.generator(z, condition))
    assert trained_part(nn.Linear(2, 2)).state_dict().keys() == {"weight", "bias"}, "a whole network is given as it is"


def test_layers_that_are_not_there_are_named(tmp_path: Path) -> None:
    directory = str(tiny.write_pipeline(tmp_path / "sd"))
    nowhere = Adapter(4, 4.0, ("to_everything",))
    with pytest.raises(ValueError, match=r"lora.target_modules is \['to_everything'\]"):
        load(directory, directory, generator_timestep=625, lora=nowhere)

"""Adapters of low rank: networks that share one frozen base in memory, each a tree of modules with its own adapter."""

import copy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

TRAINED = "trained"
INITIAL = "initial"
"""Names of adapters: what a run trains, and what its initial weights were published as."""

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Adapter:
    """What is trained in the place of a network.

    Attributes:
        rank: of every adapter.
        alpha: adapters are scaled by `alpha / rank`.
        target_modules: layers that get one, by the ends of their names.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]


def sharing_copy(module: Module) -> Module:
    """Return a copy of the tree of modules whose frozen weights and buffers are those of the original, in memory.

    Two trees rather than one with a switch: a backward pass that recomputes activations meets the adapter of its own
    forward pass, whatever ran in between.
    """
    frozen = [weight for weight in module.parameters() if not weight.requires_grad]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*frozen, *module.buffers())})


def add_adapter(network: nn.Module, adapter: Adapter) -> None:
    """Give the layers of a network a trained adapter in fp32, which changes nothing yet, and freeze all the rest.

    Raises:
        ValueError: if no layer's name ends as asked for.
    """
    config = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=list(adapter.target_modules))  # pyright: ignore[reportArgumentType]
    try:
        inject_adapter_in_model(config, network, TRAINED)
    except ValueError as error:
        raise ValueError(
            f"lora.target_modules is {list(adapter.target_modules)}, which does not fit the network: {error}"
        ) from error
    activate(network)


def activate(network: nn.Module) -> None:
    """Let all adapters of a network act, of which only `TRAINED` is trained."""
    for layer in lora_layers(network).values():
        layer.set_adapter([name for name in (INITIAL, TRAINED) if name in layer.r])
    for name, weight in network.named_parameters():
        weight.requires_grad_(f".{TRAINED}." in name)
        if weight.requires_grad:
            weight.data = weight.data.float()


def cast_frozen(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert what is frozen, buffers too; the trained weights stay as they are, for the engine to convert."""
    kept = [(weight, weight.data) for weight in module.parameters() if weight.requires_grad]
    module.to(dtype)
    for weight, data in kept:
        weight.data = data


def merged(network: Module) -> Module:
    """Return a network with fp32 weights of its own into which the adapters were added; itself where there are none."""
    if not lora_layers(network):
        return network
    alone: Any = nn.Module.float(copy.deepcopy(network))
    for name, layer in lora_layers(alone).items():
        layer.merge()
        alone.set_submodule(name, layer.get_base_layer())
    # What peft and diffusers left behind; they would take the network for one with adapters.
    vars(alone).pop("peft_config", None)
    alone._hf_peft_config_loaded = False
    return alone


class MergedCopy:
    """An adapted network for passes that train nothing: a layer's base and adapters are one weight, the rest is shared.

    Made before the base is rounded, so that the sum is rounded as a whole: on a rounded base, adapters smaller than
    its rounding would be lost.
    """

    def __init__(self, adapted: nn.Module):
        self.module = sharing_copy(adapted).requires_grad_(False)
        self._layers: list[tuple[Any, Any, Tensor]] = []
        for name, layer in lora_layers(adapted).items():
            base = layer.get_base_layer()
            plain = copy.deepcopy(base)
            self.module.set_submodule(name, plain)
            self._layers.append((layer, plain, base.weight.detach()))

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the present adapters, and the base's dtype."""
        self.module.to(self._layers[0][0].get_base_layer().weight.dtype)
        for layer, plain, base in self._layers:
            plain.weight.copy_(sum((layer.get_delta_weight(name) for name in layer.active_adapters), start=base))


class TrainedPart(nn.Module):
    """The trained weights of a module, by the same names; calls go to the whole of it.

    An engine that is given this sees nothing else: it shards, saves, averages and broadcasts adapters, and never meets
    a weight that another engine knows, too.

    Args:
        whole: the module, its base not rounded yet.
        merge: whether calls that train nothing go to a `MergedCopy`, which follows those that train.
    """

    def __init__(self, whole: nn.Module, merge: bool = False):
        super().__init__()
        # In tuples, so that their frozen weights are not this module's.
        self._whole = (whole,)
        self._merged = (MergedCopy(whole),) if merge else ()
        self._stale = True
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, "_stale", True))
        for name, weight in whole.named_parameters():
            if weight.requires_grad:
                *path, leaf = name.split(".")
                parent: Any = self
                for part in path:
                    parent = parent._modules.setdefault(part, nn.Module())
                parent.register_parameter(leaf, weight)

    def forward(self, *args: Any) -> Tensor:
        """Run the whole module, or its merged copy."""
        trains = torch.is_grad_enabled() and next(self.parameters()).requires_grad
        if trains or not self._merged:
            self._stale |= trains
            return self._whole[0](*args)
        if self._stale:
            self._merged[0].refresh()
            self._stale = False
        return self._merged[0].module(*args)

    def networks(self) -> list[nn.Module]:
        """Return what calls go to."""
        return [*self._whole, *(merged.module for merged in self._merged)]


def called(part: nn.Module) -> list[nn.Module]:
    """Return the modules that calls of what an engine was given go to."""
    return part.networks() if isinstance(part, TrainedPart) else [part]


def trained_part(module: nn.Module, merge: bool = False) -> nn.Module:
    """Return what an engine should be given: the module, or where some of it is frozen its trained part."""
    return module if all(weight.requires_grad for weight in module.parameters()) else TrainedPart(module, merge)


def adapted_weights(network: nn.Module) -> int:
    """Return how many weights the layers have that have an adapter, without it."""
    return sum(layer.get_base_layer().weight.numel() for layer in lora_layers(network).values())


def lora_layers(network: nn.Module) -> dict[str, Any]:
    """Return the layers of a network that have an adapter, by name."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}

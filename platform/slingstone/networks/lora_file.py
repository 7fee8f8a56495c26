"""One-step generators that are published as LoRA weights of their base model, such as LCM's and Hyper-SD's."""

from collections.abc import Mapping
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin
from torch import Tensor

from slingstone.networks.adapters import INITIAL, activate, sharing_copy
from slingstone.networks.checkpoint_files import UNREADABLE
from slingstone.networks.layouts import Layout


def is_lora(weights: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict holds LoRA weights, in whatever dialect, rather than a network."""
    return any("lora" in name for name in weights)


def with_initial_adapter(network: Any, layout: Layout, role: str, location: str, weights: Mapping[str, Tensor]) -> Any:
    """Return a network that acts as `network` with a file's LoRA, and shares its weights where those are frozen.

    Raises:
        ValueError: if the LoRA is of another network or of text encoders too; names `role` and `location`.
    """
    if not issubclass(layout.pipeline, LoraBaseMixin):
        raise ValueError(
            f"{role} {location!r} is a LoRA, which {layout.pipeline.__name__} cannot read; give a network's weights"
        )
    made: Any = sharing_copy(network)
    reader: Any = layout.pipeline
    shape = {"unet_config": network.config} if layout.network == "unet" else {}
    try:
        read = reader.lora_state_dict(dict(weights), **shape)
        state, alphas = read if isinstance(read, tuple) else (read, None)
        others = sorted(name for name in state if not name.startswith(f"{layout.network}."))
        if others:
            raise ValueError(f"{len(others)} weights are not of its {layout.network}, the first is {others[0]}")
        made.load_lora_adapter(state, prefix=layout.network, network_alphas=alphas, adapter_name=INITIAL)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{role} {location!r} does not fit the reference's network as a LoRA: {reason}") from error
    activate(made)
    return made

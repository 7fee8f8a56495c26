"""Networks from a single file of weights: a state dict, as DMD2 publishes its UNets, or a LoRA, as LCM and Hyper-SD."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor, nn

from slingstone.networks.adapters import INITIAL, activate, sharing_copy
from slingstone.networks.checkpoint_files import UNREADABLE, one_line
from slingstone.networks.layouts import Layout

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
"""Of files that hold weights alone; all but the first are torch's, read without executing what they hold."""

Network = TypeVar("Network", bound=nn.Module)


def is_weights_file(location: str) -> bool:
    """Return whether `location` names a single file of weights rather than a pipeline."""
    return location.endswith(SUFFIXES) and not Path(location).is_dir()


def network_from_file(network: Any, layout: Layout, role: str, location: str) -> Any:
    """Return a copy of `network` with the weights of a file, or one that acts as `network` with the file's LoRA.

    The latter shares the weights of `network` where those are frozen.

    Raises:
        ValueError: if the file is missing, unreadable, or of another network; names `role` and `location`.
    """
    weights = read_weights(role, location)
    if any("lora" in name for name in weights):
        return _with_lora(network, layout, role, location, weights)
    return network_like(network, role, location, weights)


def network_like(network: Network, role: str, location: str, weights: Mapping[str, Tensor]) -> Network:
    """Return a copy of `network` in its own dtype with `weights`, which must be exactly its weights.

    Raises:
        ValueError: if they are not; names `role` and `location`.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(shapes.items() ^ found.items())
    if wrong:
        name = wrong[0][0]
        raise ValueError(
            f"{role} {location!r} has not the weights of the reference's network: {len({name for name, _ in wrong})} "
            f"are missing, added or of another shape, the first is {name}: {found.get(name, 'missing')} in the file, "
            f"{shapes.get(name, 'none')} in the reference; give a state dict with the keys that diffusers writes"
        )
    made = copy.deepcopy(network)
    made.load_state_dict(weights)
    return made


def read_weights(role: str, location: str) -> dict[str, Tensor]:
    """Return the tensors of a file here or on the hub.

    Raises:
        ValueError: if the file is missing, unreadable or holds something else; names `role` and `location`.
    """
    file = location if Path(location).is_file() else _downloaded(role, location)
    try:
        if location.endswith(".safetensors"):
            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    # Of a damaged pickle, whatever its bytes happen to mean.
    except Exception as error:
        raise ValueError(f"{role} {location!r} cannot be read as weights: {one_line(error)}") from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(
            f"{role} {location!r} is no state dict: it must map names to tensors and hold nothing else; "
            "save the UNet's state_dict() alone"
        )
    return weights


def _with_lora(network: Any, layout: Layout, role: str, location: str, weights: Mapping[str, Tensor]) -> Any:
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
        raise ValueError(
            f"{role} {location!r} does not fit the reference's network as a LoRA: {one_line(error)}"
        ) from error
    activate(made)
    return made


def _downloaded(role: str, location: str) -> str:
    """Return the path of a hub repository's file, in the hub's cache."""
    owner, _, rest = location.partition("/")
    name, _, file = rest.partition("/")
    if not file or not re.fullmatch(r"[\w-][\w.-]*", owner):
        raise ValueError(
            f"{role} {location!r}: no such file; download the weights, and give their path, "
            "or name a file of a hub repository as owner/repository/file"
        )
    try:
        return hf_hub_download(f"{owner}/{name}", file)
    # Its kinds are those of whatever transport the hub's client uses.
    except Exception as error:
        raise ValueError(f"{role} {location!r} is no file here, and none on the hub: {one_line(error)}") from error

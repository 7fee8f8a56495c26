"""Networks from a single file of weights: a state dict, as DMD2 publishes its UNets, or a LoRA, as LCM and Hyper-SD."""

import copy
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LoraBaseMixin
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from huggingface_hub import hf_hub_download
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from slingstone.networks.adapters import INITIAL, activate, lora_layers, sharing_copy
from slingstone.networks.checkpoint_files import one_line
from slingstone.networks.layouts import Layout

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
"""Of files that hold weights alone; all but the first are torch's, read without executing what they hold."""

SETTINGS = LORA_ADAPTER_METADATA_KEY
"""Of a safetensors header: how a LoRA acts, in the spelling of peft's LoraConfig, as diffusers writes it."""

ALPHAS = frozenset({"alpha", "lora_alpha", "network_alpha", "ss_network_alpha"})
"""Of a safetensors header: names by which trainers tell a LoRA's alpha."""

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
    file = _file(role, location)
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
    """Return a network that acts as the stock pipeline does with a LoRA file of which nothing is left unread."""
    if not issubclass(layout.pipeline, LoraBaseMixin):
        raise ValueError(
            f"{role} {location!r} is a LoRA, which {layout.pipeline.__name__} cannot read; give a network's weights"
        )
    made: Any = sharing_copy(network)
    try:
        _load_lora(made, layout, weights, _header(role, location))
    # Of a file from outside, whatever its names happen to mean to the libraries.
    except Exception as error:
        raise ValueError(
            f"{role} {location!r} does not fit the reference's network as a LoRA: {one_line(error)}"
        ) from error
    activate(made)
    return made


def _load_lora(made: Any, layout: Layout, weights: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Add a file's LoRA to a network, or raise over the first weight or piece of metadata that has no effect."""
    for name in weights:
        if (other := _other_half(name)) is not None and other not in weights:
            raise ValueError(f"{name} has no other half, {other}")
    reader: Any = layout.pipeline
    shape = {"unet_config": made.config} if layout.network == "unet" else {}
    read = reader.lora_state_dict(dict(weights), **shape)
    state, alphas = read if isinstance(read, tuple) else (read, None)
    kept = {id(tensor) for tensor in state.values()}
    lost = [name for name, tensor in weights.items() if id(tensor) not in kept and not name.endswith(".alpha")]
    _refuse("weights would be left out by diffusers", lost)

    prefix = f"{layout.network}."
    settings = json.loads(header[SETTINGS]) if header.get(SETTINGS) else None
    others = [name for name in (*state, *(settings or {})) if not name.startswith(prefix)]
    _refuse(f"weights or settings are not of its {layout.network}", others)
    made.load_lora_adapter(state, prefix=layout.network, network_alphas=alphas, metadata=settings, adapter_name=INITIAL)
    named = {name.removeprefix(prefix) for name in convert_unet_state_dict_to_peft(state)}
    _refuse(
        "weights have no place in it, or lack their other half",
        named ^ set(get_peft_model_state_dict(made, adapter_name=INITIAL)),
    )
    if not alphas and settings is None:
        _check_told_alpha(made, header)


def _refuse(what: str, names: Collection[str]) -> None:
    if names:
        raise ValueError(f"{len(names)} {what}, the first is {min(names)}")


def _other_half(name: str) -> str | None:
    """Return the name of the matrix that belongs to one of a LoRA's two, in any of the spellings."""
    for down, up in (
        ("lora_A", "lora_B"),
        ("lora_down", "lora_up"),
        ("lora.down", "lora.up"),
        ("layer.down", "layer.up"),
    ):
        if name.endswith(f"{down}.weight"):
            return f"{name.removesuffix(f'{down}.weight')}{up}.weight"
        if name.endswith(f"{up}.weight"):
            return f"{name.removesuffix(f'{up}.weight')}{down}.weight"
    return None


def _check_told_alpha(made: nn.Module, header: Mapping[str, str]) -> None:
    """Refuse a header whose alpha the stock pipeline, which reads it from the weights alone, would pass over."""
    for key in ALPHAS & header.keys():
        try:
            told = float(header[key])
        except ValueError:
            continue  # kohya writes None where alpha is the rank
        for name, layer in lora_layers(made).items():
            if (acts := layer.scaling[INITIAL] * layer.r[INITIAL]) != told:
                raise ValueError(
                    f"its header says {key} = {told:g}, but without an alpha beside the weights {name} acts with "
                    f"{acts:g}, its rank, in diffusers; save the file with its alphas or with {SETTINGS}"
                )


def _header(role: str, location: str) -> dict[str, str]:
    """Return the metadata of a file that can have some."""
    if not location.endswith(".safetensors"):
        return {}
    with safe_open(_file(role, location), "pt") as opened:
        return opened.metadata() or {}


def _file(role: str, location: str) -> str:
    return location if Path(location).is_file() else _downloaded(role, location)


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

"""Networks from a single file of weights, as DMD2 publishes its UNets: a state dict without a configuration."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor, nn

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
"""Of files that hold weights alone; all but the first are torch's, read without executing what they hold."""

Network = TypeVar("Network", bound=nn.Module)


def is_weights_file(location: str) -> bool:
    """Return whether `location` names a single file of weights rather than a pipeline."""
    return location.endswith(SUFFIXES) and not Path(location).is_dir()


def network_like(network: Network, role: str, location: str, weights: Mapping[str, Tensor] | None = None) -> Network:
    """Return a copy of `network` in its own dtype with the weights of a file, which must be exactly its weights.

    Args:
        network: of which kind the file must be.
        role: of the file in the run.
        location: of the file.
        weights: what it holds, where that was read before.

    Raises:
        ValueError: if the file is missing, unreadable, or of another network; names `role` and `location`.
    """
    weights = weights or read_weights(role, location)
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
        raise ValueError(f"{role} {location!r} cannot be read as weights: {' '.join(str(error).split())}") from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(
            f"{role} {location!r} is no state dict: it must map names to tensors and hold nothing else; "
            "save the UNet's state_dict() alone"
        )
    return weights


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
        reason = " ".join(str(error).split())
        raise ValueError(f"{role} {location!r} is no file here, and none on the hub: {reason}") from error

"""A pipeline's networks on torch's meta device: their shapes without weights, from the configurations alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from slingstone.networks.activations import Graph, graph_bytes
from slingstone.networks.adapters import Adapter, add_adapter
from slingstone.networks.layouts import LAYOUTS
from slingstone.networks.protocol import DTYPES, Condition


class Traced(NamedTuple):
    """One image's graphs through the trained network, the frozen one and the decoder; how many weights are trained."""

    trained: Graph
    frozen: Graph
    decoder: Graph
    weights: int


def traced(
    directory: Path, checkpointed: bool, precision: str, decoder_precision: str, lora: Adapter | None = None
) -> Traced:
    """Return what is held for one image.

    Args:
        directory: of the pipeline.
        checkpointed: with gradient checkpointing.
        precision: of the network.
        decoder_precision: of the decoder.
        lora: what is trained; None is the whole network.
    """
    network, vae, latents, call = _parts(directory)
    nn.Module.to(network, DTYPES[precision])
    nn.Module.to(vae, DTYPES[decoder_precision]).requires_grad_(False)
    if checkpointed:
        network.enable_gradient_checkpointing()
        vae.enable_gradient_checkpointing()
    noisy, clean = (torch.empty_like(latents, requires_grad=True) for _ in range(2))
    network.requires_grad_(False)
    frozen = graph_bytes(network, lambda: call(noisy))
    if lora is None:
        network.requires_grad_(True)
    else:
        add_adapter(network, lora)
        nn.Module.to(network, DTYPES[precision])
    trained = graph_bytes(network, lambda: call(latents))
    weights = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    decoder = graph_bytes(vae, lambda: vae.decode(clean.to(vae.dtype), return_dict=False)[0].float())
    return Traced(trained, frozen, decoder, weights)


def forward_flops(directory: Path) -> tuple[int, int]:
    """Return the FLOPs of one image's forward pass through the network and through the decoder."""
    _, vae, latents, call = _parts(directory)

    def flops(forward: Callable[[], Any]) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            forward()
        return counter.get_total_flops()

    return flops(lambda: call(latents)), flops(lambda: vae.decode(latents, return_dict=False))


def picture_side(directory: Path) -> int:
    """Return the height and width of a pipeline's pictures."""
    network, vae, *_ = _parts(directory)
    return network.config["sample_size"] * 2 ** (len(vae.config["block_out_channels"]) - 1)


def _parts(directory: Path) -> tuple[Any, Any, Tensor, Callable[[Tensor], Tensor]]:
    """Return a pipeline's network and autoencoder, the latents of one image, and the call of the network on them."""
    layout = LAYOUTS[_json(directory / "model_index.json")["_class_name"]]
    network, vae = _empty(layout.kind, directory / layout.network), _empty(AutoencoderKL, directory / "vae")
    condition = _condition(network.config, directory)
    output = layout.output(layout.process.schedule(_json(directory / "scheduler" / "scheduler_config.json")))
    t = torch.zeros(1, dtype=torch.int64, device="meta")
    side = network.config["sample_size"]
    latents = torch.empty(1, network.config["in_channels"], side, side, device="meta")
    return network, vae, latents, lambda x_t: output(network, x_t, t, condition)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _empty(kind: Any, part: Path) -> Any:
    with torch.device("meta"):
        return kind.from_config(kind.load_config(str(part))).eval()


def _condition(config: Any, directory: Path) -> Condition:
    """Return a condition of the right shapes for one image."""
    tokens = _json(directory / "text_encoder" / "config.json").get("max_position_embeddings", 120)
    named = ("caption_channels", "joint_attention_dim", "cross_attention_dim")
    width = next(config[name] for name in named if config.get(name))
    if "joint_attention_dim" in config:
        tokens += 256
    if config.get("projection_class_embeddings_input_dim"):
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    else:
        pooled = config.get("pooled_projection_dim", 0)
    with torch.device("meta"):
        condition = {
            "text": torch.empty(1, tokens, width),
            "mask": torch.empty(1, tokens, dtype=torch.int64),
            "resolution": torch.empty(1, 2),
            "aspect_ratio": torch.empty(1, 1),
        }
        return condition | ({"pooled": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)} if pooled else {})

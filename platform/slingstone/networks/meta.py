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
from slingstone.networks.layouts import LAYOUTS, Layout
from slingstone.networks.protocol import Condition

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
    layout, network, vae = _parts(directory)
    nn.Module.to(network, DTYPES[precision])
    nn.Module.to(vae, DTYPES[decoder_precision]).requires_grad_(False)
    if checkpointed:
        network.enable_gradient_checkpointing()
        vae.enable_gradient_checkpointing()
    config, side = network.config, network.config["sample_size"]
    condition = _condition(layout, config, directory)
    schedule = layout.process.schedule(json.loads((directory / "scheduler" / "scheduler_config.json").read_text()))
    output = layout.output(schedule)
    t = torch.zeros(1, dtype=torch.int64, device="meta")

    def graph(needs_input: bool) -> Graph:
        latents = torch.empty(1, config["in_channels"], side, side, device="meta", requires_grad=needs_input)
        return graph_bytes(network, lambda: output(network, latents, t, condition))

    network.requires_grad_(False)
    frozen = graph(needs_input=True)
    if lora is None:
        network.requires_grad_(True)
    else:
        add_adapter(network, lora)
        nn.Module.to(network, DTYPES[precision])
    trained = graph(needs_input=False)
    weights = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)

    latents = torch.empty(1, config["in_channels"], side, side, device="meta", requires_grad=True)
    decoder = graph_bytes(vae, lambda: vae.decode(latents.to(vae.dtype), return_dict=False)[0].float())
    return Traced(trained, frozen, decoder, weights)


def forward_flops(directory: Path) -> tuple[int, int]:
    """Return the FLOPs of one image's forward pass through the network and through the decoder."""
    layout, network, vae = _parts(directory)
    side, condition = network.config["sample_size"], _condition(layout, network.config, directory)
    schedule = layout.process.schedule(json.loads((directory / "scheduler" / "scheduler_config.json").read_text()))
    output = layout.output(schedule)
    t = torch.zeros(1, dtype=torch.int64, device="meta")
    latents = torch.empty(1, network.config["in_channels"], side, side, device="meta")

    def flops(forward: Callable[[], Any]) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            forward()
        return counter.get_total_flops()

    decoded = flops(lambda: vae.decode(latents, return_dict=False))
    return flops(lambda: output(network, latents, t, condition)), decoded


def picture_side(directory: Path) -> int:
    """Return the height and width of a pipeline's pictures."""
    _, network, vae = _parts(directory)
    return network.config["sample_size"] * 2 ** (len(vae.config["block_out_channels"]) - 1)


def _parts(directory: Path) -> tuple[Layout, Any, Any]:
    """Return a pipeline's layout, denoising network and autoencoder."""
    layout = LAYOUTS[json.loads((directory / "model_index.json").read_text())["_class_name"]]
    return layout, _empty(layout.kind, directory / layout.network), _empty(AutoencoderKL, directory / "vae")


def _empty(kind: Any, part: Path) -> Any:
    with torch.device("meta"):
        return kind.from_config(kind.load_config(str(part))).eval()


def _condition(layout: Layout, config: Any, directory: Path) -> Condition:
    """Return a condition of the right shapes for one image."""
    encoder = json.loads((directory / "text_encoder" / "config.json").read_text())
    tokens = encoder.get("max_position_embeddings", 120)
    named = ("caption_channels", "joint_attention_dim", "cross_attention_dim")
    width = next(config[name] for name in named if config.get(name))
    if "joint_attention_dim" in config:
        tokens += 256
    if config.get("projection_class_embeddings_input_dim"):
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    else:
        pooled = config.get("pooled_projection_dim", 0)
    made: dict[str, Tensor] = {
        "text": torch.empty(1, tokens, width, device="meta"),
        "mask": torch.empty(1, tokens, dtype=torch.int64, device="meta"),
        "resolution": torch.empty(1, 2, device="meta"),
        "aspect_ratio": torch.empty(1, 1, device="meta"),
    }
    if pooled:
        made |= {
            "pooled": torch.empty(1, pooled, device="meta"),
            "time_ids": torch.empty(1, 6, device="meta"),
        }
    return made

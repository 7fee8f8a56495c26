"""What a network takes to run, in bytes and FLOPs; the meta device counts them without weights or arithmetic."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from weakref import finalize

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from slingstone.networks.adapters import Adapter, adapted_weights, add_adapter
from slingstone.networks.embeddings import ROUNDED
from slingstone.networks.layouts import LAYOUTS
from slingstone.networks.protocol import DTYPES, Condition


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors of a device that are made inside it and are still alive.

    Attributes:
        now: bytes alive.
        peak: most bytes alive at a time.

    Workspaces inside a kernel are not seen.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.now = 0
        self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the memory of what it returns, unless that was handed in."""
        before = set(_storages((args, kwargs)))
        returned = func(*args, **(kwargs or {}))
        for key, storage in _storages(returned).items():
            if storage.device.type == self.device and key not in before and key not in self._counted:
                self._counted.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                finalize(storage, self._freed, key, storage.nbytes())
        return returned

    def _freed(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.now -= size


def _storages(tree: Any) -> dict[int, torch.UntypedStorage]:
    """Return the memory of the tensors of a tree, by its address."""
    storages = (tensor.untyped_storage() for tensor in tree_iter(tree) if isinstance(tensor, Tensor))
    return {storage._cdata: storage for storage in storages}


@dataclass(frozen=True)
class Graph:
    """Bytes for one image.

    Attributes:
        held: between the forward and the backward pass.
        peak: the most at any moment of both.
    """

    held: int
    peak: int


def graph_bytes(module: nn.Module, call: Callable[[], Tensor]) -> Graph:
    """Return what `call` holds for its backward pass; weights' gradients are dropped as they arrive, not counted.

    Args:
        module: whose weights are trained, or frozen; on any device.
        call: a forward pass of it, with gradients.
    """
    hooks = [weight.register_post_accumulate_grad_hook(_drop) for weight in module.parameters() if weight.requires_grad]
    with LiveBytes(next(module.parameters()).device.type) as live, _fused_attention(module):
        output = call()
        held = live.now
        output.sum().backward()
    for hook in hooks:
        hook.remove()
    return Graph(held, live.peak)


def _drop(weight: Tensor) -> None:
    weight.grad = None


@contextmanager
def _fused_attention(module: nn.Module) -> Iterator[None]:
    """On the meta device, let attention save what fused kernels save; there the formula would be written out."""
    own = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return _Attention.apply(query, key, value)

    # A function mode would not reach what checkpointing recomputes inside the backward pass.
    if next(module.parameters()).device.type == "meta":
        functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own


class _Attention(torch.autograd.Function):
    """The memory of a fused attention kernel: queries, keys, values, result and one number a row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, tokens, _ = query.shape
        # Laid out as the queries are, as kernels do: where those were concatenated, joining heads and channels copies.
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result, query.new_empty(batch, heads, tokens, dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class Traced(NamedTuple):
    """One image's graphs through the trained network, the frozen one and the decoder.

    Attributes:
        weights: that are trained.
        projections: weights of the layers that have an adapter.
    """

    trained: Graph
    frozen: Graph
    decoder: Graph
    weights: int
    projections: int


def traced(
    directory: Path,
    checkpointed: bool,
    checkpointed_decoder: bool,
    precision: str,
    decoder_precision: str,
    lora: Adapter | None = None,
) -> Traced:
    """Return what is held for one image.

    Args:
        directory: of the pipeline.
        checkpointed: with gradient checkpointing of the network.
        checkpointed_decoder: of the decoder.
        precision: of the network.
        decoder_precision: of the decoder.
        lora: what is trained; None is the whole network.
    """
    network, vae, latents, call = _parts(directory)
    nn.Module.to(network, DTYPES[precision])
    nn.Module.to(vae, DTYPES[decoder_precision]).requires_grad_(False)
    if checkpointed:
        network.enable_gradient_checkpointing()
    if checkpointed_decoder:
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
    return Traced(trained, frozen, decoder, weights, adapted_weights(network))


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


def prompt_size(directory: Path) -> tuple[int, int]:
    """Return the tokens to which a prompt is padded, and how many numbers its embeddings are."""
    condition = _condition(_parts(directory)[0].config, directory)
    return condition["text"].shape[1], sum(condition[name].numel() for name in ROUNDED if name in condition)


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

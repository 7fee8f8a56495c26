"""Bytes that a network holds while it is differentiated; on the meta device it needs neither weights nor arithmetic."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


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

    def scaled(self, factor: float) -> "Graph":
        """Return the bytes of several images, or of a part of one."""
        return Graph(round(factor * self.held), round(factor * self.peak))


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

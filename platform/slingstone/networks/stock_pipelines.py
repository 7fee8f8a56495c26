"""Any diffusers pipeline as a sampler: FLUX in 50 steps, SD3.5 in 28, LCM in 4, DMD2 in one."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import nn

from slingstone.networks.checkpoint_files import UNREADABLE, one_line
from slingstone.networks.sampling import Pictures, Sampler, now
from slingstone.networks.weights_file import network_like, read_weights

Precision = Literal["float32", "bfloat16", "float16"]


def stock_sampler(
    location: str,
    steps: int,
    guidance: float,
    *,
    scheduler: str | None = None,
    weights: str | None = None,
    call: Mapping[str, Any] | None = None,
    dtype: Precision = "float32",
    device: torch.device | str = "cpu",
) -> Sampler:
    """Return the sampler of a pipeline under diffusers' own code.

    The noise of a picture comes from its seed, on the CPU: for standard latents, that of `one_step_sampler`.

    Args:
        location: pipeline directory or hub id.
        steps: `num_inference_steps`.
        guidance: `guidance_scale`, in the pipeline's own sense.
        scheduler: class of diffusers to take in the place of the pipeline's, such as `LCMScheduler`.
        weights: file with a state dict for the pipeline's network, such as DMD2's UNet.
        call: further arguments of the call, such as `timesteps` or `height`.
        dtype: of the weights.
        device: where it runs.

    Raises:
        ValueError: naming the location and why it cannot be loaded.
    """
    try:
        loaded: Any = DiffusionPipeline.from_pretrained(location, torch_dtype=getattr(torch, dtype))
        if scheduler is not None:
            loaded.scheduler = getattr(diffusers, scheduler).from_config(loaded.scheduler.config)
    except (*UNREADABLE, AttributeError) as error:
        raise ValueError(f"pipeline {location!r} cannot be loaded: {one_line(error)}") from error
    loaded.set_progress_bar_config(disable=True)
    name = "unet" if "unet" in loaded.components else "transformer"
    if weights is not None:
        tensors = read_weights("weights", weights)
        loaded.register_modules(**{name: network_like(loaded.components[name], "weights", weights, tensors)})
    loaded.to(device)
    network = loaded.components[name]
    modules = [part for part in loaded.components.values() if isinstance(part, nn.Module)]
    encoders = [part for part in modules if type(part).__module__.startswith("transformers.")]
    arguments = {"num_inference_steps": steps} | dict(call or {})
    if "timesteps" in arguments or "sigmas" in arguments:
        arguments.pop("num_inference_steps")

    @torch.no_grad()
    def sample(prompts: Sequence[str], seeds: Sequence[int]) -> Pictures:
        rows, encoding, started = 0, 0.0, 0.0

        def count(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            nonlocal rows
            rows += len(arguments[0] if arguments else named.get("hidden_states", named.get("sample", ())))

        def start_encoding(*_: Any) -> None:
            nonlocal started
            started = now(network.device)

        def stop_encoding(*_: Any) -> None:
            nonlocal encoding
            encoding += now(network.device) - started

        hooks = [network.register_forward_pre_hook(count, with_kwargs=True)]
        for part in encoders:
            hooks += [part.register_forward_pre_hook(start_encoding), part.register_forward_hook(stop_encoding)]
        try:
            start = now(network.device)
            images = loaded(
                list(prompts),
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="pt",
                **arguments,
            ).images
            seconds = now(network.device) - start - encoding
        finally:
            for hook in hooks:
                hook.remove()
        return Pictures(images.float().clamp(0, 1), seconds, max(1, rows // len(prompts)))

    return sample

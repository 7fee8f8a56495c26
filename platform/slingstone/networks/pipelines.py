"""Families as diffusers runs them: many-step sampling, and one-step pipelines for export."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from slingstone.networks.adapters import merged
from slingstone.networks.denoiser import OneStepGenerator
from slingstone.networks.layouts import Layout
from slingstone.networks.protocol import Condition, Solver


@dataclass(frozen=True)
class LatentPipeline:
    """The `Pipeline` of a checkpoint of any layout.

    Attributes:
        layout: the class of the checkpoint.
        vae: the autoencoder.
        prompting: tokenizers, text encoders and their settings by their names in the pipeline.
        network: the reference's, shared and not copied.
        scheduler_config: of the checkpoint.
    """

    layout: Layout
    vae: AutoencoderKL
    prompting: Mapping[str, Any]
    network: ModelMixin
    scheduler_config: dict[str, Any]

    @torch.no_grad()
    def sample(
        self,
        noise: Float[Tensor, "batch channel height width"],
        condition: Condition,
        null: Condition,
        steps: int,
        guidance: float,
        solver: Solver = "ddim",
    ) -> tuple[Float[Tensor, "batch channel height width"], int]:
        """Run diffusers' own pipeline from `noise` to latents; see `Pipeline.sample`."""
        silent = {name: None if isinstance(part, nn.Module) else part for name, part in self.prompting.items()}
        # Without text encoders, which may lie on another device: stock pipelines ask them where and in what to compute.
        pipeline = replace(self, prompting=silent)._assemble(self.layout.process.solver(self.scheduler_config, solver))
        pipeline.set_progress_bar_config(disable=True)
        dtype, rows = self.network.dtype, 0

        def enter(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
            nonlocal rows
            first = arguments[0] if arguments else named["hidden_states"]
            rows += len(first)
            if arguments:
                return (first.to(dtype), *arguments[1:]), named
            return arguments, {**named, "hidden_states": first.to(dtype)}

        def leave(_module: nn.Module, _arguments: Any, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # The solver's steps are in fp32, whatever the network's precision.
            return tuple(output.to(noise.dtype) for output in outputs)

        names = self.layout.conditions
        factor = pipeline.vae_scale_factor
        hooks = [
            self.network.register_forward_pre_hook(enter, with_kwargs=True),
            self.network.register_forward_hook(leave),
        ]
        try:
            latents = pipeline(
                **{argument: condition[name] for name, argument in names.items()},
                **{f"negative_{argument}": null[name] for name, argument in names.items()},
                latents=noise,
                height=noise.shape[2] * factor,
                width=noise.shape[3] * factor,
                num_inference_steps=steps,
                guidance_scale=guidance,
                output_type="latent",
                **self.layout.call,
                return_dict=False,
            )[0]
        finally:
            for hook in hooks:
                hook.remove()
        return latents, rows // len(noise)

    def save(self, generator: nn.Module, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a pipeline of the checkpoint's class that gives the generator's picture in one step, adapters merged.

        `DiffusionPipeline.from_pretrained(directory)(prompt, num_inference_steps=1, guidance_scale=0)` runs it, and so
        does `timesteps=[T]`; see `schedulers`.
        """
        assert isinstance(generator, OneStepGenerator)
        scheduler = self.layout.process.one_step(
            self.scheduler_config,
            generator.prediction,
            generator.timestep,
            generator.generator_input,
            generator.noise_level,
        )
        network, vae = _in_dtype(merged(generator.network), dtype), _in_dtype(self.vae, dtype)
        prompting = {
            name: _in_dtype(part, dtype) if isinstance(part, nn.Module) else part
            for name, part in self.prompting.items()
        }
        exported = replace(self, vae=vae, prompting=prompting, network=network)
        write_pipeline(exported._assemble(scheduler), directory)

    def _assemble(self, scheduler: Any) -> Any:
        made: Any = self.layout.pipeline
        parts = {"vae": self.vae, self.layout.network: self.network, "scheduler": scheduler, **self.prompting}
        return made(**parts, **self.layout.options)


def write_pipeline(pipeline: DiffusionPipeline, directory: Path) -> None:
    """Save a pipeline of any dtype so that `DiffusionPipeline.from_pretrained(directory)` loads all of it in fp32."""
    pipeline.save_pretrained(directory)
    # transformers loads in the dtype that the configuration names, diffusers in fp32: a half-precision export
    # loaded without an argument would meet itself in two dtypes.
    for path in directory.glob("text_encoder*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _in_dtype(module: Any, dtype: torch.dtype) -> Any:
    """Return the module itself if it has `dtype`, a converted copy otherwise: training goes on with the original."""
    return module if module.dtype == dtype else nn.Module.to(copy.deepcopy(module), dtype=dtype)

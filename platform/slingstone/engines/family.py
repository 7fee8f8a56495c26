"""The networks of an experiment, unrounded and in the precision in which the engines run them."""

from collections.abc import Iterable

import torch
from torch import nn

from slingstone.config import Experiment, Runtime
from slingstone.networks.adapters import Adapter, cast_frozen
from slingstone.networks.blocks import compile_blocks
from slingstone.networks.latent_diffusion import load
from slingstone.networks.protocol import DTYPES, ModelFamily


def load_family(experiment: Experiment, device: torch.device) -> ModelFamily:
    """Return the networks of a run as their checkpoints have them, in fp32."""
    models, lora = experiment.models, experiment.models.lora
    return load(
        models.reference,
        models.generator,
        models.assistant,
        generator_timestep=models.generator_timestep,
        generator_input=models.generator_input,
        generator_noise_level=models.generator_noise_level,
        decode_chunk=models.decode_chunk,
        gradient_checkpointing=experiment.runtime.gradient_checkpointing,
        lora=lora and Adapter(lora.rank, float(lora.alpha or lora.rank), lora.target_modules),
        device=device,
    )


def round_frozen(family: ModelFamily, experiment: Experiment) -> None:
    """Convert what is frozen to the precision in which the engines will run what is trained, in place.

    The divergence takes the small difference of assistant and reference: both must round alike.
    """
    adapted = (family.generator, family.assistant) if experiment.models.lora else ()
    for part in (family.reference, *adapted):
        cast_frozen(part, DTYPES[experiment.runtime.precision])


def arrange(networks: Iterable[nn.Module], decoder: nn.Module, runtime: Runtime) -> None:
    """Lay out and compile them as the configuration asks for, in place: before engines have them, and run them."""
    networks = list(networks)
    if runtime.channels_last:
        for network in networks:
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if runtime.compile == "blocks":
        for module in (*networks, decoder):
            compile_blocks(module)

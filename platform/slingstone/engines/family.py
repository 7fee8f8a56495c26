"""The networks of an experiment, in the precision in which the engines run them."""

import torch

from slingstone.config import Experiment
from slingstone.networks.adapters import Adapter, cast_frozen
from slingstone.networks.latent_diffusion import load
from slingstone.networks.protocol import DTYPES, ModelFamily


def load_family(experiment: Experiment, device: torch.device) -> ModelFamily:
    """Return the networks of a run, the reference in the precision in which the engines will run the others."""
    models, lora = experiment.models, experiment.models.lora
    family = load(
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
    # The divergence takes the small difference of assistant and reference: both must round alike.
    for part in (family.reference, *((family.generator, family.assistant) if lora else ())):
        cast_frozen(part, DTYPES[experiment.runtime.precision])
    return family

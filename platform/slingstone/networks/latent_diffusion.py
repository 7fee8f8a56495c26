"""Model families from diffusers checkpoints: a directory or a hub id to everything that one run needs."""

from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL

from slingstone.networks.adapters import Adapter, add_adapter, merged, sharing_copy
from slingstone.networks.checkpoint_files import PipelineFiles
from slingstone.networks.decoder import VaeDecoder
from slingstone.networks.denoiser import GeneratorInput, OneStepGenerator, ScoreNetwork
from slingstone.networks.layouts import LAYOUTS, Layout
from slingstone.networks.pipelines import LatentPipeline
from slingstone.networks.protocol import ModelFamily
from slingstone.networks.weights_file import is_weights_file, network_from_file
from slingstone.objectives.diffusion import NoiseSchedule, Prediction


def load(
    reference: str,
    generator: str,
    assistant: str | None = None,
    *,
    generator_timestep: int,
    generator_input: GeneratorInput = "scaled",
    generator_noise_level: float | None = None,
    decode_chunk: int = 0,
    gradient_checkpointing: bool = False,
    lora: Adapter | None = None,
    device: torch.device | str = "cpu",
) -> ModelFamily:
    """Load a family of pipelines of one class of `LAYOUTS`, in fp32 whatever dtype the files have.

    Args:
        reference: pipeline directory or hub id; gives the schedule, the text encoders and the decoder as well.
        generator: pipeline whose network is the one-step generator; its own scheduler names its prediction type.
            Or a single file with the network's state dict, as DMD2 publishes it, or with a LoRA of the reference's
            network; it predicts what the reference does.
        assistant: pipeline or file whose network the online score network starts from; None copies the reference's.
        generator_timestep: T, the one timestep of the generator.
        generator_input: whether it is fed `sigma_T z` or `z`.
        generator_noise_level: `sigma / alpha` that the generator was made for, where it lies between timesteps, as
            PixArt's 2.5; T is then the nearest timestep. None takes the schedule's at T.
        decode_chunk: decode so many pictures at a time; 0 decodes the whole batch at once.
        gradient_checkpointing: recompute activations of networks and decoder in the backward pass.
        lora: train adapters of generator and assistant; what they share with the reference is then one in memory. A
            generator or assistant that is a whole network keeps frozen weights of its own. None trains whole networks.
        device: where all of it is put.

    Raises:
        ValueError: naming the checkpoint and what is missing or does not fit.
    """
    files = PipelineFiles.find("reference", reference, LAYOUTS)
    layout = LAYOUTS[files.kind]
    network: Any = files.model(layout.network, layout.kind)
    config = files.scheduler_config()
    with files.reading("scheduler"):
        schedule = layout.process.schedule(config)
        shared = Reference(layout, reference, network, layout.process.prediction(config))
    _check_timestep(files, schedule, generator_timestep, generator_noise_level)
    vae = files.model("vae", AutoencoderKL)
    side = network.config["sample_size"]
    prompting = files.parts(layout.prompting)
    settings = {name: files.index.get(name, default) for name, default in layout.settings.items()}
    # Each of the VAE's levels but one halves the picture.
    encoder = layout.encoder(prompting, side * 2 ** (len(vae.config["block_out_channels"]) - 1), settings)

    one_step, one_step_prediction = _start("generator", generator, shared, lora)
    online, online_prediction = _start("assistant", assistant or reference, shared, lora)
    if gradient_checkpointing:
        for module in (network, one_step, online, vae):
            module.enable_gradient_checkpointing()

    schedule = schedule.to(device)
    call = layout.output(schedule)
    return ModelFamily(
        generator=OneStepGenerator(
            one_step, call, one_step_prediction, schedule, generator_timestep, generator_input, generator_noise_level
        ).to(device),
        assistant=ScoreNetwork(online, call, online_prediction, schedule).to(device),
        reference=ScoreNetwork(network, call, shared.prediction, schedule).requires_grad_(False).to(device),
        text_encoder=encoder.to(device),
        decoder=VaeDecoder(vae, decode_chunk).to(device),
        schedule=schedule,
        latent_shape=(network.config["in_channels"], side, side),
        pipeline=LatentPipeline(layout, vae, prompting | settings, network, config),
    )


class Reference(NamedTuple):
    """What the other networks of a run must agree with, and start from or share."""

    layout: Layout
    location: str
    network: Any
    prediction: Prediction


def _start(role: str, location: str, reference: Reference, lora: Adapter | None) -> tuple[Any, Prediction]:
    """Return the network that a role trains, wholly or by an adapter, and its prediction type."""
    if lora is None:
        network, prediction = _network(role, location, reference)
        return merged(network).requires_grad_(True), prediction
    reference.network.requires_grad_(False)
    network, prediction = _network(role, location, reference)
    add_adapter(network.requires_grad_(False), lora)
    return network, prediction


def _network(role: str, location: str, reference: Reference) -> tuple[Any, Prediction]:
    """Return a network and its prediction type, once it is known to share latents and text with the reference.

    It shares the reference's weights in memory where these are frozen and it starts from them.
    """
    if location == reference.location:
        return sharing_copy(reference.network), reference.prediction
    if is_weights_file(location):
        return network_from_file(reference.network, reference.layout, role, location), reference.prediction
    layout = reference.layout
    files = PipelineFiles.find(role, location, [layout.pipeline.__name__])
    network: Any = files.model(layout.network, layout.kind)
    for field in layout.agreeing:
        if network.config[field] != reference.network.config[field]:
            raise ValueError(
                f"{files}: its {layout.network} has {field} = {network.config[field]}, the reference's has "
                f"{reference.network.config[field]}; all networks of a run must share latents and text encoder"
            )
    with files.reading("scheduler"):
        return network, layout.process.prediction(files.scheduler_config())


def _check_timestep(files: PipelineFiles, schedule: NoiseSchedule, timestep: int, noise_level: float | None) -> None:
    """Refuse a timestep outside the schedule, or one that is not the nearest to the noise level."""
    if not 0 <= timestep < len(schedule):
        raise ValueError(
            f"generator_timestep is {timestep}, but the schedule of {files} has timesteps "
            f"0..{len(schedule) - 1}; give the one that the generator was made for"
        )
    if noise_level is None:
        return
    levels = schedule.sigma / schedule.alpha
    nearest = int((levels - noise_level).abs().argmin())
    if timestep != nearest:
        raise ValueError(
            f"generator_noise_level is {noise_level:g}, but the schedule of {files} has {float(levels[timestep]):g} at "
            f"generator_timestep = {timestep}; the nearest timestep is {nearest}"
        )

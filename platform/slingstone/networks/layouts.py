"""The pipeline classes that a run can start from: what tells one from another, as values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers import (
    DiffusionPipeline,
    ModelMixin,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from slingstone.networks.checkpoint_files import PipelineFiles
from slingstone.networks.denoiser import Output, Sd3Output, pixart_output, unet_output
from slingstone.networks.schedulers import FLOW_MATCHING, VARIANCE_PRESERVING, Process
from slingstone.networks.text import (
    ClipTextEncoder,
    PixArtTextEncoder,
    RememberingEncoder,
    Sd3TextEncoder,
    SdxlTextEncoder,
)
from slingstone.objectives.diffusion import NoiseSchedule


@dataclass(frozen=True)
class Prompting:
    """What turns prompts into conditions.

    Attributes:
        encoder: of the run.
        parts: the same tokenizers and models by their names in the pipeline, with the settings that go with them.
    """

    encoder: RememberingEncoder
    parts: Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """A pipeline class of diffusers.

    Attributes:
        pipeline: the class.
        prompting: loads its text encoders, given the files and the side of the pictures in pixels.
        conditions: the names of a condition, and what the pipeline's call names them; unconditional ones have
            `negative_` before it.
        network: the denoising network's name in the pipeline.
        kind: its class.
        output: how it is called, given the schedule.
        process: how its scheduler is read.
        agreeing: what all networks of a run must share, as their configurations spell it.
        options: the pipeline's constructor arguments for what no run needs.
        call: arguments of the pipeline's call that any run needs.
    """

    pipeline: type[DiffusionPipeline]
    prompting: Callable[[PipelineFiles, int], Prompting]
    conditions: Mapping[str, str]
    network: str = "unet"
    kind: type[ModelMixin] = UNet2DConditionModel
    output: Callable[[NoiseSchedule], Output] = lambda _: unet_output
    process: Process = VARIANCE_PRESERVING
    agreeing: tuple[str, ...] = ("in_channels", "out_channels", "sample_size", "cross_attention_dim")
    options: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)


def _stable_diffusion(files: PipelineFiles, picture_side: int) -> Prompting:
    parts = files.parts(tokenizer=CLIPTokenizer, text_encoder=CLIPTextModel)
    return Prompting(ClipTextEncoder(**parts), parts)


def _sdxl(files: PipelineFiles, picture_side: int) -> Prompting:
    parts = files.parts(
        tokenizer=CLIPTokenizer,
        tokenizer_2=CLIPTokenizer,
        text_encoder=CLIPTextModel,
        text_encoder_2=CLIPTextModelWithProjection,
    )
    zero_null = bool(files.index.get("force_zeros_for_empty_prompt", True))
    encoder = SdxlTextEncoder(**parts, picture_side=picture_side, zero_null=zero_null)
    return Prompting(encoder, parts | {"force_zeros_for_empty_prompt": zero_null})


def _pixart(files: PipelineFiles, picture_side: int) -> Prompting:
    parts = files.parts(tokenizer=T5Tokenizer, text_encoder=T5EncoderModel)
    return Prompting(PixArtTextEncoder(**parts, picture_side=picture_side), parts)


def _sd3(files: PipelineFiles, picture_side: int) -> Prompting:
    parts = files.parts(
        tokenizer=CLIPTokenizer,
        tokenizer_2=CLIPTokenizer,
        text_encoder=CLIPTextModelWithProjection,
        text_encoder_2=CLIPTextModelWithProjection,
        tokenizer_3=T5Tokenizer,
        text_encoder_3=T5EncoderModel,
    )
    return Prompting(Sd3TextEncoder(**parts), parts)


STABLE_DIFFUSION = Layout(
    pipeline=StableDiffusionPipeline,
    prompting=_stable_diffusion,
    conditions={"text": "prompt_embeds"},
    options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
)
SDXL = Layout(
    pipeline=StableDiffusionXLPipeline,
    prompting=_sdxl,
    conditions={"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"},
    agreeing=(*STABLE_DIFFUSION.agreeing, "addition_embed_type", "projection_class_embeddings_input_dim"),
    options={"add_watermarker": False},
)
PIXART = Layout(
    pipeline=PixArtAlphaPipeline,
    prompting=_pixart,
    conditions={"text": "prompt_embeds", "mask": "prompt_attention_mask"},
    network="transformer",
    kind=PixArtTransformer2DModel,
    output=lambda _: pixart_output,
    agreeing=("in_channels", "out_channels", "sample_size", "caption_channels"),
    call={"negative_prompt": None, "use_resolution_binning": False},
)
SD3 = Layout(
    pipeline=StableDiffusion3Pipeline,
    prompting=_sd3,
    conditions=SDXL.conditions,
    network="transformer",
    kind=SD3Transformer2DModel,
    output=Sd3Output,
    process=FLOW_MATCHING,
    agreeing=("in_channels", "out_channels", "sample_size", "joint_attention_dim", "pooled_projection_dim"),
)
LAYOUTS: Mapping[str, Layout] = {layout.pipeline.__name__: layout for layout in (STABLE_DIFFUSION, SDXL, PIXART, SD3)}
"""By the class that a model_index.json names."""

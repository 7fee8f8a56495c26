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
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
    T5Tokenizer,
)

from slingstone.networks.denoiser import Output, Sd3Output, pixart_output, unet_output
from slingstone.networks.schedulers import FLOW_MATCHING, VARIANCE_PRESERVING, Process
from slingstone.networks.text import (
    ClipTextEncoder,
    PixArtTextEncoder,
    PromptEncoder,
    Sd3TextEncoder,
    SdxlTextEncoder,
)
from slingstone.objectives.diffusion import NoiseSchedule


@dataclass(frozen=True)
class Layout:
    """A pipeline class of diffusers.

    Attributes:
        pipeline: the class.
        prompting: its tokenizers and text encoders, by their names in the pipeline.
        encoder: made of these, given the side of the pictures in pixels and the settings.
        conditions: the names of a condition, and what the pipeline's call names them; unconditional ones have
            `negative_` before it.
        network: the denoising network's name in the pipeline.
        kind: its class.
        output: how it is called, given the schedule.
        process: how its scheduler is read.
        agreeing: what all networks of a run must share, as their configurations spell it.
        settings: of the pipeline's constructor, where model_index.json does not say otherwise.
        options: the pipeline's constructor arguments for what no run needs.
        call: arguments of the pipeline's call that any run needs.
    """

    pipeline: type[DiffusionPipeline]
    prompting: Mapping[str, type[PreTrainedTokenizerBase | PreTrainedModel]]
    encoder: Callable[[dict[str, Any], int, dict[str, Any]], PromptEncoder]
    conditions: Mapping[str, str]
    network: str = "unet"
    kind: type[ModelMixin] = UNet2DConditionModel
    output: Callable[[NoiseSchedule], Output] = lambda _: unet_output
    process: Process = VARIANCE_PRESERVING
    agreeing: tuple[str, ...] = ("in_channels", "out_channels", "sample_size", "cross_attention_dim")
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)


ZERO_NULL = "force_zeros_for_empty_prompt"
STABLE_DIFFUSION = Layout(
    pipeline=StableDiffusionPipeline,
    prompting={"tokenizer": CLIPTokenizer, "text_encoder": CLIPTextModel},
    encoder=lambda parts, side, settings: ClipTextEncoder(**parts),
    conditions={"text": "prompt_embeds"},
    options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
)
SDXL = Layout(
    pipeline=StableDiffusionXLPipeline,
    prompting={
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    },
    encoder=lambda parts, side, settings: SdxlTextEncoder(**parts, picture_side=side, zero_null=settings[ZERO_NULL]),
    settings={ZERO_NULL: True},
    conditions={"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"},
    agreeing=(*STABLE_DIFFUSION.agreeing, "addition_embed_type", "projection_class_embeddings_input_dim"),
    options={"add_watermarker": False},
)
PIXART = Layout(
    pipeline=PixArtAlphaPipeline,
    prompting={"tokenizer": T5Tokenizer, "text_encoder": T5EncoderModel},
    encoder=lambda parts, side, settings: PixArtTextEncoder(**parts, picture_side=side),
    conditions={"text": "prompt_embeds", "mask": "prompt_attention_mask"},
    network="transformer",
    kind=PixArtTransformer2DModel,
    output=lambda _: pixart_output,
    agreeing=("in_channels", "out_channels", "sample_size", "caption_channels"),
    call={"negative_prompt": None, "use_resolution_binning": False},
)
SD3 = Layout(
    pipeline=StableDiffusion3Pipeline,
    prompting={
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "tokenizer_3": T5Tokenizer,
        "text_encoder_3": T5EncoderModel,
    },
    encoder=lambda parts, side, settings: Sd3TextEncoder(**parts),
    conditions=SDXL.conditions,
    network="transformer",
    kind=SD3Transformer2DModel,
    output=Sd3Output,
    process=FLOW_MATCHING,
    agreeing=("in_channels", "out_channels", "sample_size", "joint_attention_dim", "pooled_projection_dim"),
)
LAYOUTS: Mapping[str, Layout] = {layout.pipeline.__name__: layout for layout in (STABLE_DIFFUSION, SDXL, PIXART, SD3)}
"""By the class that a model_index.json names."""

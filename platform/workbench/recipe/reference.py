"""Stage 2: the reference, a text-conditional latent diffusion model trained from scratch on drawn scenes."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from slingstone.atomic import replacing
from slingstone.world.captions import sample_scenes
from slingstone.world.editions import Edition
from workbench.recipe.autoencoder import encode
from workbench.recipe.fit import fit
from workbench.recipe.parsing import teach_text_encoder
from workbench.recipe.settings import Reference
from workbench.recipe.tokenizers import special_tokens, write_clip_tokenizer

_MAX_TOKENS = 24
_TEXT_WIDTH = 96
_DROP_CAPTION = 0.1
_EMA_DECAY = 0.998


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained CLIP text transformer, about 0.25 M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_TEXT_WIDTH,
            intermediate_size=2 * _TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=_MAX_TOKENS,
            **special_tokens(tokenizer),
        )
    )


def new_unet(settings: Reference, latent: torch.Size) -> UNet2DConditionModel:
    """Return the untrained denoiser: Stable Diffusion's architecture at the levels of the settings."""
    channels, _, side = latent
    levels = list(settings.attention)
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in levels),
        up_block_types=tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(levels)),
        block_out_channels=settings.channels,
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=4,
    )


def new_scheduler() -> DDIMScheduler:
    """Return Stable Diffusion 1.5's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def drawn_latents(
    vae: AutoencoderKL, edition: Edition, count: int, seed: int, kept: Path, chunk: int = 512
) -> tuple[list[str], Float[Tensor, "count channel height width"]]:
    """Return `count` captions of training scenes and the scaled latents of one drawing of each, made once."""
    rng = torch.Generator().manual_seed(seed)
    scenes = sample_scenes(count, seed, held_out=False)
    captions = [scene.caption for scene in scenes]
    if kept.exists():
        return captions, torch.load(kept, weights_only=True)
    latents = [
        encode(vae, edition.draw(scenes[start : start + chunk], rng)) * vae.config["scaling_factor"]
        for start in trange(0, count, chunk, desc="drawn latents", mininterval=10)
    ]
    with replacing(kept) as partial:
        torch.save(torch.cat(latents), partial)
    return captions, torch.cat(latents)


def train_reference(
    vae: AutoencoderKL, edition: Edition, settings: Reference, seed: int, directory: Path
) -> StableDiffusionPipeline:
    """Train the denoiser on eps-MSE with caption dropout; return the averaged weights' pipeline.

    So is the text encoder, unless it was taught first.

    The tokenizer's files go into the directory, and the state from which an interrupted training goes on.
    """
    torch.manual_seed(seed)
    tokenizer = write_clip_tokenizer(directory / "tokenizer", _MAX_TOKENS)
    captions, latents = drawn_latents(vae, edition, settings.pictures, seed, directory / "latents.pt")
    text_encoder = new_text_encoder(tokenizer)
    net = _Denoiser(text_encoder, new_unet(settings, latents.shape[1:]))
    if settings.text:
        teach_text_encoder(text_encoder, tokenizer, settings.text, seed)
        text_encoder.requires_grad_(False)  # as in Stable Diffusion
    # On a CPU both are faster: the layout by a tenth, attention written out by a quarter (its fused backward is slow).
    _lay_out(net, torch.channels_last)
    net.unet.set_attn_processor(AttnProcessor())
    tokens = tokenizer([*captions, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    alpha_bar = new_scheduler().alphas_cumprod
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(_EMA_DECAY))
    batch = settings.batch

    def loss(_step: int) -> Tensor:
        rows = torch.randint(settings.pictures, (batch,))
        x0, t, eps = latents[rows], torch.randint(1000, (batch,)), torch.randn(batch, *latents.shape[1:])
        text = torch.where(torch.rand(batch, 1) < _DROP_CAPTION, tokens[-1:], tokens[rows])
        scale = alpha_bar[t].view(-1, 1, 1, 1)
        noisy = scale.sqrt() * x0 + (1 - scale).sqrt() * eps
        with torch.autocast("cpu", torch.bfloat16):
            predicted = net(noisy, t, text)
        return torch.nn.functional.mse_loss(predicted.float(), eps)

    def average() -> None:
        averaged.update_parameters(net)

    kept = directory / "reference.pt"
    learning = [weight for weight in net.parameters() if weight.requires_grad]
    fit(learning, loss, settings, "reference", after_step=average, kept=kept, keep=averaged)
    best = averaged.module.eval().requires_grad_(False)
    assert isinstance(best, _Denoiser)
    _lay_out(best, torch.contiguous_format)
    best.unet.set_default_attn_processor()
    absent: Any = None
    scheduler: Any = new_scheduler()
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=best.text_encoder,
        tokenizer=tokenizer,
        unet=best.unet,
        scheduler=scheduler,
        safety_checker=absent,
        feature_extractor=absent,
        requires_safety_checker=False,
    )


def _lay_out(net: torch.nn.Module, memory_format: torch.memory_format) -> None:
    """Arrange the weights of the convolutions in memory; not of 1 x 1 ones, as torch's own functions would."""
    for weight in net.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=memory_format)


class _Denoiser(torch.nn.Module):
    """What the reference trains: text encoder and denoiser."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel):
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(x_t, t, self.text_encoder(tokens).last_hidden_state).sample

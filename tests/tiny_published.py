"""Rewrites a tiny pipeline as the Stable Diffusion checkpoints on the hub were published, years of formats ago."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, arange

from tests import tiny

UNPUBLISHED = {
    "vae": {"scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast", "use_quant_conv"},
    "unet": {"addition_embed_type", "attention_type", "conv_in_kernel", "time_embedding_type", "upcast_attention"},
}
"""Keys that younger versions write into a part's configuration, and that Stable Diffusion 1.5 does not have."""
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""What the layers of an autoencoder's attention were called."""


def publish_stable_diffusion(directory: Path) -> Path:
    """Rewrite a StableDiffusionPipeline directory as stable-diffusion-v1-5 lies on the hub."""
    for part in ("feature_extractor", "safety_checker"):
        (directory / part).mkdir()
        (directory / part / "config.json").write_text('{"_class_name": "unreadable"')
        (directory / part / "model.safetensors").write_bytes(b"not for us")
    (directory / "v1-5-pruned.ckpt").write_bytes(b"not for us")
    _edit(
        directory / "model_index.json",
        lambda index: {
            **{name: value for name, value in index.items() if name != "image_encoder"},
            "_diffusers_version": "0.6.0",
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        },
    )
    for part, keys in UNPUBLISHED.items():
        _edit(
            directory / part / "config.json",
            lambda config, keys=keys: {name: value for name, value in config.items() if name not in keys},
        )
    _rename(directory / "vae" / "diffusion_pytorch_model.safetensors", _old_attention)
    (directory / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(
            {
                "_class_name": "PNDMScheduler",
                "_diffusers_version": "0.6.0",
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
                "beta_start": 0.00085,
                "num_train_timesteps": 1000,
                "set_alpha_to_one": False,
                "skip_prk_steps": True,
                "steps_offset": 1,
                "trained_betas": None,
                "clip_sample": False,
            }
        )
    )
    publish_text(directory)
    return directory


def publish_text(directory: Path) -> Path:
    """Rewrite the tokenizers as vocabularies and merges, and the text encoders with the names of transformers 4."""
    for tokenizer in directory.glob("tokenizer*"):
        pad = json.loads((tokenizer / "tokenizer_config.json").read_text())["pad_token"]
        for file in tokenizer.iterdir():
            file.unlink()
        (tokenizer / "vocab.json").write_text(json.dumps(tiny.tokenizer().get_vocab()))
        (tokenizer / "merges.txt").write_text("#version: 0.2\n")
        marks = {name: _mark(f"<|{text}|>") for name, text in MARKS.items()}
        (tokenizer / "special_tokens_map.json").write_text(json.dumps({**marks, "pad_token": pad}))
        (tokenizer / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    **{name: {"__type": "AddedToken", **mark} for name, mark in marks.items()},
                    "add_prefix_space": False,
                    "do_lower_case": True,
                    "errors": "replace",
                    "model_max_length": tiny.TOKENS,
                    "pad_token": pad,
                    "tokenizer_class": "CLIPTokenizer",
                }
            )
        )
    for encoder in directory.glob("text_encoder*"):
        _rename(encoder / "model.safetensors", _old_text)
        # The published ids are those of no tokenizer: the end of a prompt is its largest id.
        _edit(
            encoder / "config.json",
            lambda config: {**config, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
        )
    return directory


MARKS = {"bos_token": "startoftext", "eos_token": "endoftext", "unk_token": "endoftext"}


def _mark(content: str) -> dict[str, object]:
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def _old_attention(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    def old(name: str) -> str:
        for new, published in OLD_ATTENTION.items():
            if "attentions" in name:
                name = name.replace(f".{new}.", f".{published}.")
        return name

    return {old(name): weight for name, weight in weights.items()}


def _old_text(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    tower = {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": weight
        for name, weight in weights.items()
    }
    return {**tower, "text_model.embeddings.position_ids": arange(tiny.TOKENS)[None]}


def _edit(file: Path, change: Callable[[dict], dict]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def _rename(file: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})

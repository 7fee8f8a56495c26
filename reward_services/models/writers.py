"""Writing reward models that were built or trained here in the layouts in which the published ones come."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextModel, BlipVisionModel, CLIPModel, CLIPTokenizer

from reward_services.models import hps, imagereward
from reward_services.models.clip import tower_configs
from reward_services.models.ensemble import FILE as ENSEMBLE_FILE
from reward_services.models.ensemble import WEIGHTS_FILE as ENSEMBLE_WEIGHTS
from reward_services.models.ensemble import Ensemble
from reward_services.models.head import RewardHead
from reward_services.models.layouts import transformers_to_imagereward, transformers_to_open_clip


def write_pickscore(
    model: CLIPModel, tokenizer: CLIPTokenizer, directory: str | Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write a transformers CLIP directory, as PickScore v1 is published; `model` itself stays as it is."""
    state = _stored(model, dtype)
    model.save_pretrained(directory, state_dict=state)
    tokenizer.save_pretrained(directory)


def write_hps(
    model: CLIPModel, tokenizer: CLIPTokenizer, directory: str | Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write an open_clip state dict, its geometry and tokenizer; ValueError if open_clip lacks the activations."""
    vision, text = tower_configs(model)
    activations = {vision.hidden_act, text.hidden_act}
    if len(activations) != 1 or not activations <= {"gelu", "quick_gelu"}:
        raise ValueError(f"hidden_act is {sorted(activations)}: open_clip needs gelu or quick_gelu in both towers")
    geometry = {
        "embed_dim": model.config.projection_dim,
        "quick_gelu": activations == {"quick_gelu"},
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "patch_size": vision.patch_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
        },
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = transformers_to_open_clip(_stored(model, dtype))
    torch.save({"state_dict": state}, directory / hps.PUBLISHED_FILE)
    (directory / hps.GEOMETRY_FILE).write_text(json.dumps({"model_cfg": geometry}, indent=2) + "\n")
    tokenizer.save_pretrained(directory)


def write_imagereward(
    vision: BlipVisionModel,
    text: BlipTextModel,
    mlp: RewardHead,
    tokenizer: BertTokenizer,
    directory: str | Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `ImageReward.pt`, `med_config.json` and `vocab.txt`, and the vision tower's heads beside them.

    Raises:
        ValueError: the vision tower's LayerNorm eps is not BLIP's, which the layout cannot express.
    """
    found, eps = vision.config.layer_norm_eps, imagereward.VISION_LAYER_NORM_EPS
    if found != eps:
        raise ValueError(f"vision layer_norm_eps is {found}: build BLIP's tower with {eps}")
    same = (*imagereward.TEXT_SETTINGS, "hidden_size", "num_hidden_layers", "intermediate_size")
    same = (*same, "max_position_embeddings", "pad_token_id", "vocab_size")
    settings = text.config.to_dict()
    med_config = {name: settings[name] for name in same} | {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "type_vocab_size": 2,
        "encoder_width": settings["encoder_hidden_size"],
        "add_cross_attention": True,
    }
    heads = {"num_attention_heads": vision.config.num_attention_heads}
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text_state = {name: tensor for name, tensor in _stored(text, dtype).items() if not name.startswith("pooler.")}
    state = transformers_to_imagereward(_stored(vision, dtype), text_state, _stored(mlp, dtype))
    torch.save(state, directory / imagereward.WEIGHTS_FILE)
    (directory / imagereward.TEXT_CONFIG_FILE).write_text(json.dumps(med_config, indent=2) + "\n")
    (directory / imagereward.VISION_CONFIG_FILE).write_text(json.dumps(heads, indent=2) + "\n")
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in by_id), encoding="utf-8")


def write_ensemble(ensemble: Ensemble, directory: str | Path) -> None:
    """Write the heads of an ensemble beside the reward that it is of, which is written already."""
    directory = Path(directory)
    save_file(_stored(ensemble.heads, torch.float32), directory / ENSEMBLE_WEIGHTS)
    settings = {"model": ensemble.kind, "heads": len(ensemble.heads), "spread_weight": ensemble.spread_weight}
    (directory / ENSEMBLE_FILE).write_text(json.dumps(settings, indent=2) + "\n")


def _stored(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in module.state_dict().items()}

"""ImageReward by the package `image-reward` 1.5, unmodified; runs in the environment of `imagereward.txt` only.

The package is written for one geometry and one tokenizer. Both are taken from the checkpoint, by handing its
constructors other numbers; at the published size they are the same numbers.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import BertTokenizer

from reward_services.models.checkpoints import PublishedReward, fetch, read_state_dict, read_tokenizer
from reward_services.models.imagereward import (
    MAX_TOKENS,
    PUBLISHED_TOKENIZER,
    TEXT_CONFIG_FILE,
    WEIGHTS_FILE,
    described_vision,
    vision_geometry,
)
from reward_services.models.layouts import IMAGEREWARD_UNUSED, imagereward_to_transformers
from reward_services.preprocess import imagereward_preprocess
from reward_services.spec import PreprocessMode
from reward_services.upstream.inputs import to_pil


class UpstreamImageReward(PublishedReward):
    """Upstream's scores, one picture at a time; the gradient passes its resizing by the native rule."""

    def __init__(self, model: Any, size: int, preprocess: PreprocessMode = "exact"):
        super().__init__()
        self.model = model
        self.preprocess = imagereward_preprocess(size, preprocess)

    @classmethod
    def read(cls, checkpoint: str | Path, tokenizer: str | None) -> tuple[Any, int]:
        """Read what the native ImageReward reads, by upstream's own `load`."""
        path, med_config = fetch(checkpoint, WEIGHTS_FILE), fetch(checkpoint, TEXT_CONFIG_FILE)
        state = read_state_dict(path)
        geometry = vision_geometry(imagereward_to_transformers(state)[0], described_vision(path))
        words = read_tokenizer(BertTokenizer, tokenizer, path.parent, PUBLISHED_TOKENIZER)
        package = import_module("ImageReward")
        module = import_module("ImageReward.ImageReward")
        blip, pretrain = (import_module(f"ImageReward.models.BLIP.{name}") for name in ("blip", "blip_pretrain"))
        transform, head = module._transform, module.MLP

        def create_vit(*_: Any) -> tuple[nn.Module, int]:
            tower = blip.VisionTransformer(
                img_size=geometry.image_size,
                patch_size=geometry.patch_size,
                embed_dim=geometry.hidden_size,
                depth=geometry.num_hidden_layers,
                num_heads=geometry.num_attention_heads,
                mlp_ratio=geometry.intermediate_size / geometry.hidden_size,
            )
            return tower, geometry.hidden_size

        with ExitStack() as stack:
            for target, name, replacement in (
                (pretrain, "create_vit", create_vit),
                (blip, "BertTokenizer", SimpleNamespace(from_pretrained=lambda _: words)),
                (module, "_transform", lambda _: transform(geometry.image_size)),
                (module, "MLP", lambda _: head(state["mlp.layers.0.weight"].shape[1])),
            ):
                stack.enter_context(patch.object(target, name, replacement))
            try:
                model = package.load(str(path), device="cpu", med_config=str(med_config))
            except RuntimeError as error:
                raise ValueError(f"checkpoint {str(path)!r} does not fit upstream's ImageReward: {error}") from error
        # Upstream loads with strict=False.
        missing = [name for name in model.state_dict() if name not in state and not name.startswith(IMAGEREWARD_UNUSED)]
        if missing:
            raise ValueError(f"checkpoint {str(path)!r} is not a whole ImageReward: it lacks {missing[:3]}")
        assert isinstance(geometry.image_size, int)
        return model, geometry.image_size

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Return one score a picture for RGB pictures in [0, 1]."""
        return torch.cat([self._score(image, prompt) for image, prompt in zip(images.split(1), prompts, strict=True)])

    def _score(self, image: Tensor, prompt: str) -> Tensor:
        self.model.device = image.device
        value = self.model.preprocess(to_pil(image)).unsqueeze(0).to(image.device)
        smooth = self.preprocess(image)
        tokens = self.model.blip.tokenizer(
            prompt, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(image.device)
        pixels = value + (smooth - smooth.detach())
        return self.model.score_gard(tokens.input_ids, tokens.attention_mask, pixels).squeeze(-1)

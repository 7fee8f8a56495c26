"""HPS v2 and v2.1 by the package `hpsv2x` 1.2.0, unmodified; runs in the environment of `hps.txt` only.

The package always builds ViT-H/14 with its own vocabulary. A checkpoint with an `open_clip_config.json` and a tokenizer
beside it is built from those, by the same functions of the package.
"""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reward_services.contents import local_path
from reward_services.models.checkpoints import PublishedReward, load_strict, read_state_dict, weights_file
from reward_services.models.hps import GEOMETRY_FILE, PUBLISHED_FILE, HPSv2
from reward_services.spec import PreprocessMode
from reward_services.upstream.inputs import own_vocabulary, to_pil

_PUBLISHED_GEOMETRY = "ViT-H-14"


class UpstreamHPS(PublishedReward):
    """Upstream's scores, one picture at a time."""

    published_file: ClassVar[str] = PUBLISHED_FILE

    def __init__(self, model: nn.Module, transform: Any, tokenizer: Any, preprocess: PreprocessMode = "exact"):
        super().__init__()
        assert preprocess == "exact", "the package has no other, see RewardSpec"
        self.model = model
        self.transform = transform
        self.tokenizer = tokenizer

    @classmethod
    def read(cls, checkpoint: str | Path, tokenizer: str | None) -> tuple[nn.Module, Any, Any]:
        """Read what the native HPS reads."""
        path = weights_file(checkpoint, cls.published_file)
        state = read_state_dict(path)
        open_clip = import_module("hpsv2.src.open_clip")
        names = import_module("hpsv2.src.open_clip.tokenizer")
        sidecar = path.with_name(GEOMETRY_FILE)
        with TemporaryDirectory() as scratch:
            geometry = _PUBLISHED_GEOMETRY
            if sidecar.is_file():
                geometry = "checkpoint"
                Path(scratch, f"{geometry}.json").write_text(json.dumps(json.loads(sidecar.read_text())["model_cfg"]))
                open_clip.add_model_config(Path(scratch))
            model, _, transform = open_clip.create_model_and_transforms(
                geometry, None, precision="amp", light_augmentation=True, output_dict=True
            )
        load_strict(model, state, str(path))
        words = local_path(tokenizer) if tokenizer else path.parent
        has_words = words is not None and (words / "tokenizer.json").is_file()
        own = own_vocabulary(names.SimpleTokenizer, words) if words and has_words else names._tokenizer
        return model, transform, own

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Return one score a picture for RGB pictures in [0, 1]."""
        return torch.cat([self._score(image, prompt) for image, prompt in zip(images.split(1), prompts, strict=True)])

    def _score(self, image: Tensor, prompt: str) -> Tensor:
        to_rgb, to_tensor, *on_tensors = self.transform.transforms
        pixels = to_tensor(to_rgb(to_pil(image))).to(image.device) + (image[0] - image[0].detach())
        for transform in on_tensors:
            pixels = transform(pixels)
        names = import_module("hpsv2.src.open_clip.tokenizer")
        with patch.object(names, "_tokenizer", self.tokenizer):
            tokens = names.tokenize([prompt]).to(image.device)
        with torch.autocast("cuda", enabled=image.device.type == "cuda"):
            outputs = self.model(pixels.unsqueeze(0), tokens)
            return torch.diagonal(outputs["image_features"] @ outputs["text_features"].T)


class UpstreamHPSv2(UpstreamHPS):
    """The same by v2."""

    published_file = HPSv2.published_file

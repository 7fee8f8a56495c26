"""LAION's aesthetic predictor v2: a linear head on the picture's embedding by OpenAI's CLIP ViT-L/14.

Source: Schuhmann, github.com/christophschuhmann/improved-aesthetic-predictor, file sac+logos+ava1-l14-linearMSE.pth.
"""

from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPModel

from reward_services.models.checkpoints import PublishedReward, load_strict, read_state_dict, weights_file
from reward_services.models.clip import picture_side
from reward_services.models.clip_directory import read_clip
from reward_services.models.head import RewardHead, head_of
from reward_services.preprocess import imagereward_preprocess
from reward_services.spec import PreprocessMode

PUBLISHED_FILE = "sac+logos+ava1-l14-linearMSE.pth"
PUBLISHED_TOWER = "openai/clip-vit-large-patch14"


class Aesthetic(PublishedReward):
    """`MLP(image embedding / its norm)`, whatever the prompt; published weights give 4 to 7."""

    def __init__(self, model: CLIPModel, mlp: RewardHead, preprocess: PreprocessMode = "exact"):
        super().__init__()
        self.vision = model.vision_model
        self.projection = model.visual_projection
        self.mlp = mlp
        # The rule of OpenAI's clip package, which ImageReward took over.
        self.preprocess = imagereward_preprocess(picture_side(model), preprocess)

    @classmethod
    def read(cls, checkpoint: str | Path, tokenizer: str | None) -> tuple[CLIPModel, RewardHead]:
        """Read the head's `.pth` file, a directory that holds it, or `owner/repository[/file]` on the hub.

        The CLIP model lies in the same directory in transformers' layout, or is the published one. There is no text.
        """
        path = weights_file(checkpoint, PUBLISHED_FILE)
        state = read_state_dict(path)
        try:
            mlp = head_of(state)
        except KeyError as error:
            raise ValueError(f"checkpoint {str(path)!r} is not a whole aesthetic head: it lacks {error}") from error
        load_strict(mlp, state, str(path))
        tower = str(path.parent) if path.with_name("config.json").is_file() else PUBLISHED_TOWER
        model = read_clip(tower)
        if model.config.projection_dim != mlp.layers[0].in_features:
            raise ValueError(
                f"checkpoint {str(path)!r} judges embeddings of width {mlp.layers[0].in_features}, the CLIP model "
                f"{tower!r} gives {model.config.projection_dim}: give the model that the head was trained on"
            )
        return model, mlp

    def score(self, images: Float[Tensor, "batch 3 height width"], prompts: Sequence[str]) -> Float[Tensor, " batch"]:
        """Return one score a picture for RGB pictures in [0, 1]; prompts do not matter."""
        pixels = self.preprocess(images).to(self.projection.weight.dtype)
        embeddings = self.projection(self.vision(pixel_values=pixels).pooler_output)
        return self.mlp(F.normalize(embeddings.to(self.mlp.layers[0].weight.dtype), dim=-1)).squeeze(-1)

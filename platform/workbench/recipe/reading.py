"""Teaches reward models to read pictures before they see a vote, as the published ones start from CLIP and BLIP.

Each drawing is told from near captions, in which one claim is false, and from those of the other drawings; beside it
the towers answer what stands where. No judge takes part: a drawing's own caption is known.
"""

import random
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from reward_services.models.clip import ClipReward, normalised
from reward_services.models.imagereward import MAX_TOKENS, ImageReward
from reward_services.models.tokens import tokens_of
from slingstone.world.captions import Scene, sample_scenes
from slingstone.world.editions import Edition
from workbench.recipe.fit import fit
from workbench.recipe.parsing import SHARE_OF_PAIRS
from workbench.recipe.preferences import mutated
from workbench.recipe.questions import CHOICES, answer_loss, answers
from workbench.recipe.settings import Training

_NEAR = 3  # false captions of each drawing


def teach_reading(
    reward: ClipReward | ImageReward, edition: Edition, settings: Training, seed: int, kept: Path | None = None
) -> None:
    """Train, in place, on fresh drawings of captions that training may see.

    The state from which an interrupted training goes on is kept in a file.
    """
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    reward.requires_grad_(True)
    task = _ClipTask(reward) if isinstance(reward, ClipReward) else _BlipTask(reward)

    def loss(step: int) -> Tensor:
        scenes = sample_scenes(settings.batch, seed + step, held_out=False, share_of_pairs=SHARE_OF_PAIRS)
        pictures, choice = edition.draw(scenes, rng), random.Random(seed + step)
        near = [[scene, *(mutated(scene, choice) for _ in range(_NEAR))] for scene in scenes]
        with torch.autocast("cpu", torch.bfloat16):
            return task(pictures, near)

    fit(list(task.parameters()), loss, settings, "reading", kept=kept, streams=[rng])
    reward.eval().requires_grad_(False)


class _ClipTask(nn.Module):
    """Contrast with all captions of the batch, and questions to both towers."""

    def __init__(self, reward: ClipReward):
        super().__init__()
        self.reward = reward
        model = reward.similarity.model
        self.from_picture = nn.Linear(model.visual_projection.in_features, sum(CHOICES))
        self.from_text = nn.Linear(model.text_projection.in_features, sum(CHOICES))

    def forward(self, pictures: Float[Tensor, "batch 3 rows columns"], near: list[list[Scene]]) -> Float[Tensor, ""]:
        similarity = self.reward.similarity
        seen = similarity.model.vision_model(pixel_values=self.reward.preprocess(pictures)).pooler_output
        scenes = [scene for row in near for scene in row]
        read = similarity.summaries([scene.caption for scene in scenes])
        pictured = normalised(similarity.model.visual_projection(seen))
        told = normalised(similarity.model.text_projection(read))
        logits = similarity.model.logit_scale.exp() * pictured.float() @ told.float().T
        contrast = cross_entropy(logits, torch.arange(len(near)) * len(near[0]))
        questions = answer_loss(self.from_picture(seen).float(), answers([row[0] for row in near]))
        return contrast + questions + answer_loss(self.from_text(read).float(), answers(scenes))


class _BlipTask(nn.Module):
    """Contrast with the near captions, of which each needs a pass of the text tower, and questions to the picture."""

    def __init__(self, reward: ImageReward):
        super().__init__()
        self.reward = reward
        self.from_picture = nn.Linear(reward.vision.config.hidden_size, sum(CHOICES))

    def forward(self, pictures: Float[Tensor, "batch 3 rows columns"], near: list[list[Scene]]) -> Float[Tensor, ""]:
        captions, count = [scene.caption for row in near for scene in row], len(near[0])
        patches = self.reward.vision(pixel_values=self.reward.preprocess(pictures)).last_hidden_state
        ids, mask = tokens_of(self.reward.tokenizer, captions, MAX_TOKENS)
        hidden = self.reward.text(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=patches.repeat_interleave(count, 0),
            is_decoder=False,
        ).last_hidden_state
        scores = self.reward.judged(hidden[:, 0], self.reward.mlp).view(-1, count)
        contrast = cross_entropy(scores.float(), torch.zeros(len(near), dtype=torch.long))
        return contrast + answer_loss(self.from_picture(patches[:, 0]).float(), answers([row[0] for row in near]))

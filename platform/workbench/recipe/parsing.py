"""Teaches a text encoder to read: to tell from the tokens behind the caption what stands where, on which ground.

Cross attention finds in these tokens what a picture needs; from the loss of a denoiser alone, a small encoder does not
learn in a few thousand steps which of two things is meant to be left or above.
"""

from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from slingstone.world.captions import Scene, sample_scenes
from workbench.recipe.fit import fit
from workbench.recipe.questions import CHOICES, all_right, answer_loss, answers
from workbench.recipe.settings import Training

SHARE_OF_PAIRS = 0.8


def teach_text_encoder(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, settings: Training, seed: int) -> float:
    """Train, in place, on captions that training may see; return how often the last token knew all answers at last."""
    head = nn.Linear(encoder.config.hidden_size, sum(CHOICES))
    right = 0.0

    def loss(step: int) -> Tensor:
        nonlocal right
        scenes = sample_scenes(settings.batch, seed + step, held_out=False, share_of_pairs=SHARE_OF_PAIRS)
        logits, expected = head(_behind(encoder, tokenizer, scenes)), answers(scenes)
        right = all_right(logits[:, -1], expected)
        return answer_loss(logits.flatten(0, 1), expected.repeat_interleave(logits.shape[1], 0))

    fit([*encoder.parameters(), *head.parameters()], loss, settings, "text encoder")
    return right


def _behind(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, scenes: list[Scene]
) -> Float[Tensor, "batch token hidden"]:
    """Return what the encoder makes of the tokens that no caption of the batch reaches."""
    captions = [scene.caption for scene in scenes]
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    longest = int((tokens != tokenizer.eos_token_id).sum(1).max()) + 1
    return encoder(tokens).last_hidden_state[:, longest:]

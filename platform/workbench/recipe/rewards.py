"""Stage 4: three reward models in the published architectures, before jobs/reward.py fits them to simulated votes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
)

from reward_services.models.head import RewardHead
from reward_services.models.hps import HPS
from reward_services.models.imagereward import ImageReward
from reward_services.models.pickscore import PickScore
from reward_services.models.writers import write_hps, write_imagereward, write_pickscore
from workbench.recipe.preferences import Candidates
from workbench.recipe.settings import Tower
from workbench.recipe.tokenizers import bert_vocabulary, special_tokens, write_clip_tokenizer

_MAX_TOKENS = 24

Reward = PickScore | HPS | ImageReward
Score = Callable[[Float[Tensor, "batch 3 rows columns"], Sequence[str]], Float[Tensor, " batch"]]


def new_clip(tokenizer: CLIPTokenizer, tower: Tower, size: int) -> CLIPModel:
    """Return an untrained CLIP for pictures of a side, about 0.5 M parameters."""
    width = tower.width
    both = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "hidden_act": "gelu"}
    vision = {"num_hidden_layers": tower.layers, "image_size": size, "patch_size": tower.patch}
    text = {"num_hidden_layers": 2, "vocab_size": len(tokenizer), "max_position_embeddings": _MAX_TOKENS}
    text |= special_tokens(tokenizer)
    return CLIPModel(CLIPConfig(projection_dim=64, vision_config=both | vision, text_config=both | text))


def new_imagereward(vocabulary_file: Path, tower: Tower, size: int) -> ImageReward:
    """Return an untrained BLIP with its reward head, about 0.7 M parameters."""
    tokenizer = BertTokenizer(vocab=str(vocabulary_file))
    vision = BlipVisionConfig(
        hidden_size=tower.width,
        intermediate_size=2 * tower.width,
        num_hidden_layers=tower.layers,
        num_attention_heads=4,
        image_size=size,
        patch_size=tower.patch,
        layer_norm_eps=1e-6,
        initializer_range=0.02,  # transformers' default, 1e-10, starts the tower without signal
    )
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=tower.width,
        encoder_hidden_size=tower.width,
        intermediate_size=2 * tower.width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        pad_token_id=0,
        bos_token_id=None,
    )
    head = RewardHead(tower.width, (128, 64, 32, 16))
    for layer in head.layers:  # five maps without activation: torch's default would shrink the signal at each
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return ImageReward(BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False), head, tokenizer, "smooth")


def _scores(score: Score, candidates: Candidates, rows: Sequence[int]) -> Float[Tensor, "batch candidate"]:
    pictures = candidates.pictures_of(rows)
    prompts = [candidates.captions[row] for row in rows for _ in range(pictures.shape[1])]
    return score(pictures.flatten(0, 1), prompts).view(len(rows), -1)


@torch.no_grad()
def agreement(score: Score, candidates: Candidates, rows: Sequence[int]) -> float:
    """Return the share of pairs with a utility gap above 0.05 that the score orders rightly."""
    scores, utility = _scores(score, candidates, rows), candidates.utility[list(rows)]
    first, second = torch.triu_indices(scores.shape[1], scores.shape[1], offset=1)
    gap = utility[:, first] - utility[:, second]
    right = (scores[:, first] - scores[:, second]) * gap > 0
    return right[gap.abs() > 0.05].float().mean().item()


def new_reward(name: str, tower: Tower, size: int, directory: Path, seed: int) -> Reward:
    """Return an untrained reward model and write its tokenizer into `directory`."""
    torch.manual_seed(seed)
    if name == "imagereward":
        directory.mkdir(parents=True, exist_ok=True)
        vocabulary = directory / "vocab.txt"
        vocabulary.write_text("".join(f"{token}\n" for token in bert_vocabulary()))
        return new_imagereward(vocabulary, tower, size)
    tokenizer = write_clip_tokenizer(directory, _MAX_TOKENS)
    return (HPS if name == "hps" else PickScore)(new_clip(tokenizer, tower, size), tokenizer, "smooth")


def write_reward(reward: Reward, directory: Path) -> None:
    """Write the reward in its published layout, in half precision."""
    match reward:
        case PickScore():
            write_pickscore(reward.similarity.model, reward.similarity.tokenizer, directory, torch.float16)
        case HPS():
            write_hps(reward.similarity.model, reward.similarity.tokenizer, directory, torch.float16)
        case ImageReward():
            write_imagereward(reward.vision, reward.text, reward.mlp, reward.tokenizer, directory, torch.float16)

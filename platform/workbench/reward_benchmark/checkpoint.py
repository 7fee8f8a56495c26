"""Random rewards to measure with: only their sizes matter."""

from pathlib import Path

from transformers import CLIPConfig, CLIPModel

from reward_services.models.writers import write_pickscore
from workbench.parity.tiny import clip_tokenizer

VIT_B_32 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
INPUT_SIZE = 224


def write(directory: Path, tower: dict[str, int]) -> Path:
    """Write a PickScore for pictures of 224 pixels, cut into patches of 32; its text tower hardly costs anything."""
    tokenizer = clip_tokenizer(directory.with_name("tokenizer"))
    text = {**SMALL, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    vision = {**tower, "image_size": INPUT_SIZE, "patch_size": 32}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=32))
    write_pickscore(model.eval(), tokenizer, directory)
    return directory

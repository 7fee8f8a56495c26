"""Prompts to tokens: what a user writes is text, and the summary of a prompt is read where the prompt ends."""

import re
from collections.abc import Sequence, Set

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import CLIPTextConfig, PreTrainedTokenizerBase


def tokens_of(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int
) -> tuple[Int[Tensor, "batch token"], Int[Tensor, "batch token"]]:
    """Return ids and mask of texts, padded or cut to a length.

    A control token in a text, such as `<|endoftext|>` or `[SEP]`, is read as the characters that it is written with.
    """
    options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
    # Not one of a single character: SDXL's second encoder pads with "!", which its pipeline reads so in texts, too.
    control = {token for token in tokenizer.all_special_tokens if len(token) > 1}
    marked = [any(token.lower() in text.lower() for token in control) for text in texts]
    if not any(marked):
        found = tokenizer(list(texts), **options)
        return found.input_ids, found.attention_mask
    rows = [
        tokenizer([_broken(tokenizer, text, control)], split_special_tokens=True, **options)
        if is_marked
        else tokenizer([text], **options)
        for text, is_marked in zip(texts, marked, strict=True)
    ]
    return torch.cat([row.input_ids for row in rows]), torch.cat([row.attention_mask for row in rows])


def _broken(tokenizer: PreTrainedTokenizerBase, text: str, control: Set[str]) -> str:
    """Return a text without the control tokens that `split_special_tokens` does not split: T5's, its model's pieces."""
    if control.isdisjoint(tokenizer.tokenize(text, split_special_tokens=True)):
        return text
    pattern = "|".join(map(re.escape, sorted(control, key=len, reverse=True)))
    return re.sub(pattern, lambda found: f"{found[0][0]} {found[0][1:]}", text)


def check_summary(tokenizer: PreTrainedTokenizerBase, config: CLIPTextConfig) -> None:
    """Refuse a tokenizer whose end-of-text token a CLIP model would not find: a prompt's summary is read there.

    Raises:
        ValueError: there are more tokens than embeddings, or another one is found.
    """
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"tokenizer has {len(tokenizer)} tokens, the CLIP text model only {config.vocab_size}")
    # transformers reads 2 as "the highest id", as the first published configurations meant it.
    read_at = len(tokenizer) - 1 if config.eos_token_id == 2 else config.eos_token_id
    if read_at != tokenizer.eos_token_id:
        raise ValueError(
            f"eos_token_id={config.eos_token_id} of the text model reads the prompt's embedding at token {read_at}, but"
            f" the tokenizer ends prompts with {tokenizer.eos_token_id}: set eos_token_id to that"
        )

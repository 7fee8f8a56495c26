"""Tokenizers of the scenes in the published formats: CLIP's byte-pair encoding and BERT's word pieces."""

import json
import string
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from slingstone.world.captions import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES

_START, _END = "<|startoftext|>", "<|endoftext|>"


def words() -> list[str]:
    """Every word that a caption can hold, sorted."""
    phrases = (*SIZES, *COLOURS, *SHAPES, *RELATIONS, *BACKGROUNDS, "a", "an", "on", "background")
    return sorted({word for phrase in phrases for word in phrase.split()})


def write_clip_tokenizer(directory: Path, max_length: int) -> CLIPTokenizer:
    """Write vocab.json and merges.txt in which each word of the captions is one token, and return the tokenizer."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, initial_alphabet=alphabet, end_of_word_suffix="</w>", special_tokens=[_START, _END]
    )
    tokenizer.train_from_iterator([" ".join(words())] * 2, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(learned["vocab"].keys() - {_START, _END}, key=learned["vocab"].get)
    tokens += [letter + "</w>" for letter in alphabet if letter + "</w>" not in learned["vocab"]]
    tokens += [_START, _END]  # last, as in CLIP: open_clip reads the embedding at the highest id
    vocabulary = {token: index for index, token in enumerate(tokens)}
    directory.mkdir(parents=True, exist_ok=True)
    vocab_file, merges_file = directory / "vocab.json", directory / "merges.txt"
    vocab_file.write_text(json.dumps(vocabulary))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in learned["merges"]]
    merges_file.write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    clip = CLIPTokenizer(vocab=str(vocab_file), merges=str(merges_file), model_max_length=max_length)
    clip.save_pretrained(directory)
    return clip


def special_tokens(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """Return the ids that a CLIP text model's configuration must name."""
    vocabulary = tokenizer.get_vocab()
    return {"bos_token_id": vocabulary[_START], "eos_token_id": vocabulary[_END], "pad_token_id": vocabulary[_END]}


def bert_vocabulary() -> list[str]:
    """Lines of a vocab.txt: BERT's special tokens, the words of the captions, and letters for everything else."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    return [*specials, *words(), *(x for x in letters if x not in words()), *("##" + letter for letter in letters)]

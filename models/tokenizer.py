"""Tokenizers: a checkpoint's own, or a character tokenizer for the built-in tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

THINK_TOKENS = ("<think>", "</think>")
PAD, EOS = "<pad>", "<eos>"


def char_tokenizer(
    alphabet: Iterable[str], *, tags: Sequence[str] = THINK_TOKENS
) -> PreTrainedTokenizerFast:
    """One token per character of `alphabet` and per tag; an ordinary tokenizer.json when saved.

    Tags stay visible when decoded without special tokens; pad and end-of-sequence do not. A
    character outside the alphabet raises ValueError at encoding, through the missing unknown token.
    """
    characters = sorted(set(alphabet))
    wrong = [c for c in characters if len(c) != 1]
    if wrong:
        raise ValueError(f"alphabet: {wrong[0]!r} is not a single character")
    vocabulary = [PAD, EOS, *tags, *characters]
    tokenizer = Tokenizer(WordLevel({token: i for i, token in enumerate(vocabulary)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in (PAD, EOS)])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder or Hugging Face id; pad defaults to end-of-sequence."""
    tokenizer = AutoTokenizer.from_pretrained(str(path))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def eos_token_ids(tokenizer: Any, model_config: Any = None) -> list[int]:
    """Every token that ends a completion: the model's list, and the tokenizer's own."""
    ids = list(getattr(model_config, "eos_token_ids", ()))
    own = getattr(tokenizer, "eos_token_id", None)
    return list(dict.fromkeys(ids if own is None else [*ids, own]))

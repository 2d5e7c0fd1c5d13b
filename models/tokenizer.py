"""Tokenizers: a checkpoint's own, or a character tokenizer for the built-in tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .hub import TOKENIZER_FILES, find_folder

THINK_TOKENS = ("<think>", "</think>")
PAD, EOS = "<pad>", "<eos>"
_ONE_OF = ("tokenizer.json", "tokenizer.model", "vocab.json")
_HINT = "; set model.tokenizer to a folder or Hugging Face id that has one"


def char_tokenizer(
    alphabet: Iterable[str], *, tags: Sequence[str] = THINK_TOKENS
) -> PreTrainedTokenizerFast:
    """One token per character of `alphabet` and per tag; an ordinary tokenizer.json when saved.

    Tags stay visible when decoded without special tokens; pad and end-of-sequence do not. There is
    no unknown token: to encode a character outside the alphabet is an error, not a wrong prompt.
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
    """The tokenizer of a checkpoint folder or Hugging Face id; without pad, end-of-sequence pads.

    Raises ValueError where there is none or it cannot be read.
    """
    folder = find_folder(path, key="model.tokenizer", files=TOKENIZER_FILES, hint=_HINT)
    if not any((folder / name).is_file() for name in _ONE_OF):
        raise ValueError(f"{folder}: holds no tokenizer ({', '.join(_ONE_OF)}){_HINT}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:  # transformers wraps none of them
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder}: its tokenizer cannot be read ({reason})") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def eos_token_ids(tokenizer: Any, model_config: Any = None) -> list[int]:
    """Every token that ends a completion: the model's list, then the tokenizer's own.

    `model_config` is a LlamaConfig, or a configuration of transformers.
    """
    ids = getattr(model_config, "eos_token_ids", None) or getattr(
        model_config, "eos_token_id", None
    )
    listed = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    own = getattr(tokenizer, "eos_token_id", None)
    return list(dict.fromkeys(listed if own is None else [*listed, own]))

"""The character tokenizer, as an ordinary tokenizer.json, and loading of any tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from thinkrl.models.tokenizer import char_tokenizer, eos_token_ids, load_tokenizer
from tokenizers import Tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEXT = "<think>1 +\n2=3</think> 3"


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]  # type: ignore[return-value]


def test_each_character_and_each_tag_is_one_token() -> None:
    tokenizer = char_tokenizer("0123456789+= \n")
    assert len(tokenizer) == 14 + 4
    tokens = tokenizer.convert_ids_to_tokens(ids(tokenizer, TEXT))
    assert tokens == ["<think>", *"1 +\n2=3", "</think>", " ", "3"]


def test_decoding_gives_the_text_back_and_hides_only_pad_and_end() -> None:
    tokenizer = char_tokenizer("0123456789+= \n")
    full = [*ids(tokenizer, TEXT), tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(full, skip_special_tokens=True) == TEXT
    assert tokenizer.decode(full) == TEXT + "<eos><pad>"
    assert ids(tokenizer, TEXT + "<eos><pad>") == full


def test_the_order_of_the_alphabet_does_not_matter() -> None:
    assert char_tokenizer("cabba").get_vocab() == char_tokenizer(["a", "b", "c"]).get_vocab()


def test_other_tags_can_be_given() -> None:
    tokenizer = char_tokenizer("ab", tags=("<answer>", "</answer>"))
    assert len(ids(tokenizer, "<answer>a</answer>")) == 3


def test_characters_outside_the_alphabet_are_an_error() -> None:
    with pytest.raises(Exception, match="Missing"):
        ids(char_tokenizer("ab"), "abc")
    with pytest.raises(ValueError, match="alphabet: 'bc' is not a single character"):
        char_tokenizer(["a", "bc"])


def test_it_is_an_ordinary_tokenizer_on_disk(tmp_path: Path) -> None:
    tokenizer = char_tokenizer("0123456789+= \n")
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.eos_token, loaded.pad_token) == ("<eos>", "<pad>")
    assert ids(loaded, TEXT) == ids(tokenizer, TEXT)
    assert loaded.decode(ids(loaded, TEXT), skip_special_tokens=True) == TEXT
    bare = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert bare.encode(TEXT).ids == ids(tokenizer, TEXT)
    assert bare.decode(bare.encode(TEXT).ids) == TEXT


def test_without_a_pad_token_the_end_token_pads(tmp_path: Path) -> None:
    char_tokenizer("ab").save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "pad_token"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1


def test_end_tokens_are_the_models_list_and_the_tokenizers_own() -> None:
    tokenizer = char_tokenizer("ab")
    assert eos_token_ids(tokenizer) == [1]
    assert eos_token_ids(tokenizer, SimpleNamespace(eos_token_ids=(8, 1, 9))) == [8, 1, 9]
    assert eos_token_ids(tokenizer, SimpleNamespace(eos_token_ids=())) == [1]
    assert eos_token_ids(tokenizer, GenerationConfig(eos_token_id=[5, 6])) == [5, 6, 1]
    assert eos_token_ids(tokenizer, GenerationConfig(eos_token_id=0)) == [0, 1]
    assert eos_token_ids(None) == []


def test_what_is_no_tokenizer_gets_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "tokenizer.json").write_text("{}")
    messages = {
        str(tmp_path / "empty"): r"empty: holds no tokenizer .* set model\.tokenizer",
        str(tmp_path / "broken"): "broken: its tokenizer cannot be read",
        str(tmp_path / "hollow"): "hollow: its tokenizer cannot be read",
        "llama-tiny": r"model\.tokenizer = 'llama-tiny': no such folder; set model\.tokenizer",
    }
    for path, message in messages.items():
        with pytest.raises(ValueError, match=message) as caught:
            load_tokenizer(path)
        assert "\n" not in str(caught.value)

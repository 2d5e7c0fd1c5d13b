"""Checkpoints to and from transformers, in every spelling; what is not one is refused by name."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from thinkrl.models.checkpoint import replaced_folder
from thinkrl.models.llama import Llama
from thinkrl.models.registry import load_model, save_model
from thinkrl.models.tokenizer import char_tokenizer, eos_token_ids, load_tokenizer
from torch import Tensor

from .hf_oracle import CASES, ours, reference, tokens

INDEX = "model.safetensors.index.json"
families = pytest.mark.parametrize("case", CASES)


@torch.no_grad()
def logits(model: Llama) -> Tensor:
    ids_BT = tokens(2, 60)
    return model.logits(model(ids_BT))


def saved(folder: Path, case: str = "llama", **kwargs: Any) -> Path:
    reference(case).save_pretrained(folder, **kwargs)
    return folder


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes the key."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@families
def test_a_checkpoint_of_transformers_loads_with_its_weights(case: str, tmp_path: Path) -> None:
    ref = reference(case)
    ref.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.config.architecture == type(ref).__name__
    with torch.no_grad():
        assert (logits(model) - ref(tokens(2, 60)).logits).abs().max() <= 1e-5


@families
@pytest.mark.parametrize("max_shard_bytes", [20_000, 5_000_000_000])
def test_transformers_loads_ours_without_missing_or_unexpected_keys(
    case: str, max_shard_bytes: int, tmp_path: Path
) -> None:
    model = ours(reference(case))
    save_model(model, tmp_path / "out", max_shard_bytes=max_shard_bytes)
    assert (tmp_path / "out" / INDEX).exists() == (max_shard_bytes == 20_000)
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    ref, info = loaded
    assert type(ref).__name__ == model.config.architecture
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert (logits(model) - ref(tokens(2, 60)).logits).abs().max() <= 1e-5


@families
def test_our_own_round_trip_is_exact(case: str, tmp_path: Path) -> None:
    model = ours(reference(case))
    save_model(model, tmp_path / "out", max_shard_bytes=30_000)
    back = load_model(tmp_path / "out")
    assert back.config == model.config
    assert back.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(back.state_dict()[k], v) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in back.parameters())


def test_shards_respect_the_limit_and_the_index_names_every_tensor(tmp_path: Path) -> None:
    model = ours(reference("llama"))
    save_model(model, tmp_path / "out", max_shard_bytes=20_000)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    held = {name: file.name for file in files for name in load_file(file)}
    assert held == index["weight_map"]
    assert held.keys() == model.state_dict().keys()
    assert max(sum(t.nbytes for t in load_file(file).values()) for file in files) <= 20_000
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"


def test_shards_of_transformers_load(tmp_path: Path) -> None:
    saved(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load_model(tmp_path)), logits(ours(reference("llama"))))


def test_both_spellings_are_read(tmp_path: Path) -> None:
    config = load_model(saved(tmp_path, "llama3")).config
    rope = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
    old = {"dtype": None, "torch_dtype": "float32", "rope_theta": rope["rope_theta"]}
    edit(tmp_path / "config.json", rope_parameters=None, rope_scaling=scaling, **old)
    assert load_model(tmp_path).config == config
    assert config.rope_theta == 500_000.0
    assert config.rope_scaling is not None and config.rope_scaling.factor == 8.0
    older = {"type" if k == "rope_type" else k: v for k, v in scaling.items()}
    edit(tmp_path / "config.json", rope_scaling=older)
    assert load_model(tmp_path).config == config


def test_both_spellings_are_written(tmp_path: Path) -> None:
    model = ours(reference("llama3")).to(torch.bfloat16)
    save_model(model, tmp_path / "out")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["dtype"] == raw["torch_dtype"] == "bfloat16"
    assert raw["rope_parameters"] == {"rope_theta": raw["rope_theta"], **raw["rope_scaling"]}
    assert raw["rope_scaling"]["rope_type"] == "llama3"
    assert load_model(tmp_path / "out", dtype="bfloat16").head_weight.dtype == torch.bfloat16


def test_weights_are_converted_to_the_type_asked_for(tmp_path: Path) -> None:
    model = load_model(saved(tmp_path), dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_every_end_token_survives_in_order(tmp_path: Path) -> None:
    saved(tmp_path / "in")
    edit(tmp_path / "in" / "config.json", eos_token_id=7)
    edit(tmp_path / "in" / "generation_config.json", eos_token_id=[9, 7, 8])
    model = load_model(tmp_path / "in")
    assert model.config.eos_token_ids == (9, 7, 8)
    save_model(model, tmp_path / "out")
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [9, 7, 8]
    assert load_model(tmp_path / "out").config.eos_token_ids == (9, 7, 8)
    ref = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert ref.generation_config.eos_token_id == [9, 7, 8]


def test_a_new_model_takes_its_token_ids_from_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = char_tokenizer("0123456789=")
    model = load_model("llama-tiny", vocab_size=len(tokenizer), seed=0)
    save_model(model, tmp_path / "out", tokenizer)
    config = load_model(tmp_path / "out").config
    assert config.eos_token_ids == (tokenizer.eos_token_id,)
    assert config.pad_token_id == tokenizer.pad_token_id == 0
    assert load_tokenizer(tmp_path / "out").get_vocab() == tokenizer.get_vocab()
    ref = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert eos_token_ids(None, ref.generation_config) == [tokenizer.eos_token_id]


def test_a_tied_head_is_not_written_and_may_be_on_disk_only_if_equal(tmp_path: Path) -> None:
    save_model(ours(reference("llama_tied")), tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    expected = logits(load_model(tmp_path))
    embedding = "model.embed_tokens.weight"
    edit_weights(tmp_path, lambda s: s.update({"lm_head.weight": s[embedding].clone()}))
    assert torch.equal(logits(load_model(tmp_path)), expected)
    edit_weights(tmp_path, lambda s: s["lm_head.weight"].add_(1))
    with pytest.raises(ValueError, match=r"tie_word_embeddings is set but lm_head\.weight"):
        load_model(tmp_path)


def test_frequencies_that_old_files_carry_are_left_aside(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(saved(tmp_path), lambda s: s.update({name: torch.ones(4)}))
    assert torch.equal(logits(load_model(tmp_path)), logits(ours(reference("llama"))))


UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda s: s.pop(UP), f"tensors missing on disk: {UP}"),
        (lambda s: s.pop("lm_head.weight"), "tensors missing on disk: lm_head.weight"),
        (lambda s: s.update({"extra": torch.ones(1)}), "LlamaForCausalLM does not have: extra"),
        (lambda s: s.update({UP: torch.ones(2, 2)}), r"up_proj.weight has shape \(2, 2\), config"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], Any], message: str, tmp_path: Path
) -> None:
    edit_weights(saved(tmp_path), change)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_a_qwen2_checkpoint_called_llama_does_not_lose_its_biases(tmp_path: Path) -> None:
    edit(saved(tmp_path, "qwen2") / "config.json", architectures=["LlamaForCausalLM"])
    with pytest.raises(ValueError, match=r"does not have: .*k_proj\.bias.* and 5 more"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "case,changes,message",
    [
        ("llama", {"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; one"),
        ("llama", {"architectures": None, "model_type": "bert"}, "of model_type 'bert' is not"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not implemented; only 'silu'"),
        ("llama", {"attention_bias": True}, "attention_bias = True is not implemented"),
        ("qwen3", {"attention_bias": True}, "attention_bias = True is not implemented"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("qwen3", {"layer_types": ["sliding_attention"]}, "layer_types has 'sliding_attention'"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type = 'yarn' is not"),
        ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "llama3 needs factor, low_freq"),
        ("llama", {"rope_parameters": {"rope_theta": "x"}}, "rope_theta = 'x'"),
        ("llama", {"hidden_size": None}, "hidden_size = None: a model needs a positive"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads = 3: must divide"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(
    case: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    edit(saved(tmp_path, case) / "config.json", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_architecture_may_follow_from_the_model_type(tmp_path: Path) -> None:
    edit(saved(tmp_path, "qwen3") / "config.json", architectures=None)
    assert load_model(tmp_path).config.architecture == "Qwen3ForCausalLM"


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def lost_shard(folder: Path) -> None:
    shutil.rmtree(folder)
    saved(folder, max_shard_size="20KB")
    sorted(folder.glob("*.safetensors"))[1].unlink()


def adapters_only(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


@pytest.mark.parametrize(
    "damage,message",
    [
        (no_weights, "no model.safetensors"),
        (pickled_weights, "only safetensors are read: convert"),
        (cut_short, "model.safetensors: damaged or not a safetensors file"),
        (lost_shard, "names files that are not there: model-00002"),
        (adapters_only, "holds LoRA adapters only"),
        (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json: holds a list"),
    ],
)
def test_what_is_no_checkpoint_gets_one_clear_line(
    damage: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    damage(saved(tmp_path / "model"))
    with pytest.raises(ValueError, match=message) as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name,kwargs,message",
    [
        ("llama-tinny", {}, "no such folder; did you mean 'llama-tiny'"),
        ("/nowhere/at/all", {}, "no such folder or preset"),
        ("nobody/nothing", {}, "no such folder, nor found on the Hugging Face hub"),
        ("llama-tiny", {"dtype": "int8"}, "model.dtype = 'int8'"),
        (
            "llama-tiny",
            {"kernels": "triton"},
            "model.kernels: backend='triton': needs a CUDA device, not 'cpu'",
        ),
        ("llama-tiny", {"overrides": {"width": 3}}, "model.overrides.width = 3: unknown"),
        ("llama-tiny", {"quantization": "2bit"}, "model.quantization = '2bit'"),
    ],
)
def test_bad_arguments_get_one_clear_line(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_model(name, **kwargs)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_takes_no_overrides_and_must_hold_the_vocabulary(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"model\.overrides: .* cannot change the checkpoint"):
        load_model(tmp_path, overrides={"hidden_size": 8})
    assert load_model(tmp_path, vocab_size=60).config.vocab_size == 64
    with pytest.raises(ValueError, match="vocabulary of 64 is smaller than the tokenizer's 65"):
        load_model(tmp_path, vocab_size=65)


def test_overrides_change_a_preset() -> None:
    model = load_model("llama-tiny", overrides={"hidden_size": 32, "num_hidden_layers": 1}, seed=0)
    assert model.head_weight.shape == (512, 32)
    assert len(model.model.layers) == 1


def test_a_hub_id_is_taken_from_the_local_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    repo, commit = tmp_path / "models--acme--tiny", "a" * 40
    save_model(ours(reference("qwen3")), repo / "snapshots" / commit, char_tokenizer("01"))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    assert load_model("acme/tiny").config.architecture == "Qwen3ForCausalLM"
    assert "<think>" in load_tokenizer("acme/tiny").get_vocab()


def test_saving_over_a_checkpoint_replaces_weights_and_keeps_other_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_model(ours(reference("llama")), out, max_shard_bytes=20_000)
    (out / "notes.txt").write_text("mine")
    (out / "trainer_state").mkdir()
    (out / "trainer_state" / "state.json").write_text("{}")
    (tmp_path / ".out.partial").mkdir()  # left by a run that was killed while saving
    model = ours(reference("llama", seed=1))
    save_model(model, out)
    assert [f.name for f in out.glob("*.safetensors*")] == ["model.safetensors"]
    assert torch.equal(logits(load_model(out)), logits(model))
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "trainer_state" / "state.json").exists()
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    old = ours(reference("llama"))
    save_model(old, tmp_path / "out")
    for target in ("out", "new"):
        with largest_file(20_000), pytest.raises(OSError, match=r"not saved: .*large") as caught:
            save_model(ours(reference("llama", seed=1)), tmp_path / target)
        assert "\n" not in str(caught.value)
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
    assert torch.equal(logits(load_model(tmp_path / "out")), logits(old))


def test_a_full_disk_is_noticed_before_writing(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"needs 1\d+\.\d GB, the disk has .* free some space"),
        replaced_folder(tmp_path / "out", num_bytes=1 << 60),
    ):
        raise AssertionError("the disk cannot hold an exabyte")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = load_model("llama-tiny", seed=0)
    with pytest.raises(ValueError, match="file: is a file"):
        save_model(model, tmp_path / "file")
    with pytest.raises(OSError, match="below: not saved: Not a directory"):
        save_model(model, tmp_path / "file" / "below")

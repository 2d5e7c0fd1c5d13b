"""LoRA adapters on our models through peft, and quantised bases where bitsandbytes is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from thinkrl.models.adapters import (
    LINEAR_NAMES,
    adapters_off,
    add_lora,
    base_model,
    has_lora,
    load_lora,
    merge_lora,
    merged_state,
)
from thinkrl.models.llama import Llama
from thinkrl.models.registry import load_model, save_model
from torch import Tensor, nn

from .hf_oracle import CASES, ours, reference, tokens

families = pytest.mark.parametrize("case", CASES)


def adapted(case: str = "llama", *, seed: int = 0, **settings: Any) -> Any:
    """A model with adapters that do something: peft starts them at no change."""
    model = add_lora(ours(reference(case)), seed=seed, **{"rank": 4, "alpha": 8.0, **settings})
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0.0, 0.1, generator=generator)
    return model


def loss_of(model: Any, ids_BT: Tensor) -> Tensor:
    logits_BTV = base_model(model).logits(model(ids_BT))
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())


def test_fresh_adapters_change_nothing_and_follow_the_seed() -> None:
    ids_BT = tokens(2, 12)
    plain = ours(reference("llama"))
    copies = [ours(reference("llama")) for _ in range(3)]
    before = torch.get_rng_state()
    models = [add_lora(m, rank=4, seed=s) for m, s in zip(copies, (0, 0, 1), strict=True)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(models[0](ids_BT), plain(ids_BT))
    a, b, c = (dict(m.named_parameters()) for m in models)
    lora_a = [name for name in a if "lora_A" in name]
    assert len(lora_a) == 3 * len(LINEAR_NAMES)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in lora_a)


@families
def test_a_training_step_changes_adapters_only(case: str) -> None:
    model, ids_BT = adapted(case), tokens(4, 16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    first = loss_of(model, ids_BT)
    first.backward()
    optimizer.step()
    assert loss_of(model, ids_BT) < first
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {name for name in before if "lora_" in name}


@families
def test_merging_equals_the_adapters_and_leaves_them_in_place(case: str) -> None:
    model, ids_BT = adapted(case), tokens(2, 20)
    with torch.no_grad():
        expected = model(ids_BT)
        merged = merge_lora(model)
        assert type(merged) is Llama and not has_lora(merged)
        assert (merged(ids_BT) - expected).abs().max() <= 1e-5
        assert (expected - base_model_without(model, ids_BT)).abs().max() > 1e-2
        assert torch.equal(model(ids_BT), expected)
    assert all(p.requires_grad for p in merged.parameters())
    assert merged.state_dict().keys() == ours(reference(case)).state_dict().keys()


def base_model_without(model: Any, ids_BT: Tensor) -> Tensor:
    with adapters_off(model):
        return model(ids_BT)


def test_switched_off_adapters_are_the_base_and_come_back() -> None:
    ids_BT = tokens(2, 20)
    model = adapted()
    with torch.no_grad():
        expected = model(ids_BT)
        assert torch.equal(base_model_without(model, ids_BT), ours(reference("llama"))(ids_BT))
        assert torch.equal(model(ids_BT), expected)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    plain = ours(reference("llama"))
    with adapters_off(plain):
        assert torch.equal(plain(ids_BT), ours(reference("llama"))(ids_BT))


def test_saving_merges_and_transformers_reads_the_result(tmp_path: Path) -> None:
    model, ids_BT = adapted("qwen2"), tokens(2, 20)
    save_model(model, tmp_path)
    ref: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = base_model(model).logits(model(ids_BT))
        assert (ref(ids_BT).logits - expected).abs().max() <= 1e-5


def test_adapters_saved_by_peft_load_bit_for_bit(tmp_path: Path) -> None:
    model, ids_BT = adapted(seed=1), tokens(2, 20)
    model.save_pretrained(tmp_path)
    other = adapted(seed=2)
    assert not torch.equal(other(ids_BT), model(ids_BT))
    load_lora(other, tmp_path)
    assert torch.equal(other(ids_BT), model(ids_BT))
    assert other.peft_config["default"].r == 4
    with pytest.raises(ValueError, match=r"other layers or another rank than model\.lora says"):
        load_lora(adapted(rank=2), tmp_path)
    with pytest.raises(ValueError, match="other layers or another rank"):
        load_lora(adapted(target_modules=("q_proj",)), tmp_path)
    with pytest.raises(ValueError, match=r"no adapter_model\.safetensors"):
        load_lora(other, tmp_path / "nowhere")


def test_plain_peft_works_on_the_model() -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(ours(reference("llama")), config)  # type: ignore[arg-type]
    loss_of(model, tokens(2, 8)).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert len(grads) == 2 * 2 * 3
    assert all(g is not None for g in grads.values())


def test_gradient_checkpointing_under_adapters() -> None:
    model, ids_BT = adapted(), tokens(2, 16)
    trained = [p for p in model.parameters() if p.requires_grad]
    plain = torch.autograd.grad(loss_of(model, ids_BT), trained)
    base_model(model).gradient_checkpointing = True
    recomputed = torch.autograd.grad(loss_of(model, ids_BT), trained)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"target_modules": ("lm_head",)}, "'lm_head' cannot have an adapter: log-probs are"),
        ({"target_modules": ("q_proj", "embed_tokens")}, "'embed_tokens' cannot have an adapter"),
        ({"target_modules": ("query",)}, "no layer 'query'; choose from q_proj, k_proj"),
        ({"target_modules": ()}, "target_modules: is empty"),
        ({"rank": 0}, r"model\.lora\.rank = 0: must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_lora(ours(reference("llama")), **settings)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="is installed")
def test_quantisation_without_bitsandbytes_says_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"needs bitsandbytes.* pip install 'thinkrl\[quantiz"):
        load_model("llama-tiny", quantization="4bit")


quantisations = pytest.mark.parametrize("mode,error", [("4bit", 0.12), ("8bit", 0.01)])


@pytest.fixture
def folder(case: str, tmp_path: Path) -> Path:
    pytest.importorskip("bitsandbytes")
    reference(case, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "in")
    return tmp_path / "in"


def close(found: Tensor, expected: Tensor, mode: str) -> bool:
    """8bit also rounds the activations to int8 on some devices."""
    return bool((found - expected).norm() <= (1e-5 if mode == "4bit" else 0.05) * expected.norm())


@quantisations
@families
def test_a_quantised_model_computes_with_weights_near_the_given_ones(
    folder: Path, mode: str, error: float
) -> None:
    plain, ids_BT = load_model(folder), tokens(2, 20)
    model = load_model(folder, quantization=mode)
    assert not any(p.requires_grad for p in model.parameters())
    kinds = {type(m).__name__ for m in model.model.layers.modules() if isinstance(m, nn.Linear)}
    assert kinds == {"Linear4bit" if mode == "4bit" else "Linear8bitLt"}
    state = merged_state(model)
    assert state.keys() == plain.state_dict().keys()
    for name, weight in plain.state_dict().items():
        off = (state[name] - weight).norm() / weight.norm()
        assert 0 < off < error if weight.dim() == 2 and "layers" in name else off == 0, name
    plain.load_state_dict(state)
    with torch.no_grad():
        assert close(model(ids_BT), plain(ids_BT), mode)


@quantisations
@families
def test_adapters_train_on_a_quantised_base(
    folder: Path, mode: str, error: float, tmp_path: Path
) -> None:
    ids_BT = tokens(2, 20)
    model = add_lora(load_model(folder, quantization=mode), rank=4, seed=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first = loss_of(model, ids_BT)
    first.backward()
    optimizer.step()
    assert loss_of(model, ids_BT) < first
    save_model(model, tmp_path / "out")
    with torch.no_grad():
        assert close(load_model(tmp_path / "out")(ids_BT), model(ids_BT), mode)

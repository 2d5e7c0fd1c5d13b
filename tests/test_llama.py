"""The dense model against transformers, layouts against each other, mutations that must show."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from thinkrl.kernels import attention as kernel
from thinkrl.kernels.masks import packed_causal, shared_prefix
from thinkrl.models import llama
from thinkrl.models.checkpoint import load_checkpoint
from thinkrl.models.llama import Llama, LlamaConfig, RMSNorm, RopeScaling
from thinkrl.models.registry import PRESETS, load_model, preset_config
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from .hf_oracle import CASES, ours, reference, tokens

families = pytest.mark.parametrize("case", CASES)


def logits(model: Llama, *args: Tensor, **kwargs: object) -> Tensor:
    return model.logits(model(*args, **kwargs))  # type: ignore[arg-type]


def next_token_loss(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())


def difference(ref: PreTrainedModel, model: Llama, ids_BT: Tensor) -> float:
    with torch.no_grad():
        return (logits(model, ids_BT) - ref(ids_BT).logits).abs().max().item()


@families
def test_logits_loss_and_every_gradient_are_those_of_transformers(case: str) -> None:
    ref = reference(case)
    model, ids_BT = ours(ref), tokens(2, 80)
    ref_BTV = ref(ids_BT).logits
    our_BTV = logits(model, ids_BT)
    assert (our_BTV - ref_BTV).abs().max() <= 1e-5
    ref_loss, our_loss = next_token_loss(ref_BTV, ids_BT), next_token_loss(our_BTV, ids_BT)
    assert our_loss.item() == pytest.approx(ref_loss.item(), rel=1e-6)
    ref_loss.backward()
    our_loss.backward()
    expected = {name: p.grad for name, p in ref.named_parameters()}
    found = {name: p.grad for name, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@families
def test_bfloat16_gives_the_same_bits_as_transformers(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = reference(case)
    exact.save_pretrained(tmp_path)
    # from_pretrained: .to(bfloat16) would round the rotary frequencies of transformers.
    ref = type(exact).from_pretrained(tmp_path, dtype=torch.bfloat16)
    model, ids_BT = load_checkpoint(tmp_path, dtype=torch.bfloat16), tokens(8, 64)
    with torch.no_grad():
        exact_BTV, ref_BTV = exact(ids_BT).logits, ref(ids_BT).logits.float()
        usual_BTV = logits(model, ids_BT)
        monkeypatch.setattr(kernel, "_CPU_FLOAT32_KEYS", 0)  # attention in bfloat16 as well
        assert torch.equal(logits(model, ids_BT), ref_BTV)
    ours_off, ref_off = ((x - exact_BTV).pow(2).mean().sqrt() for x in (usual_BTV, ref_BTV))
    assert 0 < ours_off <= 1.1 * ref_off


@families
def test_autocast_is_close_to_float32(case: str) -> None:
    model, ids_BT = ours(reference(case)), tokens(4, 40)
    with torch.no_grad():
        exact_BTV = logits(model, ids_BT)
        with torch.autocast("cpu", torch.bfloat16):
            hidden_BTD = model(ids_BT)
            low_BTV = model.logits(hidden_BTD)
    assert low_BTV.dtype == torch.float32
    error = (low_BTV - exact_BTV).pow(2).mean() / exact_BTV.pow(2).mean()
    assert 0 < error.sqrt() < 0.02


@families
def test_packed_documents_equal_separate_ones(case: str) -> None:
    model = ours(reference(case))
    lengths = [13, 1, 40, 7]
    rows = [tokens(1, n, seed=n) for n in lengths]
    mask = packed_causal(lengths, window=model.config.sliding_window)
    positions_1T = torch.cat([torch.arange(n) for n in lengths])[None]
    packed_1TD = model(torch.cat(rows, 1), positions_BT=positions_1T, mask=mask)
    separate_1TD = torch.cat([model(row) for row in rows], 1)
    torch.testing.assert_close(packed_1TD, separate_1TD, rtol=0, atol=1e-5)
    weight_TD = torch.randn(packed_1TD.shape[1:], generator=torch.Generator().manual_seed(0))
    same_gradients(model, (packed_1TD * weight_TD).sum(), (separate_1TD * weight_TD).sum())


def same_gradients(model: Llama, loss: Tensor, other: Tensor) -> None:
    names = dict(model.model.named_parameters())
    found, expected = gradients(model, loss), gradients(model, other)
    for name, a, b in zip(names, found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max().item()), name


def gradients(model: Llama, loss: Tensor) -> list[Tensor]:
    parameters = list(model.model.parameters())
    return list(torch.autograd.grad(loss, parameters, retain_graph=True))


@pytest.mark.parametrize("case", [c for c in CASES if c != "mistral"])
def test_completions_that_share_a_prompt_equal_repeated_prompts(case: str) -> None:
    model = ours(reference(case))
    prompt, completions = tokens(1, 11, seed=9), [tokens(1, n, seed=n) for n in (5, 1, 8)]
    lengths = [c.shape[1] for c in completions]
    positions = [torch.arange(11), *(11 + torch.arange(n) for n in lengths)]
    shared_1TD = model(
        torch.cat([prompt, *completions], 1),
        positions_BT=torch.cat(positions)[None],
        mask=shared_prefix([(11, lengths)]),
    )
    repeated = [model(torch.cat([prompt, c], 1)) for c in completions]
    separate_1TD = torch.cat([repeated[0][:, :11], *(h[:, 11:] for h in repeated)], 1)
    torch.testing.assert_close(shared_1TD, separate_1TD, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@families
def test_padding_behind_an_explicit_mask_changes_nothing(case: str, side: str) -> None:
    ref = reference(case)
    model, lengths, T = ours(ref), [9, 4, 16], 16
    rows = [tokens(1, n, seed=n) for n in lengths]
    pads = [(T - n, 0) if side == "left" else (0, T - n) for n in lengths]
    ids_BT = torch.cat([F.pad(row, pad) for row, pad in zip(rows, pads, strict=True)])
    real_BT = torch.cat(
        [F.pad(torch.ones(1, n), pad) for n, pad in zip(lengths, pads, strict=True)]
    ).bool()
    positions_BT = (real_BT.cumsum(1) - 1).clamp(min=0)
    causal_TT = torch.ones(T, T).tril().bool()
    if model.config.sliding_window:
        causal_TT &= torch.ones(T, T).triu(1 - model.config.sliding_window).bool()
    mask = causal_TT & real_BT[:, None, None, :]
    with torch.no_grad():
        our_BTV = logits(model, ids_BT, positions_BT=positions_BT, mask=mask)
        ref_BTV = ref(ids_BT, attention_mask=real_BT.long(), position_ids=positions_BT).logits
        alone = torch.cat([logits(model, row)[0] for row in rows])
    assert (our_BTV[real_BT] - ref_BTV[real_BT]).abs().max() <= 1e-5
    assert (our_BTV[real_BT] - alone).abs().max() <= 1e-5


class GrowingCache:
    """The plainest cache: all that ever came, side by side."""

    def __init__(self, window: int | None) -> None:
        self.window = window
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        if layer in self.kept:
            k, v = self.kept[layer]
            k_BTKD, v_BTKD = torch.cat([k, k_BTKD], 1), torch.cat([v, v_BTKD], 1)
        self.kept[layer] = k_BTKD, v_BTKD
        T, S = q_BTHD.shape[1], k_BTKD.shape[1]
        visible_TS = torch.ones(T, S).tril(S - T).bool()
        if self.window is not None:
            visible_TS &= torch.ones(T, S).triu(S - T + 1 - self.window).bool()
        return kernel.attention(q_BTHD, k_BTKD, v_BTKD, mask=visible_TS)


@families
def test_decoding_with_a_cache_equals_the_full_forward(case: str) -> None:
    model, ids_BT = ours(reference(case)), tokens(2, 50)
    cache = GrowingCache(model.config.sliding_window)
    with torch.no_grad():
        full_BTD = model(ids_BT)
        steps = [model(ids_BT[:, :20], cache=cache)]
        for t in range(20, 50):
            here_B1 = torch.full((2, 1), t)
            steps.append(model(ids_BT[:, t : t + 1], positions_BT=here_B1, cache=cache))
    assert (torch.cat(steps, 1) - full_BTD).abs().max() <= 1e-5


@families
def test_gradient_checkpointing_gives_the_same_gradients(case: str) -> None:
    model, ids_BT = ours(reference(case)), tokens(2, 24)
    calls = []
    model.model.layers[1].register_forward_pre_hook(lambda *_: calls.append(1))
    plain = gradients(model, model(ids_BT).square().sum())
    assert len(calls) == 1
    model.gradient_checkpointing = True
    hidden_BTD = model(ids_BT)
    recomputed = torch.autograd.grad(hidden_BTD.square().sum(), list(model.model.parameters()))
    assert len(calls) == 3
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_tied_head_stays_tied_when_moved_and_copied() -> None:
    model = load_model("llama-tiny", vocab_size=47, seed=0)
    for other in (model, model.to(torch.bfloat16), copy.deepcopy(model)):
        assert other.head_weight is other.model.embed_tokens.weight
    assert not any("lm_head" in name for name in model.state_dict())


def test_rotary_frequencies_stay_float32_in_a_bfloat16_model() -> None:
    model = ours(reference("llama3"))
    before = model.model.frequencies.clone()
    assert torch.equal(model.to(torch.bfloat16).model.frequencies, before)


def test_norm_rounds_before_the_weight_as_transformers_does() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 32, generator=generator).bfloat16()
    ref, norm = LlamaRMSNorm(32, eps=1e-5).bfloat16(), RMSNorm(32, eps=1e-5).bfloat16()
    for module in (ref, norm):
        module.weight.data = torch.linspace(0.3, 1.7, 32).bfloat16()
    assert torch.equal(norm(x), ref(x))
    weight_first = F.rms_norm(x.float(), (32,), norm.weight.float(), 1e-5).bfloat16()
    assert not torch.equal(weight_first, ref(x))


def interleaved(x_BTHD: Tensor, rotary: llama.Rotary) -> Tensor:
    cos, sin = (t.chunk(2, -1)[1].repeat_interleave(2, -1) for t in rotary)
    swapped = torch.stack((-x_BTHD[..., 1::2], x_BTHD[..., ::2]), -1).flatten(-2)
    return x_BTHD * cos + swapped * sin


def tiled_heads(
    q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, *, mask: object, backend: str
) -> Tensor:
    repeats = q_BTHD.shape[2] // k_BTKD.shape[2]
    k_BTHD, v_BTHD = (x.repeat(1, 1, repeats, 1) for x in (k_BTKD, v_BTKD))
    return kernel.attention(q_BTHD, k_BTHD, v_BTHD, mask=mask)  # type: ignore[arg-type]


MUTATIONS = {
    "eps": {"rms_norm_eps": 1e-6},
    "theta": {"rope_theta": 10_000.0},
    "no llama3 stretching": {"rope_scaling": None},
    "original length": {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 8192)},
}


@pytest.mark.parametrize("mutation", [*MUTATIONS, "rope layout", "tiled kv heads"])
def test_parity_would_notice(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ref, ids_BT = reference("llama3"), tokens(2, 80)
    model = ours(ref)
    assert difference(ref, model, ids_BT) <= 1e-5
    if mutation == "rope layout":
        monkeypatch.setattr(llama, "rotate", interleaved)
    elif mutation == "tiled kv heads":
        monkeypatch.setattr(llama, "attention", tiled_heads)
    else:
        wrong = Llama(dataclasses.replace(model.config, **MUTATIONS[mutation]))
        wrong.load_state_dict(model.state_dict())
        model = wrong
    assert difference(ref, model, ids_BT) > 5e-5


@pytest.mark.parametrize("case,option", [("qwen2", "qkv_bias"), ("qwen3", "qk_norm")])
def test_parity_would_notice_a_dropped_bias_or_norm(case: str, option: str) -> None:
    ref, ids_BT = reference(case), tokens(2, 30)
    model = ours(ref)
    changes = {option: False, "architecture": "LlamaForCausalLM"}
    without = Llama(dataclasses.replace(model.config, **changes))
    without.load_state_dict(model.state_dict(), strict=False)
    assert difference(ref, without, ids_BT) > 1e-2


def test_parity_would_notice_a_window_off_by_one() -> None:
    ref, ids_BT = reference("mistral"), tokens(2, 16)
    model = ours(ref)
    assert difference(ref, model, ids_BT) <= 1e-5
    for window in (3, 5, None):
        other = Llama(dataclasses.replace(model.config, sliding_window=window))
        other.load_state_dict(model.state_dict())
        assert difference(ref, other, ids_BT) > 1e-3


PARAMETERS = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_have_exactly_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        assert Llama(preset_config(name)).num_parameters() == PARAMETERS[name]
    assert PARAMETERS.keys() == {name for name in PRESETS if name.startswith("llama-3")}


def test_the_tiny_preset_has_a_tenth_of_a_million() -> None:
    model = load_model("llama-tiny", vocab_size=47, seed=0)
    assert model.num_parameters() == 103_680
    assert model.num_parameters(trainable_only=True) == 103_680


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, same, other = (load_model("llama-small", seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    up = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(one[up], other[up])
    assert one[up].std().item() == pytest.approx(0.02, rel=0.02)
    assert torch.equal(one["model.norm.weight"], torch.ones(256))


def test_without_a_seed_the_global_generator_decides() -> None:
    weights = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        weights.append(load_model("llama-tiny").head_weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


SIZES = {
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
}


@pytest.mark.parametrize(
    "change,message",
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3: must divide"),
        ({"head_dim": 3}, "head_dim = 3: must be even"),
        ({"qkv_bias": True}, "set architecture to Qwen2ForCausalLM"),
        ({"sliding_window": 8}, "set architecture to MistralForCausalLM"),
    ],
)
def test_impossible_configurations_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**{**SIZES, **change})

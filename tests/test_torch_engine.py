"""The in-process engine: exact log-probs, batching that changes nothing, and where rows end."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from thinkrl.grpo.config import RolloutConfig
from thinkrl.grpo.rollout import decoding
from thinkrl.grpo.rollout import fast_linear as fast
from thinkrl.grpo.rollout.engine import Group, Prompt, Rollout, Sampling, make_engine
from thinkrl.grpo.rollout.torch_engine import TorchEngine
from thinkrl.kernels.linear_logprob import filtered_logprob
from thinkrl.models.llama import Llama, LlamaConfig
from thinkrl.models.tokenizer import char_tokenizer
from torch import Tensor

TOKENIZER = char_tokenizer("0123456789abcdef")
V = len(TOKENIZER)
EOS = 1
GQA = LlamaConfig(
    vocab_size=V,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rope_theta=10_000.0,
    initializer_range=0.15,
)
CONFIGS = {
    "llama": GQA,
    "tied": dataclasses.replace(GQA, tie_word_embeddings=True, num_key_value_heads=1),
    "qwen2": dataclasses.replace(GQA, qkv_bias=True, architecture="Qwen2ForCausalLM"),
    "qwen3": dataclasses.replace(
        GQA, qk_norm=True, num_key_value_heads=4, head_dim=16, architecture="Qwen3ForCausalLM"
    ),
    "mistral": dataclasses.replace(GQA, sliding_window=6, architecture="MistralForCausalLM"),
}
SAMPLING = Sampling(num_generations=4, max_completion_length=24, seed=7)
FILTERS = [
    {},
    {"temperature": 0.7},
    {"top_k": 4},
    {"top_p": 0.8},
    {"min_p": 0.1, "temperature": 1.5},
    {"top_k": 12, "top_p": 0.95, "min_p": 0.01, "temperature": 0.9},
]


def decode(ids: Sequence[int]) -> str:
    text = TOKENIZER.decode(list(ids))
    assert isinstance(text, str)
    return text


def make_model(config: LlamaConfig = GQA, *, seed: int = 0) -> Llama:
    model = Llama(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.init_weights(generator)
        for name, p in model.named_parameters():
            if p.dim() == 1:  # norms and biases that tell rows and channels apart
                p.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
    return model


def make_prompts(lengths: Sequence[int], *, seed: int = 0) -> list[Prompt]:
    rng = random.Random(seed)
    rows = [[rng.randrange(4, V) for _ in range(n)] for n in lengths]
    return [Prompt(i, ids, decode(ids)) for i, ids in enumerate(rows)]


RAGGED = make_prompts([3, 11, 1, 5, 19, 8, 8, 2])


def engine(model: Any, *, eos: Sequence[int] = (EOS,), **kwargs: Any) -> TorchEngine:
    return TorchEngine(model, TOKENIZER, eos_token_ids=list(eos), **kwargs)


def full_forward_logits(model: Llama, prompt: Prompt, rollout: Rollout) -> Tensor:
    ids_1T = torch.tensor([prompt.token_ids + rollout.token_ids])
    with torch.no_grad():
        return model.logits(model(ids_1T))[0, len(prompt.token_ids) - 1 : -1]


def worst_difference(model: Llama, groups: Sequence[Group], **filters: float) -> float:
    worst = 0.0
    for group in groups:
        for rollout in group.rollouts:
            logits_TV = full_forward_logits(model, group.prompt, rollout)
            expected_T, _ = filtered_logprob(logits_TV, torch.tensor(rollout.token_ids), **filters)  # type: ignore[arg-type]
            got_T = torch.tensor(rollout.logprobs)
            worst = max(worst, float((got_T - expected_T).abs().max()))
    return worst


def tokens(groups: Sequence[Group]) -> dict[int, list[list[int]]]:
    return {g.prompt.index: [r.token_ids for r in g.rollouts] for g in groups}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("max_batch_size", [256, 9])
def test_log_probs_are_those_of_the_full_forward(name: str, max_batch_size: int) -> None:
    model = make_model(CONFIGS[name])
    groups = engine(model, max_batch_size=max_batch_size).generate(RAGGED, SAMPLING)
    lengths = {len(r.token_ids) for g in groups for r in g.rollouts}
    assert len(lengths) > 5, "rows should end at many different steps"
    assert worst_difference(model, groups) < 1e-5


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_log_probs_are_those_of_the_filtered_distribution(filters: dict[str, Any]) -> None:
    model = make_model()
    groups = engine(model).generate(RAGGED, dataclasses.replace(SAMPLING, **filters))
    assert worst_difference(model, groups, **filters) < 1e-5


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_long_completions_outgrow_the_first_block_of_the_cache(name: str) -> None:
    config = dataclasses.replace(CONFIGS[name], sliding_window=100 if name == "mistral" else None)
    model = make_model(config)
    sampling = dataclasses.replace(SAMPLING, max_completion_length=150, num_generations=3)
    groups = engine(model, eos=[]).generate(RAGGED[:3], sampling)
    assert {len(r.token_ids) for g in groups for r in g.rollouts} == {150}
    assert worst_difference(model, groups) < 1e-5


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_long_queue_through_few_places_reuses_the_timeline(name: str) -> None:
    model = make_model(CONFIGS[name])
    prompts = make_prompts([4 + i % 7 for i in range(30)])
    sampling = dataclasses.replace(SAMPLING, num_generations=3, max_completion_length=40)
    groups = engine(model, max_batch_size=8).generate(prompts, sampling)
    assert worst_difference(model, groups) < 1e-5
    assert tokens(groups) == tokens(engine(model).generate(prompts, sampling))


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_rollouts_do_not_depend_on_batch_size_or_order(name: str) -> None:
    model = make_model(CONFIGS[name])
    expected = tokens(engine(model).generate(RAGGED, SAMPLING))
    for max_batch_size in (1, 2, 3, 7, 20):
        got = engine(model, max_batch_size=max_batch_size).generate(RAGGED, SAMPLING)
        assert tokens(got) == expected, max_batch_size
    shuffled = random.Random(1).sample(RAGGED, len(RAGGED))
    groups = engine(model, max_batch_size=7).generate(shuffled, SAMPLING)
    assert [g.prompt.index for g in groups] == [p.index for p in shuffled]
    assert tokens(groups) == expected
    alone = engine(model).generate([RAGGED[4]], SAMPLING)
    assert tokens(alone)[4] == expected[4]
    fewer = engine(model).generate(RAGGED, dataclasses.replace(SAMPLING, num_generations=2))
    assert tokens(fewer) == {i: rows[:2] for i, rows in expected.items()}


def test_the_seed_decides_and_torchs_generator_is_left_alone() -> None:
    model = make_model()
    state = torch.get_rng_state()
    first = tokens(engine(model).generate(RAGGED, SAMPLING))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert tokens(engine(model).generate(RAGGED, SAMPLING)) == first
    other = tokens(engine(model).generate(RAGGED, dataclasses.replace(SAMPLING, seed=8)))
    same = sum(a == b for i in first for a, b in zip(first[i], other[i], strict=True))
    assert same < 4
    rows = [tuple(row) for group in first.values() for row in group if len(row) > 4]
    assert len(set(rows)) == len(rows)


def as_transformers(model: Llama) -> Any:
    c = model.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        rms_norm_eps=c.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        bos_token_id=None,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.load_state_dict(model.state_dict())
    return theirs


def test_greedy_is_transformers_greedy() -> None:
    model = make_model()
    theirs = as_transformers(model)
    eos = [EOS, 7]
    greedy = Sampling(num_generations=1, max_completion_length=30, temperature=0.0)
    groups = engine(model, eos=eos, max_batch_size=5).generate(RAGGED, greedy)
    for group in groups:
        ids_1T = torch.tensor([group.prompt.token_ids])
        expected = theirs.generate(
            ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            do_sample=False,
            max_new_tokens=30,
            eos_token_id=eos,
            pad_token_id=0,
        )[0, ids_1T.shape[1] :]
        assert group.rollouts[0].token_ids == expected.tolist()
    assert worst_difference(model, groups) < 1e-5  # at temperature 1, as documented


def test_a_prompt_is_computed_once_for_all_of_its_completions() -> None:
    model = make_model()
    passed: list[tuple[int, int]] = []
    model.model.embed_tokens.register_forward_hook(lambda m, a, o: passed.append(a[0].shape))
    sampling = dataclasses.replace(SAMPLING, max_completion_length=1)
    engine(model).generate(RAGGED, sampling)
    assert passed == [(1, sum(len(p.token_ids) for p in RAGGED))]


def test_ended_rows_stop_costing_and_their_places_are_taken() -> None:
    model = make_model()
    widths: list[int] = []
    model.model.embed_tokens.register_forward_hook(
        lambda m, a, o: widths.append(len(a[0])) if a[0].shape[1] == 1 else None
    )
    groups = engine(model, max_batch_size=16).generate(RAGGED, SAMPLING)
    useful = sum(len(r.token_ids) for g in groups for r in g.rollouts)
    assert max(widths) <= 16
    assert sum(widths) < 1.2 * useful


def test_prompts_over_the_prefill_budget_run_in_several_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model()
    expected = tokens(engine(model).generate(RAGGED, SAMPLING))
    monkeypatch.setattr(decoding, "_PREFILL_TOKENS", 12)
    assert tokens(engine(model).generate(RAGGED, SAMPLING)) == expected


def test_any_end_token_ends_a_row_and_stays_in_its_tokens_but_not_in_its_text() -> None:
    ends = (EOS, 9, 15)
    groups = engine(make_model(), eos=ends).generate(RAGGED, SAMPLING)
    rollouts = [r for g in groups for r in g.rollouts]
    for r in rollouts:
        assert not set(r.token_ids[:-1]) & set(ends)
        assert len(r.logprobs) == len(r.token_ids)
        if r.finish_reason == "stop":
            assert r.token_ids[-1] in ends
            assert r.text == decode([t for t in r.token_ids[:-1] if t != 0])
        else:
            assert len(r.token_ids) == SAMPLING.max_completion_length
    assert {r.token_ids[-1] for r in rollouts if r.finish_reason == "stop"} == set(ends)


def test_no_end_token_runs_to_the_length() -> None:
    groups = engine(make_model(), eos=[]).generate(RAGGED[:2], SAMPLING)
    assert all(r.finish_reason == "length" for g in groups for r in g.rollouts)
    assert all(len(r.token_ids) == 24 for g in groups for r in g.rollouts)


def test_text_keeps_think_tags_even_where_they_are_special() -> None:
    special = char_tokenizer("0123456789abcdef")
    special.add_special_tokens({"additional_special_tokens": ["<think>", "</think>", "<x>"]})
    special.add_tokens(["<x>"], special_tokens=True)
    vocabulary = special.get_vocab()
    think, end, x, one = (vocabulary[t] for t in ("<think>", "</think>", "<x>", "1"))
    own = TorchEngine(make_model(), special, eos_token_ids=[EOS])
    assert own.text_of([[think, one, x, end, one, EOS, 0]]) == ["<think>1</think>1"]


@pytest.mark.parametrize("max_batch_size", [256, 5])
def test_stop_strings_end_a_row_at_the_token_that_completes_one(max_batch_size: int) -> None:
    model = make_model()
    own = engine(model, eos=[], max_batch_size=max_batch_size)
    free = [r for g in own.generate(RAGGED, SAMPLING) for r in g.rollouts]
    texts = [r.text for r in free]
    stop = (texts[0][5:8], texts[9][10:12])
    sampling = dataclasses.replace(SAMPLING, stop=stop)
    rollouts = [r for g in own.generate(RAGGED, sampling) for r in g.rollouts]
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    for text, whole, r in zip(texts, free, rollouts, strict=True):
        ends = [i + len(s) for s in stop for i in range(len(text)) if text.startswith(s, i)]
        if r.finish_reason == "length":
            assert not ends and r.token_ids == whole.token_ids and r.text == text
            continue
        sampled = own.text_of([r.token_ids])[0]
        before = own.text_of([r.token_ids[:-1]])[0]
        assert sampled.startswith(text[: min(ends)]) and not any(s in before for s in stop)
        assert r.token_ids == whole.token_ids[: len(r.token_ids)]
        assert r.text == sampled[: min(sampled.find(s) for s in stop if s in sampled)]


def test_the_models_context_limits_a_completion() -> None:
    model = make_model(dataclasses.replace(GQA, max_position_embeddings=20))
    sampling = dataclasses.replace(SAMPLING, max_completion_length=100)
    groups = engine(model, eos=[]).generate(RAGGED, sampling)
    for group in groups:
        for rollout in group.rollouts:
            assert len(rollout.token_ids) == 20 - len(group.prompt.token_ids)
            assert rollout.finish_reason == "length"
    assert worst_difference(model, groups) < 1e-5


def test_bfloat16_samples_what_training_under_autocast_scores() -> None:
    model = make_model(dataclasses.replace(GQA, hidden_size=64, intermediate_size=96))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    groups = engine(model, bf16=True).generate(RAGGED, SAMPLING)
    for name, p in model.named_parameters():
        assert p.dtype == torch.float32 and torch.equal(p, before[name]), name
    errors, exact_errors = [], []
    for group in groups:
        for r in group.rollouts:
            ids_1T = torch.tensor([group.prompt.token_ids + r.token_ids])
            for out, enabled in ((errors, True), (exact_errors, False)):
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    hidden = model(ids_1T)[0, len(group.prompt.token_ids) - 1 : -1]
                    logits_TV = F.linear(hidden, model.head_weight).float()
                got_T, want_T = torch.tensor(r.logprobs), logits_TV.log_softmax(-1)
                want_T = want_T.gather(-1, torch.tensor(r.token_ids)[:, None])[:, 0]
                out.append((got_T - want_T).abs())
    mean, exact_mean = float(torch.cat(errors).mean()), float(torch.cat(exact_errors).mean())
    assert mean < 0.3 * exact_mean, (mean, exact_mean)
    assert exact_mean < 0.05


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("out_features", [8, 520])
@pytest.mark.parametrize("bf16", [True, False])
def test_prepared_linear_layers_answer_as_before(bias: bool, out_features: int, bf16: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, out_features, bias=bias)
    assert fast.packs(layer.weight) == (out_features == 520)
    for rows in (1, 3, 64, 300):
        x_B1D = torch.randn(rows, 1, 64)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            expected = layer(x_B1D)
            with fast.fast_linears(layer, bf16=bf16):
                got = layer(x_B1D)
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=1e-2 if bf16 else 1e-5, atol=1e-5)
    assert "forward" not in vars(layer)


def test_a_bfloat16_model_reports_float32_log_probs_of_its_logits() -> None:
    model = make_model().to(torch.bfloat16)
    groups = engine(model).generate(RAGGED, SAMPLING)
    assert worst_difference(model, groups) < 0.15


def test_a_lora_policy_is_sampled_with_its_adapter() -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    torch.manual_seed(0)
    plain = tokens(engine(make_model()).generate(RAGGED, SAMPLING))
    model = peft.get_peft_model(make_model(), config)  # type: ignore[arg-type]
    own = engine(model)
    assert tokens(own.generate(RAGGED, SAMPLING)) == plain  # B starts at zero
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    groups = own.generate(RAGGED, SAMPLING)
    assert tokens(groups) != plain
    assert worst_difference(model.get_base_model(), groups) < 1e-5  # type: ignore[arg-type]
    rounded = engine(model, bf16=True).generate(RAGGED, SAMPLING)
    assert worst_difference(model.get_base_model(), rounded) < 0.3  # type: ignore[arg-type]


def test_training_goes_on_as_before_after_sampling() -> None:
    model = make_model()
    model.gradient_checkpointing = True
    model.train()
    model.model.layers[1].eval()
    ids_1T = torch.tensor([RAGGED[4].token_ids])
    model(ids_1T).square().sum().backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for bf16 in (False, True):
        engine(model, bf16=bf16).generate(RAGGED, SAMPLING)
        assert model.training and not model.model.layers[1].training
        model.zero_grad()
        model(ids_1T).square().sum().backward()
        after = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_sync_takes_the_policys_weights_and_stamps_its_version() -> None:
    first, second = make_model(seed=0), make_model(seed=1)
    own = engine(first)

    class Policy:
        model = second

    own.sync(Policy(), version=5)
    groups = own.generate(RAGGED, SAMPLING)
    assert tokens(groups) == tokens(engine(second).generate(RAGGED, SAMPLING))
    assert {r.policy_version for g in groups for r in g.rollouts} == {5}
    own.sync(first, version=6)
    assert tokens(own.generate(RAGGED, SAMPLING)) == tokens(
        engine(first).generate(RAGGED, SAMPLING)
    )
    own.close()


def test_diverged_weights_are_an_error_that_names_the_prompt() -> None:
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="prompt 0"):
        engine(model).generate(RAGGED, SAMPLING)
    assert model.training


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_generations": 0}, "num_generations = 0"),
        ({"max_completion_length": 0}, "max_completion_length = 0"),
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_k": -1}, "top_k = -1"),
        ({"min_p": 2.0}, "min_p = 2.0"),
        ({"stop": ("",)}, "stop = "),
    ],
)
def test_settings_that_cannot_be_sampled_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        engine(make_model()).generate(RAGGED, dataclasses.replace(SAMPLING, **change))


@pytest.mark.parametrize("length", [0, 20, 33])
def test_a_prompt_that_leaves_no_room_is_named(length: int) -> None:
    model = make_model(dataclasses.replace(GQA, max_position_embeddings=20))
    prompts = [*make_prompts([4]), Prompt(17, [5] * length, "")]
    with pytest.raises(ValueError, match=f"prompt 17 has {length} tokens"):
        engine(model).generate(prompts, SAMPLING)


def test_no_prompts_give_no_groups() -> None:
    assert engine(make_model()).generate([], SAMPLING) == []


def test_the_factory_makes_the_engine_that_the_recipe_names() -> None:
    config = RolloutConfig(max_batch_size=3)
    made = make_engine(config, make_model(), TOKENIZER, eos_token_ids=[EOS], bf16=True)
    assert isinstance(made, TorchEngine)
    assert (made.max_batch_size, made.bf16) == (3, True)
    wrong = dataclasses.replace(config, engine="vlm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rollout\.engine = 'vlm'"):
        make_engine(wrong, make_model(), TOKENIZER, eos_token_ids=[EOS])
    with pytest.raises(ValueError, match="max_batch_size = 0"):
        engine(make_model(), max_batch_size=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_a_gpu_samples_what_the_cpu_samples(name: str) -> None:
    model = make_model(CONFIGS[name])
    expected = tokens(engine(model).generate(RAGGED, SAMPLING))
    groups = engine(model.cuda(), max_batch_size=9).generate(RAGGED, SAMPLING)
    assert tokens(groups) == expected
    assert worst_difference(model.cpu(), groups) < 1e-4

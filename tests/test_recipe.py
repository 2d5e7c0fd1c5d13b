"""Recipes: what they read as, and what a mistake in one says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from thinkrl.grpo.config import GRPOConfig, LoraConfig, Recipe, RewardConfig, SFTConfig
from thinkrl.grpo.recipe import (
    RECIPES,
    differences,
    find_recipe,
    load_recipe,
    recipe_facts,
    recipe_names,
    to_yaml,
)
from thinkrl.grpo.schema import ALIASES, ConfigError, explain

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a recipe file and returns its path."""

    def write(text: str, name: str = "mine.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def message(recipe: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_recipe(recipe, overrides)
    text = str(error.value)
    assert "\n" not in text
    return text


# -- reading ------------------------------------------------------------------------------------


def test_an_empty_file_is_all_defaults(write: Write) -> None:
    for text in ("", "# only a comment\n", "{}", "trainer:\n# max_steps: 3\n"):
        assert load_recipe(write(text)) == Recipe(name="mine")


def test_values_are_read_and_converted(write: Write) -> None:
    recipe = load_recipe(
        write("""
stages: sft
rewards: [think_format, {name: exact_answer, weight: 2, kwargs: {tolerance: 1e-3}}]
model: {lora: {rank: 8}}
data: {columns: {prompt: question}}
trainer: {learning_rate: 1e-6, report_to: [tensorboard], stop: "\\n"}
""")
    )
    assert recipe.stages == ("sft",)
    assert recipe.rewards == (
        RewardConfig("think_format"),
        RewardConfig("exact_answer", 2.0, {"tolerance": 0.001}),
    )
    assert recipe.model.lora == LoraConfig(rank=8)
    assert recipe.data.columns == {"prompt": "question"}
    assert recipe.trainer.learning_rate == 1e-6
    assert recipe.trainer.report_to == ("tensorboard",)
    assert recipe.trainer.stop == ("\n",)


def test_extends_merges_sections_and_replaces_lists(write: Write) -> None:
    write("trainer: {max_steps: 7, beta: 0.1}\nrewards: [a, b]\nstages: [sft, grpo]", "base.yaml")
    write("extends: base.yaml\ntrainer: {beta: 0.2}", "middle.yaml")
    recipe = load_recipe(write("extends: middle.yaml\nrewards: [c]"))
    assert (recipe.trainer.max_steps, recipe.trainer.beta) == (7, 0.2)
    assert [reward.name for reward in recipe.rewards] == ["c"]
    assert recipe.stages == ("sft", "grpo")
    assert recipe.name == "mine"


def test_a_recipe_can_extend_one_that_is_shipped(write: Write) -> None:
    recipe = load_recipe(write("extends: quickstart\nseed: 5"))
    shipped = load_recipe("quickstart")
    assert recipe == dataclasses.replace(shipped, seed=5, name="mine")


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("trainer.max_steps=5", lambda r: r.trainer.max_steps == 5),
        ("trainer.learning_rate=1e-6", lambda r: r.trainer.learning_rate == 1e-6),
        ("rewards.0.weight=2", lambda r: r.rewards == (RewardConfig(weight=2.0),)),
        ("rewards=[a, b]", lambda r: [x.name for x in r.rewards] == ["a", "b"]),
        ("data.columns.prompt=q", lambda r: r.data.columns == {"prompt": "q"}),
        ("data.columns={prompt: q}", lambda r: r.data.columns == {"prompt": "q"}),
        ("data.template={{ prompt }}?", lambda r: r.data.template == "{{ prompt }}?"),
        ("data.train=a=b.jsonl", lambda r: r.data.train == "a=b.jsonl"),
        ("model.lora.rank=8", lambda r: r.model.lora == LoraConfig(rank=8)),
        ("model.lora={}", lambda r: r.model.lora == LoraConfig()),
        ("run_dir=", lambda r: r.run_dir is None),
        ("run_dir=007", lambda r: r.run_dir == "7"),  # YAML reads a number
        (
            "trainer.objective={entropy_coef: 1e-3}",
            lambda r: r.trainer.objective["entropy_coef"] == 1e-3,
        ),
    ],
)
def test_overrides(write: Write, override: str, read: Callable[[Recipe], bool]) -> None:
    assert read(load_recipe(write(""), [override]))


def test_later_overrides_win_and_build_on_earlier_ones(write: Write) -> None:
    overrides = ["rewards=[{name: a}, {name: b}]", "rewards.1.weight=3", "seed=1", "seed=2"]
    recipe = load_recipe(write(""), overrides)
    assert recipe.rewards == (RewardConfig("a"), RewardConfig("b", 3.0))
    assert recipe.seed == 2


def test_files_beside_the_recipe_are_found_from_anywhere(write: Write, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text("")
    (tmp_path / "rows.jsonl").write_text("")
    path = write("data: {train: rows.jsonl, eval: absent.jsonl}\nrewards: [reward.py:score]")
    recipe = load_recipe(path)
    assert recipe.data.train == str(tmp_path / "rows.jsonl")
    assert recipe.data.eval == "absent.jsonl"
    assert recipe.rewards[0].name == f"{tmp_path / 'reward.py'}:score"


def test_the_working_folder_comes_first(write: Write, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    assert load_recipe(write("data: {train: rows.jsonl}")).data.train == "rows.jsonl"


def test_the_resolved_recipe_reads_back_to_the_same_tree(write: Write) -> None:
    overrides = [
        *("seed=7", "model.lora.rank=4", "trainer.epsilon_high=0.28", "trainer.stop=['\\n', 'a']"),
        *("data.template='{{ prompt }}: '", "rewards.0.kwargs={a: [1, null, {b: 1e-9}]}"),
        *("run_dir='1e3'", "model.overrides={rope: {factor: 2.0}}", "question='caf\u00e9: yes'"),
    ]
    for name in recipe_names():
        recipe = load_recipe(name, overrides)
        assert load_recipe(write(to_yaml(recipe), "resolved.yaml")) == recipe


def test_stage_configs_carry_what_the_recipe_sets_once(write: Write) -> None:
    recipe = load_recipe(
        write("seed: 3\nrun_dir: here\nrollout: {max_batch_size: 9}\nsft: {seed: 4}")
    )
    grpo, sft = recipe.stage_config("grpo"), recipe.stage_config("sft")
    assert isinstance(grpo, GRPOConfig) and isinstance(sft, SFTConfig)
    assert (grpo.seed, grpo.run_dir, grpo.rollout.max_batch_size) == (3, "here", 9)
    assert sft.seed == 4


def test_differences_name_each_changed_setting(write: Write) -> None:
    old = load_recipe(write("trainer: {max_steps: 5}\nmodel: {lora: {}}"))
    new = load_recipe(write("trainer: {max_steps: 9}\ndata: {task: {moves: 3}}"))
    found = differences(old, new)
    assert "trainer.max_steps: 5 -> 9" in found
    assert "data.task.moves: null -> 3" in found
    assert any(line.startswith("model.lora.rank: 16 -> null") for line in found)
    assert differences(old, old) == []


# -- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "trainer: {max_stepz: 3}",
            "trainer.max_stepz = 3: unknown key; did you mean trainer.max_steps?",
        ),
        ("sft: {max_stepz: 3}", "did you mean sft.max_steps?"),
        ("max_steps: 3", "did you mean trainer.max_steps?"),
        ("trainer: {lr: 3}", "unknown key; here it is trainer.learning_rate"),
        ("model: {lora: {rnk: 3}}", "did you mean model.lora.rank?"),
        ("rewards: [{nme: a}]", "rewards.0.nme = 'a': unknown key; did you mean rewards.name?"),
        ("trainer: {rollout: {}}", "trainer.rollout = {}: unknown key; did you mean rollout?"),
        ("{1: 2}", "1 = 2: unknown key; a recipe has name,"),
        ("xyzzy: 2", "xyzzy = 2: unknown key; a recipe has name,"),
        ("model: {xyzzy: 2}", "model.xyzzy = 2: unknown key; model has path,"),
        ("trainer: {max_steps: 5.0}", "trainer.max_steps = 5.0: must be a whole number"),
        ("trainer: {max_steps: '5'}", "trainer.max_steps = '5': must be a whole number"),
        ("trainer: {max_steps: true}", "trainer.max_steps = true: must be a whole number"),
        ("trainer: {max_steps: null}", "trainer.max_steps = null: must be a whole number"),
        ("trainer: {bf16: 1}", "trainer.bf16 = 1: must be true or false"),
        ("trainer: {beta: much}", "trainer.beta = 'much': must be a number"),
        ("trainer: {beta: .inf}", "trainer.beta = inf: must be a number"),
        ("trainer: {beta: .nan}", "trainer.beta = nan: must be a number"),
        ("model: {path: [a]}", "model.path = ['a']: must be text"),
        ("model: {dtype: [a]}", "model.dtype = ['a']: must be one of float32, bfloat16"),
        ("model: {dtype: {a: 1}}", "model.dtype = {'a': 1}: must be one of float32, bfloat16"),
        ("stages: [sft, rl]", "stages.1 = 'rl': must be one of sft, grpo"),
        ("stages: [[sft]]", "stages.0 = ['sft']: must be one of sft, grpo"),
        ("trainer: 3", "trainer = 3: must be a section of settings"),
        ("rewards: 3", "rewards = 3: must be a list"),
        ("rewards: {weight: 2}", "must be a list, whose first weight is rewards.0.weight"),
        ("rewards: [3]", "rewards.0 = 3: must be a section of settings"),
        ("data: {columns: [a]}", "data.columns = ['a']: must be a mapping"),
        ("data: {columns: {prompt: [a]}}", "data.columns.prompt = ['a']: must be text"),
        ("data: {train: 2020-12-12}", "must be text"),
        ("seed: 1\nseed: 2", "line 2, column 1 malformed YAML: seed is set twice"),
        ("trainer: {beta: 1, beta: 1}", "beta is set twice"),
        ("trainer:\n\tmax_steps: 3", "line 2, column 1 malformed YAML: a tab; indent with spaces"),
        ("a: b: c", "line 1, column 5 malformed YAML"),
        ("data: {train: 2020-13-45}", "malformed YAML: month must be in 1..12"),
        ("!!python/object:os.system x", "malformed YAML"),
        ("a: 1\n---\nb: 2", "found another document"),
        ("- a", "a recipe is a mapping of settings, not a list"),
        ("words", "a recipe is a mapping of settings, not text"),
        ("extends: mine.yaml", "extends itself"),
        ("extends: [a]", "extends = ['a']: must be a recipe's name or file"),
        (
            "extends: quickstar",
            "extends: recipe 'quickstar': no such file and no recipe of that name",
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_file_key_value_and_remedy(
    write: Write, text: str, expected: str
) -> None:
    path = write(text)
    said = message(path)
    assert said.startswith(path)
    assert expected in said


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "trainer.max_stepz=3",
            "override 'trainer.max_stepz=3': trainer.max_stepz = 3: unknown key; did",
        ),
        ("trainer.max_steps=", "trainer.max_steps = null: must be a whole number"),
        ("trainer.max_steps={{ x }}", "trainer.max_steps = '{{ x }}': must be a whole number"),
        ("trainer=3", "trainer = 3: must be a section of settings"),
        ("trainer..beta=1", "write key.path=value"),
        ("=1", "write key.path=value"),
        ("trainer.beta", "write key.path=value"),
        ("rewards.3.weight=1", "the list has 1 entries, from 0"),
        ("model.path.x=1", "model.path = {'x': 1}: must be text"),
        ("extends=quickstart", "extends = 'quickstart': unknown key"),
    ],
)
def test_a_mistake_in_an_override_names_the_override(
    write: Write, override: str, expected: str
) -> None:
    said = message(write("seed: 1"), "seed=2", override)
    assert said.startswith(f"override {override!r}: ")
    assert expected in said


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("trainer.batch_size=10", "is not divisible by trainer.num_generations = 8"),
        ("trainer.batch_size=4", "use 8"),
        ("trainer.num_generations=1", "at least 2: an advantage compares"),
        ("trainer.temperature=0", "must be above 0"),
        ("trainer.top_p=0", "must be in (0, 1]"),
        ("trainer.max_steps=0", "must be at least 1"),
        ("trainer.learning_rate=-1", "a rate between 0 and 10"),
        ("trainer.epsilon=-0.1", "must be 0 or more"),
        ("trainer.soft_overlong_cache=256", "less than trainer.max_completion_length"),
        ("trainer.ref_refresh_steps=5", "with trainer.beta above 0"),
        ("trainer.eval_steps=5", "trainer.eval_steps = 5: needs data.eval"),
        ("model.quantization=4bit", "model.lora={}"),
        ("sft.batch_size=0", "sft.batch_size = 0: must be at least 1"),
        ("data.limit=0", "data.limit = 0: must be at least 1"),
        ("cpu_threads=0", "cpu_threads = 0: must be at least 1"),
        ("stages=[]", "name each stage once"),
        ("stages=[sft, sft]", "name each stage once"),
        ("rewards=[]", "must name at least one reward function"),
    ],
)
def test_values_out_of_range_and_impossible_combinations(
    write: Write, overrides: str, expected: str
) -> None:
    said = message(write(""), overrides)
    assert expected in said and overrides in said


def test_a_combination_is_judged_after_all_layers_are_merged(write: Write) -> None:
    path = write("trainer: {batch_size: 12}")
    assert "not divisible" in message(path)
    assert load_recipe(path, ["trainer.num_generations=4"]).trainer.batch_size == 12


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    assert "did you mean quickstart?" in message("quickstar")
    assert "recipes: countdown_r1_zero" in message("zzz")
    assert message("nope.yaml") == "recipe nope.yaml: no such file"
    assert "no such file and no recipe" in message(str(tmp_path))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert message(str(binary)) == f"{binary}: not a UTF-8 text file"


# -- explaining ---------------------------------------------------------------------------------


def test_explain_a_setting_and_a_section() -> None:
    assert explain("trainer.beta").startswith("trainer.beta: number = 0.0\n    weight of the KL")
    assert "float32 | bfloat16" in explain("model.dtype")
    assert "whole number or null = null" in explain("data.limit")
    assert explain("rewards.0.weight").startswith("rewards.0.weight: number = 1.0")
    section = explain("trainer")
    assert "\n  trainer.num_generations: whole number = 8; G: completions per prompt" in section
    assert "trainer.rollout:" not in section
    assert "\n  model.lora.rank:" in explain("model.lora")


def test_explain_an_unknown_key() -> None:
    for key, hint in (
        ("trainer.bet", "did you mean trainer.beta?"),
        ("trainer.beta.x", "trainer.beta has no settings below it"),
        ("nope", "a recipe has name"),
        ("trainer.rollout", "did you mean rollout?"),
    ):
        with pytest.raises(ConfigError, match=hint.replace("?", r"\?")):
            explain(key)


def test_aliases_lead_to_settings_that_exist() -> None:
    for name, key in ALIASES.items():
        assert explain(key)
        with pytest.raises(ConfigError):
            explain(name)


def test_every_setting_is_documented() -> None:
    for section in ("model", "model.lora", "data", "rewards", "rollout", "trainer", "sft"):
        for line in explain(section).splitlines()[2:]:
            assert line.partition("; ")[2], line


# -- what is shipped ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(recipe_names()))
def test_shipped_recipes_load_and_say_what_they_are_for(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.question
    assert recipe.model.path and recipe.data.train
    facts = recipe_facts(find_recipe(name))
    assert list(facts)[:4] == ["Question", "Hardware", "Time", "Expected"]
    assert all(len(text) > 10 for text in facts.values())


def test_the_four_recipes_are_there() -> None:
    wanted = {"quickstart", "countdown_r1_zero", "gsm8k_r1_zero", "math_dapo"}
    assert wanted <= set(recipe_names())
    assert RECIPES.name == "recipes"


def test_dapo_has_the_published_settings() -> None:
    trainer = load_recipe("math_dapo").trainer
    assert trainer.loss_type == "dapo" and trainer.dynamic_sampling
    assert (trainer.epsilon, trainer.epsilon_high) == (0.2, 0.28)
    assert trainer.beta == 0.0 and trainer.soft_overlong_cache > 0

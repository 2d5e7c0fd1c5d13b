"""Rows to prompts: sources, columns, limits, order, demonstrations, and what bad data says."""

from __future__ import annotations

import csv
import json
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from thinkrl.grpo.config import DataConfig, SFTConfig
from thinkrl.grpo.data import (
    PromptOrder,
    as_prompts,
    as_sft_rows,
    count_overlap,
    load_prompts,
    load_sft_rows,
)
from thinkrl.grpo.sources import read_rows
from thinkrl.models.tokenizer import char_tokenizer
from thinkrl.rewards.compose import RewardSuite
from thinkrl.rewards.countdown import countdown
from thinkrl.rewards.exact_answer import exact_answer
from tokenizers import processors

ROWS = [
    {"prompt": "1+1=", "answer": "2", "level": 1},
    {"prompt": "20+4=", "answer": "24", "level": 2},
    {"prompt": 'a "b", c\nd=', "answer": "e", "level": 3},
]
CHAT = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}"
    "{% if not (loop.last and continue_final_message) %};{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ASCII = [chr(code) for code in range(32, 127)] + ["\n"]


@pytest.fixture(scope="module")
def tokenizer():
    return char_tokenizer(ASCII)


@pytest.fixture(scope="module")
def chat_tokenizer():
    tokenizer = char_tokenizer(ASCII)
    tokenizer.chat_template = CHAT
    return tokenizer


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


# sources


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_files_of_every_kind_give_the_same_prompts(tmp_path, tokenizer, ending):
    path = write(tmp_path / f"rows.{ending}", ROWS)
    found = load_prompts(DataConfig(train=path), split="train", tokenizer=tokenizer)
    assert [prompt.text for prompt in found.prompts] == [row["prompt"] for row in ROWS]
    assert [prompt.index for prompt in found.prompts] == [0, 1, 2]
    assert [str(prompt.columns["level"]) for prompt in found.prompts] == ["1", "2", "3"]
    for prompt in found.prompts:
        assert tokenizer.decode(prompt.token_ids) == prompt.text
    assert found.describe() == f"{path}: 3 prompts"
    assert len(read_rows(path, limit=2)) == 2


@pytest.mark.parametrize(
    "content",
    [
        [{"a": 1}, {"a": 2}],
        {"data": [{"a": 1}, {"a": 2}]},
        {"rows": [{"a": 1}, {"a": 2}]},
        {"a": [1, 2]},
    ],
)
def test_the_forms_of_a_json_file(tmp_path, content):
    path = tmp_path / "rows.json"
    path.write_text("\ufeff" + json.dumps(content))  # with a byte order mark
    assert read_rows(str(path)) == [{"a": 1}, {"a": 2}]


def test_blank_lines_byte_order_marks_and_variables_in_paths(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text('\ufeff{"a": 1}\n\n  \n{"a": "\u2028 x"}\n', "utf-8")
    monkeypatch.setenv("SOME_DATA", str(tmp_path))
    assert read_rows("$SOME_DATA/rows.jsonl") == [{"a": 1}, {"a": "\u2028 x"}]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(read_rows("~/rows.jsonl")) == 2


def test_a_folder_is_read_by_datasets_and_a_dataset_can_be_passed(tmp_path, tokenizer):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.parquet", ROWS)
    write(folder / "test.parquet", ROWS[:1])
    assert read_rows(str(folder), split="train") == ROWS
    config = DataConfig(eval=str(folder))
    assert len(load_prompts(config, split="eval", tokenizer=tokenizer).prompts) == 1
    with pytest.raises(ValueError, match=r"set \(split dev\): cannot be loaded: ValueError"):
        read_rows(str(folder), split="dev")
    given = as_prompts(datasets.Dataset.from_list(ROWS), tokenizer=tokenizer)
    assert [prompt.text for prompt in given.prompts] == [row["prompt"] for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": \n', r"x.jsonl line 2: malformed JSON"),
        ("x.jsonl", '{"a": 1}\n\n[1]\n', r"x.jsonl line 3: must be an object, is a list"),
        ("x.jsonl", "[" * 100_000, r"x.jsonl line 1: malformed JSON"),
        ("x.json", '[{"a": 1},\n{"a" 2}]', r"x.json line 2: malformed JSON"),
        ("x.json", '{"a": 1}\n{"a": 2}\n', r"one object a line is a .jsonl file"),
        ("x.json", "[1, 2]", r"x.json row 1: must be an object, is a number"),
        ("x.json", "3", r"x.json: must be a list of objects, is a number"),
        ("x.json", '{"a": [1], "b": [1, 2]}', r"its columns have different lengths"),
        ("x.csv", "a,b\n1,2\n1,2,3\n", r"row 2 \(line 3\): more than the header's 2 fields"),
        ("x.csv", "a,b\n1\n", r"row 1 \(line 2\): fewer than the header's 2 fields"),
        ("x.csv", 'a,b\n"1,2\n', r"malformed CSV"),
        ("x.parquet", "PAR1 nonsense", r"not a readable parquet file"),
    ],
)
def test_malformed_files_name_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_rows(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "\xff\xfe"}\n')
    with pytest.raises(ValueError, match=r"x.jsonl line 1: not UTF-8 text"):
        read_rows(str(tmp_path / "x.jsonl"))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{folder}/trian.jsonl", r"no such file; did you mean train.jsonl\?"),
        ("{folder}/nowhere/x.jsonl", r"no such file \(and no folder .*nowhere\)"),
        ("{folder}/train.jsonl.d/../zzz.csv", "no such file"),
        ("$NOT_SET_ANYWHERE/x.jsonl", "environment variable in this path is not set"),
        ("$NOT_SET_ANYWHERE/x", "environment variable in this path is not set"),
        ("walkk", r"did you mean the task walk\? tasks: walk, countdown, arithmetic"),
        ("{folder}/rows.txt", "no such task, file or folder"),
        ("", "no such task, file or folder"),
        ("nobody/has-this-set", "cannot be loaded"),
    ],
)
def test_missing_sources_say_what_was_probably_meant(tmp_path, place, message):
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(ValueError, match=message) as caught:
        read_rows(place.format(folder=tmp_path))
    assert "\n" not in str(caught.value)


# rows


def test_columns_are_mapped_and_kept():
    rows = [{"question": "1+1=", "solution": "#### 2", "id": 7}]
    mapped = {"prompt": "question", "answer": "solution"}
    [prompt] = as_prompts(rows, tokenizer=char_tokenizer(ASCII), columns=mapped).prompts
    assert prompt.text == "1+1="
    assert prompt.columns == {
        **{"question": "1+1=", "solution": "#### 2", "id": 7},
        "answer": "#### 2",
    }


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "set: no rows"),
        ([{"question": "a"}], {}, r"row 1: no column 'prompt'; .*\{prompt: question\}"),
        ([{"promt": "a"}], {}, r"row 1: no column 'prompt'; .*\{prompt: promt\}"),
        ([{"a": "a", "b": "b"}], {}, r"no column 'prompt' \(columns: a, b\)"),
        (
            [{"question": "a"}],
            {"columns": {"prompt": "qestion"}},
            r"no column 'qestion' \(data.columns.prompt\); did you mean question\?",
        ),
        ([{"prompt": "a"}, {"promt": "a"}], {}, "set row 2: no column 'prompt'"),
        ([{"prompt": "a"}, {"prompt": 7}], {}, "set row 2: column 'prompt' is a number"),
        ([{"prompt": None}], {}, r"column 'prompt' is empty \(null\), must be text or a list"),
        ([{"prompt": {"a": 1}}], {}, "column 'prompt' is an object"),
        ([{"prompt": ""}], {}, r"row 1: the prompt is empty \(no tokens\)"),
        ([{"prompt": []}], {}, "must be a list of messages"),
        ([{"prompt": [{"role": "user"}]}], {}, "must be a list of messages"),
        ([{"prompt": ["a"]}], {}, "must be a list of messages"),
        ([{"prompt": [{"role": "user", "content": "a"}]}], {}, "row 1: .*no chat template"),
        (["a"], {}, "row 1: must be a dict, is text"),
        ([{"prompt": "\u00e9"}], {}, "set: the tokenizer cannot encode '\u00e9'"),
        ([{"a": 1}], {"template": "{{ b }}"}, "set row 1: data.template reads 'b'"),
        ([{"prompt": "abc"}], {"max_prompt_length": 2}, "all 1 prompts are longer than 2 tokens"),
    ],
)
def test_bad_rows_name_source_row_and_column(tokenizer, rows, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        as_prompts(rows, tokenizer=tokenizer, source="set", **options)
    assert "\n" not in str(caught.value)


def test_long_prompts_are_dropped_and_counted_never_cut(tokenizer):
    rows = [{"prompt": "x" * length} for length in (3, 9, 5, 12, 5)]
    found = as_prompts(rows, tokenizer=tokenizer, max_prompt_length=5, source="set")
    assert [len(prompt.token_ids) for prompt in found.prompts] == [3, 5, 5]
    assert [prompt.index for prompt in found.prompts] == [0, 2, 4]  # places in the dataset
    assert found.dropped == 2
    assert found.describe() == "set: 3 prompts (2 over 5 tokens dropped)"
    tighter = as_prompts(rows, tokenizer=tokenizer, max_prompt_length=9, context_length=4)
    assert (len(tighter.prompts), tighter.dropped, tighter.max_tokens) == (1, 4, 4)
    assert as_prompts(rows, tokenizer=tokenizer).dropped == 0


def test_conversations_keep_messages_and_tell_rewards_the_text(chat_tokenizer):
    messages = [{"role": "user", "content": "1+1"}]
    [prompt] = as_prompts([{"prompt": messages}], tokenizer=chat_tokenizer).prompts
    assert prompt.messages == messages and prompt.text == "[user]1+1;[assistant]"
    assert prompt.columns == {"prompt_text": prompt.text}
    assert chat_tokenizer.decode(prompt.token_ids) == prompt.text


def test_text_gets_the_tokenizers_bos_a_chat_template_writes_its_own():
    tokenizer = char_tokenizer(ASCII, tags=("<think>", "</think>", "<bos>"))
    tokenizer.bos_token = "<bos>"
    bos: Any = tokenizer.bos_token_id
    eos: Any = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", bos), ("<eos>", eos)]
    )
    tokenizer.chat_template = "<bos>" + CHAT
    [prompt] = as_prompts([{"prompt": "1"}], tokenizer=tokenizer).prompts
    assert prompt.token_ids == [bos, tokenizer.convert_tokens_to_ids("1")]  # no EOS
    [prompt] = as_prompts([{"prompt": "1"}], tokenizer=tokenizer, template="chat").prompts
    assert prompt.token_ids.count(bos) == 1 and eos not in prompt.token_ids
    assert prompt.text.startswith("<bos>[user]1")


def test_tasks_by_name(tokenizer):
    config = DataConfig(train="walk", eval="walk", task={"moves": 6}, limit=20, eval_limit=5)
    train = load_prompts(config, split="train", tokenizer=tokenizer)
    held_out = load_prompts(config, split="eval", tokenizer=tokenizer)
    assert len(train.prompts) == 20 and len(held_out.prompts) == 5
    assert count_overlap(train, held_out) == 0
    assert set(train.prompts[0].columns) == {"answer"}
    with pytest.raises(ValueError, match=r"data.task.move = 3: .*did you mean moves\?"):
        load_prompts(DataConfig(train="walk", task={"move": 3}), split="train", tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("config", "split", "message"),
    [
        (DataConfig(), "train", "data.train is not set"),
        (DataConfig(train="walk"), "eval", "data.eval is not set"),
        (DataConfig(train="walk", limit=0), "train", "data.limit = 0: must be at least 1"),
        (DataConfig(eval="walk", eval_limit=0), "eval", "data.eval_limit = 0"),
    ],
)
def test_settings_that_cannot_work(tokenizer, config, split, message):
    with pytest.raises(ValueError, match=message):
        load_prompts(config, split=split, tokenizer=tokenizer)


def test_overlap_counts_train_rows_up_to_white_space(tokenizer):
    train = as_prompts([{"prompt": p} for p in ("a b", "c", "c", "d")], tokenizer=tokenizer)
    held_out = as_prompts([{"prompt": p} for p in ("a  b\n", "c", "e")], tokenizer=tokenizer)
    assert count_overlap(train, held_out) == 3


# order


def test_every_epoch_visits_every_prompt_once_in_an_order_of_its_own():
    order = PromptOrder(11, seed=3)
    epochs = [order.take(11) for _ in range(4)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert PromptOrder(11, seed=4).take(11) != epochs[0]
    assert order.position == 44


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("stop", [0, 1, 6, 7, 8, 20, 34])
def test_position_is_the_whole_state(shuffle, stop):
    whole = PromptOrder(7, seed=0, shuffle=shuffle).take(35)
    first = PromptOrder(7, seed=0, shuffle=shuffle)
    taken = first.take(stop)
    resumed = PromptOrder(7, seed=0, shuffle=shuffle)
    resumed.position = first.position
    rest = [index for _ in range(35 - stop) for index in resumed.take(1)]
    assert taken + rest == whole


def test_order_without_shuffling_and_edges():
    assert PromptOrder(3, seed=0, shuffle=False).take(7) == [0, 1, 2, 0, 1, 2, 0]
    assert PromptOrder(1, seed=-5).take(3) == [0, 0, 0]
    assert PromptOrder(5, seed=-5).take(5) == PromptOrder(5, seed=-5).take(5)
    assert PromptOrder(3, seed=0).take(0) == []
    with pytest.raises(ValueError, match="at least one"):
        PromptOrder(0, seed=0)


def test_the_order_of_a_seed_is_pinned():
    """A change here breaks every saved run's resume."""
    assert PromptOrder(8, seed=0).take(16) == [
        *(2, 4, 3, 6, 5, 0, 1, 7),
        *(1, 3, 7, 6, 0, 4, 2, 5),
    ]


# demonstrations


def test_completions_end_with_eos_and_are_tokenised_alone(tokenizer):
    rows = [{"prompt": "1+1=", "completion": "<think>so</think>2"}]
    found = as_sft_rows(rows, tokenizer=tokenizer)
    [(prompt_ids, completion_ids)] = found.rows
    assert tokenizer.decode(prompt_ids) == "1+1="
    assert completion_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(completion_ids[:-1]) == "<think>so</think>2"
    assert len(completion_ids) == 6  # <think> s o </think> 2 <eos>


def test_sft_sees_the_prompts_that_rl_sees(tokenizer):
    config = DataConfig(train="walk", task={"moves": 4}, template="boxed", limit=5)
    demonstrations = load_sft_rows(
        SFTConfig(task={"p_think": 1.0, "sft_rows": 50}), config, tokenizer=tokenizer
    )
    assert len(demonstrations.rows) == 50  # data.limit is of the prompts
    for prompt_ids, completion_ids in demonstrations.rows:
        prompt = tokenizer.decode(prompt_ids)
        assert prompt.endswith("\\boxed{}.\n\nSolution:")
        completion = tokenizer.decode(completion_ids[:-1])
        end = (int(prompt[0]) + prompt.count("+") - prompt[:6].count("-")) % 10
        assert exact_answer([prompt], [completion], [str(end)]) == [1.0]


def test_messages_and_conversational_completions(chat_tokenizer):
    question, answer = {"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}
    rows = [
        {"messages": [question, answer]},
        {"messages": [question, answer, question, answer]},
        {"prompt": [question], "completion": [answer]},
        {"prompt": "1+1", "completion": [answer]},
    ]
    found = as_sft_rows(rows, tokenizer=chat_tokenizer, template="chat")
    texts = [tuple(map(chat_tokenizer.decode, (p, c[:-1]))) for p, c in found.rows]
    one = ("[user]1+1;[assistant]", "2")
    assert texts == [one, ("[user]1+1;[assistant]2;[user]1+1;[assistant]", "2"), one, one]


def test_a_prompt_that_opens_thinking_takes_the_tag_from_the_completion(tokenizer):
    rows = [{"prompt": "q", "completion": " <think>a</think>b"}]
    [(prompt_ids, ids)] = as_sft_rows(rows, tokenizer=tokenizer, template="r1_zero_think").rows
    assert tokenizer.decode(prompt_ids).endswith("<think>")
    assert tokenizer.decode(ids[:-1]) == "a</think>b"


def test_long_demonstrations_are_dropped_and_counted(tokenizer):
    rows = [{"prompt": "a", "completion": "b" * n} for n in (1, 5, 3)]
    found = as_sft_rows(rows, tokenizer=tokenizer, max_length=5, source="set")
    assert [len(p) + len(c) for p, c in found.rows] == [3, 5] and found.dropped == 1
    assert found.describe() == "set: 2 rows (1 over 5 tokens dropped)"
    with pytest.raises(ValueError, match=r"all 3 rows are longer than 2 tokens; raise sft.max_len"):
        as_sft_rows(rows, tokenizer=tokenizer, max_length=2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"prompt": "a"}], "row 1: no column 'completion'"),
        ([{"prompt": "a", "response": "b"}], r"\{completion: response\}"),
        ([{"prompt": "a", "completion": 3}], "column 'completion' is a number"),
        ([{"messages": [{"role": "user", "content": "a"}]}], "must end with an assistant message"),
        ([{"messages": "a"}], "must be a list of messages"),
    ],
)
def test_bad_demonstrations(tokenizer, rows, message):
    with pytest.raises(ValueError, match=message):
        as_sft_rows(rows, tokenizer=tokenizer, source="set")


def test_sft_needs_a_source_and_an_end_of_sequence():
    tokenizer = char_tokenizer("ab")
    with pytest.raises(ValueError, match=r"sft.train is not set"):
        load_sft_rows(SFTConfig(), DataConfig(), tokenizer=tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        as_sft_rows([{"prompt": "a", "completion": "b"}], tokenizer=tokenizer)


# real rows

COUNTDOWN = "Using the numbers {{ numbers }}, make {{ target }}."


def test_gsm8k_rows_become_prompts_and_score(data_dir, tokenizer):
    rows = read_rows(str(data_dir / "gsm8k" / "test.jsonl"), limit=200)
    ascii_rows = [row for row in rows if row["question"].isascii()]
    found = as_prompts(
        ascii_rows, tokenizer=tokenizer, columns={"prompt": "question"}, template="r1_zero"
    )
    assert len(found.prompts) == len(ascii_rows) > 150
    golds = [row["answer"] for row in ascii_rows]
    right = [f"<think>x</think> <answer> {gold.split('#### ')[1]} </answer>" for gold in golds]
    prompts = [prompt.text for prompt in found.prompts]
    assert exact_answer(prompts, right, golds) == [1.0] * len(golds)
    assert exact_answer(prompts, [text[::-1] for text in right], golds) == [0.0] * len(golds)


def test_countdown_rows_become_prompts_and_their_solutions_score(data_dir, tokenizer):
    path = str(data_dir / "countdown" / "generated_test.jsonl")
    config = DataConfig(train=path, template=COUNTDOWN, limit=300)
    found = load_prompts(config, split="train", tokenizer=tokenizer)
    first = found.prompts[0]
    assert first.text == "Using the numbers [66, 9, 64], make 11."
    columns = {
        key: [prompt.columns[key] for prompt in found.prompts]
        for key in ("numbers", "target", "solution")
    }
    completions = [f"<think>x</think><answer>{text}</answer>" for text in columns["solution"]]
    suite = RewardSuite([countdown])
    prompts = [prompt.text for prompt in found.prompts]
    assert set(suite.score(prompts, completions, None, columns).total) == {1.0}
    columns["target"] = [target + 1 for target in columns["target"]]
    assert set(suite.score(prompts, completions, None, columns).total) == {0.0}

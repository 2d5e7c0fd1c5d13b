"""`thinkrl score`: files in and out, explanations, errors with their row, and alarms."""

from __future__ import annotations

import csv
import datetime
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from thinkrl.grpo.cli import main
from thinkrl.grpo.row_files import read_chunks, row_writer
from thinkrl.grpo.score import parse_kwargs, score_file
from thinkrl.rewards.answer_format import think_format
from thinkrl.rewards.code_tests import code_tests
from thinkrl.rewards.explain import RowScorer
from thinkrl.rewards.math_answer import math_answer
from thinkrl.rewards.registry import BUILTINS

ADDED = ("reward", "explanation", "error")
PAIRS: list[dict[str, Any]] = [
    {"id": "a", "completion": "<think>2+2</think>\\boxed{4}", "gold": "4"},
    {"id": "b", "completion": "\\boxed{\\frac{1}{2}}", "gold": "0.5", "note": None},
    {"id": "c", "completion": "5", "gold": "4", "extra": {"x": [1, 2.5, "\u00e9\U0001f600"]}},
    {"id": "d", "completion": "5", "gold": None},
    {"id": "e", "completion": [{"role": "assistant", "content": "4"}], "gold": ["3", "4"]},
]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(tmp_path: Path, reward: str, source: str, *words: str, out: str = "out.jsonl"):
    target = tmp_path / out
    code = main(["score", "--reward", reward, "--input", source, "--output", str(target), *words])
    return code, target


# the rewards that explain themselves


def test_math_pairs(tmp_path, capsys):
    code, target = run(tmp_path, "math_answer", write_jsonl(tmp_path / "pairs.jsonl", PAIRS))
    assert code == 0
    rows = read(target)
    assert [row["reward"] for row in rows] == [1.0, 1.0, 0.0, None, 1.0]
    for row, given in zip(rows, PAIRS, strict=True):
        assert {key: row[key] for key in given} == given
        assert list(row) == [*given, *ADDED]
    assert [row["error"] is None for row in rows] == [True, True, True, False, True]
    assert "gold None" in rows[3]["error"] and rows[3]["explanation"] is None
    assert rows[0]["explanation"]["extracted"] == ["4"]
    assert rows[2]["explanation"]["status"] == "different"
    assert capsys.readouterr().out == "5 rows, mean reward 0.75, 1 unscored, 1 errors\n"


def test_scores_are_the_reward_functions_own(data_dir):
    lines = (data_dir / "gsm8k" / "test.jsonl").read_text().splitlines()[:40]
    golds = [json.loads(line)["answer"] for line in lines]
    answers = [golds[i - i % 2].rsplit("####", 1)[1] for i in range(len(golds))]
    rows = [{"completion": a, "answer": g} for a, g in zip(answers, golds, strict=True)]
    scored = RowScorer("math_answer").score(rows)
    assert [one.reward for one in scored] == math_answer(["q"] * 40, answers, golds)
    assert {one.reward for one in scored} == {0.0, 1.0}


@pytest.fixture(scope="module")
def sandboxed():
    try:
        RowScorer("code_tests")
    except ValueError as error:
        pytest.skip(str(error))


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


PROGRAMS: list[dict[str, Any]] = [
    {"completion": fenced("print(2 * int(input()))"), "tests": {"inputs": ["2"], "outputs": ["4"]}},
    {
        "completion": fenced("print(3 * int(input()))"),
        "tests": json.dumps({"inputs": ["2", "0"], "outputs": ["4", "0"]}),
    },
    {"completion": "I cannot.", "tests": {"inputs": ["2"], "outputs": ["4"]}},
    {"completion": fenced("print(1)"), "tests": {"input": ["2"]}},
    {"completion": fenced("print(1)"), "tests": None},
]


def test_programs(tmp_path, sandboxed):
    source = write_jsonl(tmp_path / "programs.jsonl", PROGRAMS)
    code, target = run(tmp_path, "code_tests", source)
    rows = read(target)
    assert code == 0 and [row["reward"] for row in rows] == [1.0, 0.0, 0.0, None, None]
    assert [rows[1]["explanation"][key] for key in ("passed", "total", "status")] == [
        *(1, 2, "wrong_answer")
    ]
    assert [case["status"] for case in rows[1]["explanation"]["cases"]] == [
        *("wrong_answer", "passed")
    ]
    assert rows[2]["explanation"]["status"] == "no_code"
    assert "tests" in rows[3]["error"] and rows[4]["error"] == "the row has no tests"

    _, target = run(tmp_path, "code_tests", source, "--kwargs", "mode=fraction", "time_limit_s=5")
    columns = [row["completion"] for row in PROGRAMS[:3]], [row["tests"] for row in PROGRAMS[:3]]
    expected = code_tests(["q"] * 3, *columns, mode="fraction")
    assert [row["reward"] for row in read(target)][:3] == expected == [1.0, 0.5, 0.0]


def test_think_format_says_which_rule_failed(tmp_path):
    texts = {
        "<think>a</think>4": None,
        "4": "does not start with <think>",
        "<think></think>4": "the thinking is empty",
        "<think>a</think>": "the answer is empty",
        "<think>a<think>b</think>4": "<think> stands 2 times, not once",
        "<think>a": "</think> stands 0 times, not once",
        "<think>a</think><answer>4": "<answer> stands 1 times and </answer> 0 times",
        "<think>a</think><answer>4</answer>.": "text after </answer>",
        "<think>a</think><answer 4": "an answer tag without its >",
        "<think>a</think></answer>4<answer>": "</answer> stands before <answer>",
    }
    source = write_jsonl(tmp_path / "t.jsonl", [{"completion": text} for text in texts])
    _, target = run(tmp_path, "think_format", source)
    rows = read(target)
    assert [row["explanation"]["fault"] for row in rows] == list(texts.values())
    assert [row["reward"] for row in rows] == think_format(["q"] * len(texts), list(texts))

    prefilled = [
        {"completion": "a</think>4", "prompt": "<think>\n", "truncated": True},
        {"completion": "a</think>4<ans", "prompt": [{"role": "user", "content": "q"}],
         "prompt_text": "<think>\n", "truncated": True},
        {"completion": "a</think><answer>4</answer>", "prompt": "<think>"},
    ]  # fmt: skip
    source = write_jsonl(tmp_path / "p.jsonl", prefilled[:1])
    assert read(run(tmp_path, "think_format", source)[1])[0]["reward"] == 1.0
    source = write_jsonl(tmp_path / "p.jsonl", prefilled[1:2])
    fault = read(run(tmp_path, "think_format", source)[1])[0]["explanation"]["fault"]
    assert fault == "cut off inside a tag"
    source = write_jsonl(tmp_path / "p.jsonl", [prefilled[0], prefilled[2]])
    _, target = run(tmp_path, "think_format", source, "--kwargs", "answer_tags=true")
    assert [row["explanation"]["fault"] for row in read(target)] == ["no <answer> pair", None]


# any other reward

PLUGIN = """
def plain(completions, level, log_extra, bonus=0):
    log_extra("seen", [c.upper() for c in completions])
    return [l + bonus for l in level]

def picky(completions, **_):
    return [1 / (len(c) - 3) for c in completions]

def explained(completions, **_):
    return [1.0] * len(completions)
explained.explain = lambda completions, prompts: [
    {"said": p + c} for p, c in zip(prompts, completions)]

def one(completion, prompt):
    return len(prompt + completion)
one.explain = lambda completion: {"length": len(completion)}

async def waits(completions, **_):
    return [None] * len(completions)
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    return path


@pytest.mark.parametrize(
    ("function", "words", "rewards", "grounds"),
    [
        ("plain", (), [1.0, 2.0], [{"seen": "A"}, {"seen": "BB"}]),
        ("plain", ("--kwargs", "bonus=0.5"), [1.5, 2.5], [{"seen": "A"}, {"seen": "BB"}]),
        ("explained", (), [1.0, 1.0], [{"said": "pa"}, {"said": "bb"}]),
        ("one", (), [2.0, 2.0], [{"length": 1}, {"length": 2}]),
        ("waits", (), [None, None], [None, None]),
    ],
)
def test_other_peoples_rewards(tmp_path, plugin, function, words, rewards, grounds):
    rows = [{"completion": "a", "prompt": "p", "level": 1}, {"completion": "bb", "level": 2}]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    code, target = run(tmp_path, f"{plugin}:{function}", source, *words)
    assert code == 0
    assert [row["reward"] for row in read(target)] == rewards
    assert [row["explanation"] for row in read(target)] == grounds


def test_a_row_that_makes_the_function_raise_has_the_error_and_the_others_their_rewards(
    tmp_path, plugin
):
    rows = [{"completion": "x" * length} for length in (1, 2, 3, 4, 3, 5)]
    code, target = run(tmp_path, f"{plugin}:picky", write_jsonl(tmp_path / "in.jsonl", rows))
    scored = read(target)
    assert code == 0
    assert [row["reward"] for row in scored] == [-0.5, -1.0, None, 1.0, None, 0.5]
    error = "ZeroDivisionError: division by zero"
    assert [row["error"] for row in scored] == [None, None, error, None, error, None]


def test_every_built_in_reward_can_be_tried():
    row = {"completion": "<think>a</think>4", "answer": "4", "completion_ids": [1, 2, 3],
           "numbers": [4], "target_length": 3, "tests": None}  # fmt: skip
    kwargs = {
        "soft_overlong": {"max_completion_len": 10, "soft_punish_cache": 2},
        "cosine_length": {"max_len": 10},
        "regex": {"pattern": "4"},
        "json_schema": {"schema": {"type": "integer"}},
        "countdown": {},
    }
    for name in BUILTINS.keys() - {"model_judge", "code_tests"}:
        full = row | ({"target": 4} if name == "countdown" else {})
        scorer = RowScorer(name, kwargs.get(name))
        assert scorer.fault(full) is None
        (one,) = scorer.score([full])
        assert one.error is None, (name, one)
        assert one.reward is not None or name == "multiple_choice"
        scorer.close()


# mistakes


@pytest.mark.parametrize(
    ("text", "reward", "message"),
    [
        ('{"completion": "a"}\n{"completion": \n', "tag_count", "line 2: malformed JSON"),
        ('{"completion": "a"}\n[1]\n', "tag_count", "line 2: must be an object, is a list"),
        ('{"completion": "a"}\n{"c": "a"}\n', "tag_count", "row 2: no column completion"),
        ('{"completion": "a"}\n{"completion": 3}\n', "tag_count", "row 2: completion is 3"),
        ('{"completion": null}\n', "tag_count", "row 1: completion is null"),
        ('{"completion": "a", "gold": 1}\n{"completion": "b"}\n', "math_answer",
         r"row 2: no column answer \(or gold\), which math_answer needs; columns: completion"),
        ('{"completion": "a"}\n', "code_tests", "row 1: no column tests"),
        ('{"completion": "a"}\n', "repetition", "row 1: no column completion_ids"),
        ('{"completion": "a"}\n{"completion": "\\ud83d"}\n\xff\n', "tag_count",
         "line 3: not UTF-8"),
    ],
)  # fmt: skip
def test_bad_rows_are_exit_code_2_with_their_number(
    tmp_path, capsys, request, text, reward, message
):
    if reward == "code_tests":
        request.getfixturevalue("sandboxed")
    (tmp_path / "in.jsonl").write_bytes(text.encode("latin-1"))
    code, target = run(tmp_path, reward, str(tmp_path / "in.jsonl"))
    captured = capsys.readouterr()
    assert code == 2 and captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("thinkrl: ")
    assert re.search(message, captured.err), captured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"] and not target.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reward", "math_anser"], "did you mean math_answer?"),
        (["--input", "{folder}/nothing.jsonl"], "nothing.jsonl: no such file"),
        (["--input", "{folder}/in.txt"], "in.txt: must end in .jsonl, .parquet, .csv"),
        (["--output", "{folder}/out.txt"], "out.txt: must end in .jsonl, .parquet, .csv"),
        (["--output", "{folder}/in.jsonl"], "is the input"),
        (["--output", "{folder}/no/out.jsonl"], "there is no folder"),
        (["--kwargs", "bonus"], "--kwargs 'bonus': write key=value"),
        (["--kwargs", "answer_tag=1"], "unknown keyword answer_tag = 1; did you mean answer_tags"),
        (["--reward", "soft_overlong", "--kwargs", "max_completion_len=1", "soft_punish_cache=2"],
         "soft_punish_cache = 2: must be between 0 and max_completion_len = 1"),
        (["--rewards", "a"], "unrecognized arguments"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(tmp_path, capsys, words, message):
    source = write_jsonl(tmp_path / "in.jsonl", PAIRS)
    options = {"--reward": "think_format", "--input": source, "--output": str(tmp_path / "o.jsonl")}
    line = ["score"]
    for name, value in options.items():
        line += [name, value] if name not in words else []
    assert main([*line, *(word.format(folder=tmp_path) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()


def test_what_stands_after_kwargs_is_yaml():
    assert parse_kwargs(["a=1e-3", "b=[x, 2]", "c=text: {", "d=a=b", "e=null"]) == {
        **{"a": 0.001, "b": ["x", 2], "c": "text: {", "d": "a=b", "e": None}
    }


# alarms


@pytest.mark.parametrize(
    ("answers", "golds", "alarm"),
    [
        ("111", "234", "always 0: none of 3 rows earned anything"),
        ("111", "111", "constant: all 3 rows earned 1;"),
        ("11", [None, ""], "all unscored: no row got a reward"),
        ("112", "111", None),
        ("1", "2", None),  # one row proves nothing
        ("", "", None),
    ],
)
def test_alarms(tmp_path, capsys, answers, golds, alarm):
    rows = [{"completion": a, "answer": g} for a, g in zip(answers, golds, strict=True)]
    code, _ = run(tmp_path, "exact_answer", write_jsonl(tmp_path / "in.jsonl", rows))
    captured = capsys.readouterr()
    assert code == 0 and captured.out.startswith(f"{len(rows)} rows, ")
    assert captured.err == "" if alarm is None else f"thinkrl: warning: {alarm}" in captured.err


def test_an_alarm_shows_the_first_error(tmp_path, capsys):
    rows = [{"completion": "1", "gold": None}] * 2
    run(tmp_path, "math_answer", write_jsonl(tmp_path / "in.jsonl", rows))
    assert "all unscored: no row got a reward; first error: row 1: " in capsys.readouterr().err


# files


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("size", [1, 2, 100])
def test_from_jsonl_to_every_format_in_chunks_of_any_size(tmp_path, ending, size):
    source = write_jsonl(tmp_path / "in.jsonl", [PAIRS[i % 5] | {"n": i} for i in range(13)])
    if ending != "jsonl" and size < 5:  # there the first chunk says which columns there are
        rows = [{"note": None, "extra": None, **PAIRS[i % 5], "n": i} for i in range(13)]
        source = write_jsonl(tmp_path / "in.jsonl", rows)
    target = tmp_path / f"out.{ending}"
    tally = score_file("math_answer", source, str(target), chunk_rows=size)
    assert (tally.rows, tally.unscored, tally.errors) == (13, 2, 2)
    (chunk,) = [c for c in read_chunks(str(target), size=100) if c.rows]
    rows: list[dict[str, Any]] = [
        {k: None if v == "" else v for k, v in row.items()} for row in chunk.rows
    ]
    rewards = [1.0, 1.0, 0.0, None, 1.0]
    assert [None if r["reward"] is None else float(r["reward"]) for r in rows] == [
        rewards[i % 5] for i in range(13)
    ]
    assert [int(row["n"]) for row in rows] == list(range(13))
    explanation, extra = rows[2]["explanation"], rows[2]["extra"]
    if ending != "jsonl":
        explanation, extra = json.loads(explanation), json.loads(extra)
    assert explanation["status"] == "different" and extra == PAIRS[2]["extra"]


def test_parquet_keeps_types_and_order(tmp_path):
    day = datetime.date(2026, 1, 2)
    table = pyarrow.table(
        {
            "completion": ["1", "2", "3"],
            "answer": ["1", "1", None],
            "when": [day, None, day],
            "ids": pyarrow.array([[1], [2, 3], []], pyarrow.list_(pyarrow.int32())),
            "reward": [9.0, 8.0, 7.0],
        }
    ).replace_schema_metadata({"made": "by hand"})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    for size in (1, 2, 3):
        target = tmp_path / "out.parquet"
        score_file("exact_answer", str(tmp_path / "in.parquet"), str(target), chunk_rows=size)
        out = pyarrow.parquet.read_table(target)
        assert out.column_names == [
            *("completion", "answer", "when", "ids", "input_reward", *ADDED)
        ]
        assert out.schema.field("ids").type == table.schema.field("ids").type
        assert out.drop_columns(list(ADDED)).rename_columns(table.column_names) == table
        assert out["reward"].to_pylist() == [1.0, 0.0, None]
        assert (out.schema.metadata or {}).get(b"made") == b"by hand"
    score_file("exact_answer", str(tmp_path / "in.parquet"), str(tmp_path / "out.jsonl"))
    assert read(tmp_path / "out.jsonl")[0]["when"] == "2026-01-02"


def test_csv_is_quoted_and_keeps_its_columns(tmp_path):
    nasty = 'a,"b"\nc'
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["note", "completion", "answer"], [nasty, "4", "4"]])
    for ending in ("csv", "jsonl"):
        target = tmp_path / f"out.{ending}"
        score_file("exact_answer", str(tmp_path / "in.csv"), str(target))
        (row,) = next(read_chunks(str(target), size=9)).rows
        assert list(row) == ["note", "completion", "answer", *ADDED]
        assert row["note"] == nasty and float(row["reward"]) == 1.0


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_no_rows_give_a_file_without_rows(tmp_path, ending):
    (tmp_path / "in.jsonl").write_text("\n")
    tally = score_file("tag_count", str(tmp_path / "in.jsonl"), str(tmp_path / f"out.{ending}"))
    assert tally.rows == 0 and "0 rows, no mean" in tally.summary()
    assert next(read_chunks(str(tmp_path / f"out.{ending}"), size=1)).rows == []
    pyarrow.parquet.write_table(pyarrow.table({"completion": [""][:0]}), tmp_path / "in.parquet")
    score_file("tag_count", str(tmp_path / "in.parquet"), str(tmp_path / f"out.{ending}"))
    assert next(read_chunks(str(tmp_path / f"out.{ending}"), size=1)).rows == []


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ({"completion": "a", "n": 1, "new": 1}, "row 2: a column 'new' that the first rows do not"),
        ({"completion": "a", "n": "x"}, "rows 2 to 2: column 'n' is no longer int64"),
    ],
)
def test_rows_that_do_not_fit_a_table_are_named(tmp_path, later, message):
    source = write_jsonl(tmp_path / "in.jsonl", [{"completion": "a", "n": 1}, later])
    with pytest.raises(ValueError, match=message):
        score_file("tag_count", source, str(tmp_path / "out.parquet"), chunk_rows=1)
    assert not list(tmp_path.glob("out*"))
    score_file("tag_count", source, str(tmp_path / "out.jsonl"), chunk_rows=1)
    assert len(read(tmp_path / "out.jsonl")) == 2


def test_a_broken_parquet_file_is_a_mistake_of_the_user(tmp_path, capsys):
    (tmp_path / "in.parquet").write_bytes(b"PAR1 no PAR1")
    assert run(tmp_path, "tag_count", str(tmp_path / "in.parquet"))[0] == 2
    assert "not readable as parquet at row 1" in capsys.readouterr().err


def test_both_names_of_a_column_are_refused(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"completion": "a", "error": 1, "input_error": 2}])
    with pytest.raises(ValueError, match=r"row 1: has both error and input_error; rename one"):
        score_file("tag_count", source, str(tmp_path / "out.jsonl"))


def test_what_was_there_stays_until_the_new_file_is_whole(tmp_path):
    target = tmp_path / "out.jsonl"
    target.write_text("old")
    with pytest.raises(KeyError), row_writer(str(target)) as writer:
        for chunk in read_chunks(write_jsonl(tmp_path / "in.jsonl", PAIRS), size=1):
            writer.write(chunk, {})
            assert target.read_text() == "old"
        raise KeyError
    assert target.read_text() == "old" and not (tmp_path / "out.jsonl.partial").exists()


def test_unpaired_surrogates_survive(tmp_path):
    line = '{"completion": "\\ud83d", "answer": "\u00e9"}\n'
    (tmp_path / "in.jsonl").write_text(line, encoding="utf-8")
    for ending in ("jsonl", "csv", "parquet"):
        score_file("exact_answer", str(tmp_path / "in.jsonl"), str(tmp_path / f"o.{ending}"))
    (row,) = read(tmp_path / "o.jsonl")
    assert row["completion"] == "\ud83d" and row["answer"] == "\u00e9"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Peak memory over 40,000 rows of 2 kB is not much above that over 400."""
    script = (
        "import re, sys; from thinkrl.grpo.cli import main; code = main(sys.argv[1:]); "
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]); sys.exit(code)"
    )
    peaks = []
    for count in (400, 40_000):
        source = tmp_path / "in.jsonl"
        line = json.dumps({"completion": "<think>" + "x" * 2000 + "</think>4", "answer": "4"})
        source.write_text((line + "\n") * count)
        words = ["score", "--reward", "exact_answer", "--input", str(source)]
        target = tmp_path / "out.jsonl"
        done = subprocess.run(
            [sys.executable, "-c", script, *words, "--output", str(target)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        summary, peak = done.stdout.splitlines()
        assert summary == f"{count:,} rows, mean reward 1, 0 unscored, 0 errors"
        assert "constant: all" in done.stderr
        peaks.append(int(peak))
    assert target.stat().st_size > 80e6
    assert peaks[1] - peaks[0] < 30_000  # kB; the file has 80,000

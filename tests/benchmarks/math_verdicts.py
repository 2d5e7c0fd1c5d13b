"""Verdicts and speed of the maths reward beside math-verify, on the same rows in the same run.

    python tests/benchmarks/math_verdicts.py [--rows 1500] [--output results/math_verdicts.json]

Sets: MATH and GSM8K golds restated in other notation (right), the same golds with one digit, sign,
subscript, unit, exponent or item changed (wrong), and the labelled pairs of tests/math_pairs.py. A
perturbed gold counts as wrong only when it is not the same text; "-0" is left out. math-verify gets
`parse("\\boxed{...}")` on both sides, the call that its authors recommend.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from thinkrl.rewards.math_answer import verify

ROOT = Path(__file__).resolve().parent.parent.parent
Pair = tuple[str, str, bool]  # gold, completion, right


def data_dir() -> Path:
    return Path(os.environ.get("THINKRL_DATA") or ROOT.parent / "shared" / "data")


def column(name: str) -> list[str]:
    folder = data_dir() / name
    answers = [json.loads(line)["answer"] for line in (folder / "test.jsonl").open()]
    return sorted({answer.rpartition("####")[2].strip() for answer in answers} - {""})


def boxed(answer: str) -> str:
    return f"So the answer is $\\boxed{{{answer}}}$."


def restated(golds: list[str], draw: random.Random) -> Iterator[Pair]:
    ways: list[Callable[[str], str]] = [
        str,
        lambda g: g.replace(r"\frac", r"\dfrac"),
        lambda g: re.sub(r"\\frac\{([0-9])\}\{([0-9])\}", r"\\frac\1\2", g),
        lambda g: re.sub(r"(?<![0-9 }])\\[dt]?frac\{(-?[0-9]+)\}\{([0-9]+)\}", r"{\1/\2}", g),
        lambda g: g.replace(r",\!", ","),
        lambda g: g.replace("^\\circ", r"^{\circ}").replace(" ", ""),
    ]
    for gold in golds:
        way = draw.choice(ways)
        if "\\text" not in gold and "\\mbox" not in gold and "\\begin" not in gold:
            yield gold, boxed(way(gold)), True


def perturbed(golds: list[str], draw: random.Random) -> Iterator[Pair]:
    changes = [digit, sign, subscript, exponent, unit, item]
    for gold in golds:
        for change in changes:
            other = change(gold, draw)
            if other and other.replace(" ", "") != gold.replace(" ", ""):
                yield gold, boxed(other), False


def digit(gold: str, draw: random.Random) -> str | None:
    places = [m.start() for m in re.finditer("[0-9]", gold)]
    if not places or re.search("0[^0-9.,]*0", gold):
        return None
    at = draw.choice(places)
    return gold[:at] + str((int(gold[at]) + draw.randint(1, 8)) % 10) + gold[at + 1 :]


def sign(gold: str, draw: random.Random) -> str | None:
    if "-" in gold:
        return gold.replace("-", "", 1) if draw.random() < 0.5 else gold.replace("-", "+", 1)
    zero = gold.startswith("0") or re.fullmatch(r"(?:\\(?:begin|end)\{pmatrix\}|[0\s&\\])+", gold)
    return None if zero or "\\text" in gold else "-" + gold


def subscript(gold: str, draw: random.Random) -> str | None:
    found = re.fullmatch(r"([0-9]+)_\{?([0-9]+)\}?", gold)
    return f"{found[1]}_{{{int(found[2]) + 1}}}" if found else None


def exponent(gold: str, draw: random.Random) -> str | None:
    found = re.search(r"\^([2-9])", gold)
    return gold[: found.start()] + f"^{int(found[1]) - 1}" + gold[found.end() :] if found else None


def unit(gold: str, draw: random.Random) -> str | None:
    for old, new in (
        ("cm", "m"),
        ("inches", "feet"),
        ("\\$", "\\text{cents } "),
        ("degrees", "radians"),
    ):
        if old in gold:
            return gold.replace(old, new, 1)
    return None


def item(gold: str, draw: random.Random) -> str | None:
    parts = re.split(r",(?![\\!]|[0-9]{3})", gold)
    return ",".join(parts[:-1]) if len(parts) > 1 and "(" not in gold and "[" not in gold else None


def labelled() -> list[Pair]:
    spec = importlib.util.spec_from_file_location("math_pairs", ROOT / "tests" / "math_pairs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pairs = [(gold, boxed(a), True) for group in module.RIGHT.values() for gold, a in group]
    pairs += [(gold, boxed(a), False) for group in module.WRONG.values() for gold, a in group]
    return pairs


def with_ours(gold: str, completion: str) -> bool:
    return verify(completion, gold)


def with_math_verify(gold: str, completion: str) -> bool:
    from math_verify import parse
    from math_verify import verify as compare

    try:
        return bool(compare(parse(f"\\boxed{{{gold}}}"), parse(completion)))
    except BaseException as error:  # its timeout is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return False


def measure(grader: Callable[[str, str], bool], pairs: list[Pair]) -> dict[str, Any]:
    for gold, completion, _ in pairs[:20]:
        grader(gold, completion)
    times, right_accepted, wrong_accepted, examples = [], 0, 0, []
    for gold, completion, right in pairs:
        started = time.perf_counter()
        found = grader(gold, completion)
        times.append(1000 * (time.perf_counter() - started))
        right_accepted += found and right
        wrong_accepted += found and not right
        if found != right and len(examples) < 12:
            examples.append([gold, completion])
    times.sort()
    rights = sum(right for *_, right in pairs)
    wrongs = len(pairs) - rights
    return {
        "right": rights,
        "right_accepted_pct": round(100 * right_accepted / rights, 2) if rights else None,
        "wrong": wrongs,
        "wrong_accepted_pct": round(100 * wrong_accepted / wrongs, 2) if wrongs else None,
        "median_ms": round(times[len(times) // 2], 3),
        "p99_ms": round(times[int(0.99 * len(times))], 2),
        "max_ms": round(times[-1], 1),
        "errors": examples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1500, help="pairs of each set")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    draw = random.Random(11)
    math, gsm8k = column("math"), column("gsm8k")
    sets: dict[str, list[Pair]] = {
        "MATH restated": list(restated(math, draw)),
        "MATH perturbed": list(perturbed(math, draw)),
        "GSM8K restated": [
            (g, boxed(w(g)), True) for g in gsm8k for w in (str, "{}.0".format, "\\${}".format)
        ],
        "GSM8K perturbed": list(perturbed(gsm8k, draw)),
        "labelled pairs": labelled(),
    }
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "sets": {},
    }
    graders = {"thinkrl": with_ours, "math-verify": with_math_verify}
    print(
        f"{'set':<18}{'grader':<14}{'right':>7}{'ok %':>8}{'wrong':>7}{'bad %':>8}"
        f"{'median':>9}{'p99 ms':>9}{'max':>9}"
    )
    for name, pairs in sets.items():
        if len(pairs) > options.rows:
            pairs = draw.sample(pairs, options.rows)
        report["sets"][name] = {}
        for grader, call in graders.items():
            row = measure(call, pairs)
            report["sets"][name][grader] = row
            cells = (
                row["right"],
                row["right_accepted_pct"],
                row["wrong"],
                row["wrong_accepted_pct"],
            )
            shown = [("-" if c is None else str(c)) for c in cells]
            print(
                f"{name:<18}{grader:<14}{shown[0]:>7}{shown[1]:>8}{shown[2]:>7}{shown[3]:>8}"
                f"{row['median_ms']:>9}{row['p99_ms']:>9}{row['max_ms']:>9}",
                flush=True,
            )
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

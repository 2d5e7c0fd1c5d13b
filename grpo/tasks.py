"""Built-in generated tasks: offline, exact answers, and a teacher whose thinking is deliberate.

A task draws problems (`rows`) and demonstrations (`sft_rows`). In only a share `p_think` of the
demonstrations the teacher thinks and is right; in the others it guesses at random. A model warmed
up on them knows how to think but rarely does, which leaves reinforcement learning something to
find. Train and eval never share a problem: the split is a hash of the problem itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

Row = dict[str, Any]

EVAL_SHARE = 10  # one problem in ten belongs to the eval split
MAX_REDRAWS = 2000  # a task with few problems ends here instead of searching for new ones for ever


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every task shares: its size, its seed and how often the teacher thinks."""

    seed: int = 0
    train_rows: int = 8192
    eval_rows: int = 1024
    sft_rows: int = 32768
    p_think: float = 0.25
    alphabet: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name in ("train_rows", "eval_rows", "sft_rows"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check("p_think", 0 <= self.p_think <= 1, "a share between 0 and 1")

    def _check(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ValueError(f"data.task.{name} = {getattr(self, name)!r}: must be {wanted}")

    def draw(self, rng: random.Random) -> Row:
        """One problem: prompt, answer, and the columns that its reward reads."""
        raise TypeError("a task defines draw")

    def identity(self, row: Row) -> str:
        """Text that equal problems share; it decides the split."""
        return row["prompt"]

    def thought(self, row: Row, rng: random.Random) -> str:
        """Thinking that leads to the row's answer."""
        raise TypeError("a task defines thought")

    def guess(self, row: Row, rng: random.Random) -> str:
        """A random answer of the right form."""
        raise TypeError("a task defines guess")

    def rows(self, split: str, *, limit: int | None = None) -> list[Row]:
        """The distinct problems of a split ("train" or "eval"), the same for the same seed."""
        count = self.eval_rows if split == "eval" else self.train_rows
        count = count if limit is None else min(count, limit)
        rng = random.Random(f"{self.seed}/{split}/problems")
        seen: dict[str, Row] = {}
        redraws = 0
        for row in self._draw_forever(split, rng):
            if len(seen) >= count or redraws > MAX_REDRAWS:
                break
            identity = self.identity(row)
            redraws = redraws + 1 if identity in seen else 0
            seen.setdefault(identity, row)
        return list(seen.values())

    def demonstrations(self, *, limit: int | None = None) -> list[Row]:
        """`sft_rows` rows with a prompt and a completion, from the train split's problems."""
        count = self.sft_rows if limit is None else min(self.sft_rows, limit)
        rng = random.Random(f"{self.seed}/train/demonstrations")
        problems = self._draw_forever("train", rng)
        return [self._demonstrate(row, rng) for _, row in zip(range(count), problems, strict=False)]

    def _demonstrate(self, row: Row, rng: random.Random) -> Row:
        if rng.random() < self.p_think:
            completion = f"<think>{self.thought(row, rng)}</think>{row['answer']}"
        else:
            completion = f"<think></think>{self.guess(row, rng)}"
        return {**row, "completion": completion}

    def _draw_forever(self, split: str, rng: random.Random) -> Iterator[Row]:
        """Problems of one split; ends when the split seems to have none."""
        misses = 0
        while misses <= MAX_REDRAWS:
            row = self.draw(rng)
            is_eval = zlib.crc32(self.identity(row).encode()) % EVAL_SHARE == 0
            misses = misses + 1 if is_eval != (split == "eval") else 0
            if misses == 0:
                yield row


@dataclass(frozen=True, kw_only=True)
class Walk(Task):
    """Where does a walk of +1 and -1 steps modulo 10 end? `7-+-++++-+-++=` is 1.

    Its thinking is the running position, one digit a move. Without it the answer needs a sum over
    the whole prompt in one token, which a small model cannot do: thinking is what pays.
    """

    moves: int = 12
    alphabet: ClassVar[str] = "0123456789+-="

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("moves", 1 <= self.moves <= 256, "between 1 and 256")

    def draw(self, rng: random.Random) -> Row:
        start, bits = rng.randrange(10), rng.getrandbits(self.moves)
        steps = "".join("+" if bits >> i & 1 else "-" for i in range(self.moves))
        end = (start + 2 * bits.bit_count() - self.moves) % 10
        return {"prompt": f"{start}{steps}=", "answer": str(end)}

    def thought(self, row: Row, rng: random.Random) -> str:
        position, trail = int(row["prompt"][0]), []
        for step in row["prompt"][1:-1]:
            position = (position + (1 if step == "+" else -1)) % 10
            trail.append(str(position))
        return "".join(trail)

    def guess(self, row: Row, rng: random.Random) -> str:
        return str(rng.randrange(10))


@dataclass(frozen=True, kw_only=True)
class Arithmetic(Task):
    """Sums, differences and products of whole numbers, with the schoolbook columns as thinking."""

    digits: int = 2
    operations: str = "+-"
    alphabet: ClassVar[str] = "0123456789+-*=,"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("digits", 1 <= self.digits <= 50, "between 1 and 50")
        fits = self.operations != "" and set(self.operations) <= set("+-*")
        self._check("operations", fits, "some of + - *, like '+-'")

    def draw(self, rng: random.Random) -> Row:
        a, b = rng.randrange(10**self.digits), rng.randrange(10**self.digits)
        operation = rng.choice(self.operations)
        if operation == "-":
            a, b = max(a, b), min(a, b)
        value = {"+": a + b, "-": a - b, "*": a * b}[operation]
        return {"prompt": f"{a}{operation}{b}=", "answer": str(value)}

    def thought(self, row: Row, rng: random.Random) -> str:
        operation = next(sign for sign in "+-*" if sign in row["prompt"])
        a, b = row["prompt"].rstrip("=").split(operation)
        if operation == "*":
            return ",".join(
                f"{a}*{digit}{'0' * place}={int(a) * int(digit) * 10**place}"
                for place, digit in enumerate(reversed(b))
            )
        return ",".join(_columns(a, b, operation))

    def guess(self, row: Row, rng: random.Random) -> str:
        return str(rng.randrange(10 ** len(row["answer"])))


def _columns(a: str, b: str, operation: str) -> Iterator[str]:
    """Column addition or subtraction from the right: digits and carry, as `7+8+0=15`."""
    width, carry = max(len(a), len(b)), 0
    for top, low in zip(reversed(a.zfill(width)), reversed(b.zfill(width)), strict=True):
        x, y = int(top), int(low)
        if operation == "+":
            yield f"{x}+{y}+{carry}={x + y + carry}"
            carry = (x + y + carry) // 10
        else:
            borrowed = x - y - carry < 0
            x += 10 * borrowed
            yield f"{x}-{y}-{carry}={x - y - carry}"
            carry = int(borrowed)


@dataclass(frozen=True)
class _Expression:
    text: str
    value: int
    precedence: int = 3  # 1: + -   2: * /   3: a number
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Countdown(Task):
    """Reach a target from some numbers, each used once, with + - * /; always solvable.

    Columns `numbers` and `target` are what the `countdown` reward reads. The thinking shows
    `wrong_tries` or fewer failed attempts before the one that succeeds.
    """

    count: int = 3
    max_number: int = 20
    max_target: int = 100
    wrong_tries: int = 2
    alphabet: ClassVar[str] = "0123456789+-*/()=,:;"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("count", 2 <= self.count <= 8, "between 2 and 8")
        self._check("max_number", self.max_number >= 2, "at least 2")
        self._check("max_target", self.max_target >= 10, "at least 10")
        self._check("wrong_tries", 0 <= self.wrong_tries <= 20, "between 0 and 20")

    def draw(self, rng: random.Random) -> Row:
        while True:
            numbers = [rng.randint(1, self.max_number) for _ in range(self.count)]
            solution = _random_expression(numbers, rng)
            if 1 <= solution.value <= self.max_target:
                break
        return {
            "prompt": f"{','.join(map(str, numbers))}={solution.value}:",
            "answer": solution.text,
            "numbers": numbers,
            "target": solution.value,
            "steps": ",".join(solution.steps),
        }

    def identity(self, row: Row) -> str:
        return f"{sorted(row['numbers'])}={row['target']}"

    def thought(self, row: Row, rng: random.Random) -> str:
        tries = [
            ",".join(attempt.steps)
            for attempt in (
                _random_expression(row["numbers"], rng)
                for _ in range(rng.randint(0, self.wrong_tries))
            )
            if attempt.value != row["target"]
        ]
        return ";".join([*tries, row["steps"]])

    def guess(self, row: Row, rng: random.Random) -> str:
        return _random_expression(row["numbers"], rng).text


def _random_expression(numbers: list[int], rng: random.Random) -> _Expression:
    """The numbers combined two at a time by random operations that stay whole and positive."""
    pool = [_Expression(str(number), number) for number in numbers]
    while len(pool) > 1:
        a, b = (pool.pop(rng.randrange(len(pool))) for _ in range(2))
        if a.value < b.value:
            a, b = b, a
        choices = "+*" + "-" * (a.value > b.value) + "/" * (a.value % b.value == 0)
        pool.append(_combine(a, rng.choice(choices), b))
    return pool[0]


def _combine(a: _Expression, operation: str, b: _Expression) -> _Expression:
    value = {
        "+": a.value + b.value,
        "-": a.value - b.value,
        "*": a.value * b.value,
        "/": a.value // b.value,
    }[operation]
    precedence = 1 if operation in "+-" else 2
    left = a.text if a.precedence >= precedence else f"({a.text})"
    tight = b.precedence > precedence or (b.precedence == precedence and operation in "+*")
    right = b.text if tight else f"({b.text})"
    steps = (*a.steps, *b.steps, f"{a.value}{operation}{b.value}={value}")
    return _Expression(f"{left}{operation}{right}", value, precedence, steps)


TASKS: dict[str, type[Task]] = {"walk": Walk, "countdown": Countdown, "arithmetic": Arithmetic}


def make_task(name: str, arguments: dict[str, Any] | None = None) -> Task:
    """A built-in task by name. Raises ValueError for an unknown name, argument or value."""
    if name not in TASKS:
        raise ValueError(f"task {name!r}: not built in; tasks: {', '.join(TASKS)}")
    kind = TASKS[name]
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for key, value in (arguments or {}).items():
        if key not in defaults:
            close = difflib.get_close_matches(key, defaults, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"arguments: {', '.join(defaults)}"
            raise ValueError(f"data.task.{key} = {value!r}: unknown argument of {name}; {hint}")
        wanted = type(defaults[key])
        accepted = (int, float) if wanted is float else wanted
        if not isinstance(value, accepted) or isinstance(value, bool):
            kinds = {int: "a whole number", float: "a number", str: "text"}
            raise ValueError(f"data.task.{key} = {value!r}: must be {kinds[wanted]}")
    return kind(**(arguments or {}))

"""Finding the program in a completion."""

from __future__ import annotations

import pytest
from thinkrl.rewards.code_extract import extract_code

CODE = "def f(x):\n    return x + 1\n"
OTHER = "def f(x):\n    return 0\n"


@pytest.mark.parametrize(
    "completion",
    [
        f"```python\n{CODE}```",
        f"```py\n{CODE}```",
        f"```python3\n{CODE}```",
        f"```Python\n{CODE}```",
        f"```python3.11\n{CODE}```",
        f'```python title="a.py"\n{CODE}```',
        f"```\n{CODE}```",
        f"~~~python\n{CODE}~~~",
        f"````python\n{CODE}````",
        f"```python\r\n{CODE}```".replace("\n", "\r\n").replace("\r\r", "\r"),
        f"Here it is:\n\n```python\n{CODE}```\nIt adds one.",
        f"```python\n{OTHER}```\nBetter:\n```python\n{CODE}```",
        f"```python\n{OTHER}```\nBetter:\n```\n{CODE}```",
        f"```python\n{CODE}```\nIt prints\n```\n5\n```",
        f"```python\n{CODE}```\nRun it:\n```bash\npython a.py\n```",
        f"```cpp\nint main() {{}}\n```\n```python\n{CODE}```\n```text\nx = 1\n```",
        f"<think>\n```python\n{OTHER}```\n</think>\n```python\n{CODE}```",
        f"```python\n{OTHER}```\n</think>\n```python\n{CODE}```",
        f"<think>x</think><answer>\n{CODE}</answer>",
        f"<think>x</think><answer>```python\n{CODE}```</answer>",
        f"```python\n{OTHER}```\n<answer>\n{CODE}</answer>",
        f"<answer>{OTHER}</answer> or <answer>\n{CODE}</answer>",
        f"<answer>\n{CODE}",
        CODE,
        f"```python\n{CODE}",
        f"```python\n{CODE}```<|im_end|>",
        f"{CODE}<|eot_id|>\n",
        f"Here is my solution.\n\n{CODE}\nThis adds one to x.",
        f"- a list item\n  ```python\n  {CODE.strip().replace(chr(10), chr(10) + '  ')}\n  ```",
        f"> ```python\n> {CODE.strip().replace(chr(10), chr(10) + '> ')}\n> ```",
    ],
)
def test_finds_the_program(completion: str) -> None:
    code = extract_code(completion)
    assert code is not None
    assert code.strip() == CODE.strip()


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "I do not know.",
        f"<think>\n```python\n{CODE}```",
        f"<think>\n```python\n{CODE}```\n</think>\nThat is all.",
        f"```python\n{CODE}```\n</think>",
        "```cpp\nint main() { return 0; }\n```",
        "```python\n```",
    ],
)
def test_finds_none(completion: str) -> None:
    assert extract_code(completion) is None


def test_a_bare_body_keeps_its_indentation() -> None:
    assert extract_code("    return x + 1\n") == "    return x + 1\n"


def test_a_fence_on_one_line() -> None:
    code = extract_code("Use ```python print(input())```.")
    assert code is not None
    assert code.strip() == "print(input())"


@pytest.mark.parametrize(
    "text",
    [
        "```" * 300_000,
        "```python\n" * 100_000,
        "<think>" * 200_000,
        "<answer>" * 200_000,
        "Ab " * 300_000,
        "a." * 400_000 + "(",
        "x [" * 300_000,
        "> " * 400_000 + "`",
        " " * 1_000_000 + "```",
        "for " * 300_000,
    ],
    ids=range(10),
)
def test_long_texts_are_read_at_once(text: str) -> None:
    """Each takes hours where a rule is quadratic in the text's length."""
    code = extract_code(f"{text}</think>\n<answer>\n```python\n{CODE}```\n</answer>")
    assert code == CODE
    assert extract_code(text) is None or extract_code(text).strip() in text  # type: ignore[union-attr]


def test_a_fence_in_a_docstring_does_not_end_the_block() -> None:
    code = 'def f(x):\n    """Add one.\n\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n'
    assert extract_code(f"```python\n{code}```\nDone.") == code

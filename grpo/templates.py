"""Prompt templates: how a dataset row becomes the text that the model continues.

A template that ends in `<think>` has opened the thinking for the model. Rewards see the rendered
prompt, so they know. Template text follows its published source; line breaks are ours.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

Messages = list[dict[str, str]]

# DeepSeek-R1-Zero, arXiv 2501.12948, table 1
_R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer. The reasoning process and answer are enclosed within <think> </think> "
    "and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
    "<answer> answer here </answer>.\nUser: {{ prompt }}\nAssistant:"
)

TEMPLATES: dict[str, str] = {
    "none": "{{ prompt }}",
    "r1_zero": _R1_ZERO,
    "r1_zero_think": _R1_ZERO + " <think>",
    "boxed": (
        "{{ prompt }}\n\nThink step by step and put the final answer in \\boxed{}.\n\nSolution:"
    ),
}

_JINJA = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)


@dataclass(frozen=True)
class Rendered:
    """A prompt as text. `special_tokens`: the tokenizer should still add its own (BOS)."""

    text: str
    messages: Messages | None  # set when the row was conversational
    special_tokens: bool


class PromptTemplate:
    """One of TEMPLATES, `chat`, a Jinja string, or the path of a .jinja file.

    Raises ValueError, in one line, for an unknown name, a missing file, a mistake in the Jinja
    text, or `chat` with a tokenizer that has no chat template.
    """

    def __init__(self, name: str, *, tokenizer: Any, system_prompt: str | None = None) -> None:
        self.name = name
        self.is_chat = name == "chat"
        self._tokenizer = tokenizer
        self._system_prompt = system_prompt
        source = "{{ prompt }}" if self.is_chat else _source(name)
        try:
            self._jinja = _JINJA.from_string(source)
            self.variables = jinja2.meta.find_undeclared_variables(_JINJA.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"data.template: line {error.lineno} is not Jinja: {error.message}"
            ) from None
        if self.is_chat:
            self._need_chat_template("data.template = chat")

    def render(self, row: dict[str, Any]) -> Rendered:
        """The prompt of one row. Raises ValueError when the template needs a column it lacks."""
        prompt = row.get("prompt")
        if isinstance(prompt, list):
            return self._render_messages(prompt)
        if self.is_chat:
            messages = self._with_system([{"role": "user", "content": str(prompt)}])
            return Rendered(self._apply_chat(messages), None, special_tokens=False)
        if self._system_prompt is not None:
            raise ValueError(
                f"data.system_prompt is set, but template {_short(self.name)} has no place for it; "
                "use data.template: chat"
            )
        try:
            text = self._jinja.render(row)
        except jinja2.UndefinedError:
            missing = sorted(self.variables - set(row))
            raise ValueError(_missing_variable(missing, row)) from None
        except jinja2.TemplateError as error:
            raise ValueError(f"data.template: {error}") from None
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"data.template: {type(error).__name__}: {error}") from None
        return Rendered(text, None, special_tokens=True)

    def _render_messages(self, messages: Messages) -> Rendered:
        if self.name not in ("none", "chat"):
            raise ValueError(
                f"prompts are lists of messages, which template {_short(self.name)} cannot hold; "
                "use data.template: chat"
            )
        self._need_chat_template("prompts are lists of messages")
        messages = self._with_system(messages)
        return Rendered(self._apply_chat(messages), messages, special_tokens=False)

    def _with_system(self, messages: Messages) -> Messages:
        if self._system_prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self._system_prompt}, *messages]

    def _apply_chat(self, messages: Messages) -> str:
        """The chat as text, open for the assistant to begin, or to go on with what it began."""
        goes_on = messages[-1]["role"] == "assistant"
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=not goes_on,
                continue_final_message=goes_on,
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the tokenizer's chat template refused a prompt: {error}") from None

    def _need_chat_template(self, because: str) -> None:
        if getattr(self._tokenizer, "chat_template", None) is None:
            raise ValueError(
                f"{because}, but the tokenizer has no chat template; use text prompts with another "
                "template, for example r1_zero"
            )


def _source(name: str) -> str:
    if name in TEMPLATES:
        return TEMPLATES[name]
    if "{{" in name or "{%" in name:
        return name
    if name.endswith((".jinja", ".jinja2", ".j2")):
        try:
            return Path(name).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            reason = error.strerror or "cannot be read"
            raise ValueError(f"data.template = {name}: {reason.lower()}") from None
        except UnicodeDecodeError:
            raise ValueError(f"data.template = {name}: not a UTF-8 text file") from None
    names = [*TEMPLATES, "chat"]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"templates: {', '.join(names)}"
    raise ValueError(
        f"data.template = {_short(name)}: unknown; {hint} (or a Jinja string, or a .jinja file)"
    )


def _missing_variable(missing: list[str], row: dict[str, Any]) -> str:
    if not missing:  # a part of a column that is there, like {{ meta.title }}
        return "data.template reads a part of a column that a row does not have"
    close = difflib.get_close_matches(missing[0], list(row), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"columns: {', '.join(map(str, row))}"
    return f"data.template reads {missing[0]!r}, which is no column; {hint}"


def _short(name: str) -> str:
    return name if len(name) <= 40 else name[:37] + "..."

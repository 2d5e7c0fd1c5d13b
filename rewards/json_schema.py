"""Whether the answer is JSON that a schema accepts (https://json-schema.org, by `jsonschema`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

from .completion import after_thinking, completion_text, prompt_texts, strip_end_markers

_MISSING = object()


@dataclass(frozen=True)
class JsonSchema:
    """1 where the answer after the thinking is JSON and valid, else 0.

    schema: given here (an object, or its JSON text) or as a column `schema`; a row without one is
    unscored. The answer is what the last <answer> pair or the last fenced block holds, or else all
    of it; text around bare JSON makes it none. partial: the reward of JSON that is not valid.
    References (`$ref`) reach inside the schema only: nothing is fetched.
    """

    schema: Any = None
    partial: float = 0.0

    __name__ = "json_schema"

    def __post_init__(self) -> None:
        if self.schema is not None:
            _validator_of(self.schema)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        schema: Sequence[Any] | None = None,
        prompt_text: Sequence[str] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        if self.schema is None and schema is None:
            raise ValueError("no schema: set kwargs.schema, or give a column `schema`")
        texts = prompt_texts(prompts, prompt_text)
        rewards: list[float | None] = []
        faults: list[str | None] = []
        for row, (completion, prompt) in enumerate(zip(completions, texts, strict=True)):
            wanted = self.schema
            if wanted is None and schema is not None:
                wanted = schema[row]
            if wanted is None:
                rewards.append(None)
                faults.append(None)
                continue
            value = answer_json(completion_text(completion), prompt=prompt)
            fault = "not JSON" if value is _MISSING else _first_fault(_validator_of(wanted), value)
            rewards.append(1.0 if fault is None else 0.0 if value is _MISSING else self.partial)
            faults.append(fault)
        if log_extra is not None:
            log_extra("json_fault", faults)
        return rewards


def answer_json(completion: str, *, prompt: str = "") -> Any:
    """The JSON value of an answer, or a sentinel where there is none; NaN and Infinity are none."""
    text = after_thinking(strip_end_markers(completion), prompt=prompt)
    if text is None:
        return _MISSING
    close = text.rfind("</answer>")
    opened = text.rfind("<answer>", 0, close) if close >= 0 else -1
    if opened >= 0:
        text = text[opened + len("<answer>") : close]
    try:
        return json.loads(_unfenced(text), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _MISSING


def _unfenced(text: str) -> str:
    """The inside of the last ``` block, or the text where there is none."""
    close = text.rfind("\n```")
    opened = text.rfind("```", 0, close) if close >= 0 else -1
    if opened < 0:
        return text
    return text[opened:close].partition("\n")[2]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _first_fault(validator: Any, value: Any) -> str | None:
    """Where and why a value is not valid: the fault nearest the root; None where it is."""
    from jsonschema.exceptions import best_match

    try:
        fault = best_match(validator.iter_errors(value))
    except RecursionError:
        return "nested too deeply"
    return None if fault is None else f"{fault.json_path}: {fault.message}"[:300]


def _validator_of(schema: Any) -> Any:
    text = schema if isinstance(schema, str) else json.dumps(schema, sort_keys=True)
    return _validator(text)


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    """A validator of the draft that the schema names (2020-12 where it names none)."""
    try:
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry
    except ImportError:
        raise ValueError(
            "json_schema needs the package jsonschema: pip install 'thinkrl[json-schema]'"
        ) from None
    read: Any
    try:
        read = json.loads(schema)
    except ValueError as error:
        raise ValueError(f"schema is not JSON: {error}") from None
    if not isinstance(read, Mapping | bool):
        raise ValueError(f"schema = {schema[:60]}: must be an object, or true or false")
    kind: Any = validator_for(read, default=Draft202012Validator)
    try:
        kind.check_schema(read)
    except SchemaError as error:
        raise ValueError(
            f"schema is not a JSON schema: {error.json_path}: {error.message}"
        ) from None
    return kind(read, registry=Registry())  # an empty registry: a remote reference is an error

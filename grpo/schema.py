"""The tree of `config.py` as a schema: values checked and converted, keys known and explained."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from .config import Recipe, RewardConfig

# What a setting is called elsewhere, where the nearest name would mislead.
ALIASES = {
    "lr": "trainer.learning_rate",
    "steps": "trainer.max_steps",
    "group_size": "trainer.num_generations",
    "kl_coef": "trainer.beta",
    "clip_ratio": "trainer.epsilon",
    "clip_ratio_high": "trainer.epsilon_high",
    "model_name_or_path": "model.path",
    "dataset_name": "data.train",
    "reward_funcs": "rewards",
    "reward_weights": "rewards.weight",
    "per_device_train_batch_size": "trainer.micro_batch_size",
    "gradient_accumulation_steps": "trainer.batch_size",
    "generation_batch_size": "trainer.steps_per_generation",
    "num_train_epochs": "trainer.max_steps",
    "output_dir": "run_dir",
    "use_vllm": "rollout.engine",
    "sync_ref_model": "trainer.ref_refresh_steps",
    "ref_model_sync_steps": "trainer.ref_refresh_steps",
    "use_peft": "model.lora",
    "lora_r": "model.lora.rank",
    "load_in_4bit": "model.quantization",
    "load_in_8bit": "model.quantization",
    "shuffle": "trainer.shuffle_dataset",
    "logging_steps": "trainer.report_to",
}
# A field of GRPOConfig that recipes set at their top level.
_INTERNAL = "trainer.rollout"


class ConfigError(ValueError):
    """A mistake in a recipe or override: one line with file, key, value and remedy."""


def explain(key: str) -> str:
    """What a setting is: its key, type, default and meaning. Raises ConfigError if unknown."""
    kind: Any = Recipe
    lines: list[str] = []
    parts = [part for part in key.split(".") if not part.isdigit()]  # rewards.0.weight
    for depth, part in enumerate(parts):
        kind = _strip_optional(kind)
        if get_origin(kind) is tuple:
            kind = get_args(kind)[0]
        if not dataclasses.is_dataclass(kind):
            raise ConfigError(f"{'.'.join(parts[:depth])} has no settings below it")
        fields = {field.name: field for field in dataclasses.fields(kind)}
        if part not in fields or key.startswith(_INTERNAL):
            raise ConfigError(f"{key}: {_unknown_key(key)}")
        field, kind = fields[part], get_type_hints(kind)[part]
        lines = [f"{key}: {_type_name(kind)} = {_default(field)}", f"    {field.metadata['doc']}"]
    inner = _strip_optional(kind)
    if get_origin(inner) is tuple:
        inner = get_args(inner)[0]
    if dataclasses.is_dataclass(inner):
        hints = get_type_hints(inner)
        shown = [f for f in dataclasses.fields(inner) if f"{key}.{f.name}" != _INTERNAL]
        for field in shown:
            doc = f"{_type_name(hints[field.name])} = {_default(field)}; {field.metadata['doc']}"
            lines.append(f"  {key}.{field.name}: {doc}")
    return "\n".join(lines)


def instantiate(kind: Any, value: Any) -> Any:
    """A converted value as the dataclasses and tuples of the tree, whose own checks run here."""
    kind = _strip_optional(kind)
    if value is None:
        return None
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        hints = get_type_hints(kind)
        return kind(**{key: instantiate(hints[key], item) for key, item in value.items()})
    if get_origin(kind) is tuple:
        return tuple(instantiate(get_args(kind)[0], item) for item in value)
    return value


def convert(kind: Any, value: Any, key: str) -> Any:
    """`value` checked against `kind`, numbers and tuples converted; ValueError names the key."""
    if _is_optional(kind):
        return None if value is None else convert(_strip_optional(kind), value, key)
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_section(kind, value, key)
    if origin is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{key} = {show(value)}: must be one of {', '.join(get_args(kind))}")
        return value
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        inner = get_args(kind)[0]
        if not isinstance(items, list | tuple):
            first = next(iter(value), "name") if isinstance(value, dict) else "name"
            hint = f", whose first {first} is {key}.0.{first}"
            hint = hint if dataclasses.is_dataclass(inner) else ""
            raise ValueError(f"{key} = {show(value)}: must be a list{hint}")
        return [convert(inner, item, f"{key}.{i}") for i, item in enumerate(items)]
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{key} = {show(value)}: must be a mapping, like {{name: value}}")
        wanted = get_args(kind)[1]
        return {str(name): convert(wanted, item, f"{key}.{name}") for name, item in value.items()}
    return _convert_scalar(kind, value, key)


def _convert_section(kind: Any, value: Any, key: str) -> dict[str, Any]:
    if value is None:  # a section whose lines are all commented out
        return {}
    if isinstance(value, str) and kind is RewardConfig:
        value = {"name": value}
    if not isinstance(value, dict):
        raise ValueError(f"{key} = {show(value)}: must be a section of settings")
    hints = get_type_hints(kind)
    converted = {}
    for name, item in value.items():
        full = f"{key}.{name}" if key else str(name)
        if name not in hints or full == _INTERNAL:
            raise ValueError(f"{full} = {show(item)}: {_unknown_key(full)}")
        converted[name] = convert(hints[name], item, full)
    return converted


def _convert_scalar(kind: Any, value: Any, key: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is Any:
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and is_number and isinstance(value, int):
        return value
    if kind is float and is_number and math.isfinite(value):
        return float(value)
    if kind is str and (isinstance(value, str) or is_number):
        return str(value)
    assert kind in _TYPE_NAMES, f"setting {key} has a type that recipes cannot hold: {kind}"
    raise ValueError(f"{key} = {show(value)}: must be {_TYPE_NAMES[kind]}")


def _unknown_key(key: str) -> str:
    """What to say of a key that does not exist, with the nearest one that does."""
    known = list(_keys(Recipe, ""))
    section, _, name = key.rpartition(".")
    same_name = [path for path in known if path.rsplit(".", 1)[-1] == name]
    if same_name:
        return f"unknown key; did you mean {same_name[0]}?"
    if name in ALIASES:
        return f"unknown key; here it is {ALIASES[name]}"
    inside = [path for path in known if path.rpartition(".")[0] == section]
    for candidates, text in ((inside, key), (known, key)):
        if close := difflib.get_close_matches(text, candidates, n=1, cutoff=0.7):
            return f"unknown key; did you mean {close[0]}?"
    by_name = {path.rsplit(".", 1)[-1]: path for path in reversed(known)}
    if close := difflib.get_close_matches(name, by_name, n=1, cutoff=0.7):
        return f"unknown key; did you mean {by_name[close[0]]}?"
    names = [path.rsplit(".", 1)[-1] for path in inside or known if inside or "." not in path]
    return f"unknown key; {section or 'a recipe'} has {', '.join(names)}"


def _keys(kind: Any, prefix: str) -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        inner = _strip_optional(hint)
        if prefix + name == _INTERNAL:
            continue
        yield prefix + name
        if get_origin(inner) is tuple and dataclasses.is_dataclass(get_args(inner)[0]):
            inner = get_args(inner)[0]
        if dataclasses.is_dataclass(inner):
            yield from _keys(inner, f"{prefix}{name}.")


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind)


def _strip_optional(kind: Any) -> Any:
    if not _is_optional(kind):
        return kind
    return next(arg for arg in get_args(kind) if arg is not type(None))


def _type_name(kind: Any) -> str:
    if _is_optional(kind):
        return f"{_type_name(_strip_optional(kind))} or null"
    if get_origin(kind) is Literal:
        return " | ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of {_type_name(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "mapping"
    if kind in _TYPE_NAMES:
        return _TYPE_NAMES[kind].removeprefix("a ")
    return "section" if dataclasses.is_dataclass(kind) else "anything"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        assert field.default_factory is not dataclasses.MISSING
        value = field.default_factory()
        return "see below" if dataclasses.is_dataclass(value) or isinstance(value, tuple) else "{}"
    value = plain(field.default)
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def plain(value: Any) -> Any:
    """Tuples as lists, so that safe YAML can write them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def show(value: Any) -> str:
    """A value as YAML would write it, where that differs from Python."""
    words = {"None": "null", "True": "true", "False": "false"}
    return words.get(repr(value), repr(value))

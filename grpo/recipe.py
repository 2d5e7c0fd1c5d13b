"""Recipes: YAML files and command-line overrides, read strictly into the tree of `config.py`.

Every layer (a file, the file it `extends`, the command line) is checked against the schema before
the layers are merged, so that a message names the place where the mistake was written.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from .config import Recipe

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


class ConfigError(ValueError):
    """A mistake in a recipe or override: one line with file, key, value and remedy."""


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path and apply `key.path=value` overrides.

    Raises ConfigError for a missing file, malformed YAML, unknown key, wrong type, a value out of
    range, or a combination that cannot work.
    """
    path = find_recipe(recipe)
    merged: dict[str, Any] = {}
    for source, layer in _file_layers(path):
        _check_layer(layer, source)
        merged = _merge(merged, layer)
    for override in overrides:
        layer = _override_layer(override, merged)
        _check_layer(layer, f"override {override!r}")
        merged = _merge(merged, layer)
    merged.setdefault("name", path.stem)
    try:
        return _build(Recipe, merged)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def find_recipe(recipe: str) -> Path:
    """The file of a recipe given by path or by its name in the recipes folder."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if path.is_file():
            return path
        raise ConfigError(f"recipe {recipe}: no such file")
    shipped = RECIPES / f"{recipe}.yaml"
    if shipped.is_file():
        return shipped
    names = list(recipe_names())
    close = difflib.get_close_matches(recipe, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"recipes: {', '.join(names)}"
    raise ConfigError(f"recipe {recipe!r}: no such file and no recipe of that name; {hint}")


def recipe_names() -> Iterator[str]:
    """Names of the recipes that come with the package, sorted."""
    return (path.stem for path in sorted(RECIPES.glob("*.yaml")))


def recipe_comment(path: Path) -> list[str]:
    """The comment lines that open a recipe: question, hardware, time, expected result."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return lines


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to the same tree."""
    plain = _plain(dataclasses.asdict(recipe))
    plain["trainer"].pop("rollout")  # the top-level section holds it
    return yaml.safe_dump(plain, sort_keys=False, width=100)


def explain(key: str) -> str:
    """What a setting is: its key, type, default and meaning. Raises ConfigError if unknown."""
    kind: Any = Recipe
    lines: list[str] = []
    parts = key.split(".")
    for depth, part in enumerate(parts):
        kind = _strip_optional(kind)
        if get_origin(kind) is tuple:
            kind = get_args(kind)[0]
        if not dataclasses.is_dataclass(kind):
            raise ConfigError(f"{'.'.join(parts[:depth])} has no settings below it")
        fields = {field.name: field for field in dataclasses.fields(kind)}
        if part not in fields:
            raise ConfigError(_unknown_key(key, Recipe))
        field, kind = fields[part], get_type_hints(kind)[part]
        lines = [f"{key}: {_type_name(kind)} = {_default(field)}", f"    {field.metadata['doc']}"]
    inner = _strip_optional(kind)
    if get_origin(inner) is tuple:
        inner = get_args(inner)[0]
    if dataclasses.is_dataclass(inner):
        hints = get_type_hints(inner)
        for field in dataclasses.fields(inner):
            doc = f"{_type_name(hints[field.name])} = {_default(field)}; {field.metadata['doc']}"
            lines.append(f"  {key}.{field.name}: {doc}")
    return "\n".join(lines)


def _file_layers(path: Path, seen: tuple[Path, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """The chain of `extends`, base first, as (file, mapping)."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends itself through {seen[-1].name}")
    try:
        layer = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a UTF-8 text file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise ConfigError(f"{path}:{where} malformed YAML: {problem}") from None
    layer = {} if layer is None else layer
    if not isinstance(layer, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of settings, not {_describe(layer)}")
    base = layer.pop("extends", None)
    if base is not None:
        beside = path.parent / str(base)
        yield from _file_layers(
            beside if beside.is_file() else find_recipe(str(base)), (*seen, path.resolve())
        )
    yield str(path), layer


def _override_layer(override: str, merged: dict[str, Any]) -> dict[str, Any]:
    """`a.b=value` as a nested mapping; a number in the path indexes a list (rewards.0.weight)."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: write key.path=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is malformed YAML") from None
    return _nest(key.strip().split("."), value, merged, override)


def _nest(parts: list[str], value: Any, current: Any, override: str) -> Any:
    if not parts:
        return value
    head, rest = parts[0], parts[1:]
    if head.isdigit() and isinstance(current, list):
        if int(head) >= len(current):
            raise ConfigError(f"override {override!r}: the list has {len(current)} entries")
        items = list(current)
        entry = _nest(rest, value, items[int(head)], override)
        both = isinstance(items[int(head)], dict) and isinstance(entry, dict)
        items[int(head)] = _merge(items[int(head)], entry) if both else entry
        return items
    below = current.get(head) if isinstance(current, dict) else None
    return {head: _nest(rest, value, below, override)}


def _merge(base: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    """`layer` over `base`: mappings merge key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in layer.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _check_layer(layer: dict[str, Any], source: str) -> None:
    try:
        _convert(Recipe, layer, "")
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def _build(kind: type, mapping: dict[str, Any]) -> Any:
    """A dataclass from a mapping, nested ones included; their own checks run here."""
    values = _convert(kind, mapping, "")
    hints = get_type_hints(kind)
    return kind(**{key: _instantiate(hints[key], value) for key, value in values.items()})


def _instantiate(kind: Any, value: Any) -> Any:
    kind = _strip_optional(kind)
    if value is None:
        return None
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        hints = get_type_hints(kind)
        return kind(**{key: _instantiate(hints[key], item) for key, item in value.items()})
    if get_origin(kind) is tuple:
        return tuple(_instantiate(get_args(kind)[0], item) for item in value)
    return value


def _convert(kind: Any, value: Any, key: str) -> Any:
    """`value` checked against `kind`, numbers and tuples converted; ValueError names the key."""
    if _is_optional(kind):
        return None if value is None else _convert(_strip_optional(kind), value, key)
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_section(kind, value, key)
    if origin is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{key} = {value!r}: must be one of {', '.join(get_args(kind))}")
        return value
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise ValueError(f"{key} = {value!r}: must be a list")
        inner = get_args(kind)[0]
        return [_convert(inner, item, f"{key}.{i}") for i, item in enumerate(items)]
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{key} = {value!r}: must be a mapping, like {{name: value}}")
        wanted = get_args(kind)[1]
        return {str(name): _convert(wanted, item, f"{key}.{name}") for name, item in value.items()}
    return _convert_scalar(kind, value, key)


def _convert_section(kind: Any, value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{key} = {value!r}: must be a section of settings, not a single value")
    hints = get_type_hints(kind)
    converted = {}
    for name, item in value.items():
        full = f"{key}.{name}" if key else str(name)
        if name not in hints:
            raise ValueError(f"{full} = {item!r}: {_unknown_key(full, Recipe)}")
        converted[name] = _convert(hints[name], item, full)
    return converted


def _convert_scalar(kind: Any, value: Any, key: str) -> Any:
    if kind is Any:
        return value
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError(f"{key} = {value!r}: must be true or false")
    if kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise ValueError(f"{key} = {value!r}: must be a whole number")
    if kind is float:
        try:  # YAML 1.1 reads 1e-6 as text
            number = float(value) if not isinstance(value, bool) else None
        except (TypeError, ValueError):
            number = None
        if number is None or number != number:
            raise ValueError(f"{key} = {value!r}: must be a number")
        return number
    if kind is str:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
        raise ValueError(f"{key} = {value!r}: must be text")
    raise AssertionError(f"setting {key} has a type that recipes cannot hold: {kind}")


def _unknown_key(key: str, root: type) -> str:
    """What to say of a key that does not exist, with the nearest one that does."""
    known = [path for path in _keys(root, "") if path != "trainer.rollout"]
    name = key.rsplit(".", 1)[-1]
    same_name = [path for path in known if path.rsplit(".", 1)[-1] == name]
    close = same_name or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not close:
        close = [
            path
            for path in known
            if difflib.get_close_matches(name, [path.rsplit(".", 1)[-1]], n=1, cutoff=0.75)
        ]
    return f"unknown key; did you mean {close[0]}?" if close else f"unknown key {key}"


def _keys(kind: Any, prefix: str) -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        inner = _strip_optional(hint)
        yield prefix + name
        if get_origin(inner) is tuple and dataclasses.is_dataclass(get_args(inner)[0]):
            inner = get_args(inner)[0]
        if dataclasses.is_dataclass(inner) and prefix + name != "trainer.rollout":
            yield from _keys(inner, f"{prefix}{name}.")


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
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return names.get(kind) or ("section" if dataclasses.is_dataclass(kind) else "anything")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        assert field.default_factory is not dataclasses.MISSING
        value = field.default_factory()
        return "see below" if dataclasses.is_dataclass(value) or isinstance(value, tuple) else "{}"
    value = _plain(field.default)
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    """Tuples as lists, so that safe YAML can write them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _describe(value: Any) -> str:
    return {list: "a list", str: "text"}.get(type(value), f"{value!r}")

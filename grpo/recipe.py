"""Recipes: YAML files and command-line overrides, read strictly into the tree of `config.py`.

Every layer (a file, the file it `extends`, the command line) is checked against the schema before
the layers are merged, so that a message names the place where the mistake was written.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from .config import Recipe
from .schema import ConfigError, convert, instantiate, plain, show

RECIPES = Path(__file__).resolve().parent.parent / "recipes"

# Settings that may name a file: it is looked for in the working folder, then beside the recipe.
_PATHS = (
    ("model", "path"),
    ("model", "tokenizer"),
    ("data", "train"),
    ("data", "eval"),
    ("data", "template"),
    ("sft", "train"),
)


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
        source = " ".join([str(path), *overrides])
        raise ConfigError(f"{source}: {error}") from None


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


def recipe_facts(path: Path) -> dict[str, str]:
    """Question, hardware, time and expected result, from the comment that opens a recipe.

    A fact is a line `# Name: text`; lines that are indented further go on with it.
    """
    facts: dict[str, str] = {}
    name = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        if line.startswith("#  ") and name:
            facts[name] += " " + line[1:].strip()
        else:
            name, _, text = line[2:].partition(": ")
            facts[name] = text.strip()
    return facts


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to the same tree."""
    mapping = as_mapping(recipe)
    return yaml.dump(mapping, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)


def as_mapping(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as nested mappings and lists, the way a file would give it."""
    mapping = plain(dataclasses.asdict(recipe))
    mapping["trainer"].pop("rollout")  # the top-level section holds it
    return mapping


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The settings in which two recipes differ, as `key: old -> new`."""
    before, after = (dict(_leaves(as_mapping(recipe), "")) for recipe in (old, new))
    return [
        f"{key}: {show(before.get(key))} -> {show(after.get(key))}"
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]


def _leaves(mapping: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _file_layers(path: Path, seen: tuple[Path, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """The chain of `extends`, base first, as (file, mapping)."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends itself through {seen[-1].name}")
    layer = _read_yaml(path)
    base = layer.pop("extends", None)
    if base is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: extends = {show(base)}: must be a recipe's name or file")
        beside = path.parent / base
        try:
            below = beside if beside.is_file() else find_recipe(base)
        except ConfigError as error:
            raise ConfigError(f"{path}: extends: {error}") from None
        yield from _file_layers(below, (*seen, path.resolve()))
    yield str(path), _anchored(layer, path.parent)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        layer = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a UTF-8 text file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        if "'\\t'" in problem:
            problem = "a tab; indent with spaces"
        raise ConfigError(f"{path}:{where} malformed YAML: {problem}") from None
    except ValueError as error:  # a date or a number with a tag that is none
        raise ConfigError(f"{path}: malformed YAML: {error}") from None
    layer = {} if layer is None else layer
    if not isinstance(layer, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of settings, not {_describe(layer)}")
    return layer


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that appears twice is an error and 1e-6 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"{key.value} is set twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back to the same value: the text "1e3" needs quotes."""


_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$")
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def _anchored(layer: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`layer` with files that lie beside the recipe, not in the working folder, made absolute."""
    layer = dict(layer)
    for section, key in _PATHS:
        values = layer.get(section)
        if isinstance(values, dict) and key in values:
            layer[section] = values | {key: _anchor(values[key], folder)}
    rewards = layer.get("rewards")
    if isinstance(rewards, list):
        named = [isinstance(entry, dict) and "name" in entry for entry in rewards]
        layer["rewards"] = [
            entry | {"name": _anchor(entry["name"], folder)} if has_name else _anchor(entry, folder)
            for entry, has_name in zip(rewards, named, strict=True)
        ]
    return layer


def _anchor(text: Any, folder: Path) -> Any:
    if not isinstance(text, str):
        return text
    path, colon, function = text.partition(":")
    looks_like_path = "/" in path or Path(path).suffix
    if not looks_like_path or "\n" in path or Path(path).exists():
        return text
    beside = folder / path
    return f"{beside.resolve()}{colon}{function}" if beside.exists() else text


def parse_value(text: str) -> Any:
    """What stands after `key=` on the command line: YAML, or plain text where it is none."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError):  # a Jinja template, say
        return text


def _override_layer(override: str, merged: dict[str, Any]) -> dict[str, Any]:
    """`a.b=value` as a nested mapping; a number in the path indexes a list (rewards.0.weight)."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r}: write key.path=value")
    value = parse_value(text)
    current = _merge(as_mapping(Recipe()), merged)
    return _nest(parts, value, current, override)


def _nest(parts: list[str], value: Any, current: Any, override: str) -> Any:
    if not parts:
        return value
    head, rest = parts[0], parts[1:]
    if head.isdigit() and isinstance(current, list):
        if int(head) >= len(current):
            raise ConfigError(f"override {override!r}: the list has {len(current)} entries, from 0")
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
        convert(Recipe, layer, "")
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def _build(kind: type, mapping: dict[str, Any]) -> Any:
    """A dataclass from a mapping, nested ones included; their own checks run here."""
    values = convert(kind, mapping, "")
    hints = get_type_hints(kind)
    return kind(**{key: instantiate(hints[key], value) for key, value in values.items()})


def _describe(value: Any) -> str:
    return {list: "a list", str: "text"}.get(type(value), f"{value!r}")

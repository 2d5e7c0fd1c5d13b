"""The rules of the house: sizes, packages, import direction, names, plain ASCII."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("grpo", "rewards", "models", "kernels", "recipes")
MAY_IMPORT = {
    "kernels": {"kernels"},
    "models": {"models", "kernels"},
    "rewards": {"rewards"},
    "grpo": {"grpo", "rewards", "models", "kernels"},
}
LAZY = {"vllm", "datasets", "ray", "bitsandbytes", "torchao", "trl", "math_verify", "wandb"}

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60
LONG_FUNCTIONS: dict[str, int] = {}  # "folder/file.py:function": lines, where it must be longer

SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def imported_modules(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Dotted names that a file imports, relative ones resolved to thinkrl.<folder>..."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ["thinkrl", *path.relative_to(ROOT).parent.parts]
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            yield ".".join(module)
            yield from (".".join([*module, alias.name]) for alias in node.names)


def test_files_stay_within_the_budget() -> None:
    lines = {name_of(p): len(p.read_text().splitlines()) for p in [*SOURCES, *TESTS]}
    assert {name: n for name, n in lines.items() if n > MAX_FILE_LINES} == {}


def test_functions_stay_within_the_budget() -> None:
    too_long = {}
    for path in [*SOURCES, *TESTS]:
        for name, length in functions(path):
            key = f"{name_of(path)}:{name}"
            if length >= LONG_FUNCTIONS.get(key, MAX_FUNCTION_LINES):
                too_long[key] = length
    assert too_long == {}


def test_every_folder_with_code_is_a_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {"thinkrl." + ".".join(p.relative_to(ROOT).parent.parts) for p in SOURCES}
    assert set(settings["packages"]) == on_disk | {"thinkrl.recipes"}
    assert settings["package-dir"] == {"thinkrl": "."}


def test_only_sub_folders_have_an_init_file() -> None:
    # One in kernels/ would hide the package `kernels` that transformers imports.
    assert [folder for folder in FOLDERS if (ROOT / folder / "__init__.py").exists()] == []
    inner = {path.parent for path in SOURCES if path.parent.parent != ROOT}
    assert [name_of(folder) for folder in inner if not (folder / "__init__.py").exists()] == []


def test_no_file_is_named_like_a_module_of_the_standard_library() -> None:
    assert [name_of(p) for p in SOURCES if p.stem in sys.stdlib_module_names] == []


def test_imports_run_one_way() -> None:
    wrong = []
    for path in SOURCES:
        folder = path.relative_to(ROOT).parts[0]
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[0] == "thinkrl" and len(parts) > 1 and parts[1] not in MAY_IMPORT[folder]:
                wrong.append(f"{name_of(path)} imports {module}")
    assert wrong == []


def test_optional_libraries_are_imported_where_they_are_used() -> None:
    eager = [
        f"{name_of(path)} imports {module}"
        for path in SOURCES
        for module in imported_modules(path, top_level_only=True)
        if module.split(".")[0] in LAZY
    ]
    assert eager == []


def test_every_import_is_the_standard_library_ours_or_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    texts = [*project["dependencies"], *(text for extra in extras for text in extra)]
    declared = {re.split(r"[^\w.-]", text)[0].lower().replace("-", "_") for text in texts}
    declared |= {"yaml", "referencing"}  # pyyaml; part of jsonschema
    scripts = {path.stem for path in (ROOT / "rewards").glob("*.py")}  # run alone in the sandbox
    unknown = {
        f"{name_of(path)} imports {module}"
        for path in SOURCES
        for module in imported_modules(path)
        if module.split(".")[0] not in declared | scripts | {"thinkrl"} | sys.stdlib_module_names
    }
    assert unknown == set()


def test_sources_are_ascii() -> None:
    texts = [*SOURCES, *TESTS, *(ROOT / "recipes").glob("*.yaml"), ROOT / "Makefile"]
    assert [name_of(path) for path in texts if not path.read_bytes().isascii()] == []


def test_constraints_pin_every_dependency_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    names = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    assert all(pin.count("==") == 1 and "/" not in pin and "+" not in pin for pin in pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    bare = {
        text.split(";")[0].split(">=")[0].split("==")[0].strip().lower().replace("_", "-")
        for text in wanted
    }
    assert {name for name in bare if not name.startswith("thinkrl")} <= names


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["quickstart", "test", "recipes", "lint", "test-kernels"])
def test_make_targets_set_up_the_environment_first(target: str) -> None:
    # -n: show what would be run; -B: as if nothing had been built yet.
    command = ["make", "-n", "-B", target, "TORCH_INDEX=https://example.org/cpu"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    install = shown.index("pip install")
    assert "--extra-index-url https://example.org/cpu" in shown
    assert ".venv/bin/" in shown[shown.index("touch", install) :]

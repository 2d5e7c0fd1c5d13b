"""Runs a recipe: one run folder, its stages in order, each starting from the one before."""

from __future__ import annotations

import dataclasses
import gc
import random
import resource
import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.adapters import base_model
from . import tracking
from .build import Materials, build_materials, build_model, build_tokenizer, describe_model
from .checkpoint import Checkpoints, RunError, read_state
from .config import GRPOConfig, Recipe, SFTConfig
from .distributed import on_first_process, process_state
from .model_card import model_card
from .recipe import differences, load_recipe, to_yaml
from .schema import ConfigError
from .sft import SFTTrainer
from .stage import Interrupted, Stage
from .terminal import RunDisplay, duration, number
from .tracking import RunFolder
from .trainer import GRPOTrainer


@dataclass(frozen=True)
class Options:
    """How a recipe is run. `command` is what the user typed, for the line on how to resume."""

    resume: str | bool = False  # True: the newest run of the recipe; a path: that one
    dry_run: bool = False
    quiet: bool = False
    command: str = "thinkrl train"


def run_recipe(recipe: Recipe, options: Options = Options()) -> Path:
    """Run all stages of a recipe and return the run folder.

    Raises ValueError for a mistake that is found before training, RunError when the run fails and
    Interrupted when the user stops it; both say how to go on.
    """
    if options.dry_run and options.resume:
        raise ConfigError("--dry-run and --resume: a dry run starts afresh; leave one of them out")
    if recipe.cpu_threads is not None:
        torch.set_num_threads(recipe.cpu_threads)
    state = process_state()
    run_dir, notes = on_first_process(lambda: _resumed_run(recipe, options.resume))
    tokenizer = build_tokenizer(recipe)
    done = _finished_stages(recipe, run_dir) if run_dir else 0
    first = _seeded_model(recipe, tokenizer, done, run_dir, device=state.device)
    context_length = base_model(first).config.max_position_embeddings
    materials = build_materials(recipe, tokenizer, context_length=context_length)
    finished = run_dir is not None and _is_finished(recipe, run_dir)
    with _run_folder(recipe, run_dir, options) as run_dir:
        if state.is_main_process:
            root = RunFolder(run_dir)
            if not finished:
                root.write_recipe(to_yaml(recipe))
                root.write_environment(tracking.environment())
        quiet = options.quiet or not state.is_main_process
        display = RunDisplay(recipe.name, 1, quiet=quiet)
        header = _header(recipe, materials, describe_model(first, recipe, state.device))
        display.header(recipe.name, recipe.question, [*header, ("run", str(run_dir)), *notes])
        if options.dry_run:
            _show_recipe(recipe, display)
        elif finished:
            display.note("this run is finished; a larger trainer.max_steps would go on with it")
            return run_dir
        try:
            _run_stages(recipe, materials, first, run_dir, done=done, options=options, quiet=quiet)
        except (Interrupted, RunError) as error:
            raise type(error)(f"{error}{_how_to_resume(run_dir, options)}") from error
    return run_dir


def stage_dir(recipe: Recipe, run_dir: Path, index: int) -> Path:
    """The last stage writes into the run folder itself, those before into `stages/`."""
    if index == len(recipe.stages) - 1:
        return run_dir
    return run_dir / "stages" / f"{index + 1}-{recipe.stages[index]}"


def _run_stages(
    recipe: Recipe,
    materials: Materials,
    model: torch.nn.Module | None,
    run_dir: Path,
    *,
    done: int,
    options: Options,
    quiet: bool,
) -> None:
    for index in range(done, len(recipe.stages)):
        if model is None:
            model = _seeded_model(
                recipe, materials.tokenizer, index, run_dir, device=process_state().device
            )
        config = recipe.stage_config(recipe.stages[index])
        if options.dry_run:
            config = dataclasses.replace(config, max_steps=1, save_steps=0, eval_steps=0)
        folder = RunFolder(stage_dir(recipe, run_dir, index))
        display = RunDisplay(recipe.stages[index], config.max_steps, quiet=quiet)
        stage = _make_stage(config, model, materials, folder, display, dry_run=options.dry_run)
        try:
            stage.train(resume=bool(options.resume))
        finally:
            display.close()
        if process_state().is_main_process and not options.dry_run:
            _write_card(recipe, recipe.stages[index], folder, config.max_steps)
        if options.dry_run:
            _show_estimate(recipe, recipe.stages[index], folder, display)
        elif index == len(recipe.stages) - 1:
            display.replay(folder.read_metrics())
            display.finish(_closing_lines(run_dir, folder))
        else:
            display.facts([(recipe.stages[index], _summary(folder))])
        del stage
        model = None
        gc.collect()


def _make_stage(
    config: GRPOConfig | SFTConfig,
    model: torch.nn.Module,
    materials: Materials,
    folder: RunFolder,
    display: RunDisplay,
    *,
    dry_run: bool,
) -> Stage:
    common: dict[str, Any] = {"folder": folder, "display": display}
    if isinstance(config, SFTConfig):
        assert materials.demonstrations is not None
        return SFTTrainer(
            model, config, materials.demonstrations.rows, materials.tokenizer, **common
        )
    assert materials.train is not None and materials.rewards is not None
    return GRPOTrainer(
        model,
        materials.rewards,
        config,
        materials.train,
        None if dry_run else materials.held_out,
        materials.tokenizer,
        **common,
    )


def _seeded_model(
    recipe: Recipe, tokenizer: Any, index: int, run_dir: Path | None, *, device: Any
) -> torch.nn.Module:
    """The model that stage `index` starts from, with all random states at the recipe's seed."""
    random.seed(recipe.seed)
    np.random.seed(recipe.seed % 2**32)
    torch.manual_seed(recipe.seed)
    path = None
    if index > 0:
        assert run_dir is not None
        path = RunFolder(stage_dir(recipe, run_dir, index - 1)).final_path
    return build_model(recipe, tokenizer, path=path, device=device)


# -- the run folder -----------------------------------------------------------------------------


@contextmanager
def _run_folder(recipe: Recipe, resumed: Path | None, options: Options) -> Any:
    """The folder to write to, the same on every process; a dry run's is thrown away."""
    if resumed is not None:
        yield resumed
    elif options.dry_run:
        path = on_first_process(lambda: Path(tempfile.mkdtemp(prefix="thinkrl-dry-run-")))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
    else:
        yield on_first_process(lambda: _new_run(recipe))


def _new_run(recipe: Recipe) -> Path:
    given = recipe.run_dir or recipe.trainer.run_dir
    if given is None:
        return tracking.new_run_dir(recipe.name)
    path = Path(given)
    if (path / "recipe.yaml").exists():
        raise ConfigError(
            f"run_dir = {given}: holds a run already; resume it with --resume {given}, or give "
            "another folder"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run_dir = {given}: cannot be made: {error.strerror}") from None
    return path


def _resumed_run(recipe: Recipe, resume: str | bool) -> tuple[Path | None, list[tuple[str, str]]]:
    """The folder of the run to resume (None: a new run), and what changed since it began."""
    if resume is False:
        return None, []
    given = resume if isinstance(resume, str) else recipe.run_dir or recipe.trainer.run_dir
    path = Path(given) if given else tracking.find_run(recipe.name)
    if path is None:
        raise ConfigError(
            f"--resume: no run of {recipe.name} in {tracking.RUNS}/; give its folder, or start "
            "without --resume"
        )
    if not (path / "recipe.yaml").is_file():
        raise ConfigError(f"--resume {path}: not a run folder (it has no recipe.yaml)")
    try:
        began = load_recipe(str(path / "recipe.yaml"))
    except ConfigError:  # written by another version; the checkpoints may still fit
        return path, [("resumed", "its recipe.yaml cannot be compared with the recipe")]
    changed = differences(began, recipe)
    for line in changed:
        if line.startswith(("model.", "stages")):
            raise ConfigError(f"--resume {path}: {line}: a run cannot change its model or stages")
    return path, [("resumed", line) for line in changed if not line.startswith("run_dir")]


def _finished_stages(recipe: Recipe, run_dir: Path) -> int:
    """How many stages are done. Only the last can be given more steps later."""
    last = len(recipe.stages) - 1
    for index in range(last):
        if not (stage_dir(recipe, run_dir, index) / "final").is_dir():
            return index
    return last


def _is_finished(recipe: Recipe, run_dir: Path) -> bool:
    latest = Checkpoints(run_dir / "checkpoints", keep=1).latest()
    if latest is None or not (run_dir / "final").is_dir():
        return False
    return read_state(latest)["step"] >= recipe.stage_config(recipe.stages[-1]).max_steps


# -- what is shown ------------------------------------------------------------------------------


def _header(recipe: Recipe, materials: Materials, model: str) -> list[tuple[str, str]]:
    lines = [("model", model)]
    if materials.demonstrations is not None:
        lines.append(("sft", materials.demonstrations.describe()))
    if materials.train is not None:
        lines.append(("train", materials.train.describe()))
    if materials.held_out is not None:
        lines.append(("held out", materials.held_out.describe()))
    if materials.overlap:
        lines.append(("warning", f"{materials.overlap} train prompts are also held out"))
    if materials.bad_golds:
        rows = ", ".join(str(row + 1) for row in materials.bad_golds[:5])
        count = len(materials.bad_golds)
        text = f"{count} golds cannot be read and score nothing: train rows {rows}"
        lines.append(("warning", text + (", ..." if count > 5 else "")))
    if materials.rewards is not None:
        weights = materials.rewards.weights.items()
        lines.append(("rewards", ", ".join(f"{name} x {weight:g}" for name, weight in weights)))
    return lines


def _show_recipe(recipe: Recipe, display: RunDisplay) -> None:
    display.facts([("recipe", to_yaml(recipe).replace("\n", "\n           "))])


def _show_estimate(recipe: Recipe, stage: str, folder: RunFolder, display: RunDisplay) -> None:
    """Time and memory of a whole stage, from the one step of a dry run."""
    step = next(row for row in reversed(folder.read_metrics()) if "time/step" in row)
    seconds = step["time/step"] * recipe.stage_config(stage).max_steps
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 1e9
    else:  # kilobytes, but bytes on macOS
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak /= 1e9 if sys.platform == "darwin" else 1e6
    display.facts(
        [
            (
                stage,
                f"one step in {number(step['time/step'])} s: about {duration(seconds)} for "
                f"{recipe.stage_config(stage).max_steps} steps without evaluation; "
                f"peak memory so far {number(peak)} GB",
            )
        ]
    )


def _summary(folder: RunFolder) -> str:
    rows = [row for row in folder.read_metrics() if "time/step" in row]
    if not rows:
        return "done before"
    seconds = sum(row["time/step"] for row in rows)
    losses = f"loss {number(rows[0]['loss'])} to {number(rows[-1]['loss'])}"
    return f"{len(rows)} steps in {duration(seconds)}, {losses}"


def _closing_lines(run_dir: Path, folder: RunFolder) -> list[tuple[str, str]]:
    rows = [row for row in folder.read_metrics() if "time/step" in row]
    spent = duration(sum(row["time/step"] for row in rows))
    return [
        ("time", f"{spent} for {len(rows)} steps"),
        ("model", str(folder.final_path)),
        ("run", str(run_dir)),
    ]


def _write_card(recipe: Recipe, stage: str, folder: RunFolder, steps: int) -> None:
    evaluations = [row for row in folder.read_metrics() if "eval/reward" in row]
    card = model_card(
        recipe, stage, evaluations=evaluations, versions=tracking.versions(), steps=steps
    )
    tracking.write_text(folder.final_path / "README.md", card)


def _how_to_resume(run_dir: Path, options: Options) -> str:
    if options.dry_run:
        return ""
    return f"; go on with: {options.command} --resume {run_dir}"

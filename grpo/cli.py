"""The command line: dispatch, overrides and exit codes; the work is done elsewhere.

Exit codes: 0 done, 1 the run failed, 2 the user's mistake, 130 stopped by the user.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from .launch import asked_of_accelerate, launch, launched
from .recipe import load_recipe
from .schema import ConfigError, explain

PACKAGE = Path(__file__).resolve().parent.parent
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

USAGE = """\
usage: thinkrl COMMAND ...

  train RECIPE [key=value ...]   run a recipe: a name from `thinkrl recipes`, or a YAML file
  sft RECIPE [key=value ...]     its supervised stage alone
  eval RECIPE|RUN [key=value ..] score a checkpoint on the held-out rows
  score --reward NAME ...        any reward over recorded completions, with explanations
  recipes                        what the shipped recipes find out, and on what hardware
  init [FOLDER]                  write a recipe and a reward function to start from
  doctor                         versions, devices and what is missing

`thinkrl COMMAND --help` explains one; `thinkrl train --explain KEY` documents a setting.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code of the process."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"thinkrl {metadata.version('thinkrl')}")
        return 0
    command = COMMANDS.get(argv[0])
    if command is None:
        return _fail(f"{argv[0]}: no such command; commands: {', '.join(COMMANDS)}", 2)
    try:
        return command(argv[1:])
    except BrokenPipeError:  # the reader of our output has closed it, like `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        return _report(error)


def train(argv: Sequence[str], *, stage: str | None = None) -> int:
    """`thinkrl train` and, with a stage, `thinkrl sft`."""
    parser = _parser("train" if stage is None else stage, "run a recipe")
    parser.add_argument("recipe", nargs="?", help="a name from `thinkrl recipes`, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        default=None,
        metavar="RUN_DIR",
        help="go on with the newest run of the recipe, or with the given one",
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="train in N processes of this machine"
    )
    parser.add_argument("--dry-run", action="store_true", help="load all, run one step, stop")
    parser.add_argument("--explain", metavar="KEY", help="document a setting or a section")
    parser.add_argument("--quiet", action="store_true", help="print only the run folder")
    args = parser.parse_intermixed_args(_resume_takes_no_override(argv))
    if args.explain is not None:
        print(explain(args.explain))
        return 0
    recipe = load_recipe(_needed(parser, args.recipe), args.overrides)
    if stage is not None:
        recipe = dataclasses.replace(recipe, name=f"{recipe.name}-{stage}", stages=(stage,))
    words = ["thinkrl", stage or "train", args.recipe, *args.overrides]
    processes = asked_of_accelerate() if args.processes is None else args.processes
    if processes < 1:
        parser.error(f"--processes {processes}: at least 1")
    if processes > 1 and not launched():
        return launch(processes, [stage or "train", *argv])

    from .stages import Options, run_recipe

    options = Options(
        resume=True if args.resume == "" else args.resume or False,
        dry_run=args.dry_run,
        quiet=args.quiet,
        command=shlex.join(words),
    )
    run_dir = run_recipe(recipe, options)
    if args.quiet and not args.dry_run and _is_main():
        print(run_dir)
    return 0


def sft(argv: Sequence[str]) -> int:
    """`thinkrl sft`: the supervised stage of a recipe alone."""
    return train(argv, stage="sft")


def evaluate(argv: Sequence[str]) -> int:
    """`thinkrl eval`: score a checkpoint on held-out rows."""
    parser = _parser("eval", "score a checkpoint on the held-out rows of a recipe")
    parser.add_argument("target", help="a recipe, a run folder, or a checkpoint inside one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument("--json", action="store_true", help="print the metrics as one JSON object")
    args = parser.parse_intermixed_args(argv)

    from .assess import evaluate_target

    evaluate_target(args.target, args.overrides, as_json=args.json)
    return 0


def score(argv: Sequence[str]) -> int:
    """`thinkrl score`: any reward over recorded completions."""
    parser = _parser("score", "score the rows of a file: .jsonl, .parquet or .csv, by the ending")
    parser.add_argument(
        "--reward",
        required=True,
        metavar="NAME",
        help="built-in, module:function, file.py:function",
    )
    parser.add_argument(
        "--input",
        required=True,
        metavar="ROWS",
        help="completion, perhaps prompt, and what the reward asks for (answer may be called gold)",
    )
    parser.add_argument(
        "--output", required=True, metavar="ROWS", help="the rows with reward, explanation, error"
    )
    parser.add_argument("--kwargs", nargs="*", default=[], metavar="key=value", help="its options")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    args = parser.parse_args(argv)

    from .score import parse_kwargs, score_file

    kwargs = parse_kwargs(args.kwargs)
    tally = score_file(args.reward, args.input, args.output, kwargs=kwargs, quiet=args.quiet)
    print(tally.summary())
    if alarm := tally.alarm():
        print(f"thinkrl: warning: {alarm}", file=sys.stderr)
    return 0


def recipes(argv: Sequence[str]) -> int:
    """`thinkrl recipes`: what is shipped."""
    _parser("recipes", "list the shipped recipes").parse_args(argv)

    from .terminal import show_recipes

    show_recipes()
    return 0


def init(argv: Sequence[str]) -> int:
    """`thinkrl init`: files to start from."""
    parser = _parser("init", "write a recipe and a reward function to start from")
    parser.add_argument("folder", nargs="?", default=".", help="where to (default: here)")
    args = parser.parse_args(argv)

    from .starter import write_starter

    for line in write_starter(Path(args.folder)):
        print(line)
    return 0


def doctor(argv: Sequence[str]) -> int:
    """`thinkrl doctor`: versions, devices, and what is missing."""
    _parser("doctor", "show versions, devices, and what is missing").parse_args(argv)

    from .doctor import show_report

    show_report()
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "sft": sft,
    "eval": evaluate,
    "score": score,
    "recipes": recipes,
    "init": init,
    "doctor": doctor,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    return _Parser(prog=f"thinkrl {command}", description=description, allow_abbrev=False)


def _resume_takes_no_override(argv: Sequence[str]) -> list[str]:
    """`--resume key=value` means the newest run: the optional folder is not the override."""
    taken = []
    for i, word in enumerate(argv):
        following = argv[i + 1] if i + 1 < len(argv) else ""
        taken += [word, ""] if word == "--resume" and "=" in following else [word]
    return taken


def _needed(parser: argparse.ArgumentParser, recipe: str | None) -> str:
    if recipe is None:
        parser.error("a recipe is needed: a name from `thinkrl recipes`, or a YAML file")
    return recipe


def _is_main() -> bool:
    """Whether this is the first process of a launch, the only one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def _report(error: BaseException) -> int:
    """One line for what the user can mend, a traceback for what only we can."""
    if os.environ.get("THINKRL_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        return _fail("stopped at once; the last checkpoint is whole: go on with --resume", 130)
    name = type(error).__name__
    if name == "Interrupted":
        return _fail(str(error), 130)
    if name == "RunError":
        return _fail(str(error), 1)
    if isinstance(error, ConfigError) or (isinstance(error, ValueError) and _is_ours(error)):
        return _fail(str(error), 2)
    if isinstance(error, OSError) and error.errno in _DISK:
        return _fail(f"{error.filename or 'disk'}: {error.strerror}", 1)
    traceback.print_exception(error)
    return 1


def _is_ours(error: BaseException) -> bool:
    """Whether a check of our own raised it: it speaks to the user, as a library's does not."""
    frames = traceback.extract_tb(error.__traceback__)
    place = Path(frames[-1].filename).resolve() if frames else Path()
    # The project's own folders: a working copy may hold .venv beside them.
    return any(place.is_relative_to(PACKAGE / name) for name in ("grpo", "rewards", "models"))


def _fail(message: str, code: int) -> int:
    if _is_main():
        print(f"thinkrl: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

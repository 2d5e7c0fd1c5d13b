"""Where rows come from: JSONL, JSON, CSV and parquet files, and datasets of the hub."""

from __future__ import annotations

import csv
import difflib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .tasks import TASKS, Row


def stream_rows(place: str) -> Iterator[Row]:
    """The rows of a file, by its ending, one after another; errors name the line or row."""
    path = Path(os.path.expandvars(place)).expanduser()
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{place}: files of rows end in {', '.join(_READERS)}")
    if not path.is_file():
        raise ValueError(_no_file(place, path))
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ValueError(f"{place}: {(error.strerror or 'cannot be read').lower()}") from None


def read_rows(place: str, *, split: str = "train", limit: int | None = None) -> list[Row]:
    """The rows of a file (by its ending), a folder or a hub dataset, at most `limit` of them.

    `$NAME` and `~` in a path are expanded. A hub dataset may name its configuration, as in
    `openai/gsm8k:main`.
    """
    path = Path(os.path.expandvars(place)).expanduser()
    if path.suffix.lower() in _READERS:
        return list(itertools.islice(stream_rows(place), limit))
    return _read_hub(place, path, split, limit)


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} line {number}: not UTF-8 text (byte {error.start})"
                ) from None
            except (json.JSONDecodeError, RecursionError) as error:
                reason = getattr(error, "msg", "nested too deeply")
                raise ValueError(f"{path} line {number}: malformed JSON: {reason}") from None
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path} line {number}: must be an object, is {describe_kind(row)}"
                )
            yield row


def _read_json(path: Path) -> Iterator[Row]:
    """A list of objects, an object whose only list is `data` or `rows`, or lists by column."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        hint = "; one object a line is a .jsonl file" if error.msg == "Extra data" else ""
        raise ValueError(f"{path} line {error.lineno}: malformed JSON: {error.msg}{hint}") from None
    if isinstance(content, dict):
        content = content.get("data", content.get("rows", content))
    if isinstance(content, dict) and content and all(isinstance(v, list) for v in content.values()):
        if len({len(values) for values in content.values()}) > 1:
            raise ValueError(f"{path}: its columns have different lengths")
        content = [
            dict(zip(content, values, strict=True))
            for values in zip(*content.values(), strict=True)
        ]
    if not isinstance(content, list):
        raise ValueError(f"{path}: must be a list of objects, is {describe_kind(content)}")
    for number, row in enumerate(content, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path} row {number}: must be an object, is {describe_kind(row)}")
        yield row


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for number, row in enumerate(reader, 1):
                if None in row or None in row.values():
                    columns = len(reader.fieldnames or ())
                    more = "more" if None in row else "fewer"
                    raise ValueError(
                        f"{path} row {number} (line {reader.line_num}): {more} than the header's "
                        f"{columns} fields; quote fields that hold commas or line breaks"
                    )
                yield row
        except csv.Error as error:
            raise ValueError(f"{path} line {reader.line_num}: malformed CSV: {error}") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a readable parquet file: {reason}") from None


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _read_hub(place: str, path: Path, split: str, limit: int | None) -> list[Row]:
    """A dataset of the Hugging Face hub, or a folder that `datasets` can read."""
    is_folder = bool(place.strip()) and path.is_dir()
    if not is_folder:
        _refuse_unlikely_id(place)
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{place}: hub datasets need `pip install datasets`") from None
    name, _, configuration = (str(path), "", "") if is_folder else place.partition(":")
    try:
        dataset = datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:
        # whatever the hub, the network or the files made of it, it is one line for the user
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{place} (split {split}): cannot be loaded: {type(error).__name__}: {reason}"
        ) from error
    assert isinstance(dataset, datasets.Dataset)
    return dataset.select(range(min(len(dataset), limit))).to_list() if limit else dataset.to_list()


def _refuse_unlikely_id(place: str) -> None:
    """Say what was probably meant where a name cannot be a hub dataset."""
    if "$" in place:
        raise ValueError(f"{place}: the environment variable in this path is not set")
    close = difflib.get_close_matches(place, TASKS, n=1, cutoff=0.6)
    looks_like_path = place.startswith(("/", ".", "~")) or place.count("/") > 1
    if close or looks_like_path or not place.strip():
        hint = f"did you mean the task {close[0]}? " if close else ""
        raise ValueError(
            f"{place}: no such task, file or folder; {hint}tasks: {', '.join(TASKS)}; files end in "
            f"{', '.join(_READERS)}"
        )


def _no_file(place: str, path: Path) -> str:
    if "$" in str(path):
        return f"{place}: the environment variable in this path is not set"
    if path.is_dir():
        return f"{place}: is a folder, not a file"
    if not path.parent.is_dir():
        return f"{place}: no such file (and no folder {path.parent})"
    files = [file.name for file in path.parent.iterdir() if file.suffix in _READERS]
    close = difflib.get_close_matches(path.name, files, n=1, cutoff=0.5)
    return f"{place}: no such file" + (f"; did you mean {close[0]}?" if close else "")


def describe_kind(value: Any) -> str:
    """What a value is, in the words of an error message."""
    kinds: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "empty (null)",
    }
    return kinds.get(type(value), f"a {type(value).__name__}")

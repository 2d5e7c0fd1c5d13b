"""Files of rows, read and written in chunks: JSONL, CSV and parquet, by their ending.

What is written appears under its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .sources import stream_rows
from .tasks import Row

ENDINGS = (".jsonl", ".parquet", ".csv")
_INT64 = 2**63


@dataclass
class Chunk:
    """Some rows in order; `first` counts from 1. `batch` is the Arrow batch of a parquet file."""

    first: int
    rows: list[Row]
    batch: Any = None

    def rename(self, names: dict[str, str]) -> None:
        """Give columns other names."""
        self.rows = [
            {names.get(key, key): value for key, value in row.items()} for row in self.rows
        ]
        if self.batch is not None:
            import pyarrow

            schema = self.batch.schema
            fields = [field.with_name(names.get(field.name, field.name)) for field in schema]
            renamed = pyarrow.schema(fields, metadata=schema.metadata)
            self.batch = pyarrow.RecordBatch.from_arrays(self.batch.columns, schema=renamed)


def check_ending(place: str) -> str:
    """The ending of a file of rows. Raises ValueError for another."""
    ending = Path(place).suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{place}: must end in {', '.join(ENDINGS)}")
    return ending


def read_chunks(place: str, *, size: int) -> Iterator[Chunk]:
    """The rows of a file, `size` at a time; one chunk without rows where it has none.

    Raises ValueError with the row or line where the file is missing or malformed.
    """
    if check_ending(place) == ".parquet" and Path(place).is_file():
        yield from _parquet_chunks(Path(place), size)
        return
    rows, first = stream_rows(place), 1
    while True:
        part = list(itertools.islice(rows, size))
        if part or first == 1:
            yield Chunk(first, part)
        if not part:
            return
        first += len(part)


def _parquet_chunks(path: Path, size: int) -> Iterator[Chunk]:
    import pyarrow
    import pyarrow.parquet

    first = 1
    try:
        file = pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches(batch_size=size):
            yield Chunk(first, batch.to_pylist(), batch)
            first += batch.num_rows
        if first == 1:
            yield Chunk(1, [], pyarrow.RecordBatch.from_pylist([], schema=file.schema_arrow))
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not readable as parquet at row {first}: {reason}") from None


class RowWriter(Protocol):
    """Writes chunks with columns added to them."""

    def write(self, chunk: Chunk, added: dict[str, list[Any]]) -> None: ...

    def close(self) -> None: ...


@contextlib.contextmanager
def row_writer(place: str) -> Iterator[RowWriter]:
    """A writer to `place`, by its ending; the file is there once the block ends well.

    Numbers, text and lists stay what they are in JSONL; CSV and parquet hold objects as JSON text.
    A parquet file that is copied from one keeps its columns' types. Raises ValueError where a row
    does not fit the columns of the rows before it.
    """
    writers = {".jsonl": _JsonlWriter, ".csv": _CsvWriter, ".parquet": _ParquetWriter}
    path = Path(place)
    kind = writers[check_ending(place)]
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{place}: there is no folder {path.parent}; make it first")
    partial = path.with_name(path.name + ".partial")
    writer = kind(partial)
    try:
        yield writer
        writer.close()
    except BaseException:
        with contextlib.suppress(Exception):
            writer.close()
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)


def _json(value: Any) -> str:
    """JSON text; what JSON has no form for (dates, bytes of a parquet file) as its text."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    # Half a surrogate pair, which JSON may hold escaped, cannot be written as UTF-8.
    return text if _is_unicode(text) else json.dumps(value, default=str)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _JsonlWriter:
    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, chunk: Chunk, added: dict[str, list[Any]]) -> None:
        for i, row in enumerate(chunk.rows):
            new = {name: values[i] for name, values in added.items()}
            self.file.write(_json({**row, **new}) + "\n")

    def close(self) -> None:
        self.file.close()


class _CsvWriter:
    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        self.writer = csv.writer(self.file, lineterminator="\n")
        self.columns: list[str] = []

    def write(self, chunk: Chunk, added: dict[str, list[Any]]) -> None:
        if not self.columns:
            self.columns = [*dict.fromkeys(key for row in chunk.rows for key in row), *added]
            self.writer.writerow(self.columns)
        for i, row in enumerate(chunk.rows):
            _check_columns(row, self.columns, chunk.first + i)
            full = {**row, **{name: values[i] for name, values in added.items()}}
            self.writer.writerow([_cell(full.get(column)) for column in self.columns])

    def close(self) -> None:
        self.file.close()


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return _json(value)


def _check_columns(row: Row, columns: Sequence[str], number: int) -> None:
    extra = [key for key in row if key not in columns]
    if extra:
        raise ValueError(
            f"row {number}: a column {extra[0]!r} that the first rows do not have; write .jsonl, "
            "whose rows may differ"
        )


class _ParquetWriter:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.types: dict[str, Any] = {}  # of the columns of rows that come from text
        self.writer: Any = None

    def write(self, chunk: Chunk, added: dict[str, list[Any]]) -> None:
        import pyarrow
        import pyarrow.parquet

        batch = self._batch_of(chunk) if chunk.batch is None else chunk.batch
        arrays, fields = [*batch.columns], [*batch.schema]
        for name, values in added.items():
            kind = pyarrow.float64() if name == "reward" else pyarrow.string()
            plain = [_text(value) if kind == pyarrow.string() else value for value in values]
            arrays.append(pyarrow.array(plain, kind))
            fields.append(pyarrow.field(name, kind))
        schema = pyarrow.schema(fields, metadata=batch.schema.metadata)
        if self.writer is None:
            self.writer = pyarrow.parquet.ParquetWriter(self.path, schema)
        self.writer.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=self.writer.schema))

    def _batch_of(self, chunk: Chunk) -> Any:
        import pyarrow

        if self.writer is None:
            names = dict.fromkeys(key for row in chunk.rows for key in row)
            self.types = {name: _type_of([row.get(name) for row in chunk.rows]) for name in names}
        for i, row in enumerate(chunk.rows):
            _check_columns(row, list(self.types), chunk.first + i)
        arrays = []
        for name, kind in self.types.items():
            values = [row.get(name) for row in chunk.rows]
            try:
                plain = [_text(v) for v in values] if kind == pyarrow.string() else values
                arrays.append(pyarrow.array(plain, kind))
            except (pyarrow.ArrowException, OverflowError, TypeError) as error:
                last = chunk.first + len(chunk.rows) - 1
                raise ValueError(
                    f"rows {chunk.first} to {last}: column {name!r} is no longer {kind}: {error}; "
                    "write .jsonl, whose rows may differ"
                ) from None
        return pyarrow.RecordBatch.from_arrays(arrays, names=list(self.types))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _type_of(values: Sequence[Any]) -> Any:
    """The Arrow type that holds a column of the first rows: numbers, truth values, else text."""
    import pyarrow

    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pyarrow.bool_()
    if kinds == {int} and all(value is None or -_INT64 <= value < _INT64 for value in values):
        return pyarrow.int64()
    if kinds in ({float}, {int, float}):
        return pyarrow.float64()
    return pyarrow.string()


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return value if isinstance(value, str) and _is_unicode(value) else _json(value)

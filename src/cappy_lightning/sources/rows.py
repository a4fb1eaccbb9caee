"""Rows of data sets, one at a time: local JSON, CSV and Parquet files, and data sets of the Hugging Face hub."""

import codecs
import contextlib
import csv
import functools
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cappy_lightning.errors import InputError, first_line
from cappy_lightning.files import open_input, read_jsonl

Row = dict[str, Any]
#: A row with its place, for messages.
Placed = tuple[str, Row]

#: A CSV column holds whole numbers if the cells of so many first rows do, as far as they are not empty.
_PEEK = 1000
_WHOLE = re.compile("-?(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True)
class Rows:
    """The rows of a data set.

    Attributes:
        name: for messages.
        read: gives the rows from the start, each with its place.
        count: gives how many there are.
    """

    name: str
    read: Callable[[], Iterator[Placed]]
    count: Callable[[], int]


def file_rows(paths: Sequence[str]) -> Rows:
    """The rows of local files, one after the other: .jsonl, .json (a list or lines), .csv or .parquet.

    Raises:
        InputError: a file of another kind.
    """
    for path in paths:
        if not isinstance(path, str) or Path(path).suffix not in _READERS:  # YAML may have anything there
            raise InputError(path, f"is none of {', '.join(_READERS)}")

    def read() -> Iterator[Placed]:
        for path in paths:
            yield from _READERS[Path(path).suffix](path)

    return Rows(", ".join(paths), read, functools.cache(lambda: sum(map(_count, paths))))


def hub_rows(name: str, subset: str | None, split: str, revision: str | None) -> Rows:
    """The rows of a data set on the hub, streamed, or of one in a local folder that `datasets` can read.

    Data sets that still are scripts are read from the Parquet files into which the hub has converted them.

    Raises:
        InputError: the package `datasets` is missing.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(name, "needs the package 'datasets', expected pip install '.[hub]' in the checkout") from None
    where = f"{name}/{subset}" if subset else name

    def load() -> Any:
        datasets.utils.logging.set_verbosity_error()
        options: dict[str, Any] = {"split": split, "streaming": True}
        try:
            return datasets.load_dataset(name, subset, revision=revision, **options)
        except RuntimeError as error:  # "Dataset scripts are no longer supported" (datasets 4 and later)
            if "script" not in str(error) or revision:
                raise InputError(where, f"cannot be loaded ({first_line(error)})") from None
        except Exception as error:  # in whatever way hub, network and files can fail
            raise InputError(where, f"split '{split}' cannot be loaded ({first_line(error)})") from None
        files = f"hf://datasets/{name}@refs%2Fconvert%2Fparquet/{subset or 'default'}/{split}/*.parquet"
        try:
            return datasets.load_dataset("parquet", data_files={split: files}, **options)
        except Exception as error:
            problem = f"is a script, and its converted files cannot be loaded ({first_line(error)})"
            raise InputError(where, problem) from None

    def read() -> Iterator[Placed]:
        rows = iter(load())
        for number in itertools.count(1):
            try:
                yield f"{where}: row {number}", dict(next(rows))
            except StopIteration:
                return
            except InputError:
                raise
            except Exception as error:
                raise InputError(f"{where}: row {number}", f"cannot be read ({first_line(error)})") from None

    def count() -> int:
        info = load().info
        known = (info.splits or {}).get(split)
        return known.num_examples if known and known.num_examples else sum(1 for _ in read())

    return Rows(where, read, functools.cache(count))


def _read_json(path: str) -> Iterator[Placed]:
    with open_input(path) as stream:
        first = stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if first != b"[":
        yield from read_jsonl(path)
        return
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        raise InputError(path, f"not valid JSON ({error})") from None
    for number, row in enumerate(content, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}: row {number}", f"is {type(row).__name__}, expected an object")
        yield f"{path}: row {number}", row


def _read_csv(path: str) -> Iterator[Placed]:
    csv.field_size_limit(1 << 30)
    with open_input(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, strict=True)
        try:
            header = next(reader, None)
            if not header or len(set(header)) < len(header) or not all(header):
                raise InputError(path, "has no first line of distinct column names")
            rows = ((reader.line_num, cells) for cells in reader if cells)
            peeked = list(itertools.islice(rows, _PEEK))
            whole = [
                _are_whole([cells[i] for _, cells in peeked if len(cells) == len(header)]) for i in range(len(header))
            ]
            for line, cells in itertools.chain(peeked, rows):
                where = f"{path}:{line}"
                if len(cells) != len(header):
                    raise InputError(where, f"has {len(cells)} cells, expected {len(header)} as in the first line")
                yield (
                    where,
                    {
                        # A cell of another kind further on stays the text that it is.
                        name: int(cell) if is_whole and _WHOLE.fullmatch(cell) else cell
                        for name, cell, is_whole in zip(header, cells, whole, strict=True)
                    },
                )
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}", f"is not valid CSV ({error})") from None
        except UnicodeDecodeError:
            raise InputError(path, "is not UTF-8 text") from None  # it is decoded ahead of the reader


def _are_whole(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell]
    return bool(filled) and all(map(_WHOLE.fullmatch, filled))


def _read_parquet(path: str) -> Iterator[Placed]:
    with _open_parquet(path) as file:
        batches = file.iter_batches(batch_size=1024)
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
            yield f"{path}: row {number}", row


@contextlib.contextmanager
def _open_parquet(path: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(path, f"is no readable Parquet file ({error})") from None


def _count(path: str) -> int:
    if Path(path).suffix == ".parquet":
        with _open_parquet(path) as file:
            return int(file.metadata.num_rows)
    return sum(1 for _ in _READERS[Path(path).suffix](path))


_READERS: dict[str, Callable[[str], Iterator[Placed]]] = {
    ".jsonl": read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}

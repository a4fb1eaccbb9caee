"""Reading shards row group by row group, and checking them against their manifests before a training."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cappy_lightning.data.locations import is_url, join, open_location, readable
from cappy_lightning.data.shards import SCHEMA, Manifest, ShardEntry
from cappy_lightning.errors import InputError, first_line
from cappy_lightning.progress import Ticker, say

#: Shards that a reader keeps open.
OPEN_SHARDS = 32


class RowGroups:
    """The row groups of some directories of shards, numbered over all of them.

    Args:
        manifests: of the directories, in their order.
        skip_errors: whether what cannot be read is said, once for each group, and has empty cells, instead of being
            raised.
    """

    def __init__(self, manifests: Sequence[Manifest], skip_errors: bool = False) -> None:
        self._skip_errors = skip_errors
        self._shards = [
            (join(manifest.location, shard.file), shard) for manifest in manifests for shard in manifest.shards
        ]
        self._first = np.cumsum([0, *(len(shard.row_groups) for _, shard in self._shards)])
        #: Rows of each group.
        self.rows = np.array([rows for _, shard in self._shards for rows in shard.row_groups], dtype=np.int64)
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._process = os.getpid()
        self._skipped: set[int] = set()

    def __len__(self) -> int:
        return len(self.rows)

    def tasks(self) -> Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """For each task the groups that have rows of it, and how many rows each, as `Mixture` takes them."""
        found: dict[str, tuple[list[Any], list[Any]]] = {}
        for first, (_, shard) in zip(self._first.tolist(), self._shards, strict=False):
            for task, counts in shard.tasks.items():
                groups, rows = found.setdefault(task, ([], []))
                filled = np.flatnonzero(counts)
                groups.append(first + filled)
                rows.append(counts[filled].astype(np.int64))
        return {task: (np.concatenate(groups), np.concatenate(rows)) for task, (groups, rows) in found.items()}

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of a row group.

        Raises:
            InputError: it cannot be read, or is not what the manifest says; the shard and the group are named.
        """
        try:
            return self._read(group, columns)
        except InputError as problem:
            if not self._skip_errors:
                raise
            if group not in self._skipped:
                self._skipped.add(group)
                say(f"{problem}; its {self.rows[group]:,} instances are skipped")
            schema, rows = _schema(columns), int(self.rows[group])
            return pa.table([pa.nulls(rows, field.type) for field in schema], schema=schema)

    def _read(self, group: int, columns: Sequence[str]) -> pa.Table:
        number = int(np.searchsorted(self._first, group, side="right")) - 1
        path, shard = self._shards[number]
        local = group - int(self._first[number])
        try:
            table = self._opened(number).read_row_group(local, columns=list(columns), use_threads=False)
        except InputError:
            raise
        except Exception as error:  # Arrow's own, and those of every file system
            self._open.pop(number, None)
            raise InputError(f"{path}: row group {local}", f"cannot be read ({first_line(error)})") from None
        if table.num_rows != shard.row_groups[local]:
            raise InputError(
                f"{path}: row group {local}",
                f"has {table.num_rows} rows, expected {shard.row_groups[local]} by its manifest",
            )
        return _checked(table.cast(_schema(columns)), f"{path}: row group {local}")

    def _opened(self, number: int) -> pq.ParquetFile:
        if os.getpid() != self._process:  # file positions are shared with the process that this one was forked from
            self._open, self._process = OrderedDict(), os.getpid()
        if number not in self._open:
            path, shard = self._shards[number]
            self._open[number] = _open_shard(path, shard)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]


def read_table(manifests: Sequence[Manifest]) -> pa.Table:
    """All rows of some directories as one table, in the order of the manifests; for sets that fit into memory.

    Raises:
        InputError: a row group that cannot be read, or has a score outside [0, 1].
    """
    return pa.concat_tables(iterate(manifests))


def iterate(manifests: Sequence[Manifest]) -> Iterator[pa.Table]:
    """The row groups of some directories, in order.

    Raises:
        InputError: one cannot be read, or has a score outside [0, 1].
    """
    groups = RowGroups(manifests)
    for group in range(len(groups)):
        yield groups.read(group, SCHEMA.names)


def verify(manifests: Sequence[Manifest], skip_errors: bool = False) -> None:
    """Check all shards against their manifests: there, of the right size, content, columns, rows and range of scores.

    Of local files every byte is read, for the SHA-256; of others the size and the Parquet footer. Of all of them the
    pages' checksums are checked as the training reads them.

    Args:
        manifests: of the directories.
        skip_errors: whether to say what is wrong instead of raising it.

    Raises:
        InputError: the first shard, in order, that is not what its manifest says.
    """
    shards = [(join(manifest.location, shard.file), shard) for manifest in manifests for shard in manifest.shards]
    with (
        ThreadPoolExecutor(min(8, len(shards))) as pool,
        Ticker("checking shards", len(shards)) as ticker,
    ):
        for problem in pool.map(_problem, shards):
            ticker.advance(1)
            if problem and not skip_errors:
                pool.shutdown(wait=False, cancel_futures=True)
                raise problem
            if problem:
                say(f"{problem}; what of it cannot be read is skipped")


def _open_shard(path: str, shard: ShardEntry) -> pq.ParquetFile:
    """Open a shard whose size is what the manifest says; its pages' checksums are checked as they are read."""
    with readable(path):
        files, inner = open_location(path)
        if not files.exists(inner):
            raise InputError(path, "is missing, expected by its manifest")
        size = files.size(inner)
        if size != shard.bytes:
            raise InputError(
                path, f"has {size} bytes, expected {shard.bytes} by its manifest: it was cut off or changed"
            )
        source = files.open(inner, "rb") if is_url(path) else inner
    try:
        return pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=is_url(path))
    except (pa.ArrowException, OSError) as error:
        raise InputError(path, f"is no readable Parquet file ({error})") from None


def _problem(entry: tuple[str, ShardEntry]) -> InputError | None:
    try:
        with readable(entry[0]):
            _verify_shard(*entry)
    except InputError as error:
        return error
    return None


def _verify_shard(path: str, shard: ShardEntry) -> None:
    with _open_shard(path, shard) as file:
        if not is_url(path):
            with open(path, "rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != shard.sha256:
                    raise InputError(path, "has changed since it was written, expected the SHA-256 of its manifest")
        schema, metadata = file.schema_arrow, file.metadata
        missing = [name for name in SCHEMA.names if name not in schema.names]
        if missing:
            raise InputError(path, f"column '{missing[0]}' is missing")
        for name in SCHEMA.names:
            kind = schema.field(name).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            fits = (
                pa.types.is_floating
                if name == "score"
                else lambda k: pa.types.is_string(k) or pa.types.is_large_string(k)
            )
            if not fits(kind):
                raise InputError(
                    path, f"column '{name}' is {kind}, expected {'numbers' if name == 'score' else 'text'}"
                )
        rows = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        if rows != shard.row_groups:
            raise InputError(
                path, f"has row groups of {_some(rows)} rows, expected {_some(shard.row_groups)} by its manifest"
            )
        for group in range(metadata.num_row_groups):
            _check_group(file, group, is_url(path), f"{path}: row group {group}")


def _check_group(file: pq.ParquetFile, group: int, far: bool, where: str) -> None:
    """Empty cells by the statistics; scores, too, where they lie far, else all of them (statistics pass over NaN)."""
    names = file.schema_arrow.names
    statistics = {name: file.metadata.row_group(group).column(names.index(name)).statistics for name in SCHEMA.names}
    for name, found in statistics.items():
        if found is not None and found.null_count:
            raise InputError(where, f"column '{name}' has empty cells, expected a value in every row")
    score = statistics["score"]
    if not far or score is None or not score.has_min_max or not 0 <= score.min <= score.max <= 1:
        _checked(file.read_row_group(group, columns=["score"], use_threads=False), where)


def _schema(columns: Sequence[str]) -> pa.Schema:
    return pa.schema([SCHEMA.field(name) for name in columns])


def _checked(table: pa.Table, where: str) -> pa.Table:
    for name in table.column_names:
        if table[name].null_count:
            raise InputError(where, f"column '{name}' has empty cells, expected a value in every row")
    if "score" in table.column_names:
        scores = table["score"].to_numpy()
        bad = np.flatnonzero(~((scores >= 0) & (scores <= 1)))
        if bad.size:
            raise InputError(f"{where}, row {bad[0]}", f"score is {scores[bad[0]]}, expected a number from 0 to 1")
    return table


def _some(rows: Sequence[int]) -> str:
    return f"{', '.join(map(str, rows[:3]))}{' ...' if len(rows) > 3 else ''}"

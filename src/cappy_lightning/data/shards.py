"""Instances as Parquet shards with a manifest: a directory is there whole or not at all.

A directory holds `shard-00000.parquet ...` and `manifest.json`:

    {"schema_version": 2, "rows": 120,
     "shards": [{"file", "rows", "row_groups": [rows of each], "bytes", "sha256",
                 "tasks": {task: [rows in each group]}}],
     "score_histogram": [10 counts over [0, 1]], "origins": {origin: rows}, "tasks": {task: rows},
     "made_by": {...}}

Version 2 added the sizes and the tasks of the row groups: from the manifest alone follows what a training reads when.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cappy_lightning.data.locations import join, open_location, readable
from cappy_lightning.errors import InputError
from cappy_lightning.files import atomic_path, file_sha256, find_part_names, write_json
from cappy_lightning.records import Instance

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
#: Rows of a shard, and of a row group in it: small groups mix better, and cost hardly more to read.
SHARD_ROWS, GROUP_ROWS = 100_000, 1_000
SCHEMA = pa.schema(
    [
        ("instruction", pa.string()),
        ("response", pa.string()),
        ("score", pa.float32()),
        ("origin", pa.dictionary(pa.int8(), pa.string())),
        ("task", pa.dictionary(pa.int32(), pa.string())),
        ("example_id", pa.string()),
    ]
)


@dataclass(frozen=True, eq=False)
class ShardEntry:
    """What a manifest says of a shard; `row_groups` are rows, `tasks` the rows of each task in each of the groups.

    The latter are arrays, because a set of 160 million instances has millions of such numbers.
    """

    file: str
    rows: int
    row_groups: tuple[int, ...]
    bytes: int
    sha256: str
    tasks: dict[str, NDArray[np.int32]]


@dataclass(frozen=True)
class Manifest:
    """What a directory of shards holds; `location` is the path or URL where it was read."""

    location: str
    rows: int
    shards: tuple[ShardEntry, ...]
    score_histogram: tuple[int, ...]
    made_by: dict[str, Any]


def write_instances(
    instances: Iterable[Instance],
    directory: Path,
    made_by: dict[str, Any],
    *,
    shard_rows: int = SHARD_ROWS,
    group_rows: int = GROUP_ROWS,
) -> Manifest:
    """Write a directory of shards; it appears when all is written, replacing what was there.

    Raises:
        InputError: there is no instance, or the directory cannot be written.
    """
    iterator = iter(instances)
    shards: list[dict[str, Any]] = []
    with atomic_path(directory) as scratch:
        scratch.mkdir()
        while rows := list(islice(iterator, shard_rows)):
            shards.append(write_shard(rows, scratch, len(shards), group_rows))
        if not shards:
            raise InputError(directory, "there is no instance to write")
        write_manifest(scratch, shards, made_by)
    return read_manifest(directory)


def write_shard(rows: Sequence[Instance], directory: Path, number: int, group_rows: int = GROUP_ROWS) -> dict[str, Any]:
    """Write one shard, and give its entry for the manifest, with its counts by score, origin and task."""
    path = directory / f"shard-{number:05d}.parquet"
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
    table = pa.table(columns, schema=SCHEMA)
    pq.write_table(table, path, row_group_size=group_rows, compression="zstd", write_page_checksum=True)
    starts = range(0, len(rows), group_rows)
    by_group = [Counter(columns["task"][start : start + group_rows]) for start in starts]
    return {
        "file": path.name,
        "rows": len(rows),
        "row_groups": [min(group_rows, len(rows) - start) for start in starts],
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "tasks": {task: [group[task] for group in by_group] for task in dict.fromkeys(columns["task"])},
        "score_histogram": np.histogram(columns["score"], bins=10, range=(0, 1))[0].tolist(),
        "origins": dict(Counter(columns["origin"])),
    }


def write_manifest(directory: Path, shards: Sequence[dict[str, Any]], made_by: dict[str, Any]) -> None:
    """Write the manifest of a directory whose shards are all there."""
    totals: dict[str, Counter[str]] = {"origins": Counter(), "tasks": Counter()}
    for shard in shards:
        totals["origins"].update(shard["origins"])
        totals["tasks"].update({task: sum(counts) for task, counts in shard["tasks"].items()})
    write_json(
        directory / MANIFEST,
        {
            "schema_version": SCHEMA_VERSION,
            "rows": sum(shard["rows"] for shard in shards),
            "shards": [{name: shard[name] for name in ShardEntry.__dataclass_fields__} for shard in shards],
            "score_histogram": [sum(counts) for counts in zip(*(s["score_histogram"] for s in shards), strict=True)],
            **{name: dict(counts.most_common()) for name, counts in totals.items()},
            "made_by": made_by,
        },
    )


def find_directories(location: str) -> list[str]:
    """The directories of instances at a path or URL: itself, or the parts in it, all of which must be there.

    Parts without any instance are passed over.

    Raises:
        InputError: there is none, or a part is missing.
    """
    with readable(location):
        files, path = open_location(location)
        if files.isfile(join(path, MANIFEST)):
            return [location]
        names = [Path(entry).name for entry in files.ls(path, detail=False)] if files.isdir(path) else []
    parts = [join(location, part) for part in find_part_names(names, location)]
    if not parts:
        raise InputError(location, f"has no {MANIFEST}, expected a directory of instances")
    filled = [part for part in parts if read_manifest(part, empty=True).rows]
    if not filled:
        raise InputError(location, "has no instance in any of its parts")
    return filled


def read_manifest(location: str | Path, *, empty: bool = False) -> Manifest:
    """Read a directory's manifest.

    Args:
        location: path or URL of the directory.
        empty: whether it may be without any row, as a part can be.

    Raises:
        InputError: no manifest, another schema version, or no rows.
    """
    path = join(str(location), MANIFEST)
    with readable(path):
        files, inner = open_location(path)
        text = files.cat_file(inner)
    try:
        content = json.loads(text)
        version, rows = content["schema_version"], content["rows"]
        if version == SCHEMA_VERSION:
            shards = tuple(_entry(shard) for shard in content["shards"])
            histogram = tuple(map(int, content["score_histogram"]))
            made_by = dict(content.get("made_by") or {})
            if not all(sum(shard.row_groups) == shard.rows for shard in shards):
                raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise InputError(path, "is no manifest of instances") from None
    if version != SCHEMA_VERSION:
        raise InputError(
            path, f"has schema version {version!r}, expected {SCHEMA_VERSION}; `cappy label` makes it anew"
        )
    if sum(shard.rows for shard in shards) != rows:
        raise InputError(path, f"counts {rows} rows, but its shards hold {sum(shard.rows for shard in shards)}")
    if sum(histogram) != rows:
        raise InputError(path, f"counts {rows} rows, but its histogram of scores {sum(histogram)}")
    if not rows and not empty:
        raise InputError(path, "counts no rows, expected at least one instance")
    return Manifest(str(location), rows, shards, histogram, made_by)


def _entry(shard: dict[str, Any]) -> ShardEntry:
    groups = tuple(map(int, shard["row_groups"]))
    tasks = {str(task): np.array(counts, dtype=np.int32) for task, counts in shard["tasks"].items()}
    if not all(counts.shape == (len(groups),) for counts in tasks.values()):
        raise ValueError
    if sum(tasks.values(), np.zeros(len(groups), dtype=np.int64)).tolist() != list(groups):  # by which rows are drawn
        raise ValueError
    return ShardEntry(str(shard["file"]), int(shard["rows"]), groups, int(shard["bytes"]), str(shard["sha256"]), tasks)

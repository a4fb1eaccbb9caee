"""Instances as Parquet shards with a manifest: a directory is there whole or not at all.

A directory holds `shard-00000.parquet ...` and `manifest.json`:

    {"schema_version": 1, "rows": 120, "shards": [{"file", "rows", "row_groups", "sha256"}],
     "score_histogram": [10 counts over [0, 1]], "origins": {origin: rows}, "tasks": {task: rows},
     "made_by": {...}}
"""

import hashlib
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

from cappy_lightning.errors import InputError
from cappy_lightning.files import atomic_path, find_parts, write_json
from cappy_lightning.records import Instance

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
#: Rows of a shard, and of a row group in it.
SHARD_ROWS, GROUP_ROWS = 100_000, 5_000
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


@dataclass(frozen=True)
class Manifest:
    """What a directory of shards holds; `directory` is where it was read."""

    directory: Path
    rows: int
    shards: tuple[dict[str, Any], ...]
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
    pq.write_table(pa.table(columns, schema=SCHEMA), path, row_group_size=group_rows, compression="zstd")
    return {
        "file": path.name,
        "rows": len(rows),
        "row_groups": [min(group_rows, len(rows) - start) for start in range(0, len(rows), group_rows)],
        "sha256": _sha256(path),
        "score_histogram": np.histogram(columns["score"], bins=10, range=(0, 1))[0].tolist(),
        "origins": dict(Counter(columns["origin"])),
        "tasks": dict(Counter(columns["task"])),
    }


def write_manifest(directory: Path, shards: Sequence[dict[str, Any]], made_by: dict[str, Any]) -> None:
    """Write the manifest of a directory whose shards are all there."""
    totals: dict[str, Counter[str]] = {"origins": Counter(), "tasks": Counter()}
    for shard in shards:
        for name, counts in totals.items():
            counts.update(shard[name])
    write_json(
        directory / MANIFEST,
        {
            "schema_version": SCHEMA_VERSION,
            "rows": sum(shard["rows"] for shard in shards),
            "shards": [{name: shard[name] for name in ("file", "rows", "row_groups", "sha256")} for shard in shards],
            "score_histogram": [sum(counts) for counts in zip(*(s["score_histogram"] for s in shards), strict=True)],
            **{name: dict(counts.most_common()) for name, counts in totals.items()},
            "made_by": made_by,
        },
    )


def find_directories(path: Path) -> list[Path]:
    """The directories of instances at a path: itself, or the parts in it, all of which must be there.

    Parts without any instance are passed over.

    Raises:
        InputError: there is none, or a part is missing.
    """
    if (path / MANIFEST).is_file():
        return [path]
    if not path.is_dir() or not (parts := find_parts(path)):
        raise InputError(path, f"has no {MANIFEST}, expected a directory of instances")
    filled = [part for part in parts if read_manifest(part, empty=True).rows]
    if not filled:
        raise InputError(path, "has no instance in any of its parts")
    return filled


def read_manifest(directory: Path, *, empty: bool = False) -> Manifest:
    """Read and check a directory's manifest, and that its shards are there.

    Args:
        directory: the directory.
        empty: whether it may be without any row, as a part can be.

    Raises:
        InputError: no manifest, another schema version, no rows, or a shard that is missing.
    """
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, rows, shards = content["schema_version"], content["rows"], tuple(content["shards"])
        files = [directory / shard["file"] for shard in shards]
        total = sum(shard["rows"] for shard in shards if shard["sha256"])
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror}), expected a directory of instances") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(path, "is no manifest of instances") from None
    if version != SCHEMA_VERSION:
        raise InputError(path, f"has schema version {version!r}, expected {SCHEMA_VERSION}")
    if total != rows:
        raise InputError(path, f"counts {rows} rows, but its shards hold {total}")
    if not rows and not empty:
        raise InputError(path, "counts no rows, expected at least one instance")
    for file in files:
        if not file.is_file():
            raise InputError(file, f"is missing, expected by {path}")
    return Manifest(directory, rows, shards, dict(content.get("made_by") or {}))


def read_table(manifests: Sequence[Manifest]) -> pa.Table:
    """All rows of some directories as one table, in the order of the manifests.

    Raises:
        InputError: a shard that cannot be read, has other columns or rows, or a score outside [0, 1].
    """
    return pa.concat_tables([_read_shard(m, shard) for m in manifests for shard in m.shards])


def _read_shard(manifest: Manifest, shard: dict[str, Any]) -> pa.Table:
    path = manifest.directory / shard["file"]
    try:
        if _sha256(path) != shard["sha256"]:
            raise InputError(path, "has changed since it was written, expected the SHA-256 of its manifest")
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(path, f"is no readable Parquet file ({error})") from None
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise InputError(path, f"column '{missing[0]}' is missing")
    table = table.select(SCHEMA.names)
    if table.num_rows != shard["rows"]:
        raise InputError(path, f"has {table.num_rows} rows, expected {shard['rows']} by its manifest")
    try:
        table = table.cast(SCHEMA)
    except pa.ArrowException as error:
        raise InputError(path, f"columns have other types than instances ({error})") from None
    for name in SCHEMA.names:
        if table[name].null_count:
            raise InputError(path, f"column '{name}' has empty cells, expected a value in every row")
    scores = table["score"].to_numpy()
    bad = np.flatnonzero(~((scores >= 0) & (scores <= 1)))
    if bad.size:
        raise InputError(f"{path}: row {bad[0] + 1}", f"score is {scores[bad[0]]}, expected a number from 0 to 1")
    return table


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""Instances as Parquet shards: what is written is read, and what is damaged is refused."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_shards import INSTANCES, refusal

from cappy_lightning.data.reading import read_table
from cappy_lightning.data.shards import MANIFEST, SCHEMA, read_manifest, write_instances
from cappy_lightning.errors import InputError
from cappy_lightning.records import Instance


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Shards of 7, 7 and 3 rows, in groups of 3."""
    write_instances(INSTANCES, tmp_path / "written", {"by": "test"}, shard_rows=7, group_rows=3)
    return tmp_path / "written"


def read_all(directory: Path) -> pa.Table:
    return read_table([read_manifest(directory)])


def change_manifest(directory: Path, **changes: Any) -> None:
    content = json.loads((directory / MANIFEST).read_text()) | changes
    (directory / MANIFEST).write_text(json.dumps({key: value for key, value in content.items() if value != "GONE"}))


@pytest.mark.parametrize(("shard_rows", "group_rows"), [(7, 3), (1, 1), (17, 17), (100_000, 5_000)])
def test_what_is_written_is_read_in_its_order(tmp_path: Path, shard_rows: int, group_rows: int) -> None:
    directory = tmp_path / "of=some" / "task=other"  # no partitions are made of a path
    manifest = write_instances(iter(INSTANCES), directory, {}, shard_rows=shard_rows, group_rows=group_rows)
    table = read_table([manifest])
    assert table.schema == SCHEMA
    assert [Instance(**row) for row in table.to_pylist()] == INSTANCES  # sixteenths are exact in 32 bits


def test_directories_are_read_one_after_the_other(written: Path, tmp_path: Path) -> None:
    other = write_instances(INSTANCES[:1], tmp_path / "other", {})
    table = read_table([other, read_manifest(written), other])
    assert table["response"].to_pylist() == [i.response for i in [INSTANCES[0], *INSTANCES, INSTANCES[0]]]


def test_the_manifest_says_what_is_there(written: Path) -> None:
    content = json.loads((written / MANIFEST).read_text())
    assert (content["schema_version"], content["rows"], content["made_by"]) == (2, 17, {"by": "test"})
    assert [shard["rows"] for shard in content["shards"]] == [7, 7, 3]
    assert [shard["row_groups"] for shard in content["shards"]] == [[3, 3, 1], [3, 3, 1], [3]]
    # 0 1 2 | 0 1 2 | 0    1 2 0 | 1 2 0 | 1    2 0 1
    assert content["shards"][0]["tasks"] == {"task 0": [1, 1, 1], "task 1": [1, 1, 0], "task 2": [1, 1, 0]}
    assert content["shards"][2]["tasks"] == {"task 2": [1], "task 0": [1], "task 1": [1]}
    assert content["tasks"] == {"task 0": 6, "task 1": 6, "task 2": 5}
    # 0/16 1/16 | 2/16 3/16 | 4/16 | 5/16 6/16 | 7/16 | 8/16 9/16 | 10/16 11/16 | 12/16 | 13/16 14/16 | 15/16 16/16
    assert content["score_histogram"] == [2, 2, 1, 2, 1, 2, 2, 1, 2, 2]
    assert content["origins"] == {"gold": 4, "given": 4, "sampled": 3, "wrong_choice": 3, "mismatch": 3}
    for shard in content["shards"]:
        file = written / shard["file"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == shard["sha256"]
        assert file.stat().st_size == shard["bytes"]
        metadata = pq.ParquetFile(file).metadata
        assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == shard["row_groups"]


def test_nothing_to_write_is_refused_and_leaves_the_old_ones(written: Path) -> None:
    assert refusal(lambda: write_instances([], written, {})) == f"{written}: there is no instance to write"
    assert read_all(written).num_rows == 17


def test_an_error_among_the_instances_leaves_the_old_ones(written: Path) -> None:
    def broken() -> Iterator[Instance]:
        yield from INSTANCES[:5]
        raise InputError("pool.jsonl:6", "is bad")

    assert refusal(lambda: write_instances(broken(), written, {}, shard_rows=2)) == "pool.jsonl:6: is bad"
    assert read_all(written).num_rows == 17
    assert [path.name for path in written.parent.iterdir()] == ["written"]


def test_new_instances_replace_all_old_shards(written: Path) -> None:
    write_instances(INSTANCES[:2], written, {})
    assert sorted(path.name for path in written.iterdir()) == [MANIFEST, "shard-00000.parquet"]
    assert read_all(written).num_rows == 2


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    message = refusal(lambda: write_instances(INSTANCES, tmp_path / "file", {}))
    assert message == f"{tmp_path / 'file'}: is a file, expected a directory or nothing"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept"]


def test_a_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(lambda: write_instances(INSTANCES, tmp_path / "file" / "below", {}))
    assert message == f"{tmp_path / 'file'}: the directory cannot be written (File exists)"


def test_a_directory_without_manifest_is_refused(tmp_path: Path) -> None:
    message = refusal(lambda: read_manifest(tmp_path))
    expected = "cannot be read (No such file or directory), expected a directory of instances"
    assert message == f"{tmp_path / MANIFEST}: {expected}"


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"3", b"\xff", b"{}", b'{"schema_version": 2, "rows": 1}',
             b'{"schema_version": 2, "rows": 1, "shards": null}', b'{"schema_version": 2, "rows": 1, "shards": ["a"]}',
             b'{"schema_version": 2, "rows": 1, "shards": [{"file": 3}]}',
             b'{"schema_version": 2, "rows": 1, "shards": [{"file": "a", "rows": "1", "sha256": "0"}]}'],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(text)
    assert refusal(lambda: read_manifest(tmp_path)) == f"{tmp_path / MANIFEST}: is no manifest of instances"


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_another_schema_version_is_refused(written: Path, version: object) -> None:
    change_manifest(written, schema_version=version)
    message = refusal(lambda: read_manifest(written))
    assert message == f"{written / MANIFEST}: has schema version {version!r}, expected 2; `cappy label` makes it anew"


@pytest.mark.parametrize(
    "change",
    [{"row_groups": [3, 3]}, {"tasks": {"task 0": [1]}}, {"tasks": {"task 0": [10**12]}}, {"tasks": {}}, {"rows": 8}],
)
def test_a_manifest_that_contradicts_itself_is_refused(written: Path, change: dict[str, Any]) -> None:
    shards = json.loads((written / MANIFEST).read_text())["shards"]
    change_manifest(written, shards=[shards[0] | change, *shards[1:]])
    assert refusal(lambda: read_manifest(written)) == f"{written / MANIFEST}: is no manifest of instances"


def test_a_manifest_without_rows_is_refused(written: Path) -> None:
    change_manifest(written, rows=0, shards=[], score_histogram=[])
    assert refusal(lambda: read_manifest(written)).startswith(f"{written / MANIFEST}: counts no rows")


@pytest.mark.parametrize("missing", ["file", "rows", "row_groups", "bytes", "sha256", "tasks"])
def test_a_manifest_that_does_not_tell_of_its_shards_is_refused(written: Path, missing: str) -> None:
    shards = json.loads((written / MANIFEST).read_text())["shards"]
    del shards[1][missing]
    change_manifest(written, shards=shards)
    assert refusal(lambda: read_manifest(written)) == f"{written / MANIFEST}: is no manifest of instances"


@pytest.mark.parametrize(("rows", "count", "held"), [(16, 3, 17), (18, 3, 17), (0, 3, 17), (17, 2, 14), (17, 0, 0)])
def test_a_manifest_whose_rows_do_not_add_up_is_refused(written: Path, rows: int, count: int, held: int) -> None:
    shards = json.loads((written / MANIFEST).read_text())["shards"][:count]
    change_manifest(written, rows=rows, shards=shards)
    message = refusal(lambda: read_manifest(written))
    assert message == f"{written / MANIFEST}: counts {rows} rows, but its shards hold {held}"


def test_a_histogram_that_does_not_add_up_is_refused(written: Path) -> None:
    change_manifest(written, score_histogram=[16])
    message = refusal(lambda: read_manifest(written))
    assert message == f"{written / MANIFEST}: counts 17 rows, but its histogram of scores 16"

"""Instances as Parquet shards: what is written is read, and what is damaged is refused."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cappy_lightning.data.shards import MANIFEST, SCHEMA, read_manifest, read_table, write_instances
from cappy_lightning.errors import InputError
from cappy_lightning.records import ORIGINS, Instance

INSTANCES = [
    Instance(f"instruction {n}\nü😀", f"response {n}", n / 16, ORIGINS[n % 5], f"task {n % 3}", f"example {n // 2}")
    for n in range(17)
]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_instances(INSTANCES, tmp_path / "written", {"by": "test"}, shard_rows=7, group_rows=3)
    return tmp_path / "written"


def refusal(read: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as error:
        read()
    assert "\n" not in str(error.value)
    return str(error.value)


def read_all(directory: Path) -> pa.Table:
    return read_table([read_manifest(directory)])


def change_shard(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write a shard anew and its hash into the manifest, which else stays as it is."""
    pq.write_table(change(pq.read_table(path)), path)
    vouch_for(path)


def vouch_for(path: Path) -> None:
    shards = json.loads((path.parent / MANIFEST).read_text())["shards"]
    (shard,) = (shard for shard in shards if shard["file"] == path.name)
    shard["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    change_manifest(path.parent, shards=shards)


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
    assert (content["schema_version"], content["rows"], content["made_by"]) == (1, 17, {"by": "test"})
    assert [shard["rows"] for shard in content["shards"]] == [7, 7, 3]
    assert [shard["row_groups"] for shard in content["shards"]] == [[3, 3, 1], [3, 3, 1], [3]]
    # 0/16 1/16 | 2/16 3/16 | 4/16 | 5/16 6/16 | 7/16 | 8/16 9/16 | 10/16 11/16 | 12/16 | 13/16 14/16 | 15/16 16/16
    assert content["score_histogram"] == [2, 2, 1, 2, 1, 2, 2, 1, 2, 2]
    assert content["origins"] == {"gold": 4, "given": 4, "sampled": 3, "wrong_choice": 3, "mismatch": 3}
    for shard in content["shards"]:
        file = written / shard["file"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == shard["sha256"]
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
    "text", [b"", b"{", b"[]", b"3", b"\xff", b"{}", b'{"schema_version": 1, "rows": 1}',
             b'{"schema_version": 1, "rows": 1, "shards": null}', b'{"schema_version": 1, "rows": 1, "shards": ["a"]}',
             b'{"schema_version": 1, "rows": 1, "shards": [{"file": 3}]}',
             b'{"schema_version": 1, "rows": 1, "shards": [{"file": "a", "rows": "1", "sha256": "0"}]}'],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(text)
    assert refusal(lambda: read_manifest(tmp_path)) == f"{tmp_path / MANIFEST}: is no manifest of instances"


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version_is_refused(written: Path, version: object) -> None:
    change_manifest(written, schema_version=version)
    message = refusal(lambda: read_manifest(written))
    assert message == f"{written / MANIFEST}: has schema version {version!r}, expected 1"


def test_a_manifest_without_rows_is_refused(written: Path) -> None:
    change_manifest(written, rows=0, shards=[])
    assert refusal(lambda: read_manifest(written)).startswith(f"{written / MANIFEST}: counts no rows")


@pytest.mark.parametrize("missing", ["file", "rows", "sha256"])
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


def test_a_missing_shard_is_refused_by_its_file(written: Path) -> None:
    (written / "shard-00001.parquet").unlink()
    message = refusal(lambda: read_manifest(written))
    assert message == f"{written / 'shard-00001.parquet'}: is missing, expected by {written / MANIFEST}"


def test_a_shard_that_has_changed_is_refused_by_its_hash(written: Path) -> None:
    path = written / "shard-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take([6, 5, 4, 3, 2, 1, 0]), path)  # good rows, in another order
    message = refusal(lambda: read_all(written))
    assert message == f"{path}: has changed since it was written, expected the SHA-256 of its manifest"
    vouch_for(path)
    assert read_all(written).num_rows == 17


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_shard_is_refused_by_its_file(written: Path, share: float) -> None:
    path = written / "shard-00001.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert refusal(lambda: read_all(written)).startswith(f"{path}: has changed since it was written")
    vouch_for(path)
    assert refusal(lambda: read_all(written)).startswith(f"{path}: is no readable Parquet file (")


@pytest.mark.parametrize("score", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_score_out_of_range_is_refused_by_its_row(written: Path, score: float) -> None:
    path = written / "shard-00002.parquet"
    column = pa.array([0.5, 1.0, score], pa.float32())
    change_shard(path, lambda table: table.set_column(2, "score", column))
    assert refusal(lambda: read_all(written)).startswith(f"{path}: row 3: score is ")


@pytest.mark.parametrize("name", SCHEMA.names)
def test_a_row_with_an_empty_cell_is_refused_by_its_column(written: Path, name: str) -> None:
    path, index = written / "shard-00002.parquet", SCHEMA.names.index(name)
    column = pa.array([0.5, 1.0, None], pa.float32()) if name == "score" else pa.array(["a", "b", None])
    change_shard(path, lambda table: table.set_column(index, name, column))
    message = refusal(lambda: read_all(written))
    assert message == f"{path}: column '{name}' has empty cells, expected a value in every row"


@pytest.mark.parametrize("name", SCHEMA.names)
def test_a_missing_column_is_refused_by_its_name(written: Path, name: str) -> None:
    path = written / "shard-00000.parquet"
    change_shard(path, lambda table: table.drop_columns([name]))
    assert refusal(lambda: read_all(written)) == f"{path}: column '{name}' is missing"


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("score", pa.array(["a", "b", "c"])),
        ("instruction", pa.array([[1], [2], [3]])),
        ("task", pa.array([b"\xff"] * 3)),
    ],
)
def test_a_column_of_another_type_is_refused(written: Path, name: str, column: pa.Array) -> None:
    path = written / "shard-00002.parquet"
    change_shard(path, lambda table: table.set_column(SCHEMA.names.index(name), name, column))
    assert refusal(lambda: read_all(written)).startswith(f"{path}: columns have other types than instances (")


def test_a_shard_with_other_rows_than_its_manifest_says_is_refused(written: Path) -> None:
    path = written / "shard-00000.parquet"
    change_shard(path, lambda table: table.slice(1))
    assert refusal(lambda: read_all(written)) == f"{path}: has 6 rows, expected 7 by its manifest"
    change_shard(path, lambda table: pa.concat_tables([table, table]))
    assert refusal(lambda: read_all(written)) == f"{path}: has 12 rows, expected 7 by its manifest"


def test_more_columns_and_wider_numbers_are_no_harm(written: Path) -> None:
    def widen(table: pa.Table) -> pa.Table:
        table = table.set_column(2, "score", table["score"].cast(pa.float64())).append_column("x", table["score"])
        return table.set_column(3, "origin", table["origin"].cast(pa.string())).select(reversed(table.column_names))

    before = read_all(written)
    change_shard(written / "shard-00000.parquet", widen)
    assert read_all(written).to_pylist() == before.to_pylist()

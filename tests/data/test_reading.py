"""Reading row groups: what is damaged is named before a training, or in its middle; local files and URLs alike."""

import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from hand_shards import INSTANCES, refusal

from cappy_lightning.data.reading import RowGroups, read_table, verify
from cappy_lightning.data.shards import MANIFEST, SCHEMA, find_directories, read_manifest, write_instances


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Shards of 7, 7 and 3 rows, in groups of 3."""
    write_instances(INSTANCES, tmp_path / "written", {"by": "test"}, shard_rows=7, group_rows=3)
    return tmp_path / "written"


def check(directory: Path) -> None:
    verify([read_manifest(directory)])


def read_all(directory: Path) -> pa.Table:
    return read_table([read_manifest(directory)])


def refusals(directory: Path) -> list[str]:
    """Of checking, and of reading."""
    return [refusal(partial(read, directory)) for read in (check, read_all)]


def change_shard(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write a shard anew and its size and hash into the manifest, which else stays as it is."""
    pq.write_table(change(pq.read_table(path)), path, row_group_size=3)
    vouch_for(path)


def vouch_for(path: Path) -> None:
    content = json.loads((path.parent / MANIFEST).read_text())
    (shard,) = (shard for shard in content["shards"] if shard["file"] == path.name)
    data = path.read_bytes()
    shard |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (path.parent / MANIFEST).write_text(json.dumps(content))


def test_good_shards_are_found_good(written: Path) -> None:
    check(written)


def test_a_row_group_is_read_by_its_number_over_all_directories(written: Path, tmp_path: Path) -> None:
    other = write_instances(INSTANCES[:1], tmp_path / "other", {})
    groups = RowGroups([other, read_manifest(written)])
    assert groups.rows.tolist() == [1, 3, 3, 1, 3, 3, 1, 3]
    assert groups.read(5, ["response"])["response"].to_pylist() == [f"response {n}" for n in (10, 11, 12)]
    assert groups.read(0, ["score", "task"]).to_pylist() == [{"score": 0.0, "task": "task 0"}]
    tasks = {name: (found.tolist(), rows.tolist()) for name, (found, rows) in groups.tasks().items()}
    assert tasks["task 0"] == ([0, 1, 2, 3, 4, 5, 7], [1, 1, 1, 1, 1, 1, 1])
    assert sum(map(sum, (rows for _, rows in tasks.values()))) == 18


def test_many_shards_are_read_with_few_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cappy_lightning.data.reading.OPEN_SHARDS", 2)
    groups = RowGroups([write_instances(INSTANCES, tmp_path / "many", {}, shard_rows=1)])
    for group in (0, 5, 9, 0, 16, 5):
        assert groups.read(group, ["response"])["response"].to_pylist() == [f"response {group}"]
        assert len(groups._open) <= 2


# Damage, named before the training


def test_a_missing_shard_is_refused_by_its_file(written: Path) -> None:
    path = written / "shard-00001.parquet"
    path.unlink()
    assert refusals(written) == [f"{path}: is missing, expected by its manifest"] * 2


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_shard_is_refused_by_its_file(written: Path, share: float) -> None:
    path = written / "shard-00001.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    message = f"{path}: has {int(share * len(data))} bytes, expected {len(data)} by its manifest"
    assert refusals(written) == [f"{message}: it was cut off or changed"] * 2
    vouch_for(path)
    assert refusal(lambda: check(written)).startswith(f"{path}: is no readable Parquet file (")


def test_a_shard_that_has_changed_is_refused_by_its_hash(written: Path) -> None:
    path = written / "shard-00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    message = refusal(lambda: check(written))
    assert message == f"{path}: has changed since it was written, expected the SHA-256 of its manifest"


@pytest.mark.parametrize("score", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_score_out_of_range_is_refused_by_its_row(written: Path, score: float) -> None:
    path = written / "shard-00001.parquet"
    column = pa.array([0.5, 1.0, 0.0, 0.0, score, 0.0, 1.0], pa.float32())
    change_shard(path, lambda table: table.set_column(2, "score", column))
    assert all(message.startswith(f"{path}: row group 1, row 1: score is ") for message in refusals(written))


@pytest.mark.parametrize("name", SCHEMA.names)
def test_a_row_with_an_empty_cell_is_refused_by_its_column(written: Path, name: str) -> None:
    path, index = written / "shard-00002.parquet", SCHEMA.names.index(name)
    column = pa.array([0.5, 1.0, None], pa.float32()) if name == "score" else pa.array(["a", "b", None])
    change_shard(path, lambda table: table.set_column(index, name, column))
    message = f"{path}: row group 0: column '{name}' has empty cells, expected a value in every row"
    assert refusals(written) == [message] * 2


@pytest.mark.parametrize("name", SCHEMA.names)
def test_a_missing_column_is_refused_by_its_name(written: Path, name: str) -> None:
    path = written / "shard-00000.parquet"
    change_shard(path, lambda table: table.drop_columns([name]))
    assert refusal(lambda: check(written)) == f"{path}: column '{name}' is missing"


@pytest.mark.parametrize(
    ("name", "column", "found"),
    [
        ("score", pa.array(["a", "b", "c"]), "string, expected numbers"),
        ("instruction", pa.array([1, 2, 3]), "int64, expected text"),
        ("task", pa.array([b"\xff"] * 3), "binary, expected text"),
    ],
)
def test_a_column_of_another_type_is_refused(written: Path, name: str, column: pa.Array, found: str) -> None:
    path = written / "shard-00002.parquet"
    change_shard(path, lambda table: table.set_column(SCHEMA.names.index(name), name, column))
    assert refusal(lambda: check(written)) == f"{path}: column '{name}' is {found}"


def test_a_shard_with_other_rows_than_its_manifest_says_is_refused(written: Path) -> None:
    path = written / "shard-00000.parquet"
    change_shard(path, lambda table: table.slice(2))
    assert refusal(lambda: check(written)) == f"{path}: has row groups of 3, 2 rows, expected 3, 3, 1 by its manifest"
    assert refusal(lambda: read_all(written)) == f"{path}: row group 1: has 2 rows, expected 3 by its manifest"


def test_more_columns_and_wider_numbers_are_no_harm(written: Path) -> None:
    def widen(table: pa.Table) -> pa.Table:
        table = table.set_column(2, "score", table["score"].cast(pa.float64())).append_column("x", table["score"])
        return table.set_column(3, "origin", table["origin"].cast(pa.string())).select(reversed(table.column_names))

    before = read_all(written)
    change_shard(written / "shard-00000.parquet", widen)
    check(written)
    assert read_all(written).to_pylist() == before.to_pylist()


# Damage, met in the middle


def test_a_row_group_whose_bytes_have_changed_is_named_when_it_is_read(written: Path) -> None:
    """By the checksum of its pages: the size is as before, and nobody hashes the whole file again."""
    path = written / "shard-00001.parquet"
    groups = RowGroups([read_manifest(written)])
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(1)  # the responses
    data = bytearray(path.read_bytes())
    data[(chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size - 3] ^= 1
    path.write_bytes(data)
    assert groups.read(3, ["response"]).num_rows == 3
    message = refusal(lambda: groups.read(4, ["response"]))
    assert message.startswith(f"{path}: row group 1: cannot be read (")
    assert groups.read(5, ["response"]).num_rows == 1


# URLs


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_shards_are_read_from_a_url(written: Path, url: str) -> None:
    (directory,) = find_directories(f"{url}/written")
    manifest = read_manifest(directory)
    verify([manifest])
    assert read_table([manifest]).to_pylist() == read_all(written).to_pylist()


def test_damage_behind_a_url_is_named(written: Path, url: str) -> None:
    manifest = read_manifest(f"{url}/written")
    (written / "shard-00002.parquet").unlink()
    assert (
        refusal(lambda: verify([manifest]))
        == f"{url}/written/shard-00002.parquet: is missing, expected by its manifest"
    )
    assert refusal(lambda: find_directories(f"{url}/nothing")).startswith(f"{url}/nothing: ")
    assert refusal(lambda: find_directories("nosuch://bucket/x")).startswith("nosuch://bucket/x: cannot be read (")


def test_whatever_a_file_system_raises_in_the_middle_is_one_line(
    written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Expired(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise RuntimeError("the token has expired")

    class Store(LocalFileSystem):
        protocol = "store"

        def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
            return (
                Expired(Path(path).read_bytes()) if path.endswith(".parquet") else super().open(path, mode, **options)
            )

    fsspec.register_implementation("store", Store, clobber=True)
    manifest = read_manifest(f"store://{written}")
    problem = "shard-00000.parquet: cannot be read (RuntimeError: the token has expired)"
    assert problem in refusal(lambda: verify([manifest]))
    verify([manifest], skip_errors=True)
    assert problem in capsys.readouterr().err

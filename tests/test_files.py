"""Files that are there whole or not at all, and the place of every error in JSON Lines."""

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from cappy_lightning.errors import InputError
from cappy_lightning.files import (
    atomic_path,
    cache_dir,
    disk_errors_named,
    make_dir,
    read_jsonl,
    remove,
    to_line,
    write_json,
    write_text,
)


def fill(path: Path, text: str, directory: bool) -> None:
    """Write a file, or a directory with a file in it."""
    if directory:
        path.mkdir()
        path = path / "inside"
    path.write_text(text)


def content(path: Path) -> dict[str, str]:
    """Every file below a directory."""
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("directory", [False, True])
@pytest.mark.parametrize("error", [ValueError, InputError, KeyboardInterrupt, OSError, SystemExit])
def test_an_error_leaves_the_old_one_untouched(tmp_path: Path, error: type[BaseException], directory: bool) -> None:
    path = tmp_path / "out"
    fill(path, "old", directory)
    before = content(tmp_path)
    with pytest.raises(error), atomic_path(path) as scratch:  # noqa: PT012  # the block is what must fail
        fill(scratch, "half", directory)
        raise error("w", "p")
    assert content(tmp_path) == before


@pytest.mark.parametrize("directory", [False, True])
def test_an_error_leaves_nothing_where_nothing_was(tmp_path: Path, directory: bool) -> None:
    with pytest.raises(ValueError, match="boom"), atomic_path(tmp_path / "out") as scratch:  # noqa: PT012  # the block is what must fail
        fill(scratch, "half", directory)
        raise ValueError("boom")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("old", "directory"), [(None, False), (None, True), ("file", False), ("directory", True)])
def test_the_new_one_takes_the_place_of_an_old_one(tmp_path: Path, old: str | None, directory: bool) -> None:
    path = tmp_path / "made" / "out"
    if old:
        path.parent.mkdir()
        fill(path, "old", old == "directory")
    with atomic_path(path) as scratch:
        assert not scratch.exists()
        fill(scratch, "new", directory)
        assert path.exists() == bool(old)
    assert content(path.parent) == {"out/inside" if directory else "out": "new"}
    assert [file.name for file in path.parent.iterdir()] == ["out"]


def test_a_file_does_not_replace_a_directory(tmp_path: Path) -> None:
    fill(tmp_path / "out", "old", directory=True)
    with pytest.raises(InputError, match="is a directory"), atomic_path(tmp_path / "out") as scratch:
        fill(scratch, "new", directory=False)
    assert content(tmp_path) == {"out/inside": "old"}


def test_a_path_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="is the name of no file"), atomic_path(Path()):
        pass


def test_a_link_to_a_directory_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    fill(tmp_path / "target", "kept", directory=True)
    (tmp_path / "out").symlink_to(tmp_path / "target")
    with atomic_path(tmp_path / "out") as scratch:
        fill(scratch, "new", directory=True)
    assert content(tmp_path / "target") == {"inside": "kept"}
    assert not (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("directory", [False, True])
def test_a_kill_leaves_the_old_one_and_the_next_attempt_cleans_up(tmp_path: Path, directory: bool) -> None:
    path = tmp_path / "out"
    fill(path, "old", directory)
    code = (
        "import os, signal, sys; from pathlib import Path; from cappy_lightning.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as scratch:\n"
        "    scratch.mkdir() if sys.argv[2] == 'True' else scratch.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path), str(directory)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert content(path) == {"inside": "old"} if directory else path.read_text() == "old"
    with atomic_path(path) as scratch:
        fill(scratch, "new", directory)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_kill_while_a_directory_is_replaced_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out"
    fill(tmp_path / ".out.old", "old", directory=True)  # moved aside, and the new one not yet in its place
    with pytest.raises(ValueError, match="boom"), atomic_path(path):
        raise ValueError("boom")
    assert content(tmp_path) == {"out/inside": "old"}


def test_an_old_directory_stays_when_nothing_new_was_written(tmp_path: Path) -> None:
    path = tmp_path / "out"
    fill(path, "old", directory=True)
    with pytest.raises(OSError, match="No such file"), atomic_path(path):
        pass
    assert content(path) == {"inside": "old"}


def test_what_is_not_there_can_be_removed(tmp_path: Path) -> None:
    remove(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    remove(tmp_path / "link")
    assert list(tmp_path.iterdir()) == []


def test_json_is_written_as_it_reads(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ü": [1, None, "\u2028"]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"ü": [1, None, "\u2028"]}
    assert "ü" in text
    assert text.endswith("\n")


def test_a_path_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for attempt in (lambda p: write_text(p, "x"), lambda p: make_dir(p.parent)):
        with pytest.raises(InputError, match=r"^\S+/file(/below)?: the directory cannot be written \(.+\)$"):
            attempt(tmp_path / "file" / "below" / "a.txt")
        with pytest.raises(InputError, match=r"^\S+/file: the directory cannot be written \(File exists\)$"):
            attempt(tmp_path / "file" / "a.txt")


def test_a_name_that_the_system_refuses_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written \(File name too long\)$"):
        write_text(tmp_path / ("x" * 250), "x")


def test_a_directory_without_permission_cannot_be_written() -> None:
    code = (
        "import os; from pathlib import Path; from cappy_lightning.files import make_dir\n"
        "os.getuid() or os.setuid(65534)  # nothing is forbidden to root\n"
        "make_dir(Path('/usr'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "InputError: /usr: the directory cannot be written (permission denied)" in done.stderr


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAPPY_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    for name, value in (("CAPPY_CACHE", ""), ("HOME", "/home/me")):
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path("/home/me/.cache/cappy-lightning")


@pytest.mark.parametrize(
    ("data", "place", "problem"),
    [
        (b'{"a": 1}\n\n{"b": "\xff"}\n', ":3", "byte 8 of the line is not UTF-8 text"),
        (b'{"a": 1}\n{"a": 1\n', ":2", "not valid JSON ("),
        (b'{"a": 1} {"b": 2}\n', ":1", "not valid JSON ("),
        (b"[" * 200_000, ":1", "not valid JSON ("),
        (b'{"a": 1}\n[1, 2]\n', ":2", "found list, expected a JSON object"),
        (b'"text"\n', ":1", "found str, expected a JSON object"),
        (b"null\n", ":1", "found NoneType, expected a JSON object"),
        (b"", "", "is empty, expected one JSON object a line"),
        (b" \n\t\n\r\n", "", "is empty, expected one JSON object a line"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", ":1", "not valid JSON ("),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(tmp_path: Path, data: bytes, place: str, problem: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        list(read_jsonl(path))
    assert str(error.value).startswith(f"{path}{place}: {problem}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_tables_are_told_from_json_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("instruction,references\nWhat?,this\n")
    with pytest.raises(InputError, match=r"is a table, expected JSON Lines; `cappy generate` makes pools"):
        list(read_jsonl(path))


@pytest.mark.parametrize(("name", "reason"), [("nothing", "No such file or directory"), (".", "Is a directory")])
def test_what_is_no_file_is_refused_with_its_name(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InputError) as error:
        list(read_jsonl(tmp_path / name))
    assert str(error.value) == f"{tmp_path / name}: cannot be read ({reason}), expected a file"


def test_every_object_comes_with_its_line_whatever_is_between_them(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes('{"a": "\u2028\x85"}\r\n\n  \n {"b": {"c": [1]}}'.encode())  # no line ends inside a text
    assert list(read_jsonl(path)) == [(f"{path}:1", {"a": "\u2028\x85"}), (f"{path}:4", {"b": {"c": [1]}})]


def test_a_line_that_was_written_is_read_back(tmp_path: Path) -> None:
    rows = [{"text": 'a\nb\r\u2028\x00\\ "ü😀'}, {"numbers": [0.1, 1e-300, -5], "none": None}]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(map(to_line, rows)), encoding="utf-8", newline="")
    assert [row for _, row in read_jsonl(path)] == rows


def test_rows_before_a_bad_line_are_given(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"a": 1}\nbad\n')
    rows = read_jsonl(path)
    assert next(rows)[1] == {"a": 1}
    with pytest.raises(InputError):
        next(rows)


def test_standard_input_is_a_file_by_the_name_of_its_own() -> None:
    code = "from cappy_lightning.files import read_jsonl; [print(where, row) for where, row in read_jsonl('-')]"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=b'\n{"a": 1}\n[]', capture_output=True, timeout=60, check=False)
    assert done.stdout == b"standard input:2 {'a': 1}\n"
    assert b"InputError: standard input:3: found list" in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_by_the_name_of_what_a_library_wrote(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OSError, match="No space left on device") as told, atomic_path(tmp_path / "out"):
        raise error
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(tmp_path / "out"))


def test_so_is_one_that_torch_writes_to(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="PyTorch failed to write it") as told, disk_errors_named(tmp_path / "shard"):
        torch.save({"weight": torch.zeros(1_000_000)}, "/dev/full")
    assert (told.value.errno, told.value.filename) == (errno.EIO, str(tmp_path / "shard"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "named.already"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        RuntimeError("a bug"),
    ],
)
def test_other_errors_of_a_library_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as told, disk_errors_named(tmp_path):
        raise error
    assert told.value is error

"""Files that are there whole or not at all, and JSON Lines with the place of every error."""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from safetensors import SafetensorError

from cappy_lightning.errors import InputError

#: What a disk says that is full or broken.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EROFS)

#: What the name of a file ends in while it is written.
_SCRATCH = ".scratch"
_PART = re.compile("part-[0-9]+-of-([0-9]+)")


def cache_dir() -> Path:
    """Where downloads and recorded pools are kept: `$CAPPY_CACHE`, else `~/.cache/cappy-lightning`."""
    return Path(os.environ.get("CAPPY_CACHE") or Path.home() / ".cache" / "cappy-lightning")


def make_dir(path: Path) -> Path:
    """Create a directory that is to be written into, or raise `InputError` if that is not allowed."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(path, f"the directory cannot be written ({error.strerror})") from None
    if not os.access(path, os.W_OK):
        raise InputError(path, "the directory cannot be written (permission denied)")
    return path


def check_new(path: str | Path) -> None:
    """Refuse to write over something, or where nothing can be written; `-` is standard output.

    Raises:
        InputError: something is there, or the folder cannot be written.
    """
    if str(path) == "-":
        return
    if os.path.lexists(path):
        raise InputError(path, "exists already, expected a new file")
    if not Path(path).name:
        raise InputError(path, "is the name of no file, expected one")
    make_dir(Path(path).parent)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A scratch path beside `path` that takes its place when the block ends without an error.

    Works for a file and for a directory, each of which replaces only its like. After an error, or a kill,
    `path` is what it was before; what a kill has left, a scratch or an old directory moved aside, is put
    in order by the next attempt.

    Raises:
        InputError: the parent cannot be written, or a file stands where a directory is to go or vice versa.
    """
    if not path.name:
        raise InputError(path, "is the name of no file, expected one")
    make_dir(path.parent)
    scratch, old = path.with_name(f".{path.name}{_SCRATCH}"), _old(path)
    remove(scratch)
    if old.exists() and not path.exists():  # a kill between the two renames of `replace`
        os.rename(old, path)
    try:
        with disk_errors_named(path):
            yield scratch
        replace(scratch, path)
    finally:
        remove(scratch)


@contextlib.contextmanager
def disk_errors_named(path: Path) -> Iterator[None]:
    """Where a library writes `path` in this block: a full or broken disk is told as an `OSError` with that name.

    Libraries leave the name out, and some raise errors of their own.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        number, problem = _disk_error(error)
        if number not in DISK_ERRORS or getattr(error, "filename", None):
            raise
        raise OSError(number, problem, str(path)) from error


def _disk_error(error: Exception) -> tuple[int, str]:
    """The number and the words of what the operating system said; 0 where it was nothing of its."""
    if isinstance(error, OSError):
        return error.errno or 0, error.strerror or ""
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # of safetensors
        return int(found[1]), os.strerror(int(found[1]))
    if "inline_container.cc" in str(error):  # of torch.save, which does not say why
        return errno.EIO, "PyTorch failed to write it"
    return 0, ""


def is_scratch(name: str) -> bool:
    """Whether a file of this name is what a kill has left of one that was being written."""
    return name.endswith(_SCRATCH)


def replace(scratch: Path, path: Path) -> None:
    """Move `scratch` to `path`; a directory that stands there changes places with it and is removed.

    Where the file system cannot exchange two directories at once, the old one is moved aside first.

    Raises:
        InputError: one is a file and the other a directory.
    """
    if path.is_dir() and not path.is_symlink() and scratch.is_file():
        raise InputError(path, "is a directory, expected a file or nothing")
    if path.is_dir() and scratch.is_dir() and _exchange(scratch, path):
        remove(scratch)
    elif path.is_dir():
        old = _old(path)
        remove(old)
        os.rename(path, old)
        try:
            os.rename(scratch, path)
        except OSError:
            os.rename(old, path)
            raise
        remove(old)
    elif scratch.is_dir() and path.exists():
        raise InputError(path, "is a file, expected a directory or nothing")
    else:
        os.replace(scratch, path)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step, by Linux's renameat2; False where that is not possible."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def remove(path: Path) -> None:
    """Delete a file or a directory tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def open_locked(path: Path, where: Path, what: str, *, wait: bool = False) -> IO[str]:
    """Open a lock file that no other live process has open in this way, for work on `where`, a `what`.

    With `wait` that is waited for.

    The lock is the operating system's (POSIX `lockf`): it goes with the process, however that ends, and
    processes forked from it do not hold it. It is also lost when the process opens and closes the same
    file once more, so a file of its own serves best.

    Raises:
        InputError: another process holds it, or it cannot be written.
    """
    try:
        stream = open(path, "w", encoding="utf-8")
    except OSError as error:
        raise InputError(where, f"the {what} cannot be written ({error.strerror})") from None
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        stream.close()
        problem = f"another process is at work on this {what}, expected to be alone: wait for it, or write elsewhere"
        raise InputError(where, problem) from None
    return stream


@contextlib.contextmanager
def kept_on_failure(path: Path, what: str) -> Iterator[None]:
    """For writing that a later call continues: a full disk and the like become one line that says so.

    Args:
        path: what is written.
        what: what of it is kept, as the message calls it.

    Raises:
        InputError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            path, f"cannot be written ({error.strerror}); {what} is kept, the same command continues"
        ) from None


def part_name(index: int, count: int) -> str:
    """The name of one part of `count` that are made apart, as by a job array; `index` from 0."""
    return f"part-{index}-of-{count}"


def is_part(name: str) -> bool:
    """Whether a file of this name, whatever its suffix, is one of several parts."""
    return _PART.match(name) is not None


def find_parts(folder: Path, suffix: str = "") -> list[Path]:
    """The parts in a folder, in order; none where it holds no part.

    Raises:
        InputError: the folder cannot be read, there are parts of several divisions, or one is missing.
    """
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError as error:
        raise InputError(folder, f"cannot be read ({error.strerror})") from None
    return [folder / name for name in find_part_names(names, folder, suffix)]


def find_part_names(names: Sequence[str], folder: str | Path, suffix: str = "") -> list[str]:
    """`find_parts` by the names of what a folder holds, for one that is not a local one."""
    own = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    counts = {match[1] for name in own if (match := _PART.fullmatch(name))}
    if len(counts) > 1:
        raise InputError(folder, f"has parts of {' and of '.join(sorted(counts))}, expected one number")
    total = sum(map(int, counts))
    parts = [f"{part_name(index, total)}{suffix}" for index in range(total)]
    for part in parts:
        if part not in names:
            raise InputError(f"{folder}/{part}", f"is missing or not finished, expected {total} parts")
    return parts


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    try:
        with atomic_path(path) as scratch:
            scratch.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(path, f"cannot be written ({error.strerror})") from None


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashes(places: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of the local files, and of those below local folders: whether something has changed.

    Not their times: what was copied or checked out anew is the same.

    Raises:
        InputError: a file cannot be read.
    """
    files = [
        file
        for place in map(Path, map(os.path.expanduser, places))
        for file in (sorted(place.rglob("*")) if place.is_dir() else [place])
        if file.is_file()
    ]
    try:
        return {str(file): file_sha256(file) for file in files}
    except OSError as error:
        raise InputError(error.filename, f"cannot be read ({error.strerror})") from None


def read_json(path: str | Path) -> dict[str, Any]:
    """The object that a JSON file of ours holds.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(path, "is damaged, expected a JSON object; remove it to have it made again")
    return content


def to_line(row: dict[str, Any]) -> str:
    """One line of JSON Lines."""
    return json.dumps(row, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def open_input(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading, `-` being standard input; `InputError` if that is not possible."""
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = open(path, "rb")
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror}), expected a file") from None
    with stream:
        yield stream


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """The object of one line of JSON Lines.

    Raises:
        InputError: not UTF-8, not JSON, or not an object.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"))  # some editors begin a file with that mark
    except UnicodeDecodeError as error:
        raise InputError(where, f"byte {error.start + 1} of the line is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        problem = getattr(error, "msg", error)  # without a second line number
        raise InputError(where, f"not valid JSON ({problem}), expected one object a line") from None
    if not isinstance(row, dict):
        raise InputError(where, f"found {type(row).__name__}, expected a JSON object")
    return row


def read_whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that other processes append to, without one that is being written; of no file none.

    Raises:
        InputError: a line that is no JSON object.
    """
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [parse_line(line, f"{path}:{number}") for number, line in enumerate(whole.splitlines(), start=1)]


def read_jsonl(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with its place (`file:line`). Blank lines are passed over.

    A folder of parts that were made apart is read part by part.

    Raises:
        InputError: a table, no such file, no line in it, not UTF-8, not JSON, or not an object.
    """
    if str(path) != "-" and Path(path).is_dir() and (parts := find_parts(Path(path), ".jsonl")):
        filled = [part for part in parts if part.stat().st_size]  # a part can have had nothing to do
        for part in filled or parts[:1]:
            yield from read_jsonl(part)
        return
    name = "standard input" if str(path) == "-" else str(path)
    if Path(path).suffix in (".csv", ".parquet"):
        raise InputError(name, "is a table, expected JSON Lines; `cappy generate` makes pools of a table's rows")
    found = False
    with open_input(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{name}:{number}"
            row = parse_line(line, where)
            found = True
            yield where, row
    if not found:
        raise InputError(name, "is empty, expected one JSON object a line")

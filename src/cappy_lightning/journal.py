"""What a long job has done so far: a file of JSON Lines that a stop leaves and the same command continues."""

import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cappy_lightning.errors import InputError
from cappy_lightning.files import atomic_path, kept_on_failure, open_locked, parse_line, remove, to_line
from cappy_lightning.progress import Ticker, counted, say


class Journal:
    """A line that says what is made, then a line for each part that is finished.

    One that has nothing but its first line is begun anew by any other job: a start that failed blocks nobody.

    Args:
        path: the file; begun, or continued.
        made_by: the input and settings, which a job that continues must share.
        kept: what of it stays when it cannot be written, as the message calls it.

    Attributes:
        count: parts that are finished.

    Raises:
        InputError: it is of another input or other settings, holds a line that is no JSON object, or cannot be written.
    """

    def __init__(self, path: Path, made_by: dict[str, Any], kept: str) -> None:
        self._path, self._kept = path, kept
        self.count = 0
        head = to_line(made_by).encode()
        with kept_on_failure(path, kept):
            size = path.stat().st_size if path.exists() else 0
            end = self._whole(head) if size else 0
            self._stream = open(path, "ab")
            if end != size:
                self._stream.truncate(end)
            if not end:
                self._stream.write(head)
                self._stream.flush()

    def _whole(self, head: bytes) -> int:
        """Count what is there; the bytes up to a line that a kill cut off, 0 where there is nothing to continue."""
        end, same = 0, True
        with open(self._path, "rb") as lines:
            for number, line in enumerate(lines):
                if not line.endswith(b"\n"):
                    break
                if number == 0:
                    same = line == head
                elif not same:
                    raise InputError(
                        self._path, "was begun with other input or settings; finish it, delete it or write elsewhere"
                    )
                else:
                    parse_line(line, f"{self._path}:{number + 1}")
                    self.count += 1
                end += len(line)
        return end if same else 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """The parts, in order."""
        with open(self._path, "rb") as lines:
            for line in islice(lines, 1, 1 + self.count):
                yield json.loads(line)

    def write(self, row: dict[str, Any]) -> None:
        """Add a part."""
        with kept_on_failure(self._path, self._kept):
            self._stream.write(to_line(row).encode())
            self._stream.flush()
        self.count += 1

    def close(self) -> None:
        """Write no more."""
        self._stream.close()

    def remove(self) -> None:
        """The job is finished: the file goes."""
        self.close()
        self._path.unlink()


def write_rows(
    rows: Callable[[Iterator[dict[str, Any]]], Iterator[dict[str, Any]]],
    out: str,
    made_by: dict[str, Any] | None,
    what: str,
    total: int | None,
) -> None:
    """Write the rows of a job, to standard output or to a new file that appears when all are there.

    Args:
        rows: gives the rows that follow those that it is given, which an interrupted job has left.
        out: the file, or `-`.
        made_by: the input and settings, by which a job is known that continues; None: it always begins anew.
        what: the work, for its progress.
        total: how many rows there will be, where known.

    Raises:
        InputError: see `Journal`.
    """
    if out == "-":
        with Ticker(what, total) as ticker:
            for row in rows(iter(())):
                sys.stdout.write(to_line(row))
                ticker.advance()
        return
    path = Path(out)
    partial, lock = path.with_name(path.name + ".partial"), path.with_name(f".{path.name}.lock")
    with open_locked(lock, path, "file"):
        if made_by is None:
            remove(partial)
        journal = Journal(partial, made_by or {}, "what is there")
        if journal.count:
            say(f"{out}: continuing after {counted(journal.count, 'row')}")
        with Ticker(what, total, journal.count) as ticker:
            for row in rows(journal.rows()):
                journal.write(row)
                ticker.advance()
        with kept_on_failure(path, "what is there"), atomic_path(path) as scratch, open(scratch, "wb") as final:
            final.writelines(map(str.encode, map(to_line, journal.rows())))
        journal.remove()
        lock.unlink()

"""Progress of long work on standard error: a bar on a terminal, a line now and then in a log."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

#: Seconds between two lines where standard error is not a terminal.
LOG_EVERY = 30.0


#: Whether nobody watches (`--quiet`).
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Say and draw nothing from now on, or do again."""
    global _quiet
    _quiet = quiet


def say(message: str) -> None:
    """One line for the person who watches, on standard error."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def error_console() -> Console:
    """For tables on standard error."""
    return Console(stderr=True, quiet=_quiet)


def bar() -> Progress:
    """A rich progress bar on standard error, with counts and times."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
        console=Console(stderr=True),
        transient=True,
    )


class Ticker:
    """Progress towards a total, if it is known, drawn as a bar or as lines, whichever fits standard error."""

    def __init__(self, description: str, total: int | None, done: int = 0) -> None:
        self.description, self.total, self.done = description, total, done
        self._start, self._started_at = time.monotonic(), done
        self._last_line = self._start
        self._bar = bar() if sys.stderr.isatty() and not _quiet else None

    def __enter__(self) -> "Ticker":
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total, completed=self.done, info="")
        return self

    def advance(self, count: int = 1, info: str = "") -> None:
        """Count `count` more as done; `info` is shown beside the bar."""
        self.done += count
        if self._bar:
            self._bar.update(self._task, completed=self.done, info=info)
        elif time.monotonic() - self._last_line >= LOG_EVERY:
            self._last_line = time.monotonic()
            rate = (self.done - self._started_at) / (self._last_line - self._start)
            if self.total is None:
                say(f"{self.description}: {self.done}, {rate:.0f} a second {info}".rstrip())
            else:
                left = (self.total - self.done) / rate if rate else float("inf")
                say(f"{self.description}: {self.done}/{self.total}, about {left:.0f} s left {info}".rstrip())

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

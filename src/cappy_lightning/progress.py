"""Progress of long work on standard error: a bar on a terminal, a line now and then in a log."""

import contextlib
import sys
import time
from pathlib import Path

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
        warn(message)


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 example`, `2,000 examples`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def warn(message: str) -> None:
    """One line on standard error that is said also to who wants to hear errors only."""
    with contextlib.suppress(OSError):  # nobody reads it any more; the work goes on
        # In one write: without a buffer (`python -u`) the ends of lines would be written apart, among other processes'.
        print(f"{message}\n", end="", file=sys.stderr, flush=True)


def console(*, stderr: bool = False) -> Console:
    """For tables and results: as wide as the terminal, or wide enough for all of them in a file or a log.

    Args:
        stderr: on standard error instead of standard output, and nowhere where nobody watches.
    """
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, quiet=stderr and _quiet, width=None if terminal else 160)


def show_places(*places: str | Path | None) -> None:
    """Say on standard output where results lie; None is passed over."""
    named = ", ".join(str(place) for place in places if place is not None)
    console().print(f"results: {named}", soft_wrap=True, markup=False, highlight=False)


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


def _can_draw() -> bool:
    screen = Console(stderr=True)
    return screen.is_terminal and not screen.is_dumb_terminal


class Ticker:
    """Progress towards a total, if it is known, drawn as a bar or as lines, whichever fits standard error."""

    def __init__(self, description: str, total: int | None, done: int = 0) -> None:
        self.description, self.total, self.done = description, total, done
        self._start, self._started_at = time.monotonic(), done
        self._last_line = self._start
        self._bar = bar() if _can_draw() and not _quiet else None

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
            known = self.done - self._started_at > 1  # the first takes longer than the others
            rate = (self.done - self._started_at) / (self._last_line - self._start)
            counts = str(self.done) if self.total is None else f"{self.done}/{self.total}"
            if self.total is None:
                pace = f", {rate:.3g} a second"
            else:
                pace = f", about {(self.total - self.done) / rate:.0f} s left" if known else ""
            say(f"{self.description}: {counts}{pace} {info}".rstrip())

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

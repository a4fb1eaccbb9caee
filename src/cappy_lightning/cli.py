"""The command `cappy`."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from cappy_lightning.command_line import parse
from cappy_lightning.commands import choosing, data, runs
from cappy_lightning.errors import InputError
from cappy_lightning.files import DISK_ERRORS
from cappy_lightning.progress import set_quiet, warn

#: Commands that go on where they were stopped, when they are given once more.
_CONTINUED = ("train", "generate", "label", "score", "select", "answer", "evaluate")


class _Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C's that ends the command: everything is put in order as with Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and the loss of the terminal end the work as Ctrl-C does."""

    def stop(number: int, _: object) -> None:
        raise _Stopped(number)

    # `nohup` has the second one ignored.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def entry() -> None:
    """The console command."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        the exit code: 0; 2 for input that cannot be used, said in one line; 128 + the signal when interrupted (130 by
        Ctrl-C, 143 by SIGTERM, 129 by a lost terminal), and 141 when nobody reads the output any more.
    """
    options = parse(arguments)
    set_quiet(options.quiet)
    try:
        with _stopped_by_signals():
            code = _COMMANDS[options.command](options)
        sys.stdout.flush()
        return code
    except InputError as error:
        warn(f"cappy: {error}")
        return 2
    except KeyboardInterrupt as error:
        continued = options.command in _CONTINUED and "-" not in (getattr(options, "out", None), _source(options))
        warn(f"cappy: interrupted{'; the same command continues' if continued else ''}")
        return 128 + getattr(error, "number", signal.SIGINT)
    except BrokenPipeError:  # the reader of our output has seen enough
        _drop_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        warn(f"cappy: {error.filename or 'output'}: cannot be written ({error.strerror})")
        _drop_output()
        return 2


def _source(options: argparse.Namespace) -> str | None:
    source: str | None = getattr(options, "source", None)
    return source


def _drop_output() -> None:
    """Nothing more can be written: Python would try it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": runs.train,
    "generate": data.generate,
    "label": data.label,
    "inspect": data.inspect,
    "score": choosing.score,
    "select": choosing.select,
    "answer": choosing.answer,
    "calibrate": choosing.calibrate,
    "serve": choosing.serve,
    "evaluate": runs.evaluate,
    "export": runs.export,
    "submit": runs.submit,
    "jobs": runs.jobs,
    "memory": runs.memory,
}

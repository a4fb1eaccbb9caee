"""`cappy ...` in processes of their own, without the ten seconds of imports that each would begin with.

They are forked from one process that has imported everything and computed nothing. What runs ranks of its own
(`trainer.devices=2`) needs a real command line: `conftest.start_cappy`.
"""

import multiprocessing
import multiprocessing.synchronize
import os
import signal
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

from cappy_lightning.cli import main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["forked", "cappy_lightning.training", "cappy_lightning.label"])


def _run(words: list[str], output: Path, ready: multiprocessing.synchronize.Event) -> None:
    os.setsid()
    os.chdir(ROOT)
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    ready.set()
    sys.exit(main(words))


class Forked:
    """A command under way, in a process group of its own, as a shell starts it.

    Args:
        output: a directory for what it prints: the files `stdout` and `stderr`.
        words: of the command, after `cappy`.
    """

    def __init__(self, output: Path, *words: object) -> None:
        self._output, ready = output, _CONTEXT.Event()
        output.mkdir(parents=True, exist_ok=True)
        self._process = _CONTEXT.Process(target=_run, args=(list(map(str, words)), output, ready))
        self._process.start()
        assert ready.wait(120)

    @property
    def returncode(self) -> int | None:
        """The exit code, negative after a signal; None while it runs."""
        return self._process.exitcode

    @property
    def stderr(self) -> str:
        """What it has printed."""
        return (self._output / "stderr").read_text()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to its whole group, if it still runs."""
        assert self._process.pid
        if self.returncode is None:
            os.killpg(self._process.pid, number)

    def wait(self, seconds: float = 600) -> int | None:
        """The exit code when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not.
        """
        self._process.join(seconds)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("cappy", seconds)
        return self.returncode

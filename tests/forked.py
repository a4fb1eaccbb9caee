"""`cappy ...` in processes of their own, without the ten seconds of imports that each would begin with.

They are forked from one process that has imported everything and computed nothing. Several ranks are started as
torchrun does; where Lightning is to start them itself, that takes a real command line (`conftest.start_cappy`).
"""

import multiprocessing
import multiprocessing.synchronize
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT

from cappy_lightning.cli import main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["forked", "cappy_lightning.training", "cappy_lightning.label", "deepspeed"])


def _run(
    program: Callable[[list[str]], int],
    words: list[str],
    output: Path,
    variables: dict[str, str],
    ready: multiprocessing.synchronize.Event,
) -> None:
    multiprocessing.set_start_method("fork", force=True)  # as in a process that a shell has started
    os.setsid()
    os.chdir(ROOT)
    os.environ.update(variables)
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / stream, os.O_WRONLY | os.O_APPEND), number)
    ready.set()
    sys.exit(program(words))


def _variables(ranks: int) -> list[dict[str, str]]:
    """The environment of each rank, as torchrun sets it."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    common |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0", "OMP_NUM_THREADS": "1"}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


class Forked:
    """A command under way, each of its processes in a process group of its own, as a shell starts it.

    Args:
        output: a directory for what it prints: the files `stdout` and `stderr`.
        words: of the command, after `cappy`.
        ranks: how many processes run it.
        program: what runs in place of `cappy`.
    """

    def __init__(
        self, output: Path, *words: object, ranks: int = 1, program: Callable[[list[str]], int] = main
    ) -> None:
        self._output = output
        output.mkdir(parents=True, exist_ok=True)
        for stream in ("stdout", "stderr"):
            (output / stream).write_bytes(b"")
        self._processes = []
        for variables in _variables(ranks):
            ready = _CONTEXT.Event()
            arguments = (program, list(map(str, words)), output, variables, ready)
            process = _CONTEXT.Process(target=_run, args=arguments)
            process.start()
            self._processes.append(process)
            assert ready.wait(120)

    @property
    def returncode(self) -> int | None:
        """The exit code of the first rank, negative after a signal; None while any rank runs."""
        codes = [process.exitcode for process in self._processes]
        return None if None in codes else codes[0]

    @property
    def stdout(self) -> str:
        """What it has printed so far, of all ranks."""
        return (self._output / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """The same on standard error."""
        return (self._output / "stderr").read_text()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to all processes that still run, and what they have started."""
        for process in self._processes:
            assert process.pid
            if process.exitcode is None:
                os.killpg(process.pid, number)

    def wait(self, seconds: float = 600) -> int | None:
        """The exit code when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not.
        """
        deadline = time.monotonic() + seconds
        for process in self._processes:
            process.join(max(0, deadline - time.monotonic()))
        if self.returncode is None:
            raise subprocess.TimeoutExpired("cappy", seconds)
        return self.returncode

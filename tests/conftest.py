"""Shared fixtures: the quickstart's data, small runs, and the command line."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import absl.logging
import pytest

from cappy_lightning.cli import main
from cappy_lightning.labeling.rouge import RougeL
from cappy_lightning.records import Pool
from cappy_lightning.sources.jsonl import read_labelled_pools

ROOT = Path(__file__).parent.parent
QUICKSTART_POOL = ROOT / "data" / "quickstart" / "pool.jsonl"

# Tests send Ctrl-C. A shell that starts them in the background has it ignored, which children inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Of rouge-score: it closes its stream when uvicorn configures the logging, and that was pytest's, where the first service
# of a process ran in a test that captures by itself.
absl.logging.get_absl_handler().python_handler.setStream(sys.__stderr__)

#: No test may wait for a hub: what needs one says so itself.
os.environ["HF_HUB_OFFLINE"] = "1"

#: A few steps of the quickstart, for tests that need something trained.
SHORT_RUN = (
    "conf/quickstart.yaml",
    "data.max_train=12",
    "data.max_validation=6",
    "trainer.max_steps=6",
    "trainer.validations=2",
    "batch.global_size=16",
    "batch.micro_size=8",
)

#: The same with every weight trained.
FULL = ("finetune.mode=full", "optimizer.learning_rate=1e-4")

#: A small encoder with random weights: for what is not about the scorer.
TINY_SCORER = (
    "scorer.random_weights=true",
    "scorer.tokenizer=embedded",
    "scorer.config={model_type: bert, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2,"
    " intermediate_size: 64, vocab_size: 30522, max_position_embeddings: 64}",
    "scorer.max_length=32",
)

#: The arguments of a run on instances by such a scorer: for what is about the data.
TINY_RUN = (
    "conf/pretrain.yaml",
    "conf/smoke.yaml",
    *TINY_SCORER,
    "data.pool=[]",
    "data.max_train=null",
    "data.max_validation=null",
)

#: As reports take it.
ROUGE = RougeL()


def rouge_l(references: Sequence[str], response: str) -> float:
    """Rouge-L of one response."""
    (value,) = ROUGE.scores([("", references, response)])
    return value


_STATUS = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End at once: after a green session an interpreter has once not ended, for a reason that was not found."""
    status = config.stash.get(_STATUS, None)
    if status is not None and not hasattr(config, "workerinput"):  # a worker of xdist has to report
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


Run = Callable[..., subprocess.CompletedProcess[str]]


def run_cappy(*arguments: object, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `cappy ...` in the root directory and in this process, which saves ten seconds of imports."""
    words, out, err = list(map(str, arguments)), io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def start_cappy(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `cappy ...` as a user does, in a process of its own."""
    command = [sys.executable, "-m", "cappy_lightning", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, **options)


@pytest.fixture(scope="session")
def cappy() -> Run:
    return run_cappy


@pytest.fixture(scope="session")
def pools() -> list[Pool]:
    return read_labelled_pools([QUICKSTART_POOL])


@pytest.fixture(scope="session")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a short finished run with LoRA."""
    run_dir = tmp_path_factory.mktemp("runs") / "lora"
    done = run_cappy("train", *SHORT_RUN, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a short finished run that trained every weight."""
    run_dir = tmp_path_factory.mktemp("runs") / "full"
    done = run_cappy("train", *SHORT_RUN, *FULL, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return run_dir

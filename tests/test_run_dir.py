"""The run directory: one run, one config, one live process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cappy_lightning.config import Config
from cappy_lightning.errors import InputError
from cappy_lightning.run_dir import CONFIG, METRICS, VERSIONS, RunDir, rank

RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")

HOLD = """
import os, sys, time
from cappy_lightning.config import Config
from cappy_lightning.run_dir import RunDir
run = RunDir(Config(run_dir=sys.argv[1]))
if sys.argv[2:] == ["fork"] and os.fork():
    time.sleep(60)
print(os.getpid(), flush=True)
time.sleep(60)
"""

OPEN = """
import sys
from cappy_lightning.config import Config
from cappy_lightning.run_dir import RunDir
RunDir(Config(run_dir=sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def _first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)


def config(path: Path, **changes: object) -> Config:
    made = Config(run_dir=str(path), **changes)
    made.data.pool = ["pool.jsonl"]
    return made


def open_and_close(made: Config) -> None:
    """Work on a run directory and end: the lock goes when nobody holds the object any more."""
    RunDir(made).commit()


def refusal_elsewhere(path: Path) -> str:
    """The last line of another process that wants the run directory, "" if it gets it.

    A lock is the process's, so that no attempt in this one could be refused.
    """
    command = [sys.executable, "-c", OPEN, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr.splitlines()[-1].removeprefix("cappy_lightning.errors.InputError: ") if done.stderr else ""


def refusal(made: Config) -> str:
    try:
        RunDir(made)
    except InputError as error:  # no pytest.raises: it would hold the error, and that the lock
        message = str(error)
    else:
        pytest.fail("the config was accepted")
    assert "\n" not in message
    return message


@contextlib.contextmanager
def holder(path: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds the run directory, and the id that it says."""
    command = [sys.executable, "-c", HOLD, str(path), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = int(process.stdout.readline())
        try:
            yield process, said
        finally:
            process.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(said, signal.SIGKILL)


def test_the_same_config_goes_on_in_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    open_and_close(config(path))
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir() if file.name != ".lock"}
    open_and_close(config(path))
    assert before == {file.name: file.stat().st_mtime_ns for file in path.iterdir() if file.name != ".lock"}
    assert set(before) == {CONFIG, VERSIONS}


def test_nothing_is_written_and_another_config_goes_before_the_commit(tmp_path: Path) -> None:
    for seed in (1, 2):
        run = RunDir(config(tmp_path, seed=seed))
        assert [file.name for file in tmp_path.iterdir()] == [".lock"]
    run.commit()
    assert "seed is 2 there and 1 here" in refusal(config(tmp_path, seed=1))


def test_instances_of_an_attempt_that_was_not_committed_are_removed_and_others_kept(tmp_path: Path) -> None:
    instances = tmp_path / "instances" / "train"
    RunDir(config(tmp_path))
    instances.mkdir(parents=True)
    run = RunDir(config(tmp_path))
    assert not instances.parent.exists()
    instances.mkdir(parents=True)
    run.commit()
    assert refusal(config(tmp_path, seed=3))
    open_and_close(config(tmp_path))
    assert instances.exists()


def test_a_commit_leaves_the_first_config_and_its_versions(tmp_path: Path) -> None:
    open_and_close(config(tmp_path))
    (tmp_path / VERSIONS).write_text("{}")
    open_and_close(config(tmp_path))
    assert (tmp_path / VERSIONS).read_text() == "{}"


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"one")
    run = config(tmp_path / "run")
    run.scorer.base = str(base)
    open_and_close(run)
    open_and_close(run)
    (base / "model.safetensors").write_bytes(b"two")
    assert f"holds a run with other weights of scorer.base={base}" in refusal(run)
    (base / "model.safetensors").unlink()  # gone: what is finished can still be shown
    open_and_close(run)


def test_the_same_config_is_recognized_whatever_texts_it_holds(tmp_path: Path) -> None:
    texts = [
        "1e5",
        "yes",
        "2024-01-01",
        "null",
        "~",
        " x",
        "12:30:45",
        "0o17",
        "ü😀",
        "\u2028",
        "\x85",
        "a\nb",
        "",
        "a: b",
    ]
    texts += ["- x", "#c", "*a", "&a", "!!str x", "|", "nan", "1_000", "'q'", '"q"', "\ufeffx", "\\"]
    made = config(tmp_path / "run", name="1e5")
    made.scorer.config = {"a": texts, "b": [1, 2.5e-05, None, True, "???"], "c": {}, "d": {"e": 1e-5}}
    open_and_close(made)
    open_and_close(made)
    made.scorer.config["a"] = texts[:-1]
    assert "scorer.config.a is" in refusal(made)


def test_another_config_is_refused_by_the_keys_that_differ(tmp_path: Path) -> None:
    open_and_close(config(tmp_path))
    other = config(tmp_path, seed=3)
    other.data.pool = []
    other.scorer.config = {"layers": 2}
    message = refusal(other)
    assert message.startswith(f"{tmp_path}: holds a run with another config (")
    for difference in (
        "seed is 11111 there and 3 here",
        'data.pool is ["pool.jsonl"] there and [] here',
        "scorer.config.layers is null there and 2 here",
    ):
        assert difference in message
    open_and_close(config(tmp_path))  # a refusal changes nothing


def test_a_run_continues_on_other_machines(tmp_path: Path) -> None:
    """How many ranks, loader processes and forwards compute it has no part in what a run is."""
    open_and_close(config(tmp_path))
    other = config(tmp_path)
    other.trainer.devices, other.trainer.nodes, other.data.workers, other.batch.micro_size = 4, 2, 3, 1
    open_and_close(other)
    assert "devices: 1" in (tmp_path / "config.yaml").read_text()


def test_of_many_differences_three_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    open_and_close(config(tmp_path))
    other = config(tmp_path, seed=3, name="other")
    other.data.seed, other.label.mismatches, other.data.lanes = 1, 2, 8
    message = refusal(other)
    assert message.count(" there and ") == 3
    assert "and 2 more)" in message


def test_a_refused_config_lets_go_of_the_directory(tmp_path: Path) -> None:
    open_and_close(Config(run_dir=str(tmp_path)))
    with pytest.raises(InputError, match="another config") as error:
        RunDir(config(tmp_path, seed=3))
    assert refusal_elsewhere(tmp_path) == ""
    assert error.value.__traceback__  # which holds the object


def test_a_run_that_was_moved_goes_on(tmp_path: Path) -> None:
    open_and_close(config(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    open_and_close(config(tmp_path / "new"))


def test_a_directory_is_held_as_long_as_its_object_lives(tmp_path: Path) -> None:
    run = RunDir(Config(run_dir=str(tmp_path)))
    run.commit()
    problem = "another process is at work on this run directory, expected to be alone: wait for it, or write elsewhere"
    assert refusal_elsewhere(tmp_path) == f"{tmp_path}: {problem}"
    del run
    assert refusal_elsewhere(tmp_path) == ""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_second_process_is_refused_until_the_first_has_ended_however(tmp_path: Path, end: signal.Signals) -> None:
    mine = Config(run_dir=str(tmp_path))
    with holder(tmp_path) as (process, _):
        assert refusal(mine).startswith(f"{tmp_path}: another process is at work on this run directory")
        process.send_signal(end)
        process.wait(timeout=30)
        open_and_close(mine)


def test_the_lock_goes_with_the_process_and_not_with_its_children(tmp_path: Path) -> None:
    with holder(tmp_path, "fork") as (process, _):
        process.kill()
        process.wait(timeout=30)
        open_and_close(Config(run_dir=str(tmp_path)))


@pytest.mark.parametrize("name", RANKS)
def test_the_other_ranks_neither_lock_nor_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    open_and_close(config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    monkeypatch.delenv(name)
    first = RunDir(config(tmp_path / "run"))
    monkeypatch.setenv(name, "1")
    other = RunDir(config(tmp_path / "run", seed=5))
    other.commit()
    assert other.path == first.path
    assert [file.name for file in other.path.iterdir()] == [".lock"]


def test_the_rank_over_all_nodes_goes_before_the_one_on_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank() == 0
    for name, number in zip(reversed(RANKS), (2, 3, 5), strict=True):
        monkeypatch.setenv(name, str(number))
        assert rank() == number
    monkeypatch.setenv("RANK", "none")
    assert rank() == 3


def test_a_run_is_finished_when_its_results_are_there(tmp_path: Path) -> None:
    run = RunDir(config(tmp_path))
    assert not run.finished
    run.commit()
    (tmp_path / METRICS).write_text("{}")
    assert run.finished


@pytest.mark.parametrize("name", ["instances", "metrics.json", "checkpoints", "thesis.tex"])
def test_a_directory_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("precious")
    assert f"holds other files, such as {name}" in refusal(config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "mine").read_text() == "precious"


def test_the_versions_of_what_was_used_are_written(tmp_path: Path) -> None:
    open_and_close(config(tmp_path))
    versions = json.loads((tmp_path / VERSIONS).read_text())
    assert {"python", "platform", "torch", "transformers", "cappy-lightning"} <= set(versions)
    assert versions["python"] == sys.version.split()[0]
    assert versions["threads"] == str(torch.get_num_threads())


@pytest.mark.parametrize("text", ["{", "3\n", "\x00"])
def test_a_config_that_cannot_be_read_is_refused_by_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / CONFIG).write_text(text)
    assert refusal(config(tmp_path)).startswith(f"{tmp_path / CONFIG}: is no readable YAML")


@pytest.mark.parametrize("text", ["", "- a\n", "hello\n", "null\n"])
def test_a_config_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / CONFIG).write_text(text)
    assert "name is null there" in refusal(config(tmp_path))


def test_a_place_that_cannot_be_a_run_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal(config(tmp_path / "file")) == f"{tmp_path}/file: the directory cannot be written (File exists)"
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    expected = f"{tmp_path}/run: the run directory cannot be written (Is a directory)"
    assert refusal(config(tmp_path / "run")) == expected


def test_a_dollar_that_was_escaped_stays_a_dollar(tmp_path: Path) -> None:
    for _ in range(2):
        open_and_close(config(tmp_path, name="${seed_of_nothing}"))
    assert 'name is "${seed_of_nothing}" there and "x" here' in refusal(config(tmp_path, name="x"))

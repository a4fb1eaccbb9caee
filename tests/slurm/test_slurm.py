"""Real jobs on a real SLURM of three nodes."""

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster import Cluster, missing, run_cluster
from conftest import QUICKSTART_POOL, SHORT_RUN, TINY_RUN, TINY_SCORER, run_cappy, start_cappy
from recorded import instances_of_steps, steps_ended
from safetensors.torch import load_file

from cappy_lightning.checkpoints import latest_checkpoint, read_checkpoint
from cappy_lightning.data.reading import read_table
from cappy_lightning.data.shards import find_directories, read_manifest, write_instances
from cappy_lightning.errors import InputError
from cappy_lightning.records import Instance
from cappy_lightning.run_dir import job_folder
from cappy_lightning.slurm.restarts import note_start

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")

ROWS = 512

#: Of a run; more than are made while it is told to stop ten times.
STEPS = 400

#: Two nodes with a rank each.
TWO = ("slurm.nodes=2", "slurm.time=20")

#: Both nodes are this machine, and its cores are few.
SET_UP = "export MASTER_ADDR=127.0.0.1 OMP_NUM_THREADS=1"
HERE = f'slurm.setup=["{SET_UP}"]'

#: Of a run with a step of milliseconds.
QUICK = (
    *TINY_RUN,
    "batch.global_size=16",
    "batch.micro_size=4",
    "scorer.dropout=0.1",
    f"trainer.max_steps={STEPS}",
    "trainer.checkpoint_every=50",
    "trainer.validations=1",
    HERE,
)

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with run_cluster() as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", made.environment["SLURM_CONF"])
        yield made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    directory = tmp_path_factory.mktemp("instances")
    rows = [Instance(f"what is {n}?", "a " * (n % 5 + 1), n / ROWS, "given", "t", str(n)) for n in range(ROWS)]
    write_instances(rows, directory / "train", {}, group_rows=64)
    write_instances(rows[:20], directory / "validation", {})
    return f"data.instances={directory / 'train'}", f"data.validation_instances={directory / 'validation'}"


def submitted(*words: object) -> list[str]:
    """The numbers of the jobs that `cappy submit` has queued."""
    done = run_cappy("submit", *words)
    assert done.returncode == 0, done.stderr
    return [line.split()[0] for line in done.stdout.splitlines()]


def jobs(folder: Path) -> list[dict[str, Any]]:
    """What `cappy jobs` says."""
    return json.loads(run_cappy("jobs", folder, "--json").stdout)


def until(found: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def ended(cluster: Cluster, job: str, seconds: float = 240) -> str:
    """The state in which a job ends."""
    until(lambda: cluster.state(job) in ENDED, f"job {job} does not end", seconds)
    return cluster.state(job)


def losses(run_dir: Path) -> np.ndarray:
    path = latest_checkpoint(run_dir / "checkpoints")
    assert path
    return np.array(read_checkpoint(path)["callbacks"]["Results"]["losses"])[:, 1]


def rows_of(directory: Path) -> list[tuple[object, ...]]:
    tables = [read_table([read_manifest(found)]) for found in find_directories(str(directory))]
    return sorted(tuple(row.values()) for table in tables for row in table.to_pylist())


def log(run_dir: Path) -> str:
    return "".join(path.read_text() for path in (run_dir / "slurm").glob("*.log"))


#: `cappy train CONFIG` that also notes which instances each step is made of.
NOTING = "bash -c 'shift; exec {python} tests/data/record_run.py {record} \"$@\"' --"


def noting(record: Path) -> str:
    record.mkdir(exist_ok=True)
    return "slurm.command=" + NOTING.format(python=sys.executable, record=record)


@pytest.fixture(scope="module")
def whole(cluster: Cluster, data: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over two nodes that is left alone, in `run`; what it was trained on is noted in `record`."""
    directory = tmp_path_factory.mktemp("whole")
    words = (*QUICK, *data, *TWO, noting(directory / "record"), f"run_dir={directory / 'run'}")
    (job,) = submitted(*words)
    assert ended(cluster, job) == "COMPLETED", log(directory / "run")
    return directory


def test_a_run_over_two_nodes_loses_as_the_same_run_on_one_machine(
    whole: Path, data: tuple[str, str], tmp_path: Path
) -> None:
    alone = start_cappy("train", *QUICK, *data, "trainer.devices=2", f"run_dir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    assert (losses(whole / "run") == losses(tmp_path / "alone")).all()
    (row,) = jobs(whole)
    assert (row["state"], row["step"], row["total_steps"], row["restarts"]) == ("finished", STEPS, STEPS, 0)


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
@pytest.mark.parametrize("tasks", [1, 2])
def test_the_quickstart_over_two_nodes_loses_as_on_one_machine(
    cluster: Cluster, tmp_path: Path, tasks: int, strategy: str
) -> None:
    words = (*SHORT_RUN, f"trainer.strategy={strategy}", "batch.micro_size=4", HERE)
    (job,) = submitted(*words, "slurm.nodes=2", f"slurm.tasks_per_node={tasks}", f"run_dir={tmp_path / 'run'}")
    assert ended(cluster, job) == "COMPLETED", log(tmp_path / "run")
    alone = start_cappy("train", *words, f"trainer.devices={2 * tasks}", f"run_dir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    difference = np.abs(losses(tmp_path / "run") - losses(tmp_path / "alone")).max()
    print(f"quickstart over 2 nodes x {tasks} tasks, {strategy}: losses within {difference:.1e}")
    assert difference <= 1e-6


def assert_as_if_left_alone(directory: Path, whole: Path) -> None:
    """The run in `directory` must have made every step of the instances of the other, to the same weights."""
    steps, expected = instances_of_steps(directory / "record"), instances_of_steps(whole / "record")
    assert steps.keys() == expected.keys()
    assert all(time == expected[step][0] for step, times in steps.items() for time in times)
    mine, theirs = (load_file(one / "run" / "model" / "model.safetensors") for one in (directory, whole))
    assert all((mine[name] == theirs[name]).all() for name in theirs)
    kept = [{path.name for path in (one / "run" / "checkpoints").iterdir()} for one in (directory, whole)]
    assert kept[0] == kept[1]


def test_cancelled_submitted_again_told_to_save_preempted_and_on_a_dead_node_it_ends_as_if_left_alone(
    cluster: Cluster, data: tuple[str, str], whole: Path, tmp_path: Path
) -> None:
    run, record = tmp_path / "run", tmp_path / "record"
    words = (*QUICK, *data, *TWO, noting(record), f"run_dir={run}")

    def goes_on(job: str) -> None:
        before = steps_ended(record)
        until(lambda: cluster.state(job) == "RUNNING" and steps_ended(record) > before + 10, "no steps are made")

    def is_queued_again(job: str, times: int) -> None:
        until(lambda: cluster.field(job, "Restarts") == str(times), f"it was not requeued {times} times")

    (first,) = submitted(*words)
    goes_on(first)
    second = run_cappy("submit", *words)
    assert (second.returncode, f"is of job {first}, which has not ended" in second.stderr) == (2, True), second.stderr
    cluster.run("scancel", first)
    assert ended(cluster, first) == "CANCELLED"

    (job,) = submitted(*words)
    goes_on(job)
    cluster.run("scancel", "--signal=USR1", job)
    is_queued_again(job, 1)
    goes_on(job)
    cluster.run("scancel", "--signal=TERM", job)  # ends its step, not the job
    is_queued_again(job, 2)
    goes_on(job)
    cluster.run("sbatch", "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    is_queued_again(job, 3)
    goes_on(job)
    assert all(len(times) == 1 for times in instances_of_steps(record).values())  # all was saved, nothing is repeated
    cluster.kill_node("node2")
    is_queued_again(job, 4)
    try:
        # Now and then SLURM delivers the end of the step that lost its node to the one begun anew, which has the same
        # number: that one saves, and its job is queued once more.
        assert ended(cluster, job) == "COMPLETED", log(run)
    finally:
        cluster.start_node("node2")
        cluster.wait_for_nodes()
    restarts = int(cluster.field(job, "Restarts"))
    assert restarts in (4, 5)
    assert log(run).count("continuing from") == 1 + restarts
    assert_as_if_left_alone(tmp_path, whole)
    rows = [(row["job"], row["state"], row["restarts"]) for row in jobs(tmp_path)]
    assert rows == [(first, "cancelled", 0), (job, "finished", restarts)]


@pytest.mark.soak
def test_told_ten_times_to_save_at_random_moments_it_ends_as_if_left_alone(
    cluster: Cluster, data: tuple[str, str], whole: Path, tmp_path: Path
) -> None:
    run, record, signals = tmp_path / "run", tmp_path / "record", 10
    (job,) = submitted(*QUICK, *data, *TWO, noting(record), f"run_dir={run}")
    generator, longest = random.Random(signals), 0.0
    for number in range(signals):
        before = steps_ended(record)
        until(lambda before=before: cluster.state(job) == "RUNNING" and steps_ended(record) > before, "no step is made")
        time.sleep(generator.uniform(0, 0.1))
        told = time.monotonic()
        cluster.run("scancel", "--signal=USR1", job)
        until(lambda number=number: cluster.field(job, "Restarts") == str(number + 1), "it was not requeued")
        longest = max(longest, time.monotonic() - told)
    assert ended(cluster, job) == "COMPLETED", log(run)
    assert log(run).count("stopped and saved") == log(run).count("continuing from") == signals
    assert_as_if_left_alone(tmp_path, whole)
    print(f"{signals} signals: same instances, bit-equal weights; at most {longest:.1f} s from signal to queue")


@pytest.mark.soak
def test_a_run_longer_than_its_time_limit_is_told_by_slurm_itself_and_ends(
    cluster: Cluster, data: tuple[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    limit = ("slurm.nodes=2", "slurm.time=2:30", "slurm.save_before=30")  # SLURM tells it up to a minute earlier
    (job,) = submitted(*QUICK, *data, *limit, "trainer.max_steps=20000", f"run_dir={run}")
    until(lambda: cluster.field(job, "Restarts") == "1", "it was not requeued", 240)
    until(lambda: log(run).count("continuing from") == 1, "it did not go on")
    assert "stopped and saved" in log(run)
    cluster.run("scancel", job)
    assert ended(cluster, job) == "CANCELLED"


def test_a_job_that_gets_nowhere_is_given_up(
    data: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    (run / "slurm").mkdir(parents=True)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for _ in range(2):
        note_start(run / "slurm", "run", 0)
    done = run_cappy("train", *QUICK, *data, f"run_dir={run}")
    assert done.returncode == 2
    assert "was started 3 times in a row at step 0 and is given up" in done.stderr
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    note_start(run / "slurm", "run", 0)  # another job may try again
    for fold, step in (("0", 0), ("0", 0), ("0", 4), ("1", 4), ("1", 4)):  # folds note in the folder of their run
        note_start(job_folder(run / "folds" / fold), fold, step)
    with pytest.raises(InputError, match="was started 3 times in a row at step 4"):
        note_start(job_folder(run / "folds" / "1"), "1", 4)


def test_of_an_array_only_what_failed_is_made_again_and_all_parts_equal_a_single_run(
    cluster: Cluster, tmp_path: Path
) -> None:
    out = tmp_path / "instances"
    words = ("label", QUICKSTART_POOL, "-o", out, "label.mismatches=0", "slurm.array=0-7%4", HERE)
    broken = f'slurm.setup=["[ $SLURM_ARRAY_TASK_ID = 5 ] && kill -9 $$", "{SET_UP}"]'
    (first,) = submitted(*words[:-1], broken)
    until(lambda: all(s in ENDED for s in cluster.states(first)), "the array does not end")
    (row,) = jobs(tmp_path)
    assert (row["step"], row["total_steps"]) == (7, 8)
    (second,) = submitted(*words)
    until(lambda: all(s in ENDED for s in cluster.states(second)), "the array does not end")
    assert len(cluster.states(second)) == 1
    done = run_cappy("label", QUICKSTART_POOL, "-o", tmp_path / "whole", "label.mismatches=0")
    assert done.returncode == 0, done.stderr
    assert rows_of(out) == rows_of(tmp_path / "whole")
    again = run_cappy("submit", *words)
    assert (again.returncode, "has all 8 parts already" in again.stderr) == (2, True)


def test_a_benchmark_is_an_array_over_tasks_and_a_report_of_all(cluster: Cluster, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in QUICKSTART_POOL.read_text(encoding="utf-8").splitlines()[::19]]
    for task in ("tense", "operators"):
        lines = (json.dumps(row | {"task": task}) + "\n" for row in rows)
        (tmp_path / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
    recorded, out = f"data.pool={tmp_path}/${{data.task}}.jsonl", tmp_path / "out"
    own = ("--tasks", "tense,operators", *SHORT_RUN, *TINY_SCORER, recorded, "-o", out, HERE)
    words = ("evaluate", "bigbench", *own)
    array, gather = submitted(*words, "slurm.array=0-1", "then", *words)
    assert ended(cluster, gather) == "COMPLETED"
    assert cluster.states(array) == ["COMPLETED"] * 2
    report = json.loads((out / "report.json").read_text())
    assert list(report["tasks"]) == ["tense", "operators"]
    (log,) = (out.parent / "out.slurm").glob(f"{gather}*.log")
    assert "average over 2 tasks" in log.read_text()
    assert "training:" not in log.read_text()  # all was there


def test_what_follows_a_job_that_fails_does_not_start_and_the_reason_is_said(
    cluster: Cluster, data: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"task": "t"}\n')
    out = tmp_path / "instances"
    train = (*QUICK, f"data.instances={out}", data[1], f"run_dir={tmp_path / 'run'}", "slurm.time=20")
    first, second = submitted("label", tmp_path / "bad.jsonl", "-o", out, "then", *train)
    assert ended(cluster, first) == "FAILED"
    until(lambda: cluster.field(second, "Reason") == "DependencyNeverSatisfied", "the second has another reason")
    rows = {row["job"]: row for row in jobs(tmp_path)}
    assert (rows[first]["state"], rows[first]["note"]) == ("failed", "refused, see the log")
    assert (rows[second]["state"], rows[second]["note"]) == ("pending", f"never starts: job {first} before it failed")
    assert "never starts" in run_cappy("jobs", tmp_path).stdout
    cluster.run("scancel", second)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("slurm.partition=nowhere",), "sbatch: refuses the job (invalid partition specified: nowhere"),
        (("slurm.node=2",), "slurm.node=2: unknown key 'slurm.node', did you mean 'slurm.nodes'?"),
        (("data.instances=nothing/here",), "nothing/here: does not exist, and no command before it makes it"),
        (("slurm.time=2",), "slurm.time: is 2, expected at least 180 seconds"),
        (("slurm.nodes=3",), "data.lanes: is 64, expected a multiple of the number of ranks (3)"),
        (("slurm.time=soon",), "slurm.time: is 'soon', expected a time as 24:00:00"),
        (("slurm.nodes=4",), "sbatch: refuses the job ("),
        (("slurm.offline=true", "scorer.base=me/mine"), "scorer.base: 'me/mine' is not in the cache, expected it"),
        (("slurm.offline=true", "push_to_hub=mine"), "push_to_hub: expected none beside slurm.offline"),
    ],
)
def test_what_can_be_known_to_fail_is_refused_and_nothing_is_queued(
    cluster: Cluster, data: tuple[str, str], tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    before = cluster.run("squeue", "-h")
    done = run_cappy("submit", *QUICK, *data, f"run_dir={tmp_path / 'run'}", *words)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert cluster.run("squeue", "-h") == before
    assert not list(tmp_path.iterdir())


def test_without_sbatch_that_is_said(data: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run_cappy("submit", *QUICK, *data, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("cappy: sbatch: is not on this machine")

"""A training that is killed again and again, on changing numbers of ranks, sees each instance when an undisturbed one does."""

import random
import time
from pathlib import Path

import numpy as np
import pytest
import record_run
from conftest import TINY_RUN
from forked import Forked
from recorded import instances_of_steps, steps_ended
from safetensors.torch import load_file

from cappy_lightning import Cappy
from cappy_lightning.data.shards import write_instances
from cappy_lightning.records import Instance

ROWS, SIZE = 1003, 16
SETTINGS = (
    *TINY_RUN,
    f"batch.global_size={SIZE}",
    "batch.micro_size=4",
    "data.lanes=8",
    "data.window=8",
    "optimizer.learning_rate=1e-3",
    "trainer.checkpoint_every=3",
    "trainer.validations=2",
)


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("instances")
    rows = [
        Instance(f"what is {n}?", f"{n} " * (n % 9 + 1), n / 2048, "given", f"t{n // 300}", str(n)) for n in range(ROWS)
    ]
    write_instances(rows, directory / "train", {}, shard_rows=300, group_rows=50)
    write_instances(rows[:60], directory / "validation", {})
    return directory


def start(record: Path, run_dir: Path, instances: Path, *words: str, ranks: int = 1) -> Forked:
    record.mkdir(exist_ok=True)
    data = (f"data.instances={instances / 'train'}", f"data.validation_instances={instances / 'validation'}")
    words = (*SETTINGS, *data, f"run_dir={run_dir}", f"trainer.devices={ranks}", *words)
    return Forked(record.with_name("output"), record, *words, ranks=ranks, program=record_run.run)


def finish(record: Path, run_dir: Path, instances: Path, *words: str, ranks: int = 1) -> None:
    done = start(record, run_dir, instances, *words, ranks=ranks)
    assert done.wait() == 0, done.stderr


def kill_after(steps: int, record: Path, run_dir: Path, instances: Path, *words: str, ranks: int = 1) -> None:
    """Start the run and kill all its processes when so many steps more were trained."""
    before = steps_ended(record)
    process = start(record, run_dir, instances, *words, ranks=ranks)
    deadline = time.monotonic() + 300
    while steps_ended(record) < before + steps:
        assert process.returncode is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()


@pytest.mark.parametrize(("kills", "epochs", "workers"), [(2, 1, 0), pytest.param(20, 4, 2, marks=pytest.mark.soak)])
def test_killed_on_changing_numbers_of_ranks_every_step_has_the_instances_of_an_undisturbed_run(
    instances: Path, tmp_path: Path, kills: int, epochs: int, workers: int
) -> None:
    words = (f"trainer.epochs={epochs}", "trainer.max_steps=null", "scorer.dropout=0.0", f"data.workers={workers}")
    finish(tmp_path / "whole", tmp_path / "run-whole", instances, *words)
    expected = {step: sorted(rows) for step, (rows,) in instances_of_steps(tmp_path / "whole").items()}
    per_epoch = -(-ROWS // SIZE)
    assert len(expected) == per_epoch * epochs
    seen = [row for step in range(per_epoch) for row in expected[step]]
    assert sorted(seen) == sorted(np.float32(n / 2048) for n in range(ROWS))
    generator = random.Random(0)
    most = per_epoch * epochs // kills - 2
    for number in range(kills):
        ranks = (2, 1)[number % 2]
        # In the short round after step 3 of 2 ranks: 6 forwards, which are one and a half steps of 1 rank.
        kill_after(
            generator.randint(3, most) if kills > 2 else 4,
            tmp_path / "killed",
            tmp_path / "run",
            instances,
            *words,
            ranks=ranks,
        )
    finish(tmp_path / "killed", tmp_path / "run", instances, *words, ranks=2)
    for step, times in instances_of_steps(tmp_path / "killed").items():
        for rows in times:
            assert sorted(rows) == expected[step]
    assert set(instances_of_steps(tmp_path / "killed")) == set(expected)
    pairs = [(f"what is {n}?", str(n)) for n in range(50)]
    mine, theirs = (Cappy.from_pretrained(tmp_path / name / "model").score(pairs) for name in ("run", "run-whole"))
    assert np.abs(mine - theirs).max() < 1e-6
    print(f"{kills} kills, {workers} workers: largest difference of a score {np.abs(mine - theirs).max():.1e}")


@pytest.mark.soak
def test_one_process_killed_20_times_with_dropout_ends_with_bit_equal_weights(instances: Path, tmp_path: Path) -> None:
    words = ("trainer.epochs=4", "trainer.max_steps=null", "scorer.dropout=0.1", "data.workers=2")
    finish(tmp_path / "whole", tmp_path / "run-whole", instances, *words)
    generator = random.Random(0)
    for _ in range(20):
        kill_after(generator.randint(3, 10), tmp_path / "killed", tmp_path / "run", instances, *words)
    finish(tmp_path / "killed", tmp_path / "run", instances, *words)
    mine, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "run-whole"))
    assert all((mine[name] == theirs[name]).all() for name in theirs)

"""The curves of a training, where people look at them."""

import csv
from pathlib import Path

import pytest
import torch
from conftest import TINY_RUN, TINY_SCORER, Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cappy_lightning import loggers
from cappy_lightning.scorer.metrics import calibration_error

NAMES = {
    *("train/loss", "train/learning_rate", "train/pairs_per_second", "train/tokens_per_second", "train/padding_share"),
    *(f"validation/{name}" for name in ("mse", "mae", "pearson", "spearman", "best_first", "calibration_error")),
}


def test_tensorboard_has_every_curve_step_by_step(lora_run: Path) -> None:
    events = EventAccumulator(str(lora_run / "logs"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= NAMES
    loss = events.Scalars("train/loss")
    assert [one.step for one in loss] == list(range(6))
    rates = [one.value for one in events.Scalars("train/learning_rate")]
    assert rates[0] == 0  # where the warm-up begins
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[1] == pytest.approx(1e-3)
    assert rates[-1] < rates[1]


def test_csv_has_the_same_and_keeps_what_was_before_a_stop(cappy: Run, tmp_path: Path) -> None:
    pool = "data.pool=[data/quickstart/pool.jsonl]"
    words = [
        *TINY_RUN,
        pool,
        "data.max_train=8",
        "data.max_validation=4",
        "trainer.logger=csv",
        f"run_dir={tmp_path}/run",
    ]
    assert cappy("train", *words, "trainer.max_steps=4").returncode == 0
    (file,) = (tmp_path / "run" / "logs").rglob("metrics.csv")
    assert file.parent.name == "from-step-0"
    with open(file, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert set(rows[0]) >= NAMES
    assert sum(bool(row["train/loss"]) for row in rows) == 4


def test_none_leaves_nothing(cappy: Run, tmp_path: Path) -> None:
    words = ["conf/pretrain.yaml", "conf/smoke.yaml", *TINY_SCORER, "data.pool=[data/quickstart/pool.jsonl]"]
    done = cappy("train", *words, "trainer.logger=none", f"run_dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run" / "logs").exists()


def test_a_logger_that_is_missing_or_unknown(cappy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loggers.NEEDS, "wandb", "no_such_package")
    words = ["conf/quickstart.yaml", f"run_dir={tmp_path}/run"]
    for kind, said in (
        ("wandb", "trainer.logger: wandb is missing, expected 'pip install no_such_package'"),
        ("paper", "trainer.logger: is 'paper', expected one of tensorboard, csv, wandb, none"),
    ):
        done = cappy("train", *words, f"trainer.logger={kind}")
        assert (done.returncode, done.stderr) == (2, f"cappy: {said}\n")
    assert not (tmp_path / "run" / "instances").exists()


def test_the_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    scores, targets = torch.tensor([0.12, 0.18, 0.95, 1.0]), torch.tensor([0.0, 0.5, 1.0, 0.0])
    # (0.3 - 0.5) and (1.95 - 1.0), each the gap of a bin of two.
    assert calibration_error(scores, targets) == pytest.approx((0.2 + 0.95) / 4)
    assert calibration_error(targets, targets) == 0

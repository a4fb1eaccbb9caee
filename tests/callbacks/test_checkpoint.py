"""Interrupted runs continue with the very next step and end where an undisturbed run ends."""

import json
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import small_disk
import torch
from conftest import SHORT_RUN, Run
from forked import Forked
from safetensors.torch import load_file

from cappy_lightning.checkpoints import latest_checkpoint
from cappy_lightning.data.shards import read_manifest
from cappy_lightning.errors import InputError
from cappy_lightning.export import export_any

#: With dropout, so equal weights prove an equal random state.
LONGER = (*SHORT_RUN, "scorer.dropout=0.1", "trainer.max_steps=40", "trainer.checkpoint_every=5")


def start(run_dir: Path, *words: str) -> Forked:
    return Forked(run_dir.with_name("printed"), "train", *LONGER, *words, f"run_dir={run_dir}")


def stop_at(run_dir: Path, step: int, number: signal.Signals, *words: str) -> tuple[int | None, str]:
    """Start the run, send a signal to its group when a checkpoint of at least `step` is there, and wait."""
    process = start(run_dir, *words)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.returncode is None:
        latest = latest_checkpoint(run_dir / "checkpoints")
        if latest and int(latest.stem.split("-")[1]) >= step:
            break
        time.sleep(0.01)
    process.kill(number)
    return process.wait(), process.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cappy: Run) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = cappy("train", *LONGER, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_run_continues_and_ends_with_bit_equal_weights(
    undisturbed: Path, tmp_path: Path, cappy: Run, number: signal.Signals, code: int
) -> None:
    run_dir = tmp_path / "run"
    for step in (5, 20):  # a validation round follows step 21
        returned, error = stop_at(run_dir, step, number)
        assert returned == code, error
        assert "Traceback" not in error
        assert not (run_dir / "metrics.json").exists()
    done = cappy("train", *LONGER, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    assert "continuing from" in done.stderr
    mine, theirs = (load_file(d / "adapter" / "adapter_model.safetensors") for d in (run_dir, undisturbed))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (run_dir / "metrics.json").read_bytes() == (undisturbed / "metrics.json").read_bytes()
    assert (run_dir / "report.json").read_bytes() == (undisturbed / "report.json").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_with_loader_processes_is_saved_when_its_whole_group_is_told_to_stop(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    returned, error = stop_at(tmp_path / "run", 5, number, "data.workers=2")
    assert returned == code, error
    assert "stopped and saved" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("more", "name"),
    [((), "adapter_best"), (("trainer.checkpoint_every=1",), r"checkpoints/step-\d+\.partial")],
    ids=["export", "checkpoint"],
)
def test_a_full_disk_is_told_by_the_name_of_what_was_written_and_the_run_continues(
    tmp_path: Path, cappy: Run, more: tuple[str, ...], name: str
) -> None:
    words = ("train", *SHORT_RUN, *more, f"run_dir={tmp_path}/run")
    stopped = Forked(tmp_path / "printed", *words, program=small_disk.run)
    assert stopped.wait() == 2, stopped.stderr
    expected = rf"^cappy: \S+/run/{name}: cannot be written \(File too large\)$"
    assert re.search(expected, stopped.stderr, re.MULTILINE), stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert cappy(*words).returncode == 0


def test_the_same_command_on_a_finished_run_prints_the_result_again(undisturbed: Path, cappy: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.name != ".lock"}
    done = cappy("train", *LONGER, f"run_dir={undisturbed}")
    assert done.returncode == 0
    assert "of the way from random to oracle" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.name != ".lock"} == before
    as_json = json.loads(cappy("train", *LONGER, f"run_dir={undisturbed}", "--json").stdout)
    assert as_json["metrics"] == json.loads((undisturbed / "metrics.json").read_text())


def test_a_run_stopped_after_its_last_step_exports_and_reports_when_it_continues(
    undisturbed: Path, tmp_path: Path, cappy: Run
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    shutil.rmtree(run_dir / "adapter")
    for name in ("metrics.json", "report.json", "report.png"):
        (run_dir / name).unlink()
    done = cappy("train", *LONGER, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    for name in ("metrics.json", "report.json", "adapter/adapter_model.safetensors"):
        assert (run_dir / name).read_bytes() == (undisturbed / name).read_bytes()


def test_another_config_or_a_live_run_on_the_directory_is_refused(
    undisturbed: Path, tmp_path: Path, cappy: Run
) -> None:
    done = cappy("train", *LONGER, f"run_dir={undisturbed}", "seed=5")
    assert done.returncode == 2
    assert "seed is 11111 there and 5 here" in done.stderr
    process = start(tmp_path / "run")
    while not (tmp_path / "run" / "config.yaml").exists():
        time.sleep(0.01)
    done = cappy("train", *LONGER, f"run_dir={tmp_path / 'run'}")
    process.kill()
    process.wait()
    assert done.returncode == 2
    assert "another process is at work" in done.stderr


def test_the_best_and_the_last_checkpoint_and_export_are_kept(undisturbed: Path) -> None:
    rounds = torch.load(undisturbed / "checkpoints" / "step-40.ckpt", weights_only=True)["callbacks"]["Results"]
    best = min(rounds["validations"]["validation/mse"], key=lambda point: point[1])
    assert best[0] == 21
    assert {path.name for path in (undisturbed / "checkpoints").iterdir()} == {"step-21.ckpt", "step-40.ckpt"}
    metrics = json.loads((undisturbed / "metrics.json").read_text())
    assert metrics["best/mse"] == min(best[1], metrics["validation/mse"])
    assert (undisturbed / "adapter_best").exists() == (metrics["best/step"] == 21)


def test_checkpoints_hold_no_frozen_weights_and_load_as_weights_only(undisturbed: Path) -> None:
    path = undisturbed / "checkpoints" / "step-40.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert not any("base_layer" in name or "embeddings" in name for name in checkpoint["state_dict"])
    state = checkpoint["CappyDataModule"]
    assert state["step"] == 40
    per_epoch = -(-(rows := read_manifest(undisturbed / "instances" / "train").rows) // 16)
    assert (state["epoch"], state["step_of_epoch"]) == divmod(40, per_epoch)
    assert state["instances"] == 40 // per_epoch * rows + 40 % per_epoch * 16
    assert (state["order"]["data.lanes"], state["order"]["seed"]) == (64, 11111)
    assert len(json.dumps(state)) < 1000


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "cannot be read ("),
        (b"PK", "cannot be read ("),
        ({"config": {}}, "does not say how its scorer was made, expected a checkpoint of a run"),
        ({"config": {}, "state_dict": {}}, "does not say how its scorer was made ("),
        (
            {"config": {"finetune": {"nothing": 1}, "scorer": {}}, "state_dict": {}},
            "does not say how its scorer was made (",
        ),
    ],
)
def test_a_checkpoint_that_is_none_of_ours_is_refused_in_one_line(tmp_path: Path, content: Any, problem: str) -> None:
    path = tmp_path / "step-1.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError) as error:
        export_any(str(path), tmp_path / "out", None)
    assert problem in str(error.value)
    assert not (tmp_path / "out").exists()

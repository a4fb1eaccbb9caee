"""DDP and ZeRO 1, 2, 3 with real processes: equal losses, what each rank holds, stops, resumes and exports."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks_run
import torch
from conftest import SHORT_RUN, TINY_RUN, Run
from forked import Forked

from cappy_lightning import Cappy
from cappy_lightning.checkpoints import latest_checkpoint, read_checkpoint
from cappy_lightning.config_loading import load_config
from cappy_lightning.export import PROBE
from cappy_lightning.memory import estimate

POOL = "data.pool=data/quickstart/pool.jsonl"
#: Two accumulated forwards a step on two ranks, gradients that are clipped, parameters that are all divided.
STEPS = (
    *TINY_RUN,
    POOL,
    "data.max_train=16",
    "data.max_validation=6",
    "scorer.dropout=0",
    "batch.global_size=16",
    "batch.micro_size=4",
    "optimizer.learning_rate=1e-3",
    "trainer.gradient_clip=0.05",
    "trainer.zero3_persistence=0",
    "trainer.max_steps=20",
    "trainer.validations=2",
)


def stop_at(step: int, record: Path, *words: str, ranks: int = 2) -> None:
    """Run until a step, at which each rank writes what it holds; then as after SIGTERM."""
    stopped = Forked(record, record, step, *words, f"trainer.devices={ranks}", ranks=ranks, program=ranks_run.run)
    assert stopped.wait() == 143, stopped.stderr
    assert stopped.stderr.count("stopped and saved") == 1


def train(run_dir: Path, *words: str, ranks: int = 2) -> str:
    """Run to the end; what is printed on standard error."""
    words = (*words, f"trainer.devices={ranks}", f"run_dir={run_dir}")
    done = Forked(run_dir.with_name("output"), "train", *words, ranks=ranks)
    assert done.wait() == 0, done.stderr
    return done.stderr


def state(run_dir: Path) -> dict[str, Any]:
    path = latest_checkpoint(run_dir / "checkpoints")
    assert path
    return read_checkpoint(path)


def losses(run_dir: Path) -> np.ndarray:
    return np.array(state(run_dir)["callbacks"]["Results"]["losses"])[:, 1]


def exported(run_dir: Path, mode: str = "full") -> np.ndarray:
    return Cappy.from_pretrained(run_dir / ("model" if mode == "full" else "adapter")).score(PROBE)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, cappy: Run) -> Path:
    """The run of one process that was never stopped."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    done = cappy("train", *STEPS, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return run_dir


def check_held(record: Path, words: Sequence[str]) -> None:
    """What each of two ranks has held is what was estimated."""
    expected = estimate(load_config([*words, "trainer.devices=2"]))
    for rank in range(2):
        held = json.loads((record / f"rank-{rank}.json").read_text())
        assert held["weights"] == pytest.approx(expected.weights, rel=0.001)
        assert held["optimizer"] == pytest.approx(expected.optimizer, rel=0.001)
        assert held["partitioned"] == (held["parameters"] if "trainer.strategy=zero3" in words else 0)


@pytest.mark.parametrize(
    "strategy", ["zero2", *(pytest.param(name, marks=pytest.mark.soak) for name in ("ddp", "zero1", "zero3"))]
)
def test_two_ranks_lose_and_export_as_one_does_over_a_stop(alone: Path, tmp_path: Path, strategy: str) -> None:
    run_dir = tmp_path / "run"
    words = (*STEPS, f"trainer.strategy={strategy}", f"run_dir={run_dir}")
    stop_at(10, tmp_path / "record", *words)
    check_held(tmp_path / "record", words)
    latest = latest_checkpoint(run_dir / "checkpoints")
    assert latest
    assert latest.name == "step-10.ckpt"
    assert len(list(latest.glob("checkpoint/*optim_states.pt"))) == (0 if strategy == "ddp" else 2)
    first, second = (states["cpu"] for states in state(run_dir)["callbacks"]["RunCheckpoint"]["random_states"])
    assert not torch.equal(first, second)  # each rank has dropout of its own
    left = run_dir / "checkpoints" / "step-20.partial" / "checkpoint" / "zero_pp_rank_2_mp_rank_00_optim_states.pt"
    left.parent.mkdir(parents=True)  # as a kill of more ranks leaves it
    left.touch()
    assert "continuing from" in train(run_dir, *words)
    assert len(losses(run_dir)) == 20
    latest = latest_checkpoint(run_dir / "checkpoints")
    assert latest
    assert len(list(latest.glob("checkpoint/*optim_states.pt"))) == (0 if strategy == "ddp" else 2)
    difference = np.abs(losses(run_dir) - losses(alone)).max()
    scores = np.abs(exported(run_dir) - exported(alone)).max()
    print(f"{strategy}: losses of 20 steps within {difference:.1e}, exported scores within {scores:.1e}")
    assert difference <= 1e-6
    assert scores <= 1e-5


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["full", "lora", "head"])
@pytest.mark.parametrize("strategy", ["auto", "ddp", "zero1", "zero2", "zero3"])
def test_every_strategy_trains_stops_resumes_exports_and_loads_back(
    cappy: Run, tmp_path: Path, strategy: str, mode: str
) -> None:
    """The real encoder in fp32; the scores of the module in training are compared within the export."""
    real = [f"finetune.mode={mode}", "trainer.max_steps=8", "scorer.dropout=0", "trainer.gradient_clip=0.5"]
    words = (*SHORT_RUN, "batch.micro_size=4", "trainer.zero3_persistence=0", *real)
    assert cappy("train", *words, f"run_dir={tmp_path / 'alone'}").returncode == 0
    run_dir = tmp_path / "run"
    ours, ranks = (*words, f"run_dir={run_dir}", f"trainer.strategy={strategy}"), 1 if strategy == "auto" else 2
    stop_at(3, tmp_path / "record", *ours, ranks=ranks)
    assert "exported and verified" in train(run_dir, *ours, ranks=ranks)
    difference = np.abs(exported(run_dir, mode) - exported(tmp_path / "alone", mode)).max()
    print(f"{strategy} {mode}: exported scores within {difference:.1e} of one process never stopped")
    assert difference <= 1e-5
    done = cappy("export", run_dir, "-o", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert np.abs(Cappy.from_pretrained(tmp_path / "again").score(PROBE) - exported(run_dir, mode)).max() <= 1e-5


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
@pytest.mark.parametrize("how", ["bf16", "activation_checkpointing", "offload", "compile"])
def test_other_ways_to_compute_lose_alike(alone: Path, tmp_path: Path, strategy: str, how: str) -> None:
    if strategy == "ddp" and how == "offload":
        pytest.skip("DDP offloads nothing")
    if strategy in ("zero1", "zero3") and how == "compile":
        pytest.skip("refused with ZeRO-3; tried with DDP and ZeRO-2")
    option, tolerance = ("precision=bf16-mixed", 2e-3) if how == "bf16" else (f"{how}=true", 1e-6)
    run_dir = tmp_path / "run"
    train(run_dir, *STEPS, f"trainer.strategy={strategy}", f"trainer.{option}")
    difference = np.abs(losses(run_dir) - losses(alone)).max()
    print(f"{strategy} {how}: losses of 20 steps within {difference:.1e}")
    assert difference <= tolerance


def test_zero_goes_on_with_other_ranks_and_stages_and_without_zero(alone: Path, tmp_path: Path, cappy: Run) -> None:
    run_dir = tmp_path / "run"
    words = (*STEPS, f"run_dir={run_dir}")
    divided = (*words, "trainer.strategy=zero3")
    stop_at(5, tmp_path / "record", *divided)
    check_held(tmp_path / "record", divided)
    stop_at(12, tmp_path / "record", *words, "trainer.strategy=zero1", ranks=1)
    whole = state(run_dir)
    theirs = state(alone)
    assert whole["state_dict"].keys() == theirs["state_dict"].keys()
    assert whole["optimizer_names"] == theirs["optimizer_names"]
    done = cappy("train", *words)
    assert done.returncode == 0, done.stderr
    assert np.abs(losses(run_dir) - losses(alone)).max() <= 1e-6
    assert np.abs(exported(run_dir) - exported(alone)).max() <= 1e-5


def test_shards_become_the_weights_that_deepspeed_would_make_of_them(tmp_path: Path, cappy: Run) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    run_dir = tmp_path / "run"
    lora = ("finetune.mode=lora", "trainer.strategy=zero3", f"run_dir={run_dir}")
    stop_at(3, tmp_path / "record", *STEPS, *lora)
    path = latest_checkpoint(run_dir / "checkpoints")
    assert path
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(path), exclude_frozen_parameters=True)
    mine = read_checkpoint(path)["state_dict"]
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name].contiguous()) for name in mine)
    done = cappy("export", path, "-o", tmp_path / "adapter")
    assert done.returncode == 0, done.stderr
    stored = Cappy.from_pretrained(tmp_path / "adapter").scorer.model.state_dict()
    for name, tensor in mine.items():
        assert torch.equal(stored[name.removeprefix("model.")], tensor), name
    (path / "checkpoint" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    done = cappy("export", path, "-o", tmp_path / "other")
    assert done.returncode == 2
    assert "has the shards of 1 ranks, expected 2" in done.stderr
    assert not (tmp_path / "other").exists()

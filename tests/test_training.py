"""Whole runs: from pools, from instances of one's own, on choices, and in two processes."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FULL, QUICKSTART_POOL, SHORT_RUN, TINY_SCORER, Run, start_cappy

from cappy_lightning import Cappy, training
from cappy_lightning.config_loading import load_config
from cappy_lightning.data.reading import read_table
from cappy_lightning.data.shards import read_manifest
from cappy_lightning.errors import InputError
from cappy_lightning.scorer.module import CappyModule

ROWS = [json.loads(line) for line in QUICKSTART_POOL.read_text(encoding="utf-8").splitlines()[:40]]
NO_POOL = ("data.pool=null", "data.max_train=null", "data.max_validation=null")


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def metrics(run_dir: Path) -> dict[str, float]:
    return dict(json.loads((run_dir / "metrics.json").read_text()))


def test_a_run_from_pools_reads_its_instances_from_its_own_shards(lora_run: Path) -> None:
    train = read_table([read_manifest(lora_run / "instances" / "train")])
    validation = read_table([read_manifest(lora_run / "instances" / "validation")])
    assert set(train["origin"].to_pylist()) == {"gold", "mismatch", "sampled"}
    assert set(validation["origin"].to_pylist()) <= {"gold", "sampled"}
    assert len(set(train["example_id"].to_pylist())) == 12
    assert len(set(validation["example_id"].to_pylist())) == 6
    assert not set(train["example_id"].to_pylist()) & set(validation["example_id"].to_pylist())
    report = json.loads((lora_run / "report.json").read_text())
    expected = {"random", "greedy", "sampling", "temperature_0.7", "nucleus_0.9", "self_score_sum", "self_score_mean"}
    expected |= {"majority", "mbr", "shortest", "longest", "cappy", "oracle"}
    assert set(report["average"]["methods"]) == expected
    assert report["metric"] == "rougeL"


def test_instances_with_scores_of_ones_own_are_read_directly(cappy: Run, tmp_path: Path) -> None:
    rows = [
        {"instruction": row["instruction"], "response": candidate["response"], "score": n / 12}
        for row in ROWS
        for n, candidate in enumerate(row["candidates"][:5])
    ]
    own = (*NO_POOL, f"data.instances={write(tmp_path / 'mine.jsonl', rows)}")
    done = cappy("train", *SHORT_RUN, *own, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "no validation instances are given: made a split by example" in done.stderr
    sides = [read_table([read_manifest(tmp_path / "run" / "instances" / name)]) for name in ("train", "validation")]
    assert sum(side.num_rows for side in sides) == len(rows)
    assert not set(sides[0]["instruction"].to_pylist()) & set(sides[1]["instruction"].to_pylist())
    assert set(sides[0]["origin"].to_pylist()) == {"given"}
    assert "validation/spearman" in metrics(tmp_path / "run")
    assert not (tmp_path / "run" / "report.json").exists()


def test_choices_are_trained_and_reported_as_accuracy(cappy: Run, tmp_path: Path) -> None:
    topics = sorted({row["references"][0].split(":")[0] for row in ROWS})
    labels = [topics.index(row["references"][0].split(":")[0]) for row in ROWS]
    rows = [
        {"task": "topic", "instruction": row["instruction"], "choices": topics, "label": label}
        for row, label in zip(ROWS, labels, strict=True)
    ]
    own = ("data.pool=null", f"data.examples={write(tmp_path / 'topics.jsonl', rows)}")
    done = cappy("train", *SHORT_RUN, *own, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["metric"] == "accuracy"
    assert report["average"]["methods"]["oracle"]["mean"] == 1
    assert report["average"]["methods"]["random"]["mean"] == pytest.approx(1 / len(topics))
    assert "majority" in report["tasks"]["topic"]["skipped"]
    train = read_table([read_manifest(tmp_path / "run" / "instances" / "train")])
    assert set(train["origin"].to_pylist()) == {"gold", "wrong_choice"}


def test_a_ranking_loss_in_bf16_leaves_a_model_like_any_other(full_run: Path, cappy: Run, tmp_path: Path) -> None:
    ranking = ("optimizer.ranking=1", "data.lanes=2", "trainer.precision=bf16-mixed")
    done = cappy("train", *SHORT_RUN, *FULL, *ranking, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    ours, theirs = (json.loads((run / "model" / "config.json").read_text()) for run in (tmp_path / "run", full_run))
    assert ours == theirs
    scores = [Cappy.from_pretrained(run / "model").score([("a", "b")]) for run in (tmp_path / "run", full_run)]
    assert scores[0] != scores[1]


def test_two_processes_train_and_export_one_adapter(lora_run: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # With this size the last forward of a validation round is all filling on the second rank.
    two = ("trainer.devices=2", "batch.micro_size=4", "batch.validation_size=9")
    done = start_cappy("train", *SHORT_RUN, *two, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results:") == 1
    mine, theirs = metrics(run_dir), metrics(lora_run)
    assert mine.keys() == theirs.keys()
    assert mine == pytest.approx(theirs, rel=1e-4)  # the same pairs behind every step, and no dropout
    assert Cappy.from_pretrained(run_dir / "adapter").score([("a", "b")]).shape == (1,)


def test_no_validation_round_is_done_twice() -> None:
    for steps in range(1, 100):
        for validations in range(1, 25):
            every = training.steps_between_rounds(steps, validations)
            assert steps % every
            assert steps // every < validations  # the last one comes on top


@pytest.mark.parametrize(("mode", "more"), [("lora", ()), ("full", FULL)])
def test_dropout_is_at_work_in_training_and_not_in_the_export(
    cappy: Run, request: pytest.FixtureRequest, tmp_path: Path, mode: str, more: tuple[str, ...]
) -> None:
    without = request.getfixturevalue(f"{mode}_run")
    done = cappy("train", *SHORT_RUN, *more, "scorer.dropout=0.5", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    ours, theirs = metrics(tmp_path / "run"), metrics(without)
    assert ours["train/loss"] != theirs["train/loss"]
    assert ours["train/padding_share"] > theirs["train/padding_share"] == 0  # attention with dropout wants padding
    scorer = Cappy.from_pretrained(tmp_path / "run" / {"lora": "adapter", "full": "model"}[mode])
    pairs = [(ROWS[0]["instruction"], "a"), (ROWS[1]["instruction"], "b")]
    assert scorer.score(pairs).tolist() == scorer.score(pairs).tolist()


def test_a_run_leaves_nothing_in_memory_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds, and the tasks of a benchmark, are many runs of one process."""
    modules: list[weakref.ref[CappyModule]] = []
    make = training.CappyModule

    def noted(*words: Any) -> CappyModule:
        assert not any(module() for module in modules)
        module = make(*words)
        modules.append(weakref.ref(module))
        return module

    monkeypatch.setattr(training, "CappyModule", noted)
    gc.disable()  # it would come at moments of its own
    try:
        for name in ("first", "second"):
            words = (*SHORT_RUN, *FULL, *TINY_SCORER, f"data.pool={QUICKSTART_POOL}", f"run_dir={tmp_path / name}")
            assert training.finish(load_config(words)) == 0
    finally:
        gc.enable()
    assert len(modules) == 2


def test_memory_that_does_not_suffice_is_told_by_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fit(*_: object) -> int:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(training, "_fit", fit)
    with pytest.raises(InputError, match=r"batch.micro_size: is \d+, for which the memory of the GPU does not suffice"):
        training.finish(load_config([*SHORT_RUN, f"run_dir={tmp_path / 'run'}"]))

"""Training on shards of instances from the command line: what it reads, counts and refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_RUN, Run

from cappy_lightning import Cappy
from cappy_lightning.data.reading import read_table
from cappy_lightning.data.shards import read_manifest, write_instances
from cappy_lightning.records import Instance


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """200 training instances of 2 tasks in 4 shards, 40 for validation, 30 for the test."""
    rows = [Instance(f"what is {n}?", f"{n}", n % 5 / 4, "given", f"t{n // 100}", str(n // 5)) for n in range(200)]
    write_instances(rows, tmp_path / "train", {}, shard_rows=50, group_rows=10)
    write_instances(rows[:40], tmp_path / "validation", {})
    write_instances(rows[40:70], tmp_path / "test", {})
    return tmp_path


def words(shards: Path, *more: str) -> tuple[str, ...]:
    data = (f"data.instances={shards / 'train'}", f"data.validation_instances={shards / 'validation'}")
    steps = ("batch.global_size=16", "batch.micro_size=8", "trainer.max_steps=null")
    return ("train", *TINY_RUN, *data, *steps, f"run_dir={shards / 'run'}", *more)


def metrics(shards: Path) -> dict[str, float]:
    return dict(json.loads((shards / "run" / "metrics.json").read_text()))


def test_caps_and_weights_make_the_epoch_and_the_test_set_is_scored(shards: Path, cappy: Run) -> None:
    mixture = ("data.caps={t0: 40}", "data.weights={'t1': 1.5}")  # 40 and 150 instances
    done = cappy(*words(shards, *mixture, "scorer.dropout=0", f"data.test_instances={shards / 'test'}"))
    assert done.returncode == 0, done.stderr
    found = metrics(shards)
    assert found["train/steps"] == 12  # of 16: 190 instances
    assert 0 < found["train/padding_share"] < 0.01  # the filling of the last step
    assert found["train/skipped_instances"] == 0
    assert {f"test/{name}" for name in ("mse", "mae", "pearson", "spearman", "best_first")} <= found.keys()
    assert found["test/mse"] != found["validation/mse"]
    instances = read_table([read_manifest(shards / "validation")]).to_pylist()
    scores = Cappy.from_pretrained(shards / "run" / "model").score(
        [(i["instruction"], i["response"]) for i in instances]
    )
    errors = [(score - instance["score"]) ** 2 for score, instance in zip(scores, instances, strict=True)]
    assert found["validation/mse"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_a_damaged_shard_is_named_before_the_training_or_skipped(shards: Path, cappy: Run) -> None:
    path = shards / "train" / "shard-00002.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    problem = f"{path}: has {len(data) - 100} bytes, expected {len(data)} by its manifest: it was cut off or changed"
    done = cappy(*words(shards))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == f"cappy: {problem}"
    assert not (shards / "run" / "config.yaml").exists()
    done = cappy(*words(shards, "data.on_error=skip"))
    assert done.returncode == 0, done.stderr
    assert f"{problem}; what of it cannot be read is skipped" in done.stderr
    assert metrics(shards)["train/skipped_instances"] == 50


def test_a_pattern_that_matches_no_task_is_refused(shards: Path, cappy: Run) -> None:
    done = cappy(*words(shards, "data.caps={glue/*: 5}"))
    assert done.returncode == 2
    assert done.stderr.strip().endswith("data: 'glue/*' in its caps or weights matches no task among t0, t1")

"""RoBERTa-large, with random weights, under ZeRO in bf16 on a GPU."""

import json
from pathlib import Path

import pytest
import torch
from conftest import start_cappy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

POOL = ("data.pool=data/quickstart/pool.jsonl", "data.max_train=16", "data.max_validation=6")
RANDOM = ("scorer.random_weights=true", "scorer.tokenizer=embedded", "scorer.max_length=128")
SHORT = ("trainer.max_steps=4", "trainer.validations=2", "batch.global_size=32", "batch.micro_size=16")


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_roberta_large_trains_and_exports_what_it_has_learned(tmp_path: Path, strategy: str, mode: str) -> None:
    recipe = ("conf/pretrain.yaml", "conf/gpu.yaml", f"conf/{strategy}.yaml", f"finetune.mode={mode}")
    done = start_cappy("train", *recipe, *POOL, *RANDOM, *SHORT, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "exported and verified" in done.stderr  # against the module in training
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["parameters"] == 355_360_769
    assert metrics["train/peak_memory_bytes"] > 7e8

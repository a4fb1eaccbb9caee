"""`train.py` that also writes, step by step, which instances were trained on: RECORD/rank-R.jsonl.

    python tests/data/record_run.py RECORD RECIPE.yaml [key=value ...]

Each instance is known by its score.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from cappy_lightning.callbacks import StepProgress

from cappy_lightning import training
from cappy_lightning.cli import main


class Recording(StepProgress):
    """Notes the real rows of every forward before the step counts as done."""

    record: Path

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ended = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        step = trainer.global_step - 1 if ended else trainer.global_step
        rows = batch["score"][batch["weight"] > 0].tolist()
        line = {"step": step, "rows": rows, "ended": ended, "world": trainer.world_size}
        with open(self.record / f"rank-{trainer.global_rank}.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def run(words: list[str]) -> int:
    """`words` are RECORD and those of `train`."""
    Recording.record = Path(words[0])
    training.StepProgress = Recording
    return main(["train", *words[1:]])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

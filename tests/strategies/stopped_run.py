"""`train.py` that asks itself to stop after a step, as SIGTERM from outside would.

python tests/strategies/stopped_run.py STEP RECIPE.yaml [key=value ...]
"""

import os
import signal
import sys
from typing import Any

import lightning.pytorch as pl
from cappy_lightning.callbacks import StepProgress

from cappy_lightning import training
from cappy_lightning.cli import main


class Stopping(StepProgress):
    """The last rank gets the signal, so that the others have to be told."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == int(sys.argv[1]) and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    training.StepProgress = Stopping
    sys.exit(main(["train", *sys.argv[2:]]))

"""`train.py` that stops itself after a step, as SIGTERM from outside would, and writes what each rank holds then."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from cappy_lightning.callbacks import StepProgress

from cappy_lightning import training
from cappy_lightning.cli import main


def held(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, int]:
    """Bytes of parameters and of AdamW's state, fp32 weights included, on this rank."""
    own = [getattr(parameter, "ds_tensor", parameter) for parameter in module.parameters()]
    (optimizer,) = trainer.optimizers
    zero = getattr(optimizer, "optimizer", None) if trainer.strategy.__class__.__name__ == "ZeroStrategy" else None
    tensors: list[torch.Tensor] = []
    if zero is not None:
        flats = getattr(optimizer, "fp32_partitioned_groups_flat", None) or optimizer.single_partition_of_fp32_groups
        tensors += flats
    states = (zero or optimizer).state.values()
    tensors += [value for state in states for value in state.values() if torch.is_tensor(value)]
    return {
        "weights": sum(tensor.numel() * tensor.element_size() for tensor in own),
        "optimizer": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "partitioned": sum(
            hasattr(parameter, "ds_tensor") and not parameter.numel() for parameter in module.parameters()
        ),
        "parameters": len(own),
    }


class Stopping(StepProgress):
    """The last rank gets the signal, so that the others have to be told."""

    record: Path
    step: int

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == self.step:
            path = self.record / f"rank-{trainer.global_rank}.json"
            path.write_text(json.dumps(held(trainer, pl_module)), encoding="utf-8")
            if trainer.global_rank == trainer.world_size - 1:
                os.kill(os.getpid(), signal.SIGTERM)


def run(words: list[str]) -> int:
    """`words` are RECORD, STEP and those of `train`."""
    Stopping.record, Stopping.step = Path(words[0]), int(words[1])
    training.StepProgress = Stopping
    return main(["train", *words[2:]])

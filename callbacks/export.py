"""Exports of what a run has learned: at the end, and at every validation round that is the best so far."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from cappy_lightning.callbacks.results import Results
from lightning.pytorch.trainer.states import TrainerFn

from cappy_lightning.data.datamodule import CappyDataModule
from cappy_lightning.errors import InputError
from cappy_lightning.export import BF16_TOLERANCE, CARD, PROBE, TOLERANCE, exact_products, export, rebuild
from cappy_lightning.model_card import model_card
from cappy_lightning.progress import say
from cappy_lightning.scorer.module import CappyModule
from cappy_lightning.strategies import trained_weights


class Export(pl.Callback):
    """Writes the adapter, or in mode `full` the model, and nothing else, under every strategy.

    All ranks gather the weights and score the probe pairs; the first one builds the scorer anew from its base, writes
    the export, loads it back and compares. What stood there stays until then.

    Args:
        run_dir: where `adapter` or `model` goes, and `adapter_best` or `model_best`.
        config: as a checkpoint would say it, see `rebuild`.
        total_steps: the step after which the training is at its end.
        results: which knows the best round.
    """

    def __init__(self, run_dir: Path, config: dict[str, Any], total_steps: int, results: Results) -> None:
        self.kind = "model" if config["finetune"]["mode"] == "full" else "adapter"
        self.last, self.best = run_dir / self.kind, run_dir / f"{self.kind}_best"
        self.config, self.total_steps, self.results = config, total_steps, results

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export the best so far."""
        if trainer.state.fn == TrainerFn.FITTING and self.results.best_step == trainer.global_step:
            self._export(trainer, pl_module, self.best)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export the last.

        Raises:
            InputError: the training has diverged.
        """
        if trainer.global_step >= self.total_steps:
            self._export(trainer, pl_module, self.last)

    def _export(self, trainer: pl.Trainer, pl_module: pl.LightningModule, directory: Path) -> None:
        assert isinstance(pl_module, CappyModule)
        with exact_products():
            expected = pl_module.score(PROBE)
        if not np.isfinite(expected).all():
            raise InputError("optimizer.learning_rate", "the training diverged, its scores are no numbers")
        weights = trained_weights(trainer, pl_module)
        if trainer.is_global_zero:
            exact = all(parameter.dtype == torch.float32 for parameter in pl_module.parameters())
            with torch.random.fork_rng():  # a new head would take from the numbers of the dropout
                scorer, settings = rebuild(self.config, weights)
                tolerance, device = TOLERANCE if exact else BF16_TOLERANCE, str(pl_module.device)
                card = model_card(self.kind, self.config, self.facts(trainer))
                export(scorer, directory, self.kind, settings, {CARD: card}, expected, tolerance, device)
            say(f"exported and verified: {directory}")
        trainer.strategy.barrier("export")

    def facts(self, trainer: pl.Trainer) -> dict[str, Any]:
        """What the model card says about the training so far."""
        datamodule = getattr(trainer, "datamodule", None)
        assert isinstance(datamodule, CappyDataModule)
        return {"step": trainer.global_step, "data_sha256": datamodule.fingerprint, "metrics": self.results.metrics}

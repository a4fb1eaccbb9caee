"""Progress of the training, counted in optimizer steps."""

import time
from typing import Any

import lightning.pytorch as pl

from cappy_lightning.progress import Ticker, say


class StepProgress(pl.Callback):
    """A rich progress bar over optimizer steps, or a line now and then where there is no terminal.

    Args:
        total_steps: of the whole training.
        pairs_per_step: to show the pairs per second.
    """

    def __init__(self, total_steps: int, pairs_per_step: int) -> None:
        self.total_steps, self.pairs_per_step = total_steps, pairs_per_step
        self._ticker: Ticker | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, or begin where a resumed run stands."""
        if trainer.is_global_zero:
            self._ticker = Ticker("training", self.total_steps, trainer.global_step)
            self._ticker.__enter__()
            self._start, self._first = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on with every finished step."""
        if self._ticker and trainer.global_step > self._ticker.done:
            rate = (trainer.global_step - self._first) * self.pairs_per_step / (time.monotonic() - self._start)
            self._ticker.advance(trainer.global_step - self._ticker.done, f"{rate:.0f} pairs/s")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One line with the metrics of the round."""
        if trainer.is_global_zero:
            values = {
                name.removeprefix("validation/"): float(v)
                for name, v in trainer.callback_metrics.items()
                if name.startswith("validation/")
            }
            shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            say(f"step {trainer.global_step}/{self.total_steps}: {shown}")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the bar away."""
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bar away."""
        if self._ticker:
            self._ticker.__exit__()
            self._ticker = None

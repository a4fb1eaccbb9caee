"""Progress of the training, counted in optimizer steps."""

import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from cappy_lightning.callbacks.results import Results

from cappy_lightning.progress import Ticker, say
from cappy_lightning.run_dir import SLURM
from cappy_lightning.slurm.restarts import note_progress

#: Seconds between two notes of the progress.
NOTE_EVERY = 10.0


class StepProgress(pl.Callback):
    """A rich progress bar over optimizer steps, or a line now and then where there is no terminal.

    Logs, with every step, the rates since the training began or was resumed, over all ranks, and the share of
    padding among the tokens of this rank's batches: `train/pairs_per_second`, `train/tokens_per_second` and
    `train/padding_share`. Under SLURM notes now and then how far it is, for `cappy jobs`.

    Args:
        total_steps: of the whole training.
        run_dir: of the run.
        results: which knows the loss.
    """

    def __init__(self, total_steps: int, run_dir: Path, results: Results) -> None:
        self.total_steps, self.run_dir, self.results = total_steps, run_dir, results
        self._ticker: Ticker | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, or begin where a resumed run stands."""
        self._start, self._seen = time.monotonic(), Counter[str]()
        self._first, self._noted = trainer.global_step, self._start
        if trainer.is_global_zero:
            self._ticker = Ticker("training", self.total_steps, trainer.global_step)
            self._ticker.__enter__()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on with every finished step."""
        self._seen.update(batch["counts"])
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        seconds = (time.monotonic() - self._start) / trainer.world_size  # ranks have like numbers of pairs
        pairs, tokens = self._seen["pairs"] / seconds, self._seen["tokens"] / seconds
        padding = 1 - self._seen["tokens"] / self._seen["slots"]
        rates = {"pairs_per_second": pairs, "tokens_per_second": tokens, "padding_share": padding}
        pl_module.log_dict({f"train/{name}": value for name, value in rates.items()})
        if self._ticker:
            shown = f"{pairs:,.0f} pairs/s, {tokens:,.0f} tokens/s, {100 * padding:.0f}% padding"
            self._ticker.advance(trainer.global_step - self._ticker.done, shown)
            if time.monotonic() - self._noted >= NOTE_EVERY or trainer.global_step == self.total_steps:
                self._note(trainer.global_step, pairs)

    def _note(self, step: int, pairs_per_second: float) -> None:
        self._noted = time.monotonic()
        a_step = (self._noted - self._start) / (step - self._first)
        facts = {
            "step": step,
            "total_steps": self.total_steps,
            "loss": self.results.losses[-1][1] if self.results.losses else None,
            "pairs_per_second": pairs_per_second,
            "seconds_left": a_step * (self.total_steps - step),
            "at": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        note_progress(self.run_dir / SLURM, facts)

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

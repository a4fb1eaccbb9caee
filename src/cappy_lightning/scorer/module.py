"""The LightningModule: MSE between the score and the weak label, in fp32."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from cappy_lightning.config import OptimizerConfig
from cappy_lightning.scorer.metrics import validation_metrics
from cappy_lightning.scorer.model import Scorer

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class CappyModule(pl.LightningModule):
    """Trains a scorer on batches of `CappyDataModule`.

    The loss is the mean squared error of sigmoid(logit), or of the raw logit of a linear regressor,
    against the score in [0, 1], as in the paper (arXiv 2311.06720, section 3.2).

    Args:
        scorer: what to train; of its parameters those with `requires_grad`.
        optimizer: the `optimizer` section of the config.
        total_steps: optimizer steps of the whole training, for the schedule.
    """

    def __init__(self, scorer: Scorer, optimizer: OptimizerConfig, total_steps: int) -> None:
        super().__init__()
        self.scorer, self.optimizer_config, self.total_steps = scorer, optimizer, total_steps
        self.model = scorer.model  # registered, so that Lightning moves and saves it
        self._frozen = {f"model.{name}" for name, p in self.model.named_parameters() if not p.requires_grad}
        self.strict_loading = not self._frozen  # checkpoints leave frozen weights out
        self._round: list[tuple[Tensor, ...]] = []
        #: Scores and true scores of the last validation round, for the calibration plot.
        self.last_validation: tuple[Tensor, Tensor] | None = None

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Logits of a batch, [pairs]."""
        return self.scorer.logits({name: batch[name] for name in _INPUTS if name in batch})

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of one forward, scaled so that accumulated and averaged it is the mean of the step.

        Lightning divides by the number of accumulated forwards, and DDP and DeepSpeed average over
        ranks; the last step of an epoch holds fewer pairs than a full one, so the sum over its pairs is
        divided by how many are real.
        """
        logits = self(batch)
        predicted = logits.sigmoid() if self.scorer.activation == "sigmoid" else logits
        errors = (predicted - batch["score"]).square() * batch["weight"]
        forwards = self.trainer.accumulate_grad_batches * self.trainer.world_size
        loss: Tensor = errors.sum() * forwards / batch["real"]
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collect one batch, filling too: a forward is a matter of all ranks under ZeRO-3."""
        self._round.append((self(batch), batch["score"], batch["weight"], batch["example"]))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all ranks' pairs as `validation/...`."""
        self.last_validation = self._end_round("validation")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of all ranks' pairs as `test/...`."""
        self._end_round("test")

    def _end_round(self, name: str) -> tuple[Tensor, Tensor]:
        """Every rank has the same number of pairs, filling included. Gives scores and true scores, [pairs]."""
        own = tuple(torch.cat(parts) for parts in zip(*self._round, strict=True))
        self._round.clear()
        everyone: Any = self.all_gather(own)
        logits, targets, weights, examples = (part.flatten().cpu() for part in everyone)
        real = weights > 0
        logits, targets = logits[real], targets[real]
        scores = self.scorer.scores(logits)
        values = validation_metrics(logits, scores, targets, examples[real])
        self.log_dict({f"{name}/{metric}": value for metric, value in values.items()}, rank_zero_only=False)
        return scores, targets

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen base out of checkpoints: it is built again from where it came."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: tensor for name, tensor in weights.items() if name not in self._frozen}

    def configure_optimizers(self) -> Any:
        """AdamW; linear warm-up, then linear decay to 0. Biases and LayerNorm are never decayed."""
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for _, p in trained if p.ndim >= 2], "weight_decay": self.optimizer_config.weight_decay},
            {"params": [p for _, p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.optimizer_config.learning_rate)
        warmup = round(self.total_steps * self.optimizer_config.warmup)
        schedule = get_linear_schedule_with_warmup(optimizer, warmup, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

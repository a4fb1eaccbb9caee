"""The LightningModule: MSE between the score and the weak label, with a ranking term if asked for, in fp32."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import get_linear_schedule_with_warmup

from cappy_lightning.checkpoints import CONFIG, OPTIMIZER_NAMES
from cappy_lightning.config import OptimizerConfig
from cappy_lightning.errors import InputError
from cappy_lightning.scorer.architectures import depth
from cappy_lightning.scorer.metrics import validation_metrics
from cappy_lightning.scorer.model import Scorer

_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "starts", "longest")


def ranking_loss(logits: Tensor, scores: Tensor, examples: Tensor, weights: Tensor) -> Tensor:
    """The pairwise logistic loss of RankNet (Burges et al., 2005), each two weighted by how far their scores differ.

    Of two pairs i and j of an example with n pairs here, i the better one, the loss is
    `2 / (n - 1) * (score_i - score_j) * log(1 + exp(logit_j - logit_i))`: for one example the mean over its twos times
    n, so that an example counts as much as its pairs do in a sum of squared errors.

    Args:
        logits: [pairs].
        scores: true ones in [0, 1], [pairs].
        examples: equal for pairs of one example, [pairs].
        weights: 0 for what does not count, else 1, [pairs].

    Returns:
        the sum over all twos; 0 where there are none.
    """
    same = (examples[:, None] == examples) & (weights[:, None] * weights > 0)
    gaps = (scores[:, None] - scores).clamp(min=0) * same
    others = (same.sum(dim=1, keepdim=True) - 1).clamp(min=1)
    return (2 / others * gaps * functional.softplus(logits - logits[:, None])).sum()


class CappyModule(pl.LightningModule):
    """Trains a scorer on batches of `CappyDataModule`.

    The loss is the mean squared error of sigmoid(logit), or of the raw logit of a linear regressor,
    against the score in [0, 1], as in the paper (arXiv 2311.06720, section 3.2); with `optimizer.ranking` the
    ranking loss besides, times that, which is ours.

    Args:
        scorer: what to train; of its parameters those with `requires_grad`.
        optimizer: the `optimizer` section of the config.
        total_steps: optimizer steps of the whole training, for the schedule.
        config: what checkpoints are to say about the run, for exports.
    """

    def __init__(
        self, scorer: Scorer, optimizer: OptimizerConfig, total_steps: int, config: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.scorer, self.optimizer_config, self.total_steps = scorer, optimizer, total_steps
        self.config = config or {}
        self.model = scorer.model  # registered, so that Lightning moves and saves it
        self._frozen = {f"model.{name}" for name, p in self.model.named_parameters() if not p.requires_grad}
        self.strict_loading = not self._frozen  # checkpoints leave frozen weights out
        self._round: list[tuple[Tensor, ...]] = []
        #: Scores and true scores of the last validation round, for the calibration plot.
        self.last_validation: tuple[Tensor, Tensor] | None = None

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Logits of a batch, [pairs]."""
        return self.scorer.logits({name: batch[name] for name in _INPUTS if name in batch})

    @torch.no_grad()
    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """Scores of (instruction, response) pairs, [pairs], by the module in training; a matter of all ranks."""
        training, found = self.training, []
        self.eval()
        for start in range(0, len(pairs), 8):
            instructions, responses = zip(*pairs[start : start + 8], strict=True)
            inputs = self.scorer.encoder.pad(self.scorer.encoder.encode(instructions, responses))
            found.append(self({name: tensor.to(self.device) for name, tensor in inputs.items()}))
        self.train(training)
        return np.asarray(self.scorer.scores(torch.cat(found)).cpu().numpy(), dtype=np.float32)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of one forward, scaled so that accumulated and averaged it is the mean of the step.

        Lightning divides by the number of accumulated forwards, and DDP and DeepSpeed average over
        ranks; the last step of an epoch holds fewer pairs than a full one, so the sum over its pairs is
        divided by how many are real.
        """
        logits = self(batch)
        predicted = logits.sigmoid() if self.scorer.activation == "sigmoid" else logits
        loss = ((predicted - batch["score"]).square() * batch["weight"]).sum()
        if self.optimizer_config.ranking:
            ranking = ranking_loss(logits, batch["score"], batch["example"], batch["weight"])
            loss = loss + self.optimizer_config.ranking * ranking
        forwards = self.trainer.accumulate_grad_batches * self.trainer.world_size
        of_step: Tensor = loss * forwards / batch["real"]
        return of_step

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
        if not real.any():
            raise InputError(f"data.{name}_instances", "none of them can be read, expected some")
        logits, targets = logits[real], targets[real]
        scores = self.scorer.scores(logits)
        values = validation_metrics(logits, scores, targets, examples[real])
        self.log_dict({f"{name}/{metric}": value for metric, value in values.items()}, rank_zero_only=False)
        return scores, targets

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen base out of checkpoints: it is built again from where it came."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: tensor for name, tensor in weights.items() if name not in self._frozen}
        checkpoint[OPTIMIZER_NAMES] = [names for names, _, _ in self._groups()]
        checkpoint[CONFIG] = self.config

    def configure_optimizers(self) -> Any:
        """AdamW; linear warm-up, then linear decay to 0. Biases and LayerNorm are never decayed."""
        settings = self.optimizer_config
        parameters = dict(self.named_parameters())
        groups = [
            {
                "params": [parameters[name] for name in names],
                "weight_decay": settings.weight_decay if decays else 0.0,
                "lr": settings.learning_rate * settings.layer_decay**distance,
            }
            for names, distance, decays in self._groups()
        ]
        optimizer: torch.optim.Optimizer
        if getattr(self.trainer.strategy, "offload", False):  # DeepSpeed's own steps where the states lie
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True)
        else:
            optimizer = torch.optim.AdamW(groups, fused=True)
            # What it can do to scaled gradients, for which Lightning would not clip them: bf16 scales none.
            optimizer._step_supports_amp_scaling = False
        warmup = round(self.total_steps * settings.warmup)
        schedule = get_linear_schedule_with_warmup(optimizer, warmup, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _groups(self) -> list[tuple[list[str], int, bool]]:
        """The optimizer's groups: names of trained parameters, their layers from the head, whether they decay.

        Without layer decay all layers are one group.
        """
        groups: dict[tuple[int, bool], list[str]] = {}
        by_layer = self.optimizer_config.layer_decay != 1
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                distance = depth(name, self.scorer.config) if by_layer else 0
                shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves an empty tensor in its place
                groups.setdefault((distance, len(shape) >= 2), []).append(name)
        return [(names, *key) for key, names in groups.items()]

"""Validation metrics of the scorer."""

from typing import Any

from torch import Tensor, nn
from torchmetrics import (
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    MetricCollection,
    PearsonCorrCoef,
    SpearmanCorrCoef,
)
from torchmetrics.retrieval.base import RetrievalMetric


class BestFirst(RetrievalMetric):
    """Per example, whether the response ranked first is one of the best; averaged over examples.

    `update(preds, target, indexes)` takes logits, true scores and the number of each pair's example.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(empty_target_action="skip", **kwargs)
        self.allow_non_binary_target = True

    def _metric(self, preds: Tensor, target: Tensor) -> Tensor:
        return (target[preds.argmax()] == target.max()).float()


class ValidationMetrics(nn.Module):
    """MSE, MAE, Pearson and Spearman of scores against true scores, and `best_first` over examples.

    Args:
        over_ranks: whether every rank updates and computes; else one process alone.
    """

    def __init__(self, *, over_ranks: bool = True) -> None:
        super().__init__()
        metrics: dict[str, Metric | MetricCollection] = {
            "mse": MeanSquaredError(sync_on_compute=over_ranks),
            "mae": MeanAbsoluteError(sync_on_compute=over_ranks),
            "pearson": PearsonCorrCoef(sync_on_compute=over_ranks),
            "spearman": SpearmanCorrCoef(sync_on_compute=over_ranks),
        }
        self.regression = MetricCollection(metrics, compute_groups=False)
        self.best_first = BestFirst(sync_on_compute=over_ranks)

    def update(self, logits: Tensor, scores: Tensor, targets: Tensor, examples: Tensor) -> None:
        """Add pairs, [pairs] each: logits, scores in [0, 1], true scores, and the number of each one's example."""
        self.regression.update(scores, targets)
        self.best_first.update(logits, targets, examples)

    def compute(self) -> dict[str, Tensor]:
        """The values by name; then start anew."""
        values = {**self.regression.compute(), "best_first": self.best_first.compute()}
        self.regression.reset()
        self.best_first.reset()
        return values

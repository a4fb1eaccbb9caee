"""Validation metrics of the scorer."""

from typing import Any

from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
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


def regression_metrics() -> MetricCollection:
    """MSE, MAE, Pearson and Spearman of scores against true scores."""
    return MetricCollection(
        {
            "mse": MeanSquaredError(),
            "mae": MeanAbsoluteError(),
            "pearson": PearsonCorrCoef(),
            "spearman": SpearmanCorrCoef(),
        },
        compute_groups=False,
    )

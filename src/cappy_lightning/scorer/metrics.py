"""Validation metrics of the scorer."""

from typing import Any

import torch
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


#: Bins of scores over [0, 1].
BINS = 10


def calibration_error(scores: Tensor, targets: Tensor) -> float:
    """How far scores are from true scores on average, bin by bin (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Args:
        scores: in [0, 1], [pairs].
        targets: true scores in [0, 1], [pairs].
    """
    which = (scores.nan_to_num() * BINS).long().clamp(0, BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, which, (scores - targets).double())
    return float(gaps.abs().sum() / len(scores))


def validation_metrics(logits: Tensor, scores: Tensor, targets: Tensor, examples: Tensor) -> dict[str, float]:
    """MSE, MAE, Pearson, Spearman and calibration error of scores against true scores; `best_first` over examples.

    Args:
        logits: [pairs].
        scores: in [0, 1], [pairs].
        targets: true scores in [0, 1], [pairs].
        examples: the number of each pair's example, [pairs].
    """
    regression = MetricCollection(
        {
            "mse": MeanSquaredError(sync_on_compute=False),
            "mae": MeanAbsoluteError(sync_on_compute=False),
            "pearson": PearsonCorrCoef(sync_on_compute=False),
            "spearman": SpearmanCorrCoef(sync_on_compute=False),
        },
        compute_groups=False,
    )
    best_first = BestFirst(sync_on_compute=False)
    regression.update(scores, targets)
    best_first.update(logits, targets, examples)
    values = {**regression.compute(), "best_first": best_first.compute()}
    found = {name: float(value) for name, value in values.items()}
    return found | {"calibration_error": calibration_error(scores, targets)}

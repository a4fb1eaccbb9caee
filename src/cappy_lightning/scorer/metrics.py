"""Validation metrics of the scorer."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, PearsonCorrCoef
from torchmetrics.retrieval.base import RetrievalMetric


class BestFirst(RetrievalMetric):
    """Per example, whether the response ranked first is one of the best; averaged over the examples with one above 0.

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


def spearman(one: Tensor, other: Tensor) -> float:
    """Rank correlation, equal values having their mean rank; 0 where all values of a side are equal.

    That of torchmetrics sums the ranks of equal values in 32 bits, which is too little for 100,000 pairs.

    Args:
        one: [pairs].
        other: [pairs].
    """
    first, second = (ranks - ranks.mean() for ranks in map(_ranks, (one, other)))
    norm = np.sqrt(first @ first * (second @ second))
    return float(first @ second / norm) if norm > 0 else 0.0


def _ranks(values: Tensor) -> NDArray[np.float64]:
    _, place, counts = np.unique(values.cpu().numpy(), return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (counts.cumsum() - (counts - 1) / 2)[place]
    return ranks


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
        },
        compute_groups=False,
    )
    best_first = BestFirst(sync_on_compute=False)
    regression.update(scores, targets)
    best_first.update(logits, targets, examples)
    values = {**regression.compute(), "best_first": best_first.compute()}
    found = {name: float(value) for name, value in values.items()}
    return found | {
        "spearman": spearman(scores, targets),
        "calibration_error": calibration_error(scores, targets),
    }

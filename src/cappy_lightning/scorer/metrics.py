"""Validation metrics of the scorer."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, PearsonCorrCoef

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


def best_first(logits: Tensor, targets: Tensor, examples: Tensor) -> float:
    """The share of the examples whose response that ranks first, of equal ones the first, is one of the best.

    Examples without a response above 0 are left out; 0 where no other is. (torchmetrics' retrieval metrics sort the
    pairs in a way that does not keep the order of equal ones.)

    Args:
        logits: [pairs].
        targets: true scores in [0, 1], [pairs].
        examples: the number of each pair's example, [pairs].
    """
    numbers, rewards = examples.cpu().numpy(), targets.cpu().numpy()
    order = np.lexsort((-logits.cpu().numpy(), numbers))
    numbers, rewards = numbers[order], rewards[order]
    firsts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
    most = np.maximum.reduceat(rewards, firsts)
    return float((rewards[firsts] == most)[most > 0].mean()) if (most > 0).any() else 0.0


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
    regression.update(scores, targets)
    return {name: float(value) for name, value in regression.compute().items()} | {
        "best_first": best_first(logits, targets, examples),
        "spearman": spearman(scores, targets),
        "calibration_error": calibration_error(scores, targets),
    }

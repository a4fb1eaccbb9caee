"""The loss and the metrics of the training module."""

import pytest
import torch
from torchmetrics import SpearmanCorrCoef

from cappy_lightning.scorer.metrics import BestFirst


def test_best_first_counts_examples_whose_top_scored_response_is_one_of_the_best() -> None:
    metric = BestFirst()
    # Example 0: the best (1.0) is on top. Example 1: a worse one is. Example 2: a tie among the best.
    metric.update(torch.tensor([0.9, 0.1, 0.2]), torch.tensor([1.0, 0.5, 0.3]), torch.tensor([0, 0, 1]))
    metric.update(torch.tensor([0.8, 0.5, 0.6]), torch.tensor([0.1, 0.7, 0.7]), torch.tensor([1, 2, 2]))
    assert float(metric.compute()) == pytest.approx(2 / 3)


def test_spearman_takes_ties_as_ranks_in_the_middle() -> None:
    # Labels repeat a lot (0, 1): ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4 give 0.9487.
    found = SpearmanCorrCoef()(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.0, 0.5, 0.5, 1.0]))
    assert float(found) == pytest.approx(0.948683, abs=1e-5)

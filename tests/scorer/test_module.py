"""The loss and the metrics of the training module."""

import pytest
import torch
from lightning.pytorch import Trainer
from scipy.stats import spearmanr
from small_models import settings

from cappy_lightning.config import OptimizerConfig
from cappy_lightning.scorer.architectures import head_names, in_head
from cappy_lightning.scorer.metrics import best_first, spearman
from cappy_lightning.scorer.model import build_scorer
from cappy_lightning.scorer.module import CappyModule


def test_best_first_counts_examples_whose_top_scored_response_is_one_of_the_best() -> None:
    # Example 0: the best (1.0) is on top. Example 1: a worse one is. Example 2: a tie among the best. 3: none is good.
    logits, targets = torch.tensor([0.9, 0.1, 0.2, 0.8, 0.5, 0.6, 0.9]), torch.tensor([1.0, 0.5, 0.3, 0.1, 0.7, 0.7, 0])
    assert best_first(logits, targets, torch.tensor([0, 0, 1, 1, 2, 2, 3])) == pytest.approx(2 / 3)
    assert best_first(torch.zeros(2), torch.zeros(2), torch.tensor([5, 5])) == 0
    mixed = torch.randperm(200, generator=torch.Generator().manual_seed(0)) // 4  # examples whose pairs lie anywhere
    firsts = torch.tensor([float(number not in mixed[:place]) for place, number in enumerate(mixed.tolist())])
    assert best_first(torch.ones(200), firsts, mixed) == 1  # of equal logits the first
    assert best_first(torch.ones(200), 1 - firsts, mixed) == 0


def test_spearman_takes_ties_as_ranks_in_the_middle() -> None:
    # Labels repeat a lot (0, 1): ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4 give 0.9487.
    found = spearman(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.0, 0.5, 0.5, 1.0]))
    assert found == pytest.approx(0.948683, abs=1e-5)
    assert spearman(torch.ones(3), torch.tensor([1.0, 2.0, 3.0])) == 0


def test_spearman_is_right_however_many_values_are_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(200_000, generator=generator) - 0.5).clamp(min=0)  # half of them 0
    scores = targets + 0.1 * torch.randn(200_000, generator=generator)
    assert spearman(scores, targets) == pytest.approx(spearmanr(scores, targets).statistic, abs=1e-9)


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2", "modernbert"])
def test_the_learning_rate_falls_from_the_head_to_the_embeddings(model_type: str) -> None:
    scorer = build_scorer(settings(model_type))
    module = CappyModule(scorer, OptimizerConfig(learning_rate=1.0, layer_decay=0.5, weight_decay=0.1), total_steps=2)
    module._trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)  # asked for its device only
    groups = module.configure_optimizers()["optimizer"].param_groups
    names = {id(p): name for name, p in module.named_parameters()}
    rates = {names[id(p)]: group["initial_lr"] for group in groups for p in group["params"]}
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert rates.keys() == dict(module.named_parameters()).keys()
    for name, rate in rates.items():
        if in_head(name, head_names(model_type)):
            assert rate == 1.0
        elif ".1." in name or "final_norm" in name:  # of two layers the upper one
            assert rate == 0.5
        elif ".0." in name:
            assert rate == 0.25
        else:
            assert rate == 0.125, name
    assert {decays[name] for name, p in module.named_parameters() if p.ndim < 2} == {0.0}
    assert {decays[name] for name, p in module.named_parameters() if p.ndim >= 2} == {0.1}

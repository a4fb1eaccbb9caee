"""Batches: what every step, rank and worker sees."""

import pytest
import torch
from torch.utils.data import DataLoader

from cappy_lightning.config import OptimizerConfig, ScorerConfig
from cappy_lightning.data.datamodule import Batch, _Instances, _TrainingStream, _ValidationRows, prepare_worker
from cappy_lightning.data.shards import write_instances
from cappy_lightning.records import Instance
from cappy_lightning.scorer.model import Scorer, build_scorer
from cappy_lightning.scorer.module import CappyModule

#: Every instance has a score of its own, by which it is recognized in a batch.
ROWS = 50
INSTANCES = [
    Instance("word " * (i * 7 % 30 + 1), f"answer {i}", i / 100, "given", "t", str(i // 5)) for i in range(ROWS)
]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    torch.manual_seed(0)
    return build_scorer(ScorerConfig(max_length=64))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> _Instances:
    directory = tmp_path_factory.mktemp("instances") / "train"
    write_instances(INSTANCES, directory, {}, shard_rows=20, group_rows=6)
    return _Instances([directory])


def stream(
    data: _Instances, scorer: Scorer, rank: int = 0, world: int = 1, micro: int = 4, steps: range = range(4)
) -> _TrainingStream:
    return _TrainingStream(data, scorer.encoder, (16, micro), 1, steps, rank, world)


def rows(batch: Batch) -> list[int]:
    scores, weights = batch["score"].tolist(), batch["weight"].tolist()
    return [round(score * 100) for score, weight in zip(scores, weights, strict=True) if weight]


def by_step(data: _Instances, scorer: Scorer, world: int, workers: int = 0) -> list[list[int]]:
    """The real rows behind each step, over all ranks."""
    steps: list[list[int]] = [[] for _ in range(4)]
    for rank in range(world):
        loader = DataLoader(
            stream(data, scorer, rank, world), batch_size=None, num_workers=workers, worker_init_fn=prepare_worker
        )
        batches = list(loader)
        assert len(batches) == 4 * 16 // (4 * world)  # the same number of forwards on every rank
        for number, batch in enumerate(batches):
            steps[number * 4 * world // 16] += rows(batch)
    return [sorted(step) for step in steps]


def test_an_epoch_has_every_instance_once_and_its_last_step_is_filled(data: _Instances, scorer: Scorer) -> None:
    steps = by_step(data, scorer, world=1)
    assert sorted(row for step in steps for row in step) == list(range(ROWS))
    assert [len(step) for step in steps] == [16, 16, 16, 2]
    real = [int(batch["real"]) for batch in stream(data, scorer)]
    assert real == [16] * 12 + [2] * 4


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 2), (2, 0), (4, 0), (2, 2)])
def test_neither_ranks_nor_workers_change_the_pairs_behind_a_step(
    data: _Instances, scorer: Scorer, world: int, workers: int
) -> None:
    assert by_step(data, scorer, world, workers) == by_step(data, scorer, world=1)


def test_a_stream_from_a_later_step_goes_on_where_the_first_would(data: _Instances, scorer: Scorer) -> None:
    whole = [rows(batch) for batch in stream(data, scorer, steps=range(10))]  # 4 steps an epoch
    assert whole[5 * 4 :] == [rows(batch) for batch in stream(data, scorer, steps=range(5, 10))]
    assert whole[: 4 * 4] != whole[4 * 4 : 8 * 4]  # another order in the second epoch


@pytest.mark.parametrize("world", [1, 2, 4])
def test_validation_has_every_instance_once_with_equal_forwards(data: _Instances, scorer: Scorer, world: int) -> None:
    ranks = [list(_ValidationRows(data, scorer.encoder, 8, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(row for batches in ranks for batch in batches for row in rows(batch)) == list(range(ROWS))


class FakeTrainer:
    world_size = 1

    def __init__(self, forwards: int) -> None:
        self.accumulate_grad_batches = forwards


def gradient(data: _Instances, scorer: Scorer, micro: int, step: int) -> torch.Tensor:
    """The head's gradient of one step, accumulated as Lightning does."""
    module = CappyModule(scorer, OptimizerConfig(), 4)
    module._trainer = FakeTrainer(16 // micro)
    scorer.model.eval().zero_grad()
    for number, batch in enumerate(stream(data, scorer, micro=micro, steps=range(step, step + 1))):
        (module.training_step(batch, number) / (16 // micro)).backward()
    return scorer.model.classifier.weight.grad.clone()


@pytest.mark.parametrize("step", [0, 3])
def test_the_gradient_of_a_step_is_that_of_its_mean_squared_error(data: _Instances, scorer: Scorer, step: int) -> None:
    scorer.model.eval().zero_grad()
    chosen = by_step(data, scorer, world=1)[step]
    inputs = scorer.encoder.pad(
        scorer.encoder.encode([INSTANCES[i].instruction for i in chosen], [INSTANCES[i].response for i in chosen])
    )
    targets = torch.tensor([INSTANCES[i].score for i in chosen])
    torch.nn.functional.mse_loss(scorer.logits(inputs).sigmoid(), targets).backward()
    expected = scorer.model.classifier.weight.grad.clone()
    for micro in (4, 8, 16):
        assert torch.allclose(gradient(data, scorer, micro, step), expected, atol=1e-7, rtol=1e-4)

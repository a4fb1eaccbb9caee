"""Batches: what every step, rank and loader process sees."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from cappy_lightning.config import OptimizerConfig, ScorerConfig
from cappy_lightning.data.mixture import Mixture
from cappy_lightning.data.order import Order
from cappy_lightning.data.reading import RowGroups
from cappy_lightning.data.shards import Manifest, write_instances
from cappy_lightning.data.stream import Batch, EvaluationStream, TrainingStream, example_number
from cappy_lightning.errors import InputError
from cappy_lightning.records import Instance
from cappy_lightning.scorer.model import Scorer, build_scorer
from cappy_lightning.scorer.module import CappyModule

#: Every instance has a score of its own, by which it is recognized in a batch.
ROWS = 50
INSTANCES = [
    Instance("word " * (i * 7 % 30 + 1), f"answer {i}", i / 100, "given", f"t{i // 20}", str(i // 5))
    for i in range(ROWS)
]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    torch.manual_seed(0)
    return build_scorer(ScorerConfig(max_length=64))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    directory = tmp_path_factory.mktemp("instances") / "train"
    return write_instances(INSTANCES, directory, {}, shard_rows=20, group_rows=6)


def stream(data: Manifest, scorer: Scorer, steps: range = range(4), micro: int = 4, **options: Any) -> TrainingStream:
    groups = RowGroups([data])
    mixture = Mixture(groups.rows, groups.tasks(), options.pop("caps", {}), options.pop("weights", {}))
    order = Order(mixture, 1, 8, options.pop("window", 4))
    return TrainingStream(groups, order, scorer.encoder, global_size=16, micro_size=micro, steps=steps, **options)


def rows(batch: Batch) -> list[int]:
    scores, weights = batch["score"].tolist(), batch["weight"].tolist()
    return [round(score * 100) for score, weight in zip(scores, weights, strict=True) if weight]


def _rank(queue: Any, made: TrainingStream, rank: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    queue.put((rank, [rows(batch) for batch in made]))


def by_step(data: Manifest, scorer: Scorer, world: int, workers: int = 0) -> list[list[int]]:
    """The real rows behind each step, over all ranks, each of which is a process."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    ranks = [stream(data, scorer, rank=rank, world=world, workers=workers) for rank in range(world)]
    processes = [context.Process(target=_rank, args=(queue, made, rank)) for rank, made in enumerate(ranks)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    steps: list[list[int]] = [[] for _ in range(4)]
    for batches in found.values():
        assert len(batches) == 4 * 16 // (4 * world)  # the same number of forwards on every rank
        for number, batch in enumerate(batches):
            steps[number * 4 * world // 16] += batch
    return [sorted(step) for step in steps]


@pytest.fixture(scope="module")
def steps(data: Manifest, scorer: Scorer) -> list[list[int]]:
    return by_step(data, scorer, world=1)


def test_an_epoch_has_every_instance_once_and_its_last_step_is_filled(
    data: Manifest, scorer: Scorer, steps: list[list[int]]
) -> None:
    assert sorted(row for step in steps for row in step) == list(range(ROWS))
    assert [len(step) for step in steps] == [16, 16, 16, 2]
    assert [batch["real"] for batch in stream(data, scorer)] == [16] * 12 + [2] * 4


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (4, 0), (4, 1), (4, 2)])
def test_neither_ranks_nor_workers_change_the_pairs_behind_a_step(
    data: Manifest, scorer: Scorer, steps: list[list[int]], world: int, workers: int
) -> None:
    assert by_step(data, scorer, world, workers) == steps


def test_eight_ranks_see_the_same_steps(data: Manifest, scorer: Scorer, steps: list[list[int]]) -> None:
    ranks = [[rows(batch) for batch in stream(data, scorer, micro=2, rank=rank, world=8)] for rank in range(8)]
    assert [sorted(chain(*parts)) for parts in zip(*ranks, strict=True)] == steps


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_stream_from_a_later_step_goes_on_where_the_first_would(data: Manifest, scorer: Scorer, workers: int) -> None:
    whole = [rows(batch) for batch in stream(data, scorer, steps=range(10))]  # 4 steps an epoch
    assert whole[5 * 4 :] == [rows(batch) for batch in stream(data, scorer, steps=range(5, 10), workers=workers)]
    assert whole[: 4 * 4] != whole[4 * 4 : 8 * 4]  # another order in the second epoch


def test_pairs_of_a_step_are_grouped_by_length_and_the_padding_is_counted(data: Manifest, scorer: Scorer) -> None:
    batches = list(stream(data, scorer, steps=range(1)))
    lengths = [batch["attention_mask"].sum(dim=1).tolist() for batch in batches]
    assert list(chain(*lengths)) == sorted(chain(*lengths), reverse=True)
    for batch, found in zip(batches, lengths, strict=True):
        assert batch["input_ids"].shape == (4, max(found))
        assert batch["counts"] == {
            "pairs": 4, "tokens": sum(found), "slots": 4 * max(found), "cut_pairs": 0, "cut_tokens": 0, "skipped": 0,
        }  # fmt: skip
    one = stream(data, scorer, steps=range(1), micro=16)
    assert sum(batch["counts"]["slots"] for batch in batches) < next(iter(one))["counts"]["slots"]


def test_caps_and_weights_choose_the_instances(data: Manifest, scorer: Scorer) -> None:
    def epoch(number: int) -> Counter[int]:
        made = stream(
            data, scorer, caps={"t0": 5}, weights={"t1": 1.5, "t2": 0}, steps=range(number * 3, number * 3 + 3)
        )
        return Counter(row for batch in made for row in rows(batch))

    first, second = epoch(0), epoch(1)  # 5 of 20, 30 of 20, none of 10: 35 in 3 steps
    for found in (first, second):
        assert found.total() == 35
        assert len([row for row in found if row < 20]) == 5
        assert Counter(found[row] for row in range(20, 40)) == {1: 10, 2: 10}
    assert first != second


# What cannot be read


@pytest.fixture
def damaged(tmp_path: Path) -> Manifest:
    """Shard 1 (rows 20 to 39) is gone."""
    manifest = write_instances(INSTANCES, tmp_path / "damaged", {}, shard_rows=20, group_rows=6)
    (tmp_path / "damaged" / "shard-00001.parquet").unlink()
    return manifest


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_group_that_cannot_be_read_stops_the_training_by_name(
    damaged: Manifest, scorer: Scorer, workers: int
) -> None:
    with pytest.raises(InputError, match=r"shard-00001\.parquet: is missing, expected by its manifest$"):
        list(stream(damaged, scorer, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_or_is_skipped_and_counted(damaged: Manifest, scorer: Scorer, steps: list[list[int]], workers: int) -> None:
    batches = list(stream(damaged, scorer, workers=workers, skip_errors=True))
    assert [sorted(chain(*(rows(b) for b in batches[i : i + 4]))) for i in range(0, 16, 4)] == [
        [row for row in step if not 20 <= row < 40] for step in steps
    ]
    assert sum(batch["counts"]["skipped"] for batch in batches) == 20
    assert sum(batch["counts"]["pairs"] for batch in batches) == 30


def test_validation_skips_and_counts_too(damaged: Manifest, scorer: Scorer) -> None:
    batches = list(EvaluationStream(RowGroups([damaged]), scorer.encoder, 8, 0, 1, skip_errors=True))
    assert [row for batch in batches for row in rows(batch)] == [*range(20), *range(40, 50)]
    assert sum(batch["counts"]["skipped"] for batch in batches) == 20


# Validation


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [3, 8, 64])
def test_validation_has_every_instance_once_in_order_with_equal_forwards(
    data: Manifest, scorer: Scorer, world: int, size: int
) -> None:
    ranks = [list(EvaluationStream(RowGroups([data]), scorer.encoder, size, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert [row for batches in ranks for batch in batches for row in rows(batch)] == list(range(ROWS))


def test_pairs_of_one_example_have_the_same_number_on_every_rank(data: Manifest, scorer: Scorer) -> None:
    numbers: dict[int, int] = {}
    for rank in range(2):
        for batch in EvaluationStream(RowGroups([data]), scorer.encoder, 8, rank, 2):
            numbers |= dict(zip(rows(batch), batch["example"].tolist(), strict=False))
    assert [numbers[row] for row in range(ROWS)] == [example_number(i.task, i.example_id) for i in INSTANCES]
    assert len(set(numbers.values())) == 10


# The loss


class FakeTrainer:
    world_size = 1

    def __init__(self, forwards: int) -> None:
        self.accumulate_grad_batches = forwards


def gradient(batches: Sequence[Batch], scorer: Scorer) -> torch.Tensor:
    """The head's gradient of one step, accumulated as Lightning does."""
    module = CappyModule(scorer, OptimizerConfig(), 4)
    module._trainer = FakeTrainer(len(batches))
    scorer.model.eval().zero_grad()
    for number, batch in enumerate(batches):
        (module.training_step(batch, number) / len(batches)).backward()
    return scorer.model.classifier.weight.grad.clone()


@pytest.mark.parametrize("step", [0, 3])
def test_the_gradient_of_a_step_is_that_of_its_mean_squared_error_in_any_grouping(
    data: Manifest, scorer: Scorer, steps: list[list[int]], step: int
) -> None:
    scorer.model.eval().zero_grad()
    chosen = steps[step]
    inputs = scorer.encoder.pad(
        scorer.encoder.encode([INSTANCES[i].instruction for i in chosen], [INSTANCES[i].response for i in chosen])
    )
    targets = torch.tensor([INSTANCES[i].score for i in chosen])
    torch.nn.functional.mse_loss(scorer.logits(inputs).sigmoid(), targets).backward()
    expected = scorer.model.classifier.weight.grad.clone()
    for micro in (2, 4, 8, 16):
        batches = list(stream(data, scorer, micro=micro, steps=range(step, step + 1)))
        assert torch.allclose(gradient(batches, scorer), expected, atol=1e-7, rtol=1e-4)

"""Batches: what every step, rank and loader process sees."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise
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
from cappy_lightning.scorer.module import CappyModule, ranking_loss

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
    groups = RowGroups([data], options.pop("skip_errors", False))
    mixture = Mixture(groups.rows, groups.tasks(), options.pop("caps", {}), options.pop("weights", {}))
    order = Order(mixture, 1, options.pop("lanes", 8), options.pop("window", 4))
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
def test_or_is_skipped_said_and_counted(
    damaged: Manifest, scorer: Scorer, steps: list[list[int]], workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    batches = list(stream(damaged, scorer, workers=workers, skip_errors=True))
    said = capfd.readouterr().err.splitlines()
    assert {line.partition("damaged/")[2] for line in said} == {
        f"shard-00001.parquet: is missing, expected by its manifest; its {count} instances are skipped"
        for count in (6, 2)
    }
    if not workers:
        assert len(said) == 4  # groups of 6, 6, 6 and 2 rows, each once
    assert [sorted(chain(*(rows(b) for b in batches[i : i + 4]))) for i in range(0, 16, 4)] == [
        [row for row in step if not 20 <= row < 40] for step in steps
    ]
    assert sum(batch["counts"]["skipped"] for batch in batches) == 20
    assert sum(batch["counts"]["pairs"] for batch in batches) == 30


def test_validation_skips_says_and_counts_too(
    damaged: Manifest, scorer: Scorer, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = list(EvaluationStream(RowGroups([damaged], skip_errors=True), scorer.encoder, 8, 0, 1))
    assert [row for batch in batches for row in rows(batch)] == [*range(20), *range(40, 50)]
    assert sum(batch["counts"]["skipped"] for batch in batches) == 20
    assert capsys.readouterr().err.count("instances are skipped") == 4


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


# The ranking loss, and the pairs of an instruction together


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Ten instructions with five answers each, in row groups that cut through them."""
    instances = [Instance(f"question {i // 5}", f"answer {i}", i / 100, "given", "t", str(i // 5)) for i in range(ROWS)]
    directory = tmp_path_factory.mktemp("answers") / "train"
    return write_instances(instances, directory, {}, shard_rows=20, group_rows=6)


def together(data: Manifest, scorer: Scorer, **options: Any) -> list[Batch]:
    """The batches of a stream with two lanes, whose windows hold all that there is."""
    return list(stream(data, scorer, lanes=2, window=64, together=True, **options))


def test_the_pairs_of_an_instruction_come_together_in_their_lane(answers: Manifest, scorer: Scorer) -> None:
    by_lane: dict[int, list[tuple[int, int]]] = {}
    for rank in range(2):  # two ranks have a lane each
        for batch in together(answers, scorer, micro=8, rank=rank, world=2):
            pairs = zip(batch["example"].tolist(), rows(batch), strict=False)
            by_lane.setdefault(rank, []).extend(pairs)
    assert sorted(row for lane in by_lane.values() for _, row in lane) == list(range(ROWS))
    for lane in by_lane.values():
        questions = [row // 5 for _, row in lane]
        assert sum(a != b for a, b in pairwise(questions)) <= len(set(questions)) + 3
        assert len({(number, row // 5) for number, row in lane}) == len(set(questions))
    examples = [{number for number, _ in lane} for lane in by_lane.values()]
    assert not examples[0] & examples[1]


def test_without_a_ranking_loss_they_are_shuffled(answers: Manifest, scorer: Scorer) -> None:
    batches = list(stream(answers, scorer, lanes=2, window=64, micro=16))
    assert all("example" not in batch for batch in batches)
    assert all(len({row // 5 for row in rows(batch)}) >= 7 for batch in batches[:3])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_later_step_has_the_same_pairs_together(answers: Manifest, scorer: Scorer, workers: int) -> None:
    whole = [rows(batch) for batch in together(answers, scorer, steps=range(8))]
    assert whole[6 * 4 :] == [rows(batch) for batch in together(answers, scorer, steps=range(6, 8), workers=workers)]


def ranking(batches: Sequence[Batch]) -> float:
    """The ranking loss of made-up logits."""
    logits = ([(row * 37 % 11) / 3 for row in rows(batch)] for batch in batches)
    padded = (
        torch.tensor(own + [0.0] * (len(batch["score"]) - len(own))) for own, batch in zip(logits, batches, strict=True)
    )
    return sum(
        float(ranking_loss(own, batch["score"], batch["example"], batch["weight"]))
        for own, batch in zip(padded, batches, strict=True)
    )


def test_the_ranking_loss_of_a_step_is_the_same_on_one_rank_and_on_two(answers: Manifest, scorer: Scorer) -> None:
    alone = ranking(together(answers, scorer, micro=16))
    shared = [ranking(together(answers, scorer, micro=8, rank=rank, world=2)) for rank in range(2)]
    assert alone > 0
    assert sum(shared) == pytest.approx(alone, rel=1e-5)


def test_the_ranking_loss_compares_all_pairs_of_an_example() -> None:
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, 3.0])
    scores = torch.tensor([1.0, 0.25, 0.0, 0.5, 0.5, 0.9])
    examples, weights = torch.tensor([7, 7, 7, 3, 3, 7]), torch.tensor([1.0, 1, 1, 1, 1, 0])
    expected = sum(  # example 7 has three pairs that count; those of example 3 are equally good
        2 / 2 * float(scores[i] - scores[j]) * float(torch.log1p(torch.exp(logits[j] - logits[i])))
        for i, j in ((0, 1), (0, 2), (1, 2))
    )
    assert float(ranking_loss(logits, scores, examples, weights)) == pytest.approx(expected, rel=1e-6)
    assert float(ranking_loss(logits[3:5], scores[3:5], examples[3:5], weights[3:5])) == 0
    assert float(ranking_loss(logits[:1], scores[:1], examples[:1], weights[:1])) == 0


def test_the_ranking_loss_joins_the_squared_error(answers: Manifest, scorer: Scorer) -> None:
    (batch,) = together(answers, scorer, micro=16, steps=range(1))
    losses = []
    for factor in (0.0, 0.5, 1.0):
        module = CappyModule(scorer, OptimizerConfig(ranking=factor), 4)
        module._trainer = FakeTrainer(1)
        scorer.model.eval()
        losses.append(float(module.training_step(batch, 0)))
    logits = scorer.logits({name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
    term = float(ranking_loss(logits, batch["score"], batch["example"], batch["weight"])) / 16
    assert losses[1] - losses[0] == pytest.approx(term / 2, rel=1e-4)
    assert losses[2] - losses[0] == pytest.approx(term, rel=1e-4)

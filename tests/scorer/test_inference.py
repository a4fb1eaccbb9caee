"""Pairs to logits: order, equal pairs, memory, and what happens where memory does not suffice."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from small_models import settings

from cappy_lightning.scorer import inference
from cappy_lightning.scorer.inference import Inference, Pair
from cappy_lightning.scorer.model import Scorer, build_scorer

GENERATOR = random.Random(0)
PAIRS: list[Pair] = [
    ("what is this " * GENERATOR.randint(1, 30), "an answer " * GENERATOR.randint(0, 9)) for _ in range(200)
]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    torch.manual_seed(0)
    return build_scorer(settings("bert"))


@pytest.fixture(scope="module")
def one_by_one(scorer: Scorer) -> dict[Pair, float]:
    scorer.model.eval()
    with torch.inference_mode():
        return {
            pair: float(scorer.logits(scorer.encoder.pad(scorer.encoder.encode([pair[0]], [pair[1]]))))
            for pair in PAIRS
        }


def test_logits_come_in_the_order_of_the_pairs_over_several_windows(
    scorer: Scorer, one_by_one: dict[Pair, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "WINDOW", 33)
    found = list(Inference(scorer).logits(iter(PAIRS)))
    assert np.allclose(found, [one_by_one[pair] for pair in PAIRS], atol=1e-5)
    assert list(Inference(scorer).logits([])) == []


def test_equal_pairs_are_computed_once(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    pad = scorer.encoder.pad
    monkeypatch.setattr(scorer.encoder, "pad", lambda pairs: seen.append(len(pairs)) or pad(pairs))
    found = list(Inference(scorer).logits(PAIRS * 3))
    assert sum(seen) == len(set(PAIRS))
    assert found[: len(PAIRS)] == found[len(PAIRS) : 2 * len(PAIRS)] == found[2 * len(PAIRS) :]


def test_a_forward_holds_at_most_so_many_tokens_and_begins_with_the_longest(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, int]] = []
    pad = scorer.encoder.pad

    def record(pairs: list) -> dict[str, torch.Tensor]:
        inputs = pad(pairs)
        shapes.append(tuple(inputs["input_ids"].shape))
        return inputs

    monkeypatch.setattr(scorer.encoder, "pad", record)
    engine = Inference(scorer)
    engine.tokens = 300
    list(engine.logits(PAIRS))
    assert all(count * width <= 300 for count, width in shapes)
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)
    real = sum(len(pair.ids) for pair in scorer.encoder.encode(*zip(*set(PAIRS), strict=True)))
    assert sum(count * width for count, width in shapes) < 1.1 * real


def test_one_window_is_held_at_a_time(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "WINDOW", 10)
    taken = 0

    def pairs() -> Iterator[Pair]:
        nonlocal taken
        for pair in PAIRS:
            taken += 1
            yield pair

    ahead = [taken - done for done, _ in enumerate(Inference(scorer).logits(pairs()))]
    assert max(ahead) <= 30


def test_where_memory_does_not_suffice_the_forward_is_divided(
    scorer: Scorer, one_by_one: dict[Pair, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if inputs["input_ids"].numel() > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Scorer.logits(scorer, inputs)

    monkeypatch.setattr(scorer, "logits", hungry)
    engine = Inference(scorer)
    found = list(engine.logits(PAIRS))
    assert np.allclose(found, [one_by_one[pair] for pair in PAIRS], atol=1e-5)
    assert engine.tokens <= 128
    monkeypatch.setattr(scorer, "logits", lambda _: hungry({"input_ids": torch.zeros(101)}))
    with pytest.raises(torch.OutOfMemoryError):
        list(engine.logits(PAIRS[:1]))
    assert scorer.model.training is False


def test_the_model_is_left_in_the_mode_that_it_was_in(scorer: Scorer) -> None:
    for training in (True, False):
        scorer.model.train(training)
        list(Inference(scorer).logits(PAIRS[:3]))
        assert scorer.model.training is training

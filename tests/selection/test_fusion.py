"""Fusions: their features by hand, what a fit finds, and that it does no harm."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROUGE, rouge_l
from hand_pools import POOLS

from cappy_lightning.errors import InputError
from cappy_lightning.records import Candidate, Example, Pool, Selection
from cappy_lightning.selection.fusion import OF_TEXTS, Fusion, features, fit_fusion

DECODINGS = ("greedy", "sampling", "sampling", "sampling", "sampling")


def drawn(
    count: int, judge: Callable[[int, float, random.Random], tuple[float, float]], seed: int
) -> tuple[list[Pool], list[list[float]], list[list[float]]]:
    """Pools of five answers with random rewards; `judge` says the log-likelihood and the logit of each."""
    generator = random.Random(seed)
    pools, logits, gains = [], [], []
    for n in range(count):
        rewards = [generator.random() for _ in DECODINGS]
        judged = [judge(place, reward, generator) for place, reward in enumerate(rewards)]
        # No two answers have a word in common.
        candidates = tuple(
            Candidate(f"answer{n}x{place}", decoding, known, known)
            for place, (decoding, (known, _)) in enumerate(zip(DECODINGS, judged, strict=True))
        )
        pools.append(Pool(Example("t", str(n), "i", ("r",)), candidates))
        logits.append([logit for _, logit in judged])
        gains.append(rewards)
    return pools, logits, gains


def mean_reward(fusion: Fusion, pools: list[Pool], logits: list[list[float]], gains: list[list[float]]) -> float:
    own = [
        Selection.best(values, [0.5] * len(values), [c.response for c in pool.candidates])
        for pool, values in zip(pools, logits, strict=True)
    ]
    chosen = fusion.select(pools, own)
    return sum(rewards[one.index] for one, rewards in zip(chosen, gains, strict=True)) / len(pools)


def test_features_are_those_computed_by_hand() -> None:
    found = features(POOLS[1], [0.1, 0.2, 0.3, 0.4], ROUGE)  # r s t u; "P, q!"; p; p q
    assert found["logit"] == [0.1, 0.2, 0.3, 0.4]
    assert found["count"] == [1 / 4, 2 / 4, 1 / 4, 2 / 4]
    assert found["agreement"] == pytest.approx([0, (2 / 3 + 1) / 3, (2 / 3 + 2 / 3) / 3, (2 / 3 + 1) / 3], abs=1e-9)
    assert found["log_likelihood_sum"] == [-3.0, -2.0, -2.0, -5.0]
    assert found["decoding:greedy"] == [1, 0, 0, 0]
    assert found["decoding:sampling"] == [0, 1, 1, 1]
    assert rouge_l(["p q"], "p") == pytest.approx(2 / 3)


def test_what_is_not_known_is_no_feature() -> None:
    texts = replace(POOLS[0], candidates=tuple(Candidate(c.response, "given") for c in POOLS[0].candidates))
    assert set(features(texts, [0.0] * 4, ROUGE)) == set(OF_TEXTS)


def test_two_half_informed_judges_are_better_together() -> None:
    def judge(_: int, reward: float, generator: random.Random) -> tuple[float, float]:
        return reward + generator.gauss(0, 0.3), 5 * (reward + generator.gauss(0, 0.3))

    fusion = fit_fusion(*drawn(200, judge, 1))
    pools, logits, gains = drawn(400, judge, 2)
    found = mean_reward(fusion, pools, logits, gains)
    known = [[c.log_likelihood_sum or 0.0 for c in pool.candidates] for pool in pools]
    added = [[one / 5 + other for one, other in zip(*both, strict=True)] for both in zip(logits, known, strict=True)]
    alone, best = (
        sum(rewards[max(range(5), key=own.__getitem__)] for own, rewards in zip(values, gains, strict=True)) / 400
        for values in (logits, added)
    )
    assert found > alone + 0.01
    assert found == pytest.approx(best, abs=0.005)
    weights = fusion.combinations[0].weights
    assert weights["log_likelihood_sum"] + weights["log_likelihood_mean"] == pytest.approx(
        5 * weights["logit"], rel=0.4
    )


@pytest.mark.parametrize("seed", range(3))
def test_where_the_scorer_knows_nothing_the_greedy_answer_stays(seed: int) -> None:
    def judge(_: int, __: float, generator: random.Random) -> tuple[float, float]:
        return generator.gauss(0, 1), generator.gauss(0, 1)

    def best_first(count: int, seed: int) -> tuple[list[Pool], list[list[float]], list[list[float]]]:
        pools, logits, gains = drawn(count, judge, seed)
        return pools, logits, [[max(own), *own[1:]] for own in gains]

    fusion = fit_fusion(*best_first(80, seed))
    assert fusion.combinations[0].nearest == "decoding:greedy"
    pools, logits, gains = best_first(200, 100 + seed)
    greedy = sum(own[0] for own in gains) / len(gains)
    assert mean_reward(fusion, pools, logits, gains) == pytest.approx(greedy, abs=0.02)


def test_pools_with_texts_only_are_selected_from_by_what_texts_give() -> None:
    def judge(_: int, reward: float, generator: random.Random) -> tuple[float, float]:
        return generator.gauss(0, 1), 3 * reward

    fusion = fit_fusion(*drawn(50, judge, 1))
    assert [set(one.weights) == set(OF_TEXTS) for one in fusion.combinations] == [False, True]
    pools, logits, gains = drawn(50, judge, 2)
    texts = [replace(p, candidates=tuple(Candidate(c.response, "given") for c in p.candidates)) for p in pools]
    assert mean_reward(fusion, texts, logits, gains) == pytest.approx(sum(map(max, gains)) / len(gains))
    # Trained on texts alone, there is one combination.
    assert len(fit_fusion(texts, logits, gains).combinations) == 1


def test_a_decoding_that_the_training_did_not_have_counts_nothing() -> None:
    fusion = fit_fusion(*drawn(50, lambda _, reward, __: (reward, reward), 1))
    pools, logits, gains = drawn(5, lambda _, reward, __: (reward, reward), 2)
    renamed = [
        replace(
            pool,
            candidates=tuple(replace(c, decoding=c.decoding.replace("sampling", "top_k_4")) for c in pool.candidates),
        )
        for pool in pools
    ]
    assert mean_reward(fusion, renamed, logits, gains) == pytest.approx(sum(map(max, gains)) / 5)


def test_equal_candidates_and_one_example_are_no_trouble() -> None:
    same = [Pool(Example("t", "1", "i", ("r",)), (Candidate("a", "c"), Candidate("a", "c")))]
    fusion = fit_fusion(same, [[1.0, 1.0]], [[0.5, 0.5]])
    assert mean_reward(fusion, same, [[1.0, 1.0]], [[0.5, 0.4]]) == 0.5  # the first


def test_the_same_data_give_the_same_file_and_it_is_read_back(tmp_path: Path) -> None:
    def judge(_: int, reward: float, generator: random.Random) -> tuple[float, float]:
        return reward + generator.gauss(0, 0.5), reward + generator.gauss(0, 0.5)

    data = drawn(40, judge, 3)
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    fit_fusion(*data, "unicode").write(one)
    fit_fusion(*data, "unicode").write(other)
    assert one.read_bytes() == other.read_bytes()
    assert one.stat().st_size < 4096
    read = Fusion.read(one)
    assert read == fit_fusion(*data, "unicode")
    alone = Fusion((replace(read.combinations[-1], strength=math.inf),), "paper")
    alone.write(one)
    assert Fusion.read(one) == alone


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"tokenizer": "paper", "combinations": []}', '{"tokenizer": "x", "combinations": []}', "\xff",
     '{"tokenizer": "paper", "combinations": [{"weights": {"logit": "x"}, "nearest": "a", "strength": 1, "examples": 1}]}',
     '{"tokenizer": "paper", "combinations": [{"weights": {"logit": NaN}, "nearest": "a", "strength": 1, "examples": 1}]}'],
)  # fmt: skip
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fusion.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"fusion\.json: is no fusion, expected what a training with select\.by=fused"):
        Fusion.read(path)
    path.unlink()
    with pytest.raises(InputError, match=r"fusion\.json: is not there"):
        Fusion.read(path)

"""Every way to pick from a pool, against values computed by hand (see hand_pools.py)."""

import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
from conftest import ROUGE, rouge_l
from hand_pools import POOLS, REWARDS, SELECTIONS, VALUES, selected

from cappy_lightning.errors import InputError
from cappy_lightning.matching import normalize
from cappy_lightning.records import Candidate, Example, Pool, Selection
from cappy_lightning.selection import baselines
from cappy_lightning.selection.baselines import check_names, first_best, majority, unanswered


def rewards(one: Pool) -> list[float]:
    (found,) = baselines.rewards([one], ROUGE)
    return found


def method_values(
    pools: Sequence[Pool], selections: Sequence[Selection], name: str
) -> tuple[dict[str, list[float]], dict[str, str]]:
    return baselines.method_values(pools, baselines.rewards(pools, ROUGE), {name: selections}, ROUGE)


def minimum_bayes_risk(one: Pool) -> int:
    return baselines.minimum_bayes_risk(one, ROUGE)


def pool(responses: list[str], decodings: list[str] | None = None, **example: Any) -> Pool:
    example = {"references": ("a b",)} | example
    names = decodings or ["sampling"] * len(responses)
    return Pool(Example("t", "1", "i", **example), tuple(map(Candidate, responses, names)))


def test_a_reward_is_the_rouge_l_against_the_references() -> None:
    for one, expected in zip(POOLS, REWARDS, strict=True):
        assert rewards(one) == pytest.approx(expected, abs=1e-15)
    assert rewards(pool(["c", "a b", "d"], references=("a b", "c"))) == [1, 1, 0]


def test_a_reward_of_a_choice_is_whether_it_is_right() -> None:
    assert rewards(pool(["x", "y", "z", "x", "w"], references=(), choices=("z", "x"), label=1)) == [1, 0, 0, 1, 0]
    assert rewards(pool(["z", "x"], references=(), choices=("z", "x"), label=0)) == [1, 0]
    assert rewards(pool(["X.", "x", "Z"], references=(), choices=("x", "z"), label=0)) == [1, 1, 0]
    assert rewards(pool(["X", "x", " x"], references=(), choices=("X", "x"), label=1)) == [0, 1, 0]


def test_every_method_has_the_value_computed_by_hand() -> None:
    values, skipped = method_values(POOLS, SELECTIONS, "cappy")
    assert skipped == {}
    assert values.keys() == VALUES.keys()
    for name, expected in VALUES.items():
        assert values[name] == pytest.approx(expected, abs=1e-15), name


def test_a_pool_has_the_same_values_whatever_pools_are_beside_it() -> None:
    together, _ = method_values(POOLS, SELECTIONS, "cappy")
    for n, (one, selection) in enumerate(zip(POOLS, SELECTIONS, strict=True)):
        alone, _ = method_values([one], [selection], "cappy")
        assert {name: [value[n]] for name, value in together.items()} == alone


@pytest.mark.parametrize(
    ("values", "expected"), [([1], 0), ([1, 3, 2], 1), ([2, 2], 0), ([-1, 0, 0], 1), ([float("-inf"), -9], 1)]
)
def test_of_equal_values_the_first_is_best(values: list[float], expected: int) -> None:
    assert first_best(values) == expected


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        (["a", "b", "c"], 0),  # all once
        (["a", "b", "B."], 1),  # B. is b
        (["a", "b", "b", "A!"], 0),  # twice each
        (["?", "a", "!", "a"], 1),  # punctuation alone is not one answer
    ],
)
def test_the_first_of_the_most_frequent_answers_is_picked(responses: list[str], expected: int) -> None:
    assert majority(pool(responses)) == expected


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        (["a"], 0),
        (["x", "a b", "a c", "a"], 3),  # 0; 1/2 + 2/3; 1/2 + 2/3; 2/3 + 2/3
        (["x", "y", "y"], 1),
        (["a", "b", "c"], 0),  # nothing in common: the first
        (["東京", "京都", "東京"], 0),  # no tokens: the first
        (["?", "a", "a b"], 1),  # 0; 2/3; 2/3
        (["?", "a", "b"], 0),  # nothing in common, and a candidate is none of the others to itself
    ],
)
def test_the_answer_most_like_the_others_is_picked(responses: list[str], expected: int) -> None:
    assert minimum_bayes_risk(pool(responses)) == expected


def test_mbr_is_a_mean_over_the_other_candidates_however_often_one_stands() -> None:
    generator = random.Random(0)
    for _ in range(200):
        responses = [" ".join(generator.choices("abc", k=generator.randint(1, 4))) for _ in range(6)]
        gains = [
            sum(Fraction(rouge_l([other], one)).limit_denominator(1000) for j, other in enumerate(responses) if j != i)
            for i, one in enumerate(responses)
        ]
        assert minimum_bayes_risk(pool(responses)) == gains.index(max(gains))  # the first of equal ones


def test_mbr_picks_the_first_of_equal_ones() -> None:
    # a b: 3 x 2/5; the others: 2/5 (with a b) + 2/3 + 2/3 each
    assert minimum_bayes_risk(pool(["a b", "c b a", "c b b", "c c b"])) == 1


def test_no_method_beats_the_oracle_and_none_falls_below_the_worst() -> None:
    generator = random.Random(1)
    decodings = ["greedy", *["sampling"] * 2, *["top_k_4"] * 2]
    pools = [
        pool([" ".join(generator.choices("abcd", k=generator.randint(1, 5))) for _ in range(5)], decodings)
        for _ in range(100)
    ]
    values, _ = method_values(pools, [selected(p, generator.randrange(5)) for p in pools], "cappy")
    assert {"greedy", "sampling", "top_k_4"} < values.keys()
    for name, of_name in values.items():
        for one, value, best in zip(pools, of_name, values["oracle"], strict=True):
            assert min(rewards(one)) - 1e-12 <= value <= best + 1e-12, name


def test_self_scores_are_left_out_where_a_candidate_has_none() -> None:
    lacking = Pool(POOLS[0].example, (*POOLS[0].candidates[:3], Candidate("a x", "sampling", -1.0)))
    values, skipped = method_values([lacking, POOLS[1]], SELECTIONS[:2], "cappy")
    assert skipped == {"self_score_mean": "1 of 2 pools have candidates without log_likelihood_mean"}
    assert "self_score_mean" not in values
    assert values["self_score_sum"] == pytest.approx([2 / 3, 1])


def test_a_decoding_without_an_answer_counts_0() -> None:
    pools = [pool(["a b", "a"], ["greedy", "top_k_4"]), pool(["a b", "a"], ["greedy", "greedy"])]
    values, _ = method_values(pools, [selected(p, 0) for p in pools], "cappy")
    assert values["top_k_4"] == pytest.approx([2 / 3, 0])
    assert values["greedy"] == pytest.approx([1, 5 / 6])
    assert unanswered(pools) == {"top_k_4": 1}
    assert unanswered(pools[1:]) == {}


@pytest.mark.parametrize("decoding", ["given", "choice"])
def test_what_was_not_decoded_is_no_method(decoding: str) -> None:
    one = pool(["a b", "a"], [decoding] * 2)
    values, skipped = method_values([one], [selected(one, 0)], "cappy")
    assert decoding not in values | skipped


def test_choices_are_not_voted_on() -> None:
    one = pool(["x", "longer"], ["choice"] * 2, references=(), choices=("x", "longer"), label=1)
    values, skipped = method_values([one], [selected(one, 1)], "cappy")
    constant = {"random": [0.5], "shortest": [0], "longest": [1], "most_frequent_class": [1]}
    assert values == constant | {"cappy": [1], "oracle": [1]}
    assert skipped["majority"] == skipped["mbr"] == "the candidates are given choices, not samples"


@pytest.mark.parametrize("name", [*(name for name in VALUES if name != "cappy"), "fused", "top_k_4"])
def test_a_scorer_with_the_name_of_a_baseline_is_refused(name: str) -> None:
    partly = Pool(POOLS[0].example, (*POOLS[0].candidates, Candidate("a", "top_k_4", -1.0, -1.0)))
    with pytest.raises(InputError) as error:
        check_names([partly, *POOLS[1:]], name)
    assert str(error.value) == f"scorer.name: is '{name}', which is a baseline's name"


@pytest.mark.parametrize("name", [name for name in VALUES if name not in ("cappy", "greedy", "sampling")])
def test_a_decoding_with_the_name_of_a_baseline_is_refused(name: str) -> None:
    partly = pool(["a b", "x"], ["sampling", name])
    with pytest.raises(InputError) as error:
        check_names([*POOLS, partly], "cappy")
    assert str(error.value) == f"pool: a decoding is called '{name}', which is a baseline's name"


def test_answers_that_count_as_the_same_may_have_different_rewards() -> None:
    one = pool(["don't", "dont", "x"], references=("dont",))
    assert normalize("don't") == normalize("dont")
    assert rewards(one)[:2] == [0, 1]
    assert majority(one) == 0  # the first of the answer, not the better

"""What a report tells beyond means, against values found by trying everything."""

import itertools
import random

import numpy as np
import pytest
from hand_pools import POOLS, REWARDS, SELECTIONS, selected

from cappy_lightning.records import Candidate, Example, Pool, Selection
from cappy_lightning.selection.analysis import calibration_bins, length_bias, most_wrong, quality_by_cost
from cappy_lightning.selection.report import make_report


def drawn(count: int, sizes: tuple[int, ...], seed: int = 0) -> tuple[list[Selection], list[list[float]]]:
    """Selections by random logits, equal ones among them, with random rewards."""
    generator = random.Random(seed)
    selections, rewards = [], []
    for size in itertools.islice(itertools.cycle(sizes), count):
        logits = [float(generator.randrange(4)) for _ in range(size)]
        rewards.append([generator.random() for _ in range(size)])
        selections.append(Selection.best(logits, [0.5] * size, [str(n) for n in range(size)]))
    return selections, rewards


def test_quality_by_cost_is_the_mean_over_all_subsets() -> None:
    selections, rewards = drawn(6, (5, 6, 7))
    curve = quality_by_cost(selections, rewards, "mine")
    assert list(curve) == ["mine", "oracle"]
    for n in range(1, 8):  # a pool with fewer candidates gives all it has
        found: dict[str, list[float]] = {"mine": [], "oracle": []}
        for selection, own in zip(selections, rewards, strict=True):
            subsets = list(itertools.combinations(range(len(own)), min(n, len(own))))
            first = [max(subset, key=lambda i: (selection.logits[i], -i)) for subset in subsets]
            found["mine"].append(float(np.mean([own[i] for i in first])))
            found["oracle"].append(float(np.mean([max(own[i] for i in subset) for subset in subsets])))
        for name, values in found.items():
            assert curve[name][n - 1] == pytest.approx(np.mean(values)), (name, n)
    assert len(curve["mine"]) == len(curve["oracle"]) == 7


def test_with_one_candidate_it_is_random_and_with_all_it_is_the_selection() -> None:
    report = make_report(POOLS[:2], SELECTIONS[:2])["tasks"]["t"]
    curve = report["by_candidates"]
    for name in ("cappy", "oracle"):
        assert curve[name][0] == pytest.approx(report["methods"]["random"]["mean"])
        assert curve[name][-1] == pytest.approx(report["methods"][name]["mean"])


def test_in_the_average_curve_a_task_with_fewer_candidates_gives_what_it_has() -> None:
    smaller = Pool(POOLS[2].example, POOLS[2].candidates[:3])
    report = make_report([*POOLS[:2], smaller], [*SELECTIONS[:2], selected(smaller, 2)])
    own = [part["by_candidates"]["cappy"] for part in report["tasks"].values()]
    assert list(map(len, own)) == [4, 3]
    expected = [(one + other) / 2 for one, other in zip(own[0], [*own[1], own[1][-1]], strict=True)]
    assert report["average"]["by_candidates"]["cappy"] == pytest.approx(expected)


def test_calibration_is_of_filled_bins_and_one_belongs_to_the_last() -> None:
    bins = calibration_bins(np.array([0.05, 0.01, 0.95, 1.0]), np.array([0.0, 1.0, 0.5, 0.9]))
    assert [one["count"] for one in bins] == [2, 2]
    assert [one["score"] for one in bins] == pytest.approx([0.03, 0.975])
    assert [one["reward"] for one in bins] == pytest.approx([0.5, 0.7])
    assert [one["deviation"] for one in bins] == pytest.approx([0.5, 0.2])


def test_length_bias_tells_a_scorer_that_likes_long_answers() -> None:
    responses = ["a", "a b", "a b c d e"]
    pool = Pool(Example("t", "1", "i", ("a",)), tuple(Candidate(response, "c") for response in responses))
    liked = Selection.best([1.0, 3.0, 9.0], [0.5] * 3, responses)
    found = length_bias([pool], [liked], [[1.0, 0.6, 0.2]])
    assert (found["all"], found["selected"], found["best"]) == (pytest.approx(13 / 3), 9, 1)
    assert found["logit_correlation"] == pytest.approx(1)  # 1, 3, 9 are the lengths themselves
    assert found["reward_correlation"] < -0.9
    alike = Selection.best([2.0] * 3, [0.5] * 3, responses)
    assert length_bias([pool], [alike], [[0.0] * 3])["logit_correlation"] == 0


def test_the_most_wrong_selections_come_first_and_right_ones_not_at_all() -> None:
    rows = most_wrong(POOLS, SELECTIONS, REWARDS)  # the scorer loses 1/3 on the first and nothing on the others
    assert [row["id"] for row in rows] == ["0"]
    assert rows[0]["right"] == ["a b c d"]
    assert rows[0]["selected"] == {"response": "a b", "score": 0.5, "reward": pytest.approx(2 / 3)}
    assert rows[0]["best"]["response"] == "a b c d"
    worse = [*SELECTIONS[:1], SELECTIONS[1].other(0, "r s t u"), SELECTIONS[2]]
    assert [row["id"] for row in most_wrong(POOLS, worse, REWARDS)] == ["1", "0"]

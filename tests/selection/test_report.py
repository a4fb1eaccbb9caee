"""The report, against values computed by hand (see hand_pools.py)."""

import io
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hand_pools import POOLS, SELECTIONS, VALUES, selected
from rich.console import Console

from cappy_lightning.errors import InputError
from cappy_lightning.records import Candidate, Example, Pool
from cappy_lightning.selection.report import best_baseline, make_report, print_report

ONE_TASK = [replace(pool, example=replace(pool.example, task="t")) for pool in POOLS]


def binary(right: int, n: int, task: str = "t") -> tuple[list[Pool], list[Any]]:
    """Pools of a right and a wrong candidate, of which the scorer gets so many right."""
    pools = [
        Pool(Example(task, str(i), "i", choices=("yes", "no"), label=0), (Candidate("yes", "c"), Candidate("no", "c")))
        for i in range(n)
    ]
    return pools, [selected(pool, int(i >= right)) for i, pool in enumerate(pools)]


def intervals(part: dict[str, Any]) -> list[dict[str, float]]:
    shares = [part[name] for name in ("recovered", "headroom") if name in part]
    return [*part["methods"].values(), *part["differences"].values(), *shares]


def shown(report: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_report(report, console)
    return console.file.getvalue()


def test_means_differences_and_shares_are_those_computed_by_hand() -> None:
    report = make_report(ONE_TASK, SELECTIONS)
    part = report["tasks"]["t"]
    assert (report["metric"], report["scorer"], part["n_examples"]) == ("rougeL", "cappy", 3)
    for name, values in VALUES.items():
        assert part["methods"][name]["mean"] == pytest.approx(sum(values) / 3), name
        if name != "cappy":  # the scorer's mean is (2/3 + 1 + 1) / 3 = 8/9
            assert part["differences"][name]["mean"] == pytest.approx(8 / 9 - sum(values) / 3), name
    assert "cappy" not in part["differences"]
    # random 19/36, oracle 1: (8/9 - 19/36) / (17/36). The mean of the pools' own ratios would be
    # (1/3 + 1 + 1) / 3 = 7/9.
    assert part["recovered"]["mean"] == pytest.approx(13 / 17)
    # the best baseline is self_score_sum, 7/9: (8/9 - 7/9) / (2/9)
    assert part["best_baseline"] == "self_score_sum"
    assert part["headroom"]["mean"] == pytest.approx(1 / 2)
    assert "skipped" not in part


def test_the_average_is_one_over_tasks_and_not_over_examples() -> None:
    report = make_report(POOLS, SELECTIONS)  # two pools of t, one of u
    assert {task: part["n_examples"] for task, part in report["tasks"].items()} == {"t": 2, "u": 1}
    average = report["average"]
    assert average["n_tasks"] == 2
    for name, (one, two, three) in VALUES.items():
        assert report["tasks"]["t"]["methods"][name]["mean"] == pytest.approx((one + two) / 2), name
        assert average["methods"][name]["mean"] == pytest.approx(((one + two) / 2 + three) / 2), name
    # scorer (5/6 + 1) / 2 = 11/12, random (7/12 + 5/12) / 2 = 1/2, oracle 1, self_score_sum (5/6 + 2/3) / 2 = 3/4
    assert average["recovered"]["mean"] == pytest.approx(5 / 6)
    assert average["best_baseline"] == "self_score_sum"
    assert average["headroom"]["mean"] == pytest.approx(2 / 3)
    # u: the best baseline is the first of the equal ones, greedy 2/3
    assert report["tasks"]["u"]["best_baseline"] == "greedy"
    assert report["tasks"]["u"]["headroom"]["mean"] == pytest.approx(1)


def test_the_average_of_one_task_is_that_task() -> None:
    report = make_report(ONE_TASK, SELECTIONS)
    assert report["average"] == report["tasks"]["t"] | {"n_tasks": 1}


def test_every_interval_is_in_order_and_holds_its_mean() -> None:
    report = make_report([*POOLS, *ONE_TASK], [*SELECTIONS, *SELECTIONS])
    found = [interval for part in (*report["tasks"].values(), report["average"]) for interval in intervals(part)]
    assert len(found) > 60
    for interval in found:
        assert interval["low"] - 1e-12 <= interval["mean"] <= interval["high"] + 1e-12
        assert all(map(math.isfinite, interval.values()))


def test_the_interval_of_constant_values_is_a_point() -> None:
    pools, selections = binary(7, 7)
    for interval in intervals(make_report(pools, selections)["tasks"]["t"]):
        assert interval["low"] == pytest.approx(interval["mean"]) == interval["high"]
    for interval in intervals(make_report(POOLS[:1], SELECTIONS[:1])["average"]):  # one example
        assert interval["low"] == pytest.approx(interval["mean"]) == interval["high"]


@pytest.mark.parametrize("right", [20, 50, 90])
def test_the_interval_is_as_wide_as_the_normal_approximation_says(right: int) -> None:
    interval = make_report(*binary(right, 100))["tasks"]["t"]["methods"]["cappy"]
    half = 1.96 * math.sqrt(right * (100 - right) / 100) / 100
    assert interval["mean"] == right / 100
    assert interval["low"] == pytest.approx(right / 100 - half, abs=0.012)
    assert interval["high"] == pytest.approx(right / 100 + half, abs=0.012)


def test_every_method_sees_the_same_resampled_examples() -> None:
    # greedy 0 and 2/3 ("a b"), the scorer 1/3 ("a x") and 1: always 1/3 more
    candidates = [("y z", "a x"), ("a b", "a b c d")]
    pools = [
        Pool(Example("t", str(n), "i", ("a b c d",)), tuple(map(Candidate, pair, ("greedy", "sampling"))))
        for n, pair in enumerate(candidates * 10)
    ]
    part = make_report(pools, [selected(pool, 1) for pool in pools])["tasks"]["t"]
    assert part["methods"]["greedy"]["high"] - part["methods"]["greedy"]["low"] > 0.2
    assert list(part["differences"]["greedy"].values()) == pytest.approx([1 / 3] * 3)


def test_the_average_is_surer_than_its_tasks() -> None:
    tasks = [binary(50, 100, f"task {n}") for n in range(4)]
    report = make_report([p for pools, _ in tasks for p in pools], [s for _, own in tasks for s in own])
    one, average = report["tasks"]["task 0"]["methods"]["cappy"], report["average"]["methods"]["cappy"]
    # four independent tasks: half as wide
    assert average["high"] - average["low"] == pytest.approx((one["high"] - one["low"]) / 2, abs=0.015)


@pytest.mark.parametrize(("other", "width"), [("data/b", 1), ("more/b", math.sqrt(1 / 2)), ("b", math.sqrt(1 / 2))])
def test_several_templates_over_the_same_rows_make_the_average_no_surer(other: str, width: float) -> None:
    tasks = [binary(50, 100, task) for task in ("data/a", other)]
    report = make_report([p for pools, _ in tasks for p in pools], [s for _, own in tasks for s in own])
    one, average = report["tasks"]["data/a"], report["average"]
    for of_one, of_all in (
        (one["methods"]["cappy"], average["methods"]["cappy"]),
        (one["classification"]["macro_f1"], average["macro_f1"]),
    ):
        assert of_all["high"] - of_all["low"] == pytest.approx(width * (of_one["high"] - of_one["low"]), abs=0.015)


def test_the_same_seed_gives_the_same_report_and_leaves_global_randomness_alone() -> None:
    np.random.seed(0)
    report = make_report(ONE_TASK, SELECTIONS, seed=4)
    assert make_report(ONE_TASK, SELECTIONS, seed=4) == report
    assert np.random.random() == np.random.RandomState(0).random()
    many = [
        Pool(Example("t", str(n), "i", ("a b c d",)), (Candidate("a" + " x" * n, "c"), Candidate("a b", "c")))
        for n in range(20)
    ]
    ones, others = (make_report(many, [selected(pool, 0) for pool in many], seed=seed) for seed in (1, 2))
    assert ones["tasks"]["t"]["methods"]["cappy"]["low"] != others["tasks"]["t"]["methods"]["cappy"]["low"]


def test_shares_are_left_out_where_the_oracle_is_no_better() -> None:
    pools = [replace(POOLS[0], candidates=POOLS[0].candidates[:1])]
    part = make_report(pools, [selected(pools[0], 0)])["tasks"]["t"]
    assert part["skipped"] == {
        "recovered": "the oracle is no better than random",
        "headroom": "the oracle is no better than random",
    }
    assert "recovered" not in part
    part = make_report(POOLS[:1], SELECTIONS[:1])["tasks"]["t"]  # longest finds the best
    assert part["skipped"] == {"headroom": "the oracle is no better than longest"}
    assert part["recovered"]["mean"] == pytest.approx((2 / 3 - 1 / 2) / (1 - 1 / 2))


def test_a_method_that_a_task_lacks_is_not_averaged() -> None:
    lacking = replace(POOLS[2], candidates=tuple(Candidate(c.response, "greedy") for c in POOLS[2].candidates))
    report = make_report([*POOLS[:2], lacking], SELECTIONS)
    assert "self_score_sum" in report["tasks"]["t"]["methods"]
    assert {"self_score_sum", "self_score_mean"} == report["tasks"]["u"]["skipped"].keys()
    assert not {"self_score_sum", "self_score_mean", "sampling"} & report["average"]["methods"].keys()
    assert report["average"]["skipped"] == dict.fromkeys(
        ("sampling", "self_score_sum", "self_score_mean"), "is missing in u"
    )


def test_the_best_baseline_is_neither_the_scorer_nor_the_oracle() -> None:
    assert best_baseline({"random": 0.1, "a": 0.3, "b": 0.3, "mine": 0.5, "oracle": 0.9}, "mine") == "a"


def test_choices_are_reported_as_accuracy() -> None:
    report = make_report(*binary(3, 4), "mine")
    part = report["tasks"]["t"]
    assert (report["metric"], report["scorer"]) == ("accuracy", "mine")
    assert (part["methods"]["mine"]["mean"], part["methods"]["random"]["mean"]) == (0.75, 0.5)
    # "yes" is always right
    assert part["best_baseline"] == "most_frequent_class"
    assert part["recovered"]["mean"] == 0.5
    assert {"majority", "mbr", "headroom"} <= part["skipped"].keys()


def test_references_and_choices_are_not_mixed() -> None:
    pools, selections = binary(1, 1)
    with pytest.raises(InputError, match=r"^pools: some examples have references and some choices, expected one kind$"):
        make_report([*POOLS, *pools], [*SELECTIONS, *selections])


def test_a_scorer_with_the_name_of_a_baseline_is_refused() -> None:
    with pytest.raises(InputError, match=r"^scorer\.name: is 'mbr'"):
        make_report(POOLS, SELECTIONS, "mbr")


def test_a_report_survives_json() -> None:
    report = make_report(POOLS, SELECTIONS)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_what_is_printed_names_every_method_and_figure() -> None:
    report = make_report(POOLS, SELECTIONS)
    text = shown(report)
    for title in ("t, 2 examples: Rouge-L x 100", "u, 1 example", "average over 2 tasks"):
        assert title in text
    assert all(text.count(f" {name} ") >= 3 for name in VALUES)
    assert " 83.3 " in text  # the scorer's 5/6 on t
    assert "of the way from random to oracle" in text
    assert "of the way from self_score_sum to oracle" in text
    assert "average" not in shown(make_report(ONE_TASK, SELECTIONS))
    lacking = [*ONE_TASK[:1], replace(ONE_TASK[1], candidates=ONE_TASK[1].candidates[1:])]
    gone = ONE_TASK[1].candidates[0].decoding
    picks = [selected(pool, 0) for pool in lacking]
    assert f"{gone} gave no answer to 1 of 2 examples, which count 0" in shown(make_report(lacking, picks))
    assert (
        "left out: self_score_sum, self_score_mean, majority, mbr (the candidates are given choices, not samples)"
        in shown(make_report(*binary(3, 4)))
    )


@pytest.mark.parametrize("task", ["math[hard]", "[red]", "[/s]"])
def test_a_name_is_printed_as_it_is(task: str) -> None:
    assert f"{task}, 4 examples" in shown(make_report(*binary(3, 4, task)))


def test_other_scorers_are_baselines_and_a_fusion_is_what_is_looked_at() -> None:
    other = [selected(pool, 3) for pool in ONE_TASK]  # 1/3, 1, 0
    fused = [selected(pool, index) for pool, index in zip(ONE_TASK, (0, 0, 2), strict=True)]  # 2/3, 0, 1
    report = make_report(ONE_TASK, SELECTIONS, fused=fused, beside={"reranker": other})
    part = report["tasks"]["t"]
    assert part["methods"]["reranker"]["mean"] == pytest.approx(4 / 9)
    assert part["differences"]["reranker"]["mean"] == pytest.approx(8 / 9 - 4 / 9)
    assert [row["selected"]["reward"] for row in report["most_wrong"]] == pytest.approx([0, 2 / 3])
    with pytest.raises(InputError, match="is 'mbr', which is a baseline's name"):
        make_report(ONE_TASK, SELECTIONS, beside={"mbr": other})
    with pytest.raises(InputError, match="--beside: names 'cappy', as the scorer is called"):
        make_report(ONE_TASK, SELECTIONS, beside={"cappy": other})

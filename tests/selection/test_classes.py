"""Classification in reports, against counts by hand and against torchmetrics."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hand_pools import selected
from rich.console import Console
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassF1Score

from cappy_lightning.page import write_picture
from cappy_lightning.records import Candidate, Example, Pool, Selection
from cappy_lightning.selection.charts import confusion_charts
from cappy_lightning.selection.classes import class_report, most_frequent_class, shared_classes
from cappy_lightning.selection.report import make_report, print_report

CLASSES = ("cat", "dog", "owl")


def told(pairs: list[tuple[int, int]], task: str = "pets") -> tuple[list[Pool], list[Selection]]:
    """Pools and selections of (right, selected) classes."""
    pools = [
        Pool.of_example(Example(task, str(i), f"what {i}?", choices=CLASSES, label=right))
        for i, (right, _) in enumerate(pairs)
    ]
    return pools, [selected(pool, place) for pool, (_, place) in zip(pools, pairs, strict=True)]


def classified(pools: list[Pool], selections: list[Selection]) -> dict[str, Any]:
    answers = [(pool.example.right_choice, own.response) for pool, own in zip(pools, selections, strict=True)]
    return class_report(shared_classes(pools), answers, np.random.default_rng(0))[0]


def test_counts_and_f1_are_those_computed_by_hand() -> None:
    # cat: right 3 times, selected 3 times, both 2 times; dog: 2, 3, 2; owl: 1, 0, 0
    found = classified(*told([(0, 0), (0, 0), (0, 1), (1, 1), (1, 1), (2, 0)]))
    assert found["classes"] == list(CLASSES)
    assert found["confusion"] == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    cat, dog, owl = (found["by_class"][name] for name in CLASSES)
    assert [own["n_examples"] for own in (cat, dog, owl)] == [3, 2, 1]
    assert [cat[key]["mean"] for key in ("precision", "recall", "f1")] == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    assert [dog[key]["mean"] for key in ("precision", "recall", "f1")] == pytest.approx([2 / 3, 1, 0.8])
    assert (owl["precision"], owl["recall"]["mean"], owl["f1"]["mean"]) == (None, 0, 0)
    assert dog["precision"]["low"] < 2 / 3 < dog["precision"]["high"] == 1
    assert (dog["recall"]["low"], owl["recall"]["high"]) == (1, 0)
    assert found["macro_f1"]["mean"] == pytest.approx((2 / 3 + 0.8 + 0) / 3)
    assert found["macro_f1"]["low"] < found["macro_f1"]["mean"] < found["macro_f1"]["high"]


def test_many_random_selections_agree_with_torchmetrics() -> None:
    generator = np.random.default_rng(1)
    right = generator.choice(3, 400, p=(0.9, 0.08, 0.02))
    chosen = np.where(generator.random(400) < 0.7, right, generator.integers(0, 3, 400))
    found = classified(*told(list(zip(right.tolist(), chosen.tolist(), strict=True))))
    peers = (MulticlassF1Score(3, average="none"), MulticlassF1Score(3), MulticlassConfusionMatrix(3))
    f1, macro, matrix = (peer(torch.tensor(chosen), torch.tensor(right)).tolist() for peer in peers)
    assert [own["f1"]["mean"] for own in found["by_class"].values()] == pytest.approx(f1)
    assert found["macro_f1"]["mean"] == pytest.approx(macro)
    assert found["confusion"] == matrix


def test_a_rare_class_has_the_interval_of_the_resamples_that_have_it() -> None:
    found = classified(*told([(0, 0)] * 97 + [(1, 1)] * 3))
    assert found["by_class"]["dog"]["f1"] == {"mean": 1, "low": 1, "high": 1} == found["macro_f1"]
    assert found["by_class"]["owl"]["f1"] is None


def test_a_class_that_is_neither_right_nor_selected_anywhere_does_not_count() -> None:
    assert classified(*told([(0, 0), (1, 1), (0, 1), (1, 1)]))["macro_f1"]["mean"] == pytest.approx((2 / 3 + 0.8) / 2)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    covered = []
    for _ in range(40):
        right = generator.choice(3, 300)
        chosen = np.where(generator.random(300) < 0.6, right, (right + generator.integers(1, 3, 300)) % 3)
        macro = classified(*told(list(zip(right.tolist(), chosen.tolist(), strict=True))))["macro_f1"]
        covered.append(macro["low"] <= 0.6 <= macro["high"])  # all classes alike: F1 is the accuracy
    assert 34 <= sum(covered) <= 40


def test_a_report_of_classes_has_them_and_the_most_frequent_as_a_baseline() -> None:
    pools, selections = told([(0, 0), (0, 0), (0, 1), (1, 1), (1, 1), (2, 0)])
    report = make_report(pools, selections)
    part = report["tasks"]["pets"]
    assert part["methods"]["most_frequent_class"]["mean"] == pytest.approx(1 / 2)
    assert part["methods"]["cappy"]["mean"] == pytest.approx(4 / 6)
    assert part["classification"]["macro_f1"]["mean"] == report["average"]["macro_f1"]["mean"]
    out = io.StringIO()
    print_report(report, Console(file=out, width=160))
    text = out.getvalue()
    assert "mean (macro-F1)" in text
    assert "what is taken for what" in text
    assert list(confusion_charts(report)) == ["pets"]


def test_examples_with_choices_of_their_own_are_no_classes() -> None:
    pools, selections = told([(0, 0), (1, 1)])
    other = Pool.of_example(Example("pets", "x", "which?", choices=("yes", "no"), label=0))
    assert shared_classes([*pools, other]) == []
    report = make_report([*pools, other], [*selections, selected(other, 0)])
    part = report["tasks"]["pets"]
    assert "classification" not in part
    assert "most_frequent_class" not in part["methods"]
    assert "macro_f1" not in report["average"]
    assert confusion_charts(report) == {}


def test_choices_in_another_order_are_the_same_classes() -> None:
    pools, _ = told([(0, 0), (1, 1)])
    turned = Pool.of_example(Example("pets", "x", "which?", choices=CLASSES[::-1], label=0))
    assert shared_classes([*pools, turned]) == list(CLASSES)
    assert most_frequent_class([turned, *pools]) == "owl"
    found = classified([turned], [selected(turned, 2)])
    assert (found["classes"], found["confusion"]) == (list(CLASSES[::-1]), [[0, 0, 1], [0, 0, 0], [0, 0, 0]])


def test_names_are_no_formulas(tmp_path: Path) -> None:
    example = Example("pets", "1", "what?", choices=("$10^$", "costs $5_$"), label=0)
    pool = Pool.of_example(example)
    (figure,) = confusion_charts(make_report([pool], [selected(pool, 1)])).values()
    write_picture(figure, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_an_answer_that_is_no_class_has_a_column_of_its_own() -> None:
    example = Example("pets", "1", "what?", choices=CLASSES, label=0)
    pool = Pool(example, (Candidate("cat", "greedy"), Candidate("a cow", "greedy")))
    found = classified([pool, pool], [selected(pool, 0), selected(pool, 1)])
    methods = make_report([pool, pool], [selected(pool, 0), selected(pool, 1)])["average"]["methods"]
    assert {"greedy", "majority", "mbr"} <= methods.keys()
    assert "most_frequent_class" not in methods  # it may be what no candidate says
    assert found["confusion"] == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert found["macro_f1"]["mean"] == pytest.approx(2 / 3)

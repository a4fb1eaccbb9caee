"""What a report tells of classification: F1 by class, and what is taken for what."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cappy_lightning.page import Table
from cappy_lightning.records import Pool
from cappy_lightning.selection.bootstrap import interval, percent_range, resample

Floats = NDArray[np.float64]

#: The last column of a confusion matrix: selections that are no class, where an LLM has answered.
NO_CLASS = "(no class)"

#: More classes than this are not shown as a matrix.
SHOWN_CLASSES = 30


def shared_classes(pools: Sequence[Pool]) -> list[str]:
    """The choices that all pools have, in the order of the first pool; none where pools differ in them."""
    classes = dict.fromkeys(pools[0].example.choices)
    same = all(set(pool.example.choices) == set(classes) for pool in pools)
    return list(classes) if same else []


def most_frequent_class(pools: Sequence[Pool]) -> str:
    """The right choice of most pools; of equally frequent ones the first."""
    right = [pool.example.right_choice for pool in pools]
    return max(dict.fromkeys(right), key=right.count)


def class_report(
    classes: Sequence[str], answers: Sequence[tuple[str, str]], generator: np.random.Generator
) -> tuple[dict[str, Any], Floats]:
    """How well each class is told from the others.

    Args:
        classes: their names.
        answers: the right class of each example and the selected response, which may be none of the classes.
        generator: of the bootstrap over examples.

    Returns:
        `classes`; `confusion`, [right class][selected class], with a last column for what is no class where there is
        such; by class `n_examples`, and `precision`, `recall` and `f1`, each with its 95% interval over the resamples
        that have it, or None where the class is never selected, never right, or neither; `macro_f1`, the mean over
        the classes that have an F1. And the resamples of `macro_f1`.
    """
    places = {name: place for place, name in enumerate(classes)}
    right = np.array([places[name] for name, _ in answers])
    selected = np.array([places.get(response, len(classes)) for _, response in answers])
    matrix = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
    np.add.at(matrix, (right, selected), 1)
    each = np.arange(len(classes))[:, None]
    # These three counts are all that a resample needs.
    counts = np.array([(each == right) & (each == selected), each == right, each == selected], dtype=np.float64)
    flat = counts.reshape(-1, len(answers))
    means, draws = (
        _measures(sums.reshape(3, len(classes), -1)) for sums in (flat.mean(axis=1), resample(flat, generator))
    )
    by_class = {
        name: {"n_examples": int(counts[1, k].sum())}
        | {key: _interval(means[key][k, 0], draws[key][k]) for key in means}
        for k, name in enumerate(classes)
    }
    macro = np.nanmean(draws["f1"], axis=0)
    return {
        "classes": list(classes),
        "confusion": matrix[:, : None if matrix[:, -1].any() else -1].tolist(),
        "by_class": by_class,
        "macro_f1": interval(float(np.nanmean(means["f1"])), macro),
    }, macro


def _measures(counts: Floats) -> dict[str, Floats]:
    """Each measure, [classes, resamples], of true positives, right and selected ones, [3, classes, resamples].

    NaN where there is nothing to divide by.
    """
    hits, right, selected = counts
    with np.errstate(invalid="ignore"):
        return {"precision": hits / selected, "recall": hits / right, "f1": 2 * hits / (right + selected)}


def _interval(value: float, draws: Floats) -> dict[str, float] | None:
    return None if np.isnan(value) else interval(value, draws[~np.isnan(draws)])


def class_tables(task: str, part: dict[str, Any]) -> list[Table]:
    """F1 by class, and where there are few classes what is taken for what."""
    classes = part["classes"]

    def shown(value: dict[str, float] | None) -> str:
        return f"{100 * value['mean']:.1f} [{percent_range(value)}]" if value else ""

    rows: list[list[object]] = [
        [name, own["n_examples"], *(shown(own[key]) for key in ("precision", "recall", "f1"))]
        for name, own in part["by_class"].items()
    ]
    rows.append(["mean (macro-F1)", "", "", "", shown(part["macro_f1"])])
    tables = [Table(f"{task}: by class, x 100", ["class", "examples", "precision", "recall", "F1"], rows)]
    if len(classes) <= SHOWN_CLASSES:
        header = ["right \\ selected", *column_names(part)]
        matrix = [[name, *counts] for name, counts in zip(classes, part["confusion"], strict=True)]
        tables.append(Table(f"{task}: what is taken for what", header, matrix))
    return tables


def column_names(part: dict[str, Any]) -> list[str]:
    """The names of a confusion matrix' columns."""
    return [*part["classes"], *([NO_CLASS] if len(part["confusion"][0]) > len(part["classes"]) else [])]

"""What a report tells of classification: F1 by class, and what is taken for what."""

from collections import Counter
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
        such; by class `n_examples`, `precision`, `recall` and `f1` with its 95% interval over the resamples that have
        the class, or None for one that is neither right nor selected anywhere; `macro_f1`, the mean over the other
        classes. And the resamples of `macro_f1`.
    """
    places = {name: place for place, name in enumerate(classes)}
    right = np.array([places[name] for name, _ in answers])
    selected = np.array([places.get(response, len(classes)) for _, response in answers])
    matrix = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
    np.add.at(matrix, (right, selected), 1)
    each = np.arange(len(classes))[:, None]
    # F1 is 2 TP / (right + selected), so these three counts are all that a resample needs.
    counts = np.array([(each == right) & (each == selected), each == right, each == selected], dtype=np.float64)
    flat = counts.reshape(-1, len(answers))
    f1, draws = (_f1(sums.reshape(3, len(classes), -1)) for sums in (flat.mean(axis=1), resample(flat, generator)))
    hits, has, picked = counts.sum(axis=2)
    by_class = {
        name: {
            "n_examples": int(has[k]),
            "precision": float(hits[k] / picked[k]) if picked[k] else 0.0,
            "recall": float(hits[k] / has[k]) if has[k] else 0.0,
            "f1": interval(float(f1[k, 0]), draws[k][~np.isnan(draws[k])]) if has[k] or picked[k] else None,
        }
        for k, name in enumerate(classes)
    }
    macro = np.nanmean(draws, axis=0)
    return {
        "classes": list(classes),
        "confusion": matrix[:, : None if matrix[:, -1].any() else -1].tolist(),
        "by_class": by_class,
        "macro_f1": interval(float(np.nanmean(f1)), macro),
    }, macro


def macro_f1(answers: Counter[tuple[str, str]]) -> float:
    """The mean F1 of the classes that are right or selected anywhere, of counted (right, selected) classes."""
    hits, right, selected = Counter[str](), Counter[str](), Counter[str]()
    for (truth, answer), count in answers.items():
        hits[truth] += count * (truth == answer)
        right[truth] += count
        selected[answer] += count
    classes = right.keys() | selected.keys()
    return sum(2 * hits[name] / (right[name] + selected[name]) for name in classes) / len(classes)


def _f1(counts: Floats) -> Floats:
    """F1, [classes, resamples], of true positives, right and selected ones, [3, classes, resamples]; else NaN."""
    hits, right, selected = counts
    with np.errstate(invalid="ignore"):
        found: Floats = 2 * hits / (right + selected)
    return found


def class_tables(task: str, part: dict[str, Any]) -> list[Table]:
    """F1 by class, and where there are few classes what is taken for what."""
    classes = part["classes"]
    rows: list[list[object]] = [
        [
            name,
            own["n_examples"],
            *(f"{100 * own[key]:.1f}" for key in ("precision", "recall")),
            *((f"{100 * own['f1']['mean']:.1f}", f"[{percent_range(own['f1'])}]") if own["f1"] else ("", "")),
        ]
        for name, own in part["by_class"].items()
    ]
    macro = part["macro_f1"]
    rows.append(["mean (macro-F1)", "", "", "", f"{100 * macro['mean']:.1f}", f"[{percent_range(macro)}]"])
    tables = [Table(f"{task}: by class, x 100", ["class", "examples", "precision", "recall", "F1", "interval"], rows)]
    if len(classes) <= SHOWN_CLASSES:
        header = ["right \\ selected", *column_names(part)]
        matrix = [[name, *counts] for name, counts in zip(classes, part["confusion"], strict=True)]
        tables.append(Table(f"{task}: what is taken for what", header, matrix))
    return tables


def column_names(part: dict[str, Any]) -> list[str]:
    """The names of a confusion matrix' columns."""
    return [*part["classes"], *([NO_CLASS] if len(part["confusion"][0]) > len(part["classes"]) else [])]

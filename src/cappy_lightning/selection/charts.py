"""Pictures of a report, and the page that shows it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cappy_lightning.page import Page, Table
from cappy_lightning.selection.baselines import FUSED, ORACLE
from cappy_lightning.selection.classes import SHOWN_CLASSES, column_names
from cappy_lightning.selection.report import metric_title, report_tables

Floats = NDArray[np.float64]


def calibration(
    bins: Sequence[dict[str, float]], scores: Floats | None = None, rewards: Floats | None = None
) -> Figure:
    """Score against true score: means with standard deviations by bin, and every pair where they are given."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], "--", color="0.6", label="perfect")
    if scores is not None and rewards is not None:
        axis.scatter(scores, rewards, s=4, alpha=0.2, color="tab:blue", linewidths=0, label=f"{len(scores)} pairs")
    x, y, spread = np.array([[one["score"], one["reward"], one["deviation"]] for one in bins]).T
    axis.errorbar(x, y, yerr=spread, fmt="o-", color="tab:orange", capsize=3, label="mean and deviation by bin")
    axis.set(
        xlabel="score",
        ylabel="true score",
        title="Calibration",
        xlim=(0, 1),
        ylim=(-0.02, 1.02),
    )
    axis.legend(frameon=False, loc="upper left")
    return figure


def methods_chart(report: dict[str, Any]) -> Figure:
    """All methods of a report's average as bars with their intervals."""
    methods = sorted(report["average"]["methods"].items(), key=lambda item: item[1]["mean"])
    names = [name for name, _ in methods]
    means = np.array([100 * value["mean"] for _, value in methods])
    ends = np.array([[100 * value["low"], 100 * value["high"]] for _, value in methods]).T
    special = {report["scorer"]: "tab:blue", FUSED: "tab:green", ORACLE: "0.85"}
    colors = [special.get(name, "0.7") for name in names]
    figure = Figure(figsize=(7, 0.32 * len(names) + 1.2), layout="constrained")
    axis = figure.subplots()
    axis.barh(names, means, color=colors, xerr=np.abs(ends - means), error_kw={"ecolor": "0.35", "capsize": 2})
    tasks = ", ".join(report["tasks"]) if len(report["tasks"]) < 4 else f"average over {len(report['tasks'])} tasks"
    title = f"{tasks} ({report['average']['n_examples']} examples)"
    axis.set(xlabel=f"{metric_title(report)} x 100", title=title, xlim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def candidates_chart(report: dict[str, Any]) -> Figure:
    """Quality against cost: what choosing among n candidates gives, beside the best baseline, which sees all."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    average = report["average"]
    for name, values in average["by_candidates"].items():
        color = "0.6" if name == ORACLE else "tab:blue"
        axis.plot(range(1, len(values) + 1), 100 * np.array(values), "o-", markersize=3, color=color, label=name)
    best = average["best_baseline"]
    axis.axhline(
        100 * average["methods"][best]["mean"], linestyle="--", color="tab:red", label=f"{best}, all candidates"
    )
    axis.set(xlabel="candidates", ylabel=f"{metric_title(report)} x 100", title="Quality against cost")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure


def confusion_chart(part: dict[str, Any]) -> Figure:
    """What is taken for what: the share of each right class (rows) that each class was selected for."""
    rows, columns = part["classes"], column_names(part)
    matrix = np.array(part["confusion"], dtype=np.float64)
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    size = 2.2 + 0.42 * len(columns)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axis.set_yticks(range(len(rows)), rows)
    axis.set(xlabel="selected", ylabel="right")
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{count:.0f}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(picture, ax=axis, label="share of the right class")
    return figure


def confusion_charts(report: dict[str, Any]) -> dict[str, Figure]:
    """By task, of those whose examples have the same choices, and not too many."""
    parts = {task: part["classification"] for task, part in report["tasks"].items() if "classification" in part}
    return {task: confusion_chart(part) for task, part in parts.items() if len(part["classes"]) <= SHOWN_CLASSES}


def report_page(report: dict[str, Any], title: str, facts: Sequence[str] = (), tables: Sequence[Table] = ()) -> Page:
    """A report as a page: pictures, tables, and the most wrong selections to read.

    Args:
        report: as `make_report` gives it.
        title: of the page.
        facts: lines that come before its own.
        tables: that come before its own.
    """
    length = report["length"]
    mean = ", ".join(f"{name} {length[name]:.0f}" for name in ("all", "selected", "best"))
    own = [
        f"mean characters of candidates: {mean}",
        f"correlation of length within examples: with the logit {length['logit_correlation']:+.2f},"
        f" with the reward {length['reward_correlation']:+.2f}",
    ]
    pictures = [
        ("All ways to choose", methods_chart(report)),
        *([("Quality against cost", candidates_chart(report))] if "by_candidates" in report["average"] else []),
        ("Calibration", calibration(report["calibration"])),
        *((f"What is taken for what: {task}", figure) for task, figure in confusion_charts(report).items()),
    ]
    samples = [
        {**row, "selected": _chosen(row["selected"]), "best": _chosen(row["best"])} for row in report["most_wrong"]
    ]
    return Page(
        title,
        [*facts, *own],
        pictures,
        [*tables, *report_tables(report)],
        samples,
        "The most wrong selections",
    )


def _chosen(choice: dict[str, Any]) -> str:
    return f"{choice['response']}\n(score {choice['score']:.3f}, reward {choice['reward']:.3f})"

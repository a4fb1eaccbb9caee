"""Pictures and tables of a calibration."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cappy_lightning.page import Page, Table
from cappy_lightning.selection.report import metric_title


def stopping_chart(result: dict[str, Any]) -> Figure:
    """Reward against candidates: with a threshold, beside the same number for every instruction."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for name, color, label in (
        ("fixed", "0.6", "as many for every instruction"),
        ("adaptive", "tab:blue", "until a score is reached"),
    ):
        x, y = np.array(result[name]).T
        axis.plot(x, 100 * y, "o-" if name == "fixed" else "-", markersize=4, color=color, label=label)
    chosen = result["stopping"]
    axis.plot(chosen["candidates"], 100 * chosen["reward"], "D", color="tab:orange", label="chosen, on other examples")
    axis.set(
        xlabel="candidates of an instruction, on average",
        ylabel=f"{metric_title(result)} x 100",
        title="Reward against candidates",
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right")
    return figure


def coverage_chart(result: dict[str, Any]) -> Figure:
    """Reward of the answers that are given, against the share of the instructions that get one."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    x, y = np.array(result["coverage"]).T
    axis.plot(100 * x, 100 * y, color="tab:blue", label="the surest first")
    if "abstaining" in result and result["abstaining"]["precision"] is not None:
        chosen = result["abstaining"]
        axis.axhline(100 * chosen["asked"], linestyle="--", color="tab:red", label="asked for")
        x, y = 100 * chosen["coverage"], 100 * chosen["precision"]
        axis.plot(x, y, "D", color="tab:orange", label="chosen, on other examples")
    axis.set(
        xlabel="% of the instructions answered",
        ylabel=f"{metric_title(result)} x 100",
        title="Reward against coverage",
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure


def calibration_table(result: dict[str, Any]) -> Table:
    """The thresholds, and what they promise on examples that they were not chosen on."""
    rows: list[list[str]] = [["all candidates", "", f"{result['all']:.1f}", f"{100 * result['reward']:.1f}", "100%"]]
    if "stopping" in result:
        found = result["stopping"]
        stop = "never" if result["stop"] is None else f"{result['stop']:.3f}"
        rows.append(["stop", stop, f"{found['candidates']:.1f}", f"{100 * found['reward']:.1f}", "100%"])
    if "abstaining" in result:
        found = result["abstaining"]
        precision = "" if found["precision"] is None else f"{100 * found['precision']:.1f}"
        rows.append(["abstain", f"{result['abstain']:.3f}", "", precision, f"{100 * found['coverage']:.0f}%"])
    return Table(
        f"{result['n_examples']} examples, thresholds judged on examples that they were not chosen on",
        ["", "score", "candidates", f"{metric_title(result)} x 100", "answered"],
        rows,
    )


def calibration_page(result: dict[str, Any], title: str) -> Page:
    """The table and the curves."""
    pictures = [("Reward against candidates", stopping_chart(result))] if "stopping" in result else []
    pictures.append(("Reward against coverage", coverage_chart(result)))
    return Page(title, pictures=pictures, tables=[calibration_table(result)])

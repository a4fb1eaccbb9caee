"""Findings as text and as a page."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from cappy_lightning.inspection.findings import Findings, Histogram
from cappy_lightning.page import Page, print_table

#: Columns of the longest bar in text.
BAR = 40


def print_findings(findings: Findings, console: Console) -> None:
    """Facts, tables, histograms and sample rows as text."""
    console.print(findings.title, style="bold", markup=False)
    for fact in findings.facts:
        console.print(f"- {fact}", markup=False, highlight=False)
    for table in findings.tables:
        print_table(table, console)
    for histogram in findings.histograms:
        console.print(histogram.title, markup=False, style="italic")
        most = max(1, int(histogram.counts.max()))
        for low, high, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
            bar = "█" * int(np.ceil(BAR * count / most))
            console.print(f"{low:8.4g} to {high:<8.4g}{bar} {count:,}", markup=False, highlight=False)
    console.print("Rows drawn at random", style="italic")
    for number, sample in enumerate(findings.samples[:3]):
        for name, value in sample.items():
            console.print(
                f"{'- ' if name == next(iter(sample)) else '  '}{name}: {value}", markup=False, highlight=False
            )
        if number == 2 and len(findings.samples) > 3:
            console.print(f"({len(findings.samples) - 3} more on the page: --html)", markup=False)


def findings_row(findings: Findings) -> dict[str, Any]:
    """The same as one JSON object."""
    return {
        "title": findings.title,
        "facts": findings.facts,
        "tables": [
            {"title": t.title, "header": list(t.header), "rows": list(map(list, t.rows))} for t in findings.tables
        ],
        "histograms": [
            {"title": h.title, "edges": np.asarray(h.edges).tolist(), "counts": np.asarray(h.counts).tolist()}
            for h in findings.histograms
        ],
        "samples": findings.samples,
    }


def findings_page(findings: Findings) -> Page:
    """The same as a page, with pictures of the histograms."""
    pictures = [(histogram.title, _picture(histogram)) for histogram in findings.histograms]
    return Page(findings.title, findings.facts, pictures, findings.tables, findings.samples, "Rows drawn at random")


def _picture(histogram: Histogram) -> Figure:
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axis = figure.subplots()
    axis.stairs(histogram.counts, histogram.edges, fill=True, color="tab:blue")
    if histogram.mark is not None:
        axis.axvline(histogram.mark, linestyle="--", color="tab:red", label=f"{histogram.mark:g}")
        axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure

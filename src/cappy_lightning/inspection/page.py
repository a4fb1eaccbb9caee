"""Findings as text and as one self-contained HTML page."""

import base64
import io
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cappy_lightning.files import write_text
from cappy_lightning.inspection.findings import Findings, Histogram

#: Columns of the longest bar in text.
BAR = 40


def print_findings(findings: Findings, console: Console) -> None:
    """Facts, tables, histograms and sample rows as text."""
    console.print(findings.title, style="bold", markup=False)
    for fact in findings.facts:
        console.print(f"- {fact}", markup=False, highlight=False)
    for content in findings.tables:
        table = Table(title=escape(content.title), title_justify="left", caption=escape(content.note) or None)
        for place, name in enumerate(content.header):
            table.add_column(escape(name), justify="right" if place else "left")
        for row in content.rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        console.print(table)
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


def write_page(findings: Findings, path: Path) -> None:
    """One HTML file with pictures and styles in it."""
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True)
    pictures = [(histogram, _picture(histogram)) for histogram in findings.histograms]
    write_text(path, environment.from_string(template).render(findings=findings, pictures=pictures))


def _picture(histogram: Histogram) -> str:
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axis = figure.subplots()
    axis.stairs(histogram.counts, histogram.edges, fill=True, color="tab:blue")
    if histogram.mark is not None:
        axis.axvline(histogram.mark, linestyle="--", color="tab:red", label=f"{histogram.mark:g}")
        axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()

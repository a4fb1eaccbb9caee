"""Tables as text, and one self-contained HTML page of facts, pictures, tables and sample rows."""

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import rich.table
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console
from rich.markup import escape

from cappy_lightning.files import atomic_path, write_text


@dataclass(frozen=True)
class Table:
    """A titled table; `note` says how to read it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


def print_table(table: Table, console: Console, bold: Collection[str] = (), dim: Collection[str] = ()) -> None:
    """A table as text; rows that begin with one of the given names stand out or stay back."""
    console.print(table.title, markup=False, highlight=False)
    shown = rich.table.Table()
    for place, name in enumerate(table.header):
        shown.add_column(escape(name), justify="right" if place else "left")
    for row in table.rows:
        style = "bold" if row[0] in bold else "dim" if row[0] in dim else None
        shown.add_row(*(escape(str(cell)) for cell in row), style=style)
    console.print(shown)
    for line in table.note.splitlines():
        console.print(line, markup=False, highlight=False)


@dataclass
class Page:
    """What a page shows, in this order.

    Attributes:
        title: what it is about.
        facts: one line each.
        pictures: each with its title.
        tables: as they are to be read.
        samples: rows by field name, a value being a text, a number or a list of such.
        samples_title: what the rows are.
    """

    title: str
    facts: Sequence[str] = ()
    pictures: Sequence[tuple[str, Figure]] = ()
    tables: Sequence[Table] = ()
    samples: Sequence[dict[str, Any]] = field(default_factory=list)
    samples_title: str = ""


def write_page(page: Page, path: Path) -> None:
    """Write one HTML file with pictures and styles in it."""
    template = Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True)
    pictures = [(title, base64.b64encode(_png(figure)).decode()) for title, figure in page.pictures]
    write_text(path, environment.from_string(template).render(page=page, pictures=pictures))


def write_picture(figure: Figure, path: Path) -> None:
    """Write a PNG file, which appears when all is written."""
    with atomic_path(path) as scratch:
        scratch.write_bytes(_png(figure))


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    # Names of tasks and classes are no formulas, whatever signs they have; labels of ticks come into being here.
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with matplotlib.rc_context({"text.parse_math": False}):
        figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()

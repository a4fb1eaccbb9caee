"""Write docs/bigbench_results.md: the tables of the study in docs/results.md, task by task.

    python docs/bigbench_results.py runs/bigbench/report.json

The report is that of `cappy evaluate bigbench`.
"""

import sys
from pathlib import Path

from cappy_lightning.files import read_json
from cappy_lightning.page import Table
from cappy_lightning.selection.report import report_tables


def markdown(table: Table) -> str:
    """A table of a report as Markdown, with what is said below it."""
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    notes = [f"- {note}" for note in table.note.splitlines()]
    return "\n".join([f"## {table.title.partition(':')[0]}", "", *lines, *([""] if notes else []), *notes])


def main(file: str) -> None:
    """Read the report, and write its tables beside this file, the average first."""
    *tasks, average = report_tables(read_json(file))
    head = [
        "# BIG-bench, task by task",
        "",
        "Every method on the twelve tasks of [the study](results.md#big-bench), by the command there and",
        "`python docs/bigbench_results.py runs/bigbench/report.json`: Rouge-L × 100 with 95% paired bootstrap",
        "intervals. `cappy` is the scorer alone.",
        "",
    ]
    text = "\n".join(head) + "\n" + "\n\n".join(map(markdown, [average, *tasks])) + "\n"
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The job behind `cappy select`: pools become selections."""

from collections.abc import Collection, Iterator, Sequence
from itertools import tee
from typing import Any

from cappy_lightning.cappy import Cappy
from cappy_lightning.errors import InputError
from cappy_lightning.files import read_jsonl
from cappy_lightning.journal import write_rows
from cappy_lightning.records import Pool, Selection, Split, check_task
from cappy_lightning.selection.report import check_reportable
from cappy_lightning.sources.jsonl import pool_from_row

Row = dict[str, Any]
NOTHING_TO_JUDGE = "no report: no pool has references or choices"
#: A pool with the scorer's own selection and the final one.
Judged = tuple[Pool, Selection, Selection]


def select(cappy: Cappy, source: str, out: str, split: Split | None, made_by: Row) -> list[Judged]:
    """Select from the pools of a file, or of standard input.

    A file is checked as a whole before the first candidate is scored; an interrupted job continues.

    Args:
        cappy: with adapters for several tasks, the task of each pool says which.
        source: the file (JSONL), or `-`.
        out: a new file for the selections (JSONL), or `-`.
        split: only pools of this one.
        made_by: the input and the scorer; a job of others is not continued.

    Returns:
        the pools with references or choices.

    Raises:
        InputError: a pool that cannot be used; see `write_rows`.
    """
    read_twice = source != "-"
    total = sum(1 for _ in _read(source, split, cappy.tasks)) if read_twice else None
    judged: list[Judged] = []

    def note(pool: Pool, selection: Selection) -> None:
        if pool.example.references or pool.example.choices:
            judged.append((pool, selection.by_scorer(pool), selection))

    def rows(done: Iterator[Row]) -> Iterator[Row]:
        left = _read(source, split, cappy.tasks)
        for row in done:
            pool = next(left)
            note(pool, Selection.from_row(row, pool, out))
        pools, again = tee(left)
        for pool, (selection, _) in zip(again, cappy.choose(pools), strict=True):
            note(pool, selection)
            yield selection.to_row()

    write_rows(rows, out, made_by if read_twice else None, "selecting", total)
    return judged


def check_report(cappy: Cappy, source: str, split: Split | None, beside: Sequence[str]) -> None:
    """Refuse pools of a file that no report can be made of, before they are scored.

    Args:
        cappy: by which they will be selected from.
        source: the file.
        split: only pools of this one.
        beside: the names of other scorers in the report.

    Raises:
        InputError: nothing to judge by, two kinds of rewards, or a name that would stand twice.
    """
    pools = [pool for pool in _read(source, split, cappy.tasks) if pool.example.references or pool.example.choices]
    if not pools:
        raise InputError(source, NOTHING_TO_JUDGE)
    check_reportable(pools, beside=beside)


def _read(source: str, split: Split | None, tasks: Collection[str]) -> Iterator[Pool]:
    found = False
    for where, row in read_jsonl(source):
        pool = pool_from_row(row, where, labelled=False)
        check_task(pool.example.task, tasks, where)
        if split in (None, pool.example.split):
            found = True
            yield pool
    if not found:
        raise InputError(source, f"has no pool of the split {split}")

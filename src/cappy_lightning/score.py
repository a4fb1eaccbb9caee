"""The job behind `cappy score`: rows with pairs come out with their scores."""

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

from cappy_lightning.errors import InputError
from cappy_lightning.files import read_jsonl, to_line
from cappy_lightning.journal import write_rows
from cappy_lightning.records import check_task, pair_from_row
from cappy_lightning.scorer.inference import Pair
from cappy_lightning.scorer.pretrained import PretrainedScorer

#: Rows that are scored together.
ROWS_AT_ONCE = 4096

Row = dict[str, Any]


def score(scorer: PretrainedScorer, source: str, out: str, made_by: Row) -> None:
    """Score the pairs of a file, or of standard input, and write its rows with `score` and `logit` added.

    A file is checked as a whole before the first pair is scored; an interrupted job continues.

    Args:
        scorer: with adapters for several tasks, the task of each row says which.
        source: the file (JSONL), or `-`.
        out: a new file, or `-`.
        made_by: the input and the scorer; a job of others is not continued.

    Raises:
        InputError: a row that cannot be scored; see `write_rows`.
    """
    read_twice = source != "-"
    total = sum(1 for _ in _read(source, scorer.tasks)) if read_twice else None

    def rows(done: Iterator[Row]) -> Iterator[Row]:
        left = _read(source, scorer.tasks)
        for _ in done:
            next(left)
        while chunk := list(islice(left, ROWS_AT_ONCE)):
            logits = scorer.logits([pair for _, pair in chunk], [row.get("task") for row, _ in chunk])
            for (row, _), logit, value in zip(chunk, logits.tolist(), scorer.to_scores(logits).tolist(), strict=True):
                yield {**row, "score": value, "logit": logit}

    write_rows(rows, out, made_by if read_twice else None, "scoring", total)


def _read(source: str, tasks: Collection[str]) -> Iterator[tuple[Row, Pair]]:
    for where, row in read_jsonl(source):
        pair = pair_from_row(row, where)
        check_task(row.get("task"), tasks, where)
        try:
            to_line(row).encode()
        except UnicodeEncodeError:  # in a field that is only handed on
            raise InputError(where, "holds text that is not Unicode") from None
        yield row, pair

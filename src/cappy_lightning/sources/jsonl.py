"""Examples and pools from JSON Lines files."""

from collections.abc import Iterator
from pathlib import Path

from cappy_lightning.errors import InputError
from cappy_lightning.files import read_jsonl
from cappy_lightning.records import Example, Pool


def read_examples(path: str | Path) -> list[Example]:
    """All examples of a file.

    Raises:
        InputError: a line that is no example, or an id that stands twice.
    """
    return [example for where, example in _unique((w, Example.from_row(row, w)) for w, row in read_jsonl(path))]


def read_pools(path: str | Path, *, labelled: bool = True) -> Iterator[Pool]:
    """The pools of a file or of standard input (`-`), one at a time.

    Args:
        labelled: whether every pool must have references or choices.

    Raises:
        InputError: a line that is no pool.
    """
    for where, row in read_jsonl(path):
        yield Pool.from_row(row, where, labelled=labelled)


def read_labelled_pools(path: str | Path) -> list[Pool]:
    """All pools of a file, each with references or choices.

    Raises:
        InputError: a line that is no such pool, or an id that stands twice.
    """
    pools = [(where, Pool.from_row(row, where)) for where, row in read_jsonl(path)]
    for _ in _unique((where, pool.example) for where, pool in pools):
        pass
    return [pool for _, pool in pools]


def _unique(examples: Iterator[tuple[str, Example]]) -> Iterator[tuple[str, Example]]:
    seen: dict[tuple[str, str], str] = {}
    for where, example in examples:
        first = seen.setdefault((example.task, example.id), where)
        if first != where:
            raise InputError(where, f"id '{example.id}' of task '{example.task}' stands already at {first}")
        yield where, example

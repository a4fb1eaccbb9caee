"""What stands in a sources file, and which part of it is read."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cappy_lightning.errors import InputError
from cappy_lightning.schema import key
from cappy_lightning.sources.table import FIELDS


@dataclass
class SourceConfig:
    """One source: rows of `files` or of a hub `dataset`, as they are or through `templates`; or `bigbench`."""

    files: list[str] = key([], "Local files of rows: .jsonl, .json, .csv, .parquet")
    dataset: str | None = key(None, "Data set on the hub, or a local folder that `datasets` can read")
    subset: str | None = key(None, "Subset (configuration) of the data set")
    revision: str | None = key(None, "Branch, tag or commit of the data set")
    split: str | None = key(
        None,
        "Split of the data set to read, and of the examples if it is train or validation; null: reads `train`, and"
        " gives the examples none",
    )
    bigbench: str | None = key(None, "BIG-bench task, generation or multiple choice, in its standard split")
    templates: str | None = key(None, "PromptSource templates: file or folder; null: those of `dataset` in the root")
    template_names: list[str] = key([], "Use only these templates; empty: all")
    columns: dict[str, Any] = key({}, f"Column, or list of columns, of each field of {', '.join(FIELDS)}")
    task: str | None = key(None, "Task of the rows; null: the file's name")
    choices: list[str] = key(
        [], "Choices of all rows, where no column has them; empty: every text that stands in the column of `label`"
    )
    template: str = key(
        "{text}", "How the instruction shows its column: {text} stands for that, {choices} for the choices"
    )
    score_range: list[float] = key([0.0, 1.0], "Lowest and highest value of the column `score`, mapped to [0, 1]")
    max_examples: int | None = key(
        None, "Most rows for each template, or of a source without templates, drawn by the seed; null: all"
    )


@dataclass
class SourcesConfig:
    """A sources file."""

    templates: str | None = key(None, "Root of PromptSource's templates; a source's lie in DATASET[/SUBSET]")
    seed: int = key(0, "Seed of the templates' random filters and of caps")
    large_dataset: int | None = key(
        None, "A data set of more rows gives each of its templates only so many divided by their number (T0: 500000)"
    )
    sources: list[SourceConfig] = key([], "The sources")


@dataclass(frozen=True)
class Shard:
    """One of `count` equal parts of all rows, for job arrays; `index` from 0."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """`I/N`, as on the command line.

        Raises:
            InputError: it is not of this form, or I is not below N.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise InputError("--shard", f"is '{text}', expected I/N with I from 0 to N - 1")
        return cls(int(index), int(count))

    def of(self, rows: Iterable[Any]) -> Iterator[Any]:
        """Every `count`-th row."""
        return itertools.islice(rows, self.index, None, self.count)

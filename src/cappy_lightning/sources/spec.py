"""Sources files: YAML that lists where examples come from, each source streaming.

sources:
  - files: [tickets.csv]
    task: tickets
    columns: {instruction: message, references: subject}
  - {dataset: glue, subset: mrpc, templates: promptsource/templates/glue/mrpc}
  - bigbench: tense
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cappy_lightning.errors import InputError
from cappy_lightning.files import find_parts
from cappy_lightning.progress import counted
from cappy_lightning.records import SPLITS, Example, Pool, Split
from cappy_lightning.schema import merge
from cappy_lightning.sources.bigbench import bigbench_examples, fetch
from cappy_lightning.sources.config import Shard, SourceConfig, SourcesConfig
from cappy_lightning.sources.jsonl import SAMPLES, pool_from_row
from cappy_lightning.sources.promptsource import (
    TEMPLATES_FILE,
    PromptSourceExamples,
    Template,
    find_template_files,
    read_templates,
)
from cappy_lightning.sources.rows import Rows, file_rows, hub_rows
from cappy_lightning.sources.table import FIELDS, LISTS, Columns

#: More labels than this are no classes.
MOST_CLASSES = 1000


class Sources:
    """The examples, or pools, of a file: JSONL, CSV, Parquet, or a sources file (YAML).

    Args:
        arguments: the file; after a sources file more of them, and `key=value` words for its keys.
        shard: which part of the rows to read.
        labelled: whether a row of a table needs references or choices; without them it is only to be answered.

    Raises:
        InputError: a file that cannot be read, or sources that make no sense.
    """

    def __init__(self, arguments: Sequence[str], shard: Shard | None = None, *, labelled: bool = True) -> None:
        self._shard = shard or Shard()
        self._path = path = arguments[0]
        self._read = [path, *(one for one in arguments[1:] if one.endswith((".yaml", ".yml")))]
        self._repeated = 0
        if path.endswith((".yaml", ".yml")):
            self._config = merge(SourcesConfig, arguments)
        elif Path(path).is_dir():  # parts of a recording
            files = [str(part) for part in find_parts(Path(path), ".jsonl") if part.stat().st_size]
            if not files:
                raise InputError(path, "has no parts of pools, expected files part-I-of-N.jsonl")
            self._config = SourcesConfig(sources=[SourceConfig(files=files)])
        elif len(arguments) > 1:
            raise InputError(arguments[1], f"stands after {path}, expected it only after a sources file (YAML)")
        else:
            self._config = SourcesConfig(sources=[SourceConfig(files=[path])])
        if self._config.seed < 0:
            raise InputError("seed", f"is {self._config.seed}, expected 0 or more")
        if not self._config.sources:
            raise InputError(path, "names no source, expected a list 'sources'")
        classes: dict[str, list[str]] = {}
        self._sources = [
            _Source(
                self._config,
                source,
                f"{path}: sources[{i}]" if len(self._config.sources) > 1 else path,
                classes,
                labelled,
            )
            for i, source in enumerate(self._config.sources)
        ]

    def pools(self) -> Iterator[Pool]:
        """Everything, source by source, each time from the start; examples are pools without candidates.

        Raises:
            InputError: rows that cannot be read, or are no example.
        """
        if tasks := [source.bigbench for source in self._config.sources if source.bigbench]:
            fetch(tasks)
        for source in self._sources:
            yield from source.pools(self._shard)

    def distinct(self) -> Iterator[Example]:
        """Every example once, without candidates; after a pass `notes` says how many were repeated.

        Raises:
            InputError: rows that cannot be read, or an id that stands twice, with different contents or splits.
        """
        self._repeated = 0
        known: dict[int, int] = {}  # hashes, of which millions fit into memory
        for pool in self.pools():
            example = pool.example
            identity, content = hash((example.task, example.id)), hash(example)
            if identity not in known:
                known[identity] = content
                yield example
            elif known[identity] == content:
                self._repeated += 1
            else:
                raise InputError(
                    self._path,
                    f"id '{example.id}' of task '{example.task}' stands there twice, with different contents or splits",
                )

    def apart(self) -> list["Dataset"]:
        """Each source by itself."""
        return [
            Dataset(one.dataset, one.split, functools.partial(one.pools, self._shard), functools.partial(_notes, one))
            for one in self._sources
        ]

    @property
    def places(self) -> list[str]:
        """The local files and folders, and the data sets, that it is read from."""
        found = [self._config.templates]
        for one in self._config.sources:
            found += [*one.files, one.templates, one.dataset]
        return [*self._read, *(place for place in found if place)]

    @property
    def partial(self) -> bool:
        """Whether only one of several parts is read."""
        return self._shard.count > 1

    def described(self) -> dict[str, Any]:
        """What the examples are made of, for the record."""
        return {**asdict(self._config), "shard": asdict(self._shard)}

    def notes(self) -> list[str]:
        """After a pass over `pools`: what was left out of it, and why."""
        notes = [note for source in self._sources for note in source.notes]
        repeated = f"{self._path}: {counted(self._repeated, 'row')} repeated and used once"
        return [*notes, repeated] if self._repeated else notes


@dataclass(frozen=True)
class Dataset:
    """What comes from one place.

    Attributes:
        name: of the data set, which PromptSource's tasks `NAME/TEMPLATE` begin with, or the task.
        split: which split of it is read, by its name in the data set, where one is named.
        pools: what it gives, from the start.
        notes: after a pass over `pools`: what was left out of it, and why.
    """

    name: str
    split: str | None
    pools: Callable[[], Iterator[Pool]]
    notes: Callable[[], list[str]] = list

    @property
    def key(self) -> str:
        """Its name in reports and, with other slashes, of its file."""
        return f"{self.name} {self.split}" if self.split else self.name


def _notes(source: "_Source") -> list[str]:
    return source.notes


class _Source:
    """One source, streaming."""

    def __init__(
        self, root: SourcesConfig, config: SourceConfig, where: str, classes: dict[str, list[str]], labelled: bool
    ) -> None:
        self._root, self._config, self._where, self._labelled = root, config, where, labelled
        #: By task, of all sources whose labels are the choices.
        self._classes_by_task = classes
        self.notes: list[str] = []
        self._rows: Rows | None = None
        kinds = [name for name in ("files", "dataset", "bigbench") if getattr(config, name)]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none"
            raise InputError(where, f"expected one of 'files', 'dataset' or 'bigbench', found {found}")
        if config.bigbench and config.split:
            raise InputError(where, "names a split beside bigbench, whose tasks have their own")
        for name, columns in config.columns.items():
            listed = columns if isinstance(columns, list) else [columns]
            if columns is not None and not all(isinstance(column, str) for column in listed):
                raise InputError(
                    where, f"columns.{name} is {columns!r}, expected the name of a column or a list of them"
                )
            if isinstance(columns, list) and name in FIELDS and name not in LISTS:
                raise InputError(where, f"columns.{name} is a list, expected the name of one column")
        unknown = sorted(set(config.columns) - set(FIELDS))
        if unknown:
            raise InputError(where, f"columns maps '{unknown[0]}', expected one of {', '.join(FIELDS)}")
        if len(config.score_range) != 2 or not config.score_range[0] < config.score_range[1]:
            raise InputError(where, f"score_range is {list(config.score_range)}, expected [lowest, highest]")
        if "{text}" not in config.template:
            raise InputError(where, f"template is {config.template!r}, expected '{{text}}' in it")
        if config.max_examples is not None and config.max_examples < 1:
            raise InputError(where, f"max_examples is {config.max_examples}, expected at least 1")
        if config.files:
            self._rows = file_rows(config.files)
        elif config.dataset:
            self._rows = hub_rows(config.dataset, config.subset, config.split or "train", config.revision)
        self._templates = self._find_templates()
        if self._templates and config.columns:
            raise InputError(where, "has both templates and columns, expected one of them")
        if (self._templates or config.bigbench) and config.template != "{text}":
            raise InputError(where, "has a template of its own beside those of the data set, expected one of them")

    def _find_templates(self) -> list[Template]:
        config = self._config
        path = Path(config.templates) if config.templates else None
        if path is None and self._root.templates and config.dataset and not config.columns:
            path = Path(self._root.templates, config.dataset, config.subset or "", TEMPLATES_FILE)
        if path is None:
            return []
        found = [template for file in find_template_files(path) for template in read_templates(file)]
        names = [template.name for template in found]
        for name in config.template_names:
            if name not in names:
                raise InputError(self._where, f"{path} has no template '{name}', but {', '.join(names)}"[:300])
        return [template for template in found if not config.template_names or template.name in config.template_names]

    @property
    def dataset(self) -> str:
        """The name of the data set as its templates have it, or the task of its rows."""
        config = self._config
        if self._templates:
            return self._templates[0].dataset
        dataset = f"{config.dataset}/{config.subset}" if config.subset else config.dataset
        return config.bigbench or config.task or dataset or Path(config.files[0]).stem

    @property
    def split(self) -> str | None:
        """The split that is read, by its name in the data set."""
        return self._config.split

    def pools(self, shard: Shard) -> Iterator[Pool]:
        """The pools of one shard of the rows, from the start."""
        self.notes = []
        if self._config.bigbench:
            examples = bigbench_examples(self._config.bigbench)
            mask = self._mask(len(examples), self._config.max_examples, self._config.bigbench)
            kept = [example for number, example in enumerate(examples) if mask is None or mask[number]]
            return (Pool.of_example(example) for example in shard.of(kept))
        assert self._rows is not None
        if self._templates:
            return self._from_templates(self._rows, shard)
        return self._from_columns(self._rows, shard)

    def _from_columns(self, rows: Rows, shard: Shard) -> Iterator[Pool]:
        config = self._config
        low, high = config.score_range
        task = self.dataset
        label = config.columns.get("label", "label")
        classes = self._classes(rows, label)
        choices = classes or config.choices
        columns = Columns(config.columns, task, self._split(), choices, config.template, (low, high), self._labelled)
        mask = self._mask(rows.count(), config.max_examples, task) if config.max_examples else None
        numbered = ((number, placed) for number, placed in enumerate(rows.read()) if mask is None or mask[number])
        for _, (where, row) in shard.of(numbered):
            if classes and row.get(label) is not None:  # by its text, where a number could be taken for an index
                row[label] = str(row[label])
            if "candidates" in row or SAMPLES in row:  # a pool already
                yield pool_from_row(row, where, labelled=False, answered=False)
            else:
                yield columns.pool(row, where)

    def _classes(self, rows: Rows, label: Any) -> list[str]:
        """The distinct labels of a table of labelled texts that names no choices; of other rows none."""
        first = next((row for _, row in rows.read()), {})
        answers = {"choices", "references", "responses", "candidates"}
        answered = answers & set(first) or any(self._config.columns.get(name) for name in answers)
        if self._config.choices or answered or label not in first:
            return []
        labels: set[str | int] = set()
        for where, row in rows.read():
            value = row.get(label)
            if value in (None, ""):
                continue
            if isinstance(value, bool) or not isinstance(value, str | int):
                raise InputError(where, f"has the label {value!r}, expected a text or a whole number"[:200])
            labels.add(value)
            if len(labels) > MOST_CLASSES:
                raise InputError(where, f"is the {MOST_CLASSES + 1}th different label, expected at most {MOST_CLASSES}")
        names = {str(one) for one in labels}
        if len(names) < 2:
            raise InputError(self._where, f"has {len(names)} different labels, expected at least two classes")
        numbers = all(isinstance(one, int) for one in labels)
        if numbers:
            self.notes.append(f"{self._where}: the labels are numbers; `choices` in a sources file can name them")
        classes = sorted(names, key=int if numbers else None)
        if self._classes_by_task.setdefault(self.dataset, classes) != classes:
            raise InputError(
                self._where,
                f"has other labels than a source before it of the task '{self.dataset}', expected `choices`",
            )
        return classes

    def _from_templates(self, rows: Rows, shard: Shard) -> Iterator[Pool]:
        first = next(rows.read(), None)
        if first is None:
            raise InputError(rows.name, "has no rows")
        rendered = PromptSourceExamples(self._templates, first[1].keys(), self._root.seed)
        cap = self._template_cap(rows, len(rendered.templates))
        masks: dict[str, Any] = {}
        if cap is not None:
            count = rows.count()
            masks = {name: self._mask(count, cap, name) for name in rendered.templates}
        for number, (_, row) in shard.of(enumerate(rows.read())):
            names = [name for name in rendered.templates if masks.get(name) is None or masks[name][number]]
            for example in rendered.of(number, row, self._config.split, names):
                yield Pool.of_example(example)
        self.notes = rendered.notes()

    def _split(self) -> Split | None:
        return next((split for split in SPLITS if split == self._config.split), None)

    def _template_cap(self, rows: Rows, templates: int) -> int | None:
        """The most rows for each template, by `max_examples` and T0's rule for large data sets."""
        caps = [self._config.max_examples] if self._config.max_examples else []
        if (large := self._root.large_dataset) and rows.count() > large:
            caps.append(max(1, large // templates))
        return min(caps, default=None)

    def _mask(self, count: int, most: int | None, name: str) -> NDArray[np.bool_] | None:
        """Which of `count` rows are used, `most` of them, drawn by the seed; None: all."""
        if most is None or count <= most:
            return None
        mask = np.zeros(count, dtype=np.bool_)
        drawn_from = [*self._config.files, self._config.dataset, self._config.subset, self._config.split, name]
        generator = np.random.default_rng([self._root.seed, *" ".join(map(str, drawn_from)).encode()])
        mask[generator.choice(count, most, replace=False, shuffle=False)] = True
        return mask

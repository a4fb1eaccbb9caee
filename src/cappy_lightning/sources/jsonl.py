"""Examples and pools from JSON Lines files, the reference implementation's recorded pools included."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cappy_lightning.errors import InputError
from cappy_lightning.files import read_jsonl
from cappy_lightning.records import SPLITS, Example, Pool

#: The field by which a row of the reference implementation is known (github tanyuqian/cappy).
SAMPLES = "flan_samples"


def read_pools(path: str | Path, *, labelled: bool = True, answered: bool = True) -> Iterator[Pool]:
    """The pools of a file or of standard input (`-`), one at a time.

    Args:
        path: the file.
        labelled: whether every pool must have references or choices.
        answered: whether every pool must have candidates; else examples are pools without any.

    Raises:
        InputError: a line that is no pool.
    """
    for where, row in read_jsonl(path):
        yield pool_from_row(row, where, labelled=labelled, answered=answered)


def read_examples(path: str | Path) -> list[Example]:
    """All examples of a file.

    Raises:
        InputError: a line that is no example, or an id that stands twice.
    """
    found = [(where, Example.from_row(row, where)) for where, row in read_jsonl(path)]
    _refuse_doubles(found)
    return [example for _, example in found]


def read_labelled_pools(paths: Sequence[str | Path]) -> list[Pool]:
    """All pools of some files, each with references or choices.

    Raises:
        InputError: a line that is no such pool, or an id that stands twice.
    """
    found = [(where, pool_from_row(row, where)) for path in paths for where, row in read_jsonl(path)]
    _refuse_doubles((where, pool.example) for where, pool in found)
    return [pool for _, pool in found]


def pool_from_row(row: dict[str, Any], where: str, *, labelled: bool = True, answered: bool = True) -> Pool:
    """A pool from a JSON object, in our form or in the reference implementation's.

    The latter is `{"dataset", "example_idx", "instruction", "references", "flan_samples": {decoding:
    [{"response", "log_likelihood_sum", "log_likelihood_mean"}]}}`; its split is that of the file's name
    (`TASK_train.jsonl`, `TASK_validation.jsonl`), and its empty responses and references are left out.

    Raises:
        InputError: it is no pool.
    """
    if SAMPLES in row:
        row = _from_reference(row, where)
    return Pool.from_row(row, where, labelled=labelled, answered=answered)


def _from_reference(row: dict[str, Any], where: str) -> dict[str, Any]:
    samples, references = row[SAMPLES], row.get("references")
    if not isinstance(samples, dict) or not all(isinstance(v, list) for v in (references, *samples.values())):
        raise InputError(where, f"field '{SAMPLES}' must be an object of lists beside a list 'references'")
    name = Path(where.rpartition(":")[0]).stem
    split = next((split for split in SPLITS if name.endswith(f"_{split}")), None)
    assert isinstance(references, list)
    candidates = [
        {"decoding": decoding} | one
        for decoding, responses in samples.items()
        for one in responses
        if isinstance(one, dict) and str(one.get("response", "")).strip()
    ]
    return {
        "task": row.get("dataset"),
        "id": f"{split}:{row.get('example_idx')}",
        "split": split,
        "instruction": row.get("instruction"),
        "references": [text for text in references if str(text).strip()],
        "candidates": candidates,
    }


def _refuse_doubles(examples: Iterable[tuple[str, Example]]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for where, example in examples:
        first = seen.setdefault((example.task, example.id), where)
        if first != where:
            raise InputError(where, f"id '{example.id}' of task '{example.task}' stands already at {first}")

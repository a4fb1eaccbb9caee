"""Examples and pools from JSON Lines files, the reference implementation's recorded pools included."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cappy_lightning.errors import InputError
from cappy_lightning.files import is_part, read_jsonl, to_line, write_text
from cappy_lightning.progress import counted, say
from cappy_lightning.records import SPLITS, Example, Pool

T = TypeVar("T", Example, Pool)

#: The field by which a row of the reference implementation is known (github tanyuqian/cappy).
SAMPLES = "flan_samples"


def read_examples(path: str | Path) -> list[Example]:
    """All examples of a file, each once.

    Raises:
        InputError: a line that is no example, or an id that stands twice, with different contents.
    """
    return _distinct(path, ((where, Example.from_row(row, where)) for where, row in read_jsonl(path)), lambda one: one)


def write_pools(path: Path, pools: Iterable[Pool]) -> None:
    """A file of pools, whole or not at all."""
    write_text(path, "".join(to_line(pool.to_row()) for pool in pools))


def read_labelled_pools(paths: Sequence[str | Path]) -> list[Pool]:
    """All pools of some files, each once, and each with references or choices.

    Of an example that stands in several parts of a folder, each with answers of its own, the first is kept: parts
    are recorded apart, and do not know of each other. Examples to which the LLM of the reference implementation
    gave empty responses only are left out.

    Raises:
        InputError: a line that is no such pool, or an id that stands twice, with different contents.
    """
    empty = 0

    def found() -> Iterator[tuple[str, Pool]]:
        nonlocal empty
        for path in paths:
            for where, row in read_jsonl(path):
                if _only_empty(row):
                    empty += 1
                else:
                    yield where, pool_from_row(row, where)

    pools = _distinct(paths[0], found(), lambda pool: pool.example)
    if empty:
        say(f"{paths[0]}: left out without an answer: {counted(empty, 'example')}")
    return pools


def _only_empty(row: dict[str, Any]) -> bool:
    """Whether a row of the reference implementation has responses, but only empty ones."""
    samples = row.get(SAMPLES)
    if not isinstance(samples, dict) or not all(isinstance(responses, list) for responses in samples.values()):
        return False
    texts = [one.get("response") for own in samples.values() for one in own if isinstance(one, dict)]
    return bool(texts) and not any(str(text).strip() for text in texts)


def pool_from_row(row: dict[str, Any], where: str, *, labelled: bool = True, answered: bool = True) -> Pool:
    """A pool from a JSON object, in our form or in the reference implementation's.

    The latter is `{"dataset", "example_idx", "instruction", "references", "flan_samples": {decoding:
    [{"response", "log_likelihood_sum", "log_likelihood_mean"}]}}`; its split is that of the file's name
    (`TASK_train.jsonl`, `TASK_validation.jsonl`), and its empty responses and references are left out.

    Args:
        row: the object.
        where: its place, for messages.
        labelled: refuse a pool without references and choices.
        answered: refuse a pool without candidates; else it may be an example that no LLM has answered.

    Raises:
        InputError: it is no pool.
    """
    if SAMPLES in row:
        row = _from_reference(row, where)
        if not answered and not row["candidates"]:
            del row["candidates"]
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


def _in_parts(*places: str) -> bool:
    """Whether places are in different parts of one folder."""
    files = [Path(place.rpartition(":")[0]) for place in places]
    return len(set(files)) > 1 and len({file.parent for file in files}) == 1 and all(is_part(f.name) for f in files)


def _distinct(file: str | Path, found: Iterable[tuple[str, T]], example: Callable[[T], Example]) -> list[T]:
    known: dict[tuple[str, str], tuple[str, T]] = {}
    repeated = 0
    for where, one in found:
        task, identity = example(one).task, example(one).id
        first, other = known.setdefault((task, identity), (where, one))
        if other != one and not (example(other) == example(one) and _in_parts(first, where)):
            raise InputError(where, f"id '{identity}' of task '{task}' stands already at {first}, with other contents")
        repeated += first != where
    if repeated:
        say(f"{file}: {counted(repeated, 'row')} repeated and used once")
    return [one for _, one in known.values()]

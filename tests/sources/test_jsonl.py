"""Examples and pools from JSON Lines files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cappy_lightning.errors import InputError
from cappy_lightning.records import Example, Pool
from cappy_lightning.sources.jsonl import read_examples, read_labelled_pools

EXAMPLE = {"task": "t", "id": "1", "instruction": "i", "references": ["a"]}
POOL = EXAMPLE | {"candidates": [{"response": "a"}]}
QUICKSTART = Path(__file__).parents[2] / "data" / "quickstart" / "examples.jsonl"

READERS = [
    pytest.param(read_examples, EXAMPLE, id="examples"),
    pytest.param(lambda path: read_labelled_pools([path]), POOL, id="labelled pools"),
]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("read", "row"), READERS)
def test_rows_come_in_the_order_of_the_file(tmp_path: Path, read: Callable[[Path], Any], row: dict[str, Any]) -> None:
    rows = [row | {"id": name} for name in "cab"]
    make = Pool if "candidates" in row else Example
    assert read(write(tmp_path / "f.jsonl", *rows)) == [make.from_row(one, "w") for one in rows]


@pytest.mark.parametrize(("read", "row"), READERS)
@pytest.mark.parametrize("same", ["1", 1])
def test_an_id_that_stands_twice_is_refused_by_both_places(
    tmp_path: Path, read: Callable[[Path], Any], row: dict[str, Any], same: object
) -> None:
    path = write(tmp_path / "f.jsonl", row, row | {"id": "2"}, row | {"id": same, "instruction": "other"})
    with pytest.raises(InputError) as error:
        read(path)
    assert str(error.value) == f"{path}:3: id '1' of task 't' stands already at {path}:1, with other contents"


@pytest.mark.parametrize(("read", "row"), READERS)
@pytest.mark.parametrize("named", [True, False])
def test_the_same_row_is_used_once(
    tmp_path: Path, read: Callable[[Path], Any], row: dict[str, Any], named: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    row = row if named else {key: value for key, value in row.items() if key != "id"}
    path = write(tmp_path / "f.jsonl", row, row, row)
    assert len(read(path)) == 1
    assert capsys.readouterr().err == f"{path}: 2 rows repeated and used once\n"


@pytest.mark.parametrize(("read", "row"), READERS)
def test_tasks_may_share_ids(tmp_path: Path, read: Callable[[Path], Any], row: dict[str, Any]) -> None:
    assert len(read(write(tmp_path / "f.jsonl", row, row | {"task": "u"}))) == 2


@pytest.mark.parametrize("read", [read_examples, lambda path: read_labelled_pools([path])])
def test_a_bad_row_is_refused_by_file_and_line(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    path = write(tmp_path / "f.jsonl", POOL, {"task": "t"})
    with pytest.raises(InputError) as error:
        read(path)
    assert str(error.value) == f"{path}:2: field 'instruction' is missing, expected a text"


def test_of_an_example_in_several_parts_the_first_answers_are_used(tmp_path: Path) -> None:
    row = {"task": "t", "id": "1", "instruction": "i", "references": ["r"]}
    for part, response in ((0, "a"), (2, "b")):
        own = row | {"candidates": [{"response": response}]}
        write(tmp_path / f"part-{part}-of-3.jsonl", own)
    (tmp_path / "part-1-of-3.jsonl").touch()  # one that had nothing to do
    (pool,) = read_labelled_pools([tmp_path])
    assert [candidate.response for candidate in pool.candidates] == ["a"]
    write(tmp_path / "part-1-of-3.jsonl", row | {"references": ["other"], "candidates": [{"response": "a"}]})
    with pytest.raises(InputError, match="with other contents"):
        read_labelled_pools([tmp_path])
    for part in range(3):
        (tmp_path / f"part-{part}-of-3.jsonl").write_text("")
    with pytest.raises(InputError, match=r"part-0-of-3\.jsonl: is empty"):
        read_labelled_pools([tmp_path])


def test_a_bad_candidate_is_refused_by_file_line_and_place(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", POOL | {"candidates": [{"response": "a"}, {"response": 3}]})
    with pytest.raises(InputError) as error:
        read_labelled_pools([path])
    assert str(error.value) == f"{path}:1: candidates[1]: field 'response' is int, expected a text"


@pytest.mark.parametrize("read", [read_examples, lambda path: read_labelled_pools([path])])
def test_a_file_that_is_missing_or_empty_is_refused_by_its_name(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    path = tmp_path / "f.jsonl"
    for _ in range(2):
        with pytest.raises(InputError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: ")
        path.touch()


def test_the_examples_of_the_quickstart_are_examples() -> None:
    examples = read_examples(QUICKSTART)
    assert len(examples) > 500
    assert {example.split for example in examples} == {"train", "validation"}

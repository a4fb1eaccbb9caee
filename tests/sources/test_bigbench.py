"""BIG-bench's archive against the counts and the split that the hub's version has."""

import random
from pathlib import Path

import pytest

from cappy_lightning.errors import InputError
from cappy_lightning.sources import bigbench
from cappy_lightning.sources.bigbench import bigbench_examples


def examples_or_skip(task: str) -> list:
    try:
        return bigbench_examples(task)
    except InputError as error:
        if "package index" in str(error):
            pytest.skip(f"the BIG-bench archive cannot be had: {error}")
        raise


@pytest.mark.network
@pytest.mark.parametrize(("task", "train", "validation"), [("auto_categorization", 263, 65), ("tense", 229, 57)])
def test_tasks_have_the_published_standard_split(task: str, train: int, validation: int) -> None:
    examples = examples_or_skip(task)
    assert [sum(e.split == split for e in examples) for split in ("train", "validation")] == [train, validation]
    assert all(e.instruction == e.instruction.strip() and e.references for e in examples)


@pytest.mark.network
@pytest.mark.parametrize("task", ["no_such_task", "../tense", "logical_deduction"])
def test_what_is_no_generation_task_is_refused(task: str) -> None:
    examples_or_skip("tense")
    with pytest.raises(InputError, match=r"data.task: (is )?'"):
        bigbench_examples(task)


def test_the_split_is_big_benchs_own_rule() -> None:
    rows = [{"input": f"{i}", "target": [f"t{i}", "x"]} for i in range(100)]
    content = {"examples": [*rows, rows[0]], "task_prefix": "Do it.", "example_output_prefix": "\nOut: "}
    found = list(bigbench._split("sums", content, bigbench.MIN_VALIDATION))
    random.seed(42)
    random.shuffle(rows)  # equal examples count once
    assert [text for _, text, _ in found] == [f"Do it.\nQ: {row['input']}\nOut: " for row in rows]
    assert [split for split, _, _ in found] == ["train"] * 80 + ["validation"] * 20
    small = list(bigbench._split("sums", {"examples": rows[:20]}, bigbench.MIN_VALIDATION))
    assert sum(split == "validation" for split, _, _ in small) == 16


def test_examples_without_text_are_left_out() -> None:
    rows = [("train", "in", ["a", "a ", ""]), ("train", "  ", ["a"]), ("validation", "in", [" "])]
    (example,) = bigbench._usable("t", rows)
    assert (example.references, example.id, example.split) == (("a",), "t:0", "train")


def test_without_hub_and_index_the_message_says_what_was_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPPY_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        InputError, match=r"neither the hub nor the package index gave BIG-bench \(.*\), expected .*tar.gz"
    ):
        bigbench_examples("tense")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))

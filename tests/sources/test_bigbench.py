"""BIG-bench's archive against the counts and the split that the hub's version has."""

import random
from pathlib import Path

import pytest

from cappy_lightning.errors import InputError
from cappy_lightning.records import Example
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
@pytest.mark.parametrize("task", ["no_such_task", "../tense"])
def test_what_is_no_task_is_refused(task: str) -> None:
    examples_or_skip("tense")
    with pytest.raises(InputError, match=r"bigbench: is '"):
        bigbench_examples(task)


@pytest.mark.network
def test_multiple_choice_tasks_have_choices_and_mixed_generation_tasks_references() -> None:
    examples_or_skip("tense")
    logic = bigbench_examples("logical_deduction")
    assert len(logic) == 1500
    assert {len(e.choices) for e in logic} == {3, 5, 7}
    assert all(e.choices[e.label or 0] in e.choices and not e.references for e in logic)
    mysteries = bigbench_examples("minute_mysteries_qa")
    assert len(mysteries) == 477
    assert all(e.references and not e.choices for e in mysteries)


def test_the_split_is_big_benchs_own_rule() -> None:
    rows = [{"input": f"{i}", "target": [f"t{i}", "x"]} for i in range(100)]
    content = {"examples": [*rows, rows[0]], "task_prefix": "Do it.", "example_output_prefix": "\nOut: "}
    found = list(bigbench._split(content, bigbench.MIN_VALIDATION))
    random.seed(42)
    random.shuffle(rows)  # equal examples count once
    assert [row.text for row in found] == [f"Do it.\nQ: {row['input']}\nOut: " for row in rows]
    assert [row.split for row in found] == ["train"] * 80 + ["validation"] * 20
    small = list(bigbench._split({"examples": rows[:20]}, bigbench.MIN_VALIDATION))
    assert sum(row.split == "validation" for row in small) == 16


def test_choices_are_shown_in_the_input_unless_the_task_says_otherwise() -> None:
    example = {"input": "in", "target_scores": {"b": 0, "a": 1, "c": 0}}
    (row,) = bigbench._split({"examples": [example]}, 1)
    # numpy's legacy generator with seed 42, of the sorted choices
    assert row.text == "\nQ: in\n  choice: a\n  choice: b\n  choice: c\nA: "
    assert (list(row.scores), row.targets) == (["b", "a", "c"], ["a"])
    (row,) = bigbench._split({"examples": [example], "append_choices_to_input": False}, 1)
    assert row.text == "\nQ: in\nA: "


@pytest.mark.parametrize(
    ("scores", "choices", "label"),
    [
        ({"x": 0, "y": 1}, ("x", "y"), 1),
        ({"x": 0, " y ": 1, "y": 0}, ("x", "y"), 1),
        ({"x": 0.5, "y": 1, "z": 0, "w": 1}, ("y", "z"), 0),
        ({"x": 0, "y": 0}, None, None),
        ({"x": 1}, None, None),
        ({"x": 1, "": 0}, None, None),
    ],
)
def test_the_best_choice_is_right_and_what_else_has_a_score_is_left_out(
    scores: dict[str, float], choices: tuple[str, ...] | None, label: int | None
) -> None:
    found = bigbench._example("mine", 3, bigbench._Row("train", " in ", ["y"], scores))
    assert (found and found.choices, found and found.label) == (choices, label)
    reference = bigbench._example("tense", 3, bigbench._Row("train", " in ", ["y"], scores))
    assert reference is not None
    assert (reference.references, reference.id, reference.instruction) == (("y",), "tense:3", "in")


def test_examples_without_text_are_left_out() -> None:
    rows = [("in", ["a", "a ", ""]), ("  ", ["a"]), ("in", [" "])]
    found = [
        bigbench._example("t", n, bigbench._Row("train", text, targets, {})) for n, (text, targets) in enumerate(rows)
    ]
    assert found == [Example("t", "t:0", "in", ("a",), split="train"), None, None]


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
    assert not any(path.is_file() and path.name != ".lock" for path in tmp_path.rglob("*"))

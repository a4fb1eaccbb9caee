"""The records and the one check of their JSON forms."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cappy_lightning.errors import InputError
from cappy_lightning.matching import normalize
from cappy_lightning.records import Candidate, Example, Instance, Pool, Selection

EXAMPLE = {"task": "sums", "instruction": "1+1?", "references": ["2", "two"]}
CHOICE = {"task": "sums", "instruction": "1+1?", "choices": ["2", "3"], "label": 0}
POOL = {**EXAMPLE, "candidates": [{"response": "2"}]}
INSTANCE = {"instruction": "1+1?", "response": "2", "score": 0.5}


def without(row: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


def message(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_input_error_is_one_line_that_begins_with_its_place() -> None:
    assert str(InputError("pool.jsonl:3", "two\nlines\t of  it")) == "pool.jsonl:3: two lines of it"


BAD_EXAMPLES: list[tuple[dict[str, Any], str]] = [
    (without(EXAMPLE, "task"), "field 'task' is missing"),
    ({**EXAMPLE, "task": 3}, "field 'task' is int"),
    ({**EXAMPLE, "instruction": " \n"}, "field 'instruction' is empty"),
    ({**EXAMPLE, "instruction": None}, "field 'instruction' is NoneType"),
    (without(EXAMPLE, "references"), "either 'references' or 'choices'"),
    ({**EXAMPLE, **CHOICE}, "either 'references' or 'choices'"),
    ({**EXAMPLE, "references": []}, "field 'references' must be a non-empty list"),
    ({**EXAMPLE, "references": "2"}, "field 'references' must be a non-empty list"),
    ({**EXAMPLE, "references": None}, "field 'references' must be a non-empty list"),
    ({**EXAMPLE, "references": ["2", 3]}, "field 'references[1]' is int"),
    ({**EXAMPLE, "references": ["2", ""]}, "field 'references[1]' is empty"),
    ({**CHOICE, "choices": []}, "field 'choices' must be a non-empty list"),
    ({**CHOICE, "choices": ["2", None]}, "field 'choices[1]' is NoneType"),
    ({**CHOICE, "label": 2}, "field 'label' is 2, expected an index into the 2 choices"),
    ({**CHOICE, "label": -1}, "field 'label' is -1"),
    ({**CHOICE, "label": True}, "field 'label' is True"),
    ({**CHOICE, "label": "0"}, "field 'label' is '0'"),
    (without(CHOICE, "label"), "field 'label' is None"),
    ({**EXAMPLE, "split": "test"}, "field 'split' is 'test'"),
    ({**EXAMPLE, "split": ["train"]}, "field 'split' is ['train']"),
]
BAD_CANDIDATES: list[tuple[dict[str, Any], str]] = [
    (without(POOL, "candidates"), "field 'candidates' must be a non-empty list"),
    ({**POOL, "candidates": []}, "field 'candidates' must be a non-empty list"),
    ({**POOL, "candidates": "2"}, "field 'candidates' must be a non-empty list"),
    ({**POOL, "candidates": ["2"]}, "candidates[0]: a candidate is str"),
    ({**POOL, "candidates": [{"response": "2"}, {}]}, "candidates[1]: field 'response' is missing"),
    ({**POOL, "candidates": [{"response": " "}]}, "candidates[0]: field 'response' is empty"),
    ({**POOL, "candidates": [{"response": "2", "decoding": ""}]}, "candidates[0]: field 'decoding' is empty"),
    ({**POOL, "candidates": [{"response": "2", "log_likelihood_sum": "-1"}]}, "'log_likelihood_sum' is -1,"),
    ({**POOL, "candidates": [{"response": "2", "log_likelihood_sum": True}]}, "'log_likelihood_sum' is True"),
    ({**POOL, "candidates": [{"response": "2", "log_likelihood_mean": float("nan")}]}, "'log_likelihood_mean' is nan"),
    (
        {**POOL, "candidates": [{"response": "2", "log_likelihood_mean": float("-inf")}]},
        "'log_likelihood_mean' is -inf",
    ),
    ({**CHOICE, "candidates": []}, "field 'candidates' must be a non-empty list"),
]
BAD_INSTANCES: list[tuple[dict[str, Any], str]] = [
    (without(INSTANCE, "instruction"), "field 'instruction' is missing"),
    ({**INSTANCE, "response": ""}, "field 'response' is empty"),
    (without(INSTANCE, "score"), "field 'score' is None"),
    ({**INSTANCE, "score": "0.5"}, "field 'score' is '0.5'"),
    ({**INSTANCE, "score": True}, "field 'score' is True"),
    ({**INSTANCE, "score": -0.1}, "field 'score' is -0.1"),
    ({**INSTANCE, "score": 1.1}, "field 'score' is 1.1"),
    ({**INSTANCE, "score": float("nan")}, "field 'score' is nan"),
    ({**INSTANCE, "origin": "human"}, "field 'origin' is 'human', expected one of gold, given"),
]


@pytest.mark.parametrize(
    ("read", "row", "problem"),
    [
        *((Example.from_row, row, problem) for row, problem in BAD_EXAMPLES),
        *((Pool.from_row, {**row, "candidates": POOL["candidates"]}, problem) for row, problem in BAD_EXAMPLES),
        *((Pool.from_row, row, problem) for row, problem in BAD_CANDIDATES),
        *((Instance.from_row, row, problem) for row, problem in BAD_INSTANCES),
    ],
)
def test_a_bad_row_is_refused_with_its_place_and_field(read: Any, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as error:
        read(row, "data.jsonl:7")
    assert message(error).startswith("data.jsonl:7: ")
    assert problem in message(error)


@pytest.mark.parametrize("row", [EXAMPLE, CHOICE, {**EXAMPLE, "split": "validation"}, {**CHOICE, "id": "x"}])
def test_an_example_survives_its_json_form(row: dict[str, Any]) -> None:
    example = Example.from_row(row, "w")
    assert Example.from_row(example.to_row(), "w") == example


@pytest.mark.parametrize("prompt", [{}, {"prompt": "Q: 1+1?\nA:"}])
def test_a_pool_survives_its_json_form(prompt: dict[str, str]) -> None:
    candidate = {"response": "2", "decoding": "greedy", "log_likelihood_sum": -2, "log_likelihood_mean": -0.5}
    pool = Pool.from_row({**POOL, **prompt, "candidates": [candidate, {"response": "3"}]}, "w")
    assert Pool.from_row(pool.to_row(), "w") == pool
    assert pool.candidates[1].to_row() == {"response": "3", "decoding": "given"}
    assert pool.prompt == prompt.get("prompt")


def test_a_pool_without_truth_survives_its_json_form() -> None:
    pool = Pool.from_row(without(POOL, "references"), "w", labelled=False)
    assert Pool.from_row(pool.to_row(), "w", labelled=False) == pool


def test_a_pool_without_truth_is_read_only_where_it_may_be() -> None:
    row = without(POOL, "references")
    pool = Pool.from_row(row, "w", labelled=False)
    assert (pool.example.references, pool.example.choices, pool.example.label) == ((), (), None)
    with pytest.raises(InputError, match=r"^w: expected either"):
        Pool.from_row(row, "w")


def test_the_choices_are_the_candidates_where_none_are_given() -> None:
    assert Pool.from_row(CHOICE, "w").candidates == (Candidate("2", "choice"), Candidate("3", "choice"))
    assert Pool.from_row({**CHOICE, "candidates": [{"response": "4"}]}, "w").candidates == (Candidate("4", "given"),)


def test_an_id_that_is_made_depends_on_the_content_alone() -> None:
    made = Example.from_row(EXAMPLE, "a:1").id
    assert made == Example.from_row({**EXAMPLE, "split": "train", "other": 1}, "b:2").id
    changed = [{"task": "t"}, {"instruction": "2+2?"}, {"references": ["2"]}]
    assert len({made, *(Example.from_row({**EXAMPLE, **change}, "w").id for change in changed)}) == 4


def test_an_id_that_is_null_counts_as_absent() -> None:
    assert Example.from_row({**EXAMPLE, "id": None}, "w") == Example.from_row(EXAMPLE, "w")


@pytest.mark.parametrize("number", [7, 0])
def test_an_id_that_is_a_number_becomes_its_text(number: int) -> None:
    assert Example.from_row({**EXAMPLE, "id": number}, "w").id == str(number)


def test_instances_without_names_belong_together_by_their_instruction() -> None:
    one, other = Instance.from_row(INSTANCE, "w"), Instance.from_row({**INSTANCE, "response": "3"}, "w")
    assert (one.task, one.origin) == ("default", "given")
    assert one.example_id == other.example_id != Instance.from_row({**INSTANCE, "instruction": "x"}, "w").example_id


def test_an_instance_keeps_what_it_is_given() -> None:
    row = {**INSTANCE, "score": 1, "origin": "gold", "task": "sums", "example_id": 3}
    assert Instance.from_row(row, "w") == Instance("1+1?", "2", 1.0, "gold", "sums", "3")


def test_an_instance_keeps_the_example_id_zero() -> None:
    assert Instance.from_row({**INSTANCE, "example_id": 0}, "w").example_id == "0"


@pytest.mark.parametrize(
    ("read", "row"),
    [
        (Example.from_row, {**EXAMPLE, "instruction": "\ud83d"}),
        (Instance.from_row, {**INSTANCE, "instruction": "\ud83d"}),
        (Pool.from_row, {**POOL, "candidates": [{"response": "2", "log_likelihood_sum": 10**400}]}),
    ],
    ids=["example with half a surrogate pair", "instance with half a surrogate pair", "number beyond float"],
)
def test_what_json_can_say_but_no_record_can_hold_is_an_input_error(read: Any, row: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^w: "):
        read(row, "w")


@settings(deadline=None)
@given(st.text())
def test_normalizing_twice_is_normalizing_once(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


def test_answers_count_as_the_same_without_case_punctuation_and_white_space() -> None:
    assert normalize(" The  Answer,\nis:\t42! ") == normalize("the answer is 42") == "the answer is 42"
    assert normalize(" ?! ") == "?!"  # nothing but punctuation stays, and differs from other punctuation
    assert normalize("Größe") != normalize("Grosse")
    assert normalize("It is 3.5, or $1,000.") == "it is 3.5 or 1000"  # another number than 35
    assert [normalize(text) for text in ("-5", "(-.5)", "5-")] == ["-5", "-.5", "5"]


@pytest.mark.parametrize(
    ("response", "choice"),
    [
        ("C++", "C++"), (" c++\n", "C++"), ("C++.", "C++"), ("**C**", "C"), ("C#", None), ("c", "C"),
        ("-5.", "-5"), ("5!", "5"), ("f-o_o", "foo"), ("YES", None), ("Yes", "Yes"), ("other", None),
    ],
)  # fmt: skip
def test_a_response_stands_for_the_choice_that_it_differs_from_least(response: str, choice: str | None) -> None:
    choices = ("C", "C++", "C+", "5", "-5", "foo", "Yes", "yes.", "yes!", "yes")
    assert Example("t", "1", "i", choices=choices, label=0).choice_of(response) == choice


def test_of_equal_logits_the_first_is_selected() -> None:
    example = Example("sums", "1", "1+1?")
    selection = Selection.best([0.5, 2.0, 2.0], [0.6, 1.0, 1.0], ["a", "b", "c"], example)
    assert (selection.index, selection.response, selection.score) == (1, "b", 1.0)
    assert selection.to_row() == {
        "task": "sums", "id": "1", "index": 1, "response": "b", "score": 1.0, "scores": [0.6, 1.0, 1.0],
        "logits": [0.5, 2.0, 2.0],
    }  # fmt: skip


def test_logits_decide_where_scores_saturate() -> None:
    assert Selection.best([40.0, 50.0], [1.0, 1.0], ["a", "b"]).index == 1

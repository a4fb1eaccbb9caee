"""Rouge-L against the `rouge-score` package: equal to the last bit."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import rouge_l
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from cappy_lightning.labeling.tokens import TOKENIZERS

THEIRS = RougeScorer(["rougeL"], use_stemmer=True)
QUICKSTART = Path(__file__).parents[2] / "data" / "quickstart" / "examples.jsonl"

WORDS = [
    *("the", "a", "of", "cats", "cat", "running", "runs", "ran", "runner", "relational", "conditional", "happily"),
    *("flies", "died", "agreed", "generically", "oscillate", "hopping", "sky", "skies", "news", "innings"),
    *("U.S.A.", "don't", "e-mail", "3.14", "42", "1,000", "x_y", "__init__", "$5", "50%", "...", "?!", "-", "\x00"),
    *("Größe", "naïve", "café", "İstanbul", "ſtraße", "\u212aelvin", "東京", "привет", "ελλάδα", "עברית", "नमस्ते"),
    *("😀", "\ufb01nal", "½", "²", "\u200b", "\u2028", "\n", "\t", ""),
]


def theirs(references: Sequence[str], response: str) -> float:
    return float(THEIRS.score_multi(references, response)["rougeL"].fmeasure)


def some_text(generator: random.Random) -> str:
    words = (generator.choice(WORDS) for _ in range(generator.choice((0, 1, 2, 3, 5, 8, 13, 40))))
    return generator.choice((" ", " ", "-", "")).join(generator.choice((str, str.upper, str.title))(w) for w in words)


def test_it_equals_rouge_score_on_texts_of_any_kind() -> None:
    generator = random.Random(0)
    values = set()
    for _ in range(500):
        references, response = [some_text(generator) for _ in range(generator.randint(1, 3))], some_text(generator)
        if generator.random() < 0.3:  # close to a reference
            words = references[0].split()
            response = " ".join(w for w in words if generator.random() < 0.8)
        values.add(mine := rouge_l(references, response))
        assert mine == theirs(references, response), (references, response)
    assert len(values) > 100
    assert {0.0, 1.0} < values


def test_it_equals_rouge_score_on_the_quickstart() -> None:
    rows = [json.loads(line) for line in QUICKSTART.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        other = rows[(7 * number + 1) % len(rows)]
        for response in (*other["references"], other["instruction"], row["instruction"]):
            assert rouge_l(row["references"], response) == theirs(row["references"], response)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=3), st.text())
def test_it_equals_rouge_score_on_any_characters(references: list[str], response: str) -> None:
    assert rouge_l(references, response) == theirs(references, response)


@pytest.mark.parametrize(
    ("references", "response", "expected"),
    [
        (["a b c d"], "a x c", 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),  # "a c" in common
        (["a b"], "b a", 0.5),  # the order counts: one of two
        (["a a"], "a", 2 / 3),  # each word as often as it stands
        (["The CATS, running!"], "the cat runs", 1.0),  # case, punctuation and endings do not count
        (["x", "a b", "a"], "a b", 1.0),  # the best of the references
        (["a"], "b", 0.0),
    ],
)
def test_it_is_what_one_computes_by_hand(references: list[str], response: str, expected: float) -> None:
    assert rouge_l(references, response) == expected


@pytest.mark.parametrize("text", ["", " \n", "?!", "東京", "😀"])
def test_without_a_token_on_either_side_it_is_0(text: str) -> None:
    assert TOKENIZERS["paper"](text) == []
    assert rouge_l([text], text) == rouge_l(["a", text], text) == rouge_l([text], "a") == 0.0


@settings(deadline=None)
@given(st.text("abc ", min_size=1), st.text("abc ", min_size=1))
def test_it_is_the_same_both_ways_and_between_0_and_1(one: str, other: str) -> None:
    assert 0 <= rouge_l([one], other) == rouge_l([other], one) <= 1


def test_references_in_any_order_give_the_same() -> None:
    references = ["a b c", "c b a", "b"]
    values = {rouge_l(order, "b c x") for order in (references, references[::-1], [references[1], *references])}
    assert len(values) == 1

"""The measures by name, and the tokens of every script."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cappy_lightning.errors import InputError
from cappy_lightning.labeling import rouge, tokens
from cappy_lightning.labeling.measures import KeptScores, open_measure
from cappy_lightning.labeling.rouge import Item, RougeL
from cappy_lightning.labeling.tokens import TOKENIZERS, Encoder

PAPER, UNICODE = TOKENIZERS["paper"], TOKENIZERS["unicode"]


def score(measure: str, references: list[str], response: str, tokenizer: str = "paper") -> float:
    (value,) = open_measure(measure, tokenizer).scores([("i", references, response)])
    return value


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The CATS, don't run: x_1!", ["the", "cats", "don", "t", "run", "x", "1"]),
        ("Größe naïve ÉTÉ", ["grösse", "naïve", "été"]),
        ("东京大学 and 京都", ["东", "京", "大", "学", "and", "京", "都"]),
        ("ラーメンを食べる", ["ラー", "メ", "ン", "を", "食", "べ", "る"]),
        ("ภาษาไทย", ["ภ", "า", "ษ", "า", "ไ", "ท", "ย"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("привет, мир", ["привет", "мир"]),
        ("안녕 세상", ["안녕", "세상"]),
        ("ﬁnal ½ ２３", ["final", "1", "2", "23"]),
        ("๒๕๖๓ 二〇二〇年", ["๒", "๕", "๖", "๓", "二", "〇", "二", "〇", "年"]),
        ("😀 ?! …", []),
        ("", []),
    ],
)
def test_every_script_has_tokens(text: str, tokens: list[str]) -> None:
    assert UNICODE(text) == tokens


@settings(deadline=None)
@given(st.text("abz 09.-'AZ", max_size=40))
def test_on_plain_english_both_tokenizers_agree(text: str) -> None:
    assert UNICODE(text) == PAPER(text)


def test_equal_tokens_are_equal_characters_and_stems_count() -> None:
    encoder = Encoder("unicode")
    assert encoder.encode("Running cats RUN") == encoder.encode("run cat runs")
    one, other = encoder.encode("京都 東京")[:2], encoder.encode("都")
    assert other == one[1]


def test_the_vocabulary_is_renewed_and_comparisons_stay_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MOST_STEMS", 500)
    monkeypatch.setattr(rouge, "BLOCK", 100)
    measure = RougeL("unicode")
    items = [("", [f"word{n} common other{n}"], f"common tail{n}") for n in range(3000)]
    assert set(measure.scores([*items, *items])) == {2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)}
    assert len(measure._encoder._characters) < 500 + 4 * 100


@pytest.mark.parametrize("score", ["rouge_l", "token_f1"])
def test_the_vocabulary_of_long_texts_stays_small_enough_for_characters(
    score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_MOST_STEMS", 500)
    monkeypatch.setattr(rouge, "CHARACTERS", 3000)
    measure: Any = open_measure(score, "paper")
    items = [("", [" ".join(str(60 * n + k) for k in range(60))], str(60 * n)) for n in range(500)]
    assert set(measure.scores(items)) == {2 / 61}
    assert len(measure._encoder._characters) < 500 + 3000 / 2


@pytest.mark.parametrize("tokenizer", ["paper", "unicode"])
def test_a_block_gives_what_each_item_gives_alone(tokenizer: str) -> None:
    items = [("", ["a b c", "b"][: 1 + n % 2], f"{'a ' * (n % 3)}b 京{n}") for n in range(50)]
    rouge = RougeL(tokenizer)
    assert rouge.scores(items) == [value for item in items for value in RougeL(tokenizer).scores([item])]


@pytest.mark.parametrize(
    ("measure", "references", "response", "expected"),
    [
        ("rouge_l", ["a b"], "b a", 0.5),
        ("exact_match", ["The Cat.", "x"], "the cat", 1.0),
        ("exact_match", ["cats"], "cat", 0.0),
        ("token_f1", ["a b"], "b a", 1.0),
        ("token_f1", ["a a b", "c"], "a c", max(2 * 1 / 5, 2 * 1 / 3)),
        ("token_f1", ["a"], "", 0.0),
    ],
)
def test_measures_by_name(measure: str, references: list[str], response: str, expected: float) -> None:
    assert score(measure, references, response) == pytest.approx(expected)


def test_the_unicode_tokenizer_gives_other_scripts_their_due() -> None:
    assert score("rouge_l", ["東京大学"], "京都大学") == 0
    assert score("rouge_l", ["東京大学"], "京都大学", "unicode") == 0.75
    assert score("token_f1", ["東京大学"], "大学東京", "unicode") == 1


def test_a_function_of_the_users_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_judge.py").write_text(
        "def length(instruction, references, response):\n    return len(response) / len(references[0])\n"
        "def broken(instruction, references, response):\n    return references['x']\n"
        "nothing = 3\n"
    )
    assert score("my_judge:length", ["abcd"], "ab") == 0.5
    assert open_measure("my_judge:length", "paper").name == "my_judge:length"
    for name, problem in (
        ("my_judge:broken", "label.score=my_judge:broken: failed with TypeError: "),
        ("my_judge:nothing", "label.score: 'my_judge:nothing' is no function"),
        ("my_judge:missing", "label.score: 'my_judge:missing' cannot be imported (AttributeError: "),
        ("no_such_module:f", "label.score: 'no_such_module:f' cannot be imported (ModuleNotFoundError: "),
        ("bleu", "label.score: is 'bleu', expected rouge_l, exact_match, token_f1 or package.module:function"),
    ):
        with pytest.raises(InputError) as error:
            score(name, ["a"], "b")
        assert str(error.value).startswith(problem)
    with pytest.raises(InputError, match=r"gave 1.5, expected a number from 0 to 1, for the response 'abcdef'"):
        score("my_judge:length", ["abcd"], "abcdef")


def test_kept_scores_are_not_asked_again_wherever_it_was_stopped(tmp_path: Path) -> None:
    asked: list[Item] = []

    class Stopping(RougeL):
        def scores(self, items: Sequence[Item]) -> list[float]:
            if len(asked) % 512 == 256:
                asked.extend([("stopped", (), "")] * 256)
                raise KeyboardInterrupt
            asked.extend(items)
            return super().scores(items)

    items = [("i", (f"a b c{n}",), f"{'a ' * (n % 3)}c{n % 7}") for n in range(1000)]
    again, stops = [*items, *items[:10]], 0
    while True:
        try:
            found = KeptScores(Stopping(), tmp_path / "kept").scores(again)
            break
        except KeyboardInterrupt:
            stops += 1
            with open(tmp_path / "kept", "ab") as file:
                file.write(b"cut off")
    assert found == RougeL().scores(again)
    assert stops > 2
    assert [item for item in asked if item[0] != "stopped"] == items

"""`Cappy.answer` and `Cappy.answers`, with recorded candidates and with the real embedded LLM."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import QUICKSTART_POOL
from proxy import running_proxy

from cappy_lightning import Cappy
from cappy_lightning.answering import stopping
from cappy_lightning.answering.ahead import Ahead
from cappy_lightning.backbones.embedded import embedded_server
from cappy_lightning.cappy import _answer_config
from cappy_lightning.errors import InputError
from cappy_lightning.records import Pool

RECORDED = {"kind": "recorded", "pools": [str(QUICKSTART_POOL)], "shots": 0}
SOME = {**RECORDED, "decodings": {"greedy": 1, "temperature_0.7": 4}}


@pytest.fixture(scope="module")
def scorer(lora_run: Path) -> Cappy:
    return Cappy.from_pretrained(lora_run / "adapter")


def test_answers_are_what_select_gives(scorer: Cappy, pools: list[Pool]) -> None:
    asked = [pool.example.instruction for pool in pools[:40]]
    asked.insert(20, "nobody has recorded this")
    found = list(scorer.answers(asked, SOME))
    assert len(found) == 41
    nothing = found.pop(20)
    assert (nothing.response, nothing.score, nothing.candidates) == (None, None, ())
    assert nothing.problem == "no recorded pool has this instruction"
    for pool, best in zip(pools, found, strict=False):
        responses = [c.response for c in pool.candidates if c.decoding in ("greedy", "temperature_0.7")]
        expected = scorer.select(pool.example.instruction, responses)
        assert best.response == expected.response
        assert best.score == pytest.approx(expected.score, abs=1e-6)
        assert [one.response for one in best.candidates] == [
            one.response for one in scorer.rank(pool.example.instruction, responses)
        ]


def test_one_is_one_of_many_and_n_says_how_many(scorer: Cappy, pools: list[Pool]) -> None:
    asked = pools[3].example.instruction
    best = scorer.answer(asked, RECORDED, n=3)
    assert len(best.candidates) == 3
    assert best == next(scorer.answers([asked], RECORDED, n=3))
    assert len(scorer.answer(asked, RECORDED, n=1).candidates) == 1


def test_it_stops_and_abstains_by_scores(scorer: Cappy, pools: list[Pool]) -> None:
    asked = [pool.example.instruction for pool in pools[:20]]
    scores = [best.score or 0.0 for best in scorer.answers(asked, SOME)]
    middle = sorted(scores)[10]
    unsure = list(scorer.answers(asked, SOME, abstain=middle))
    assert [best.response is None for best in unsure] == [score < middle for score in scores]
    assert [best.score for best in unsure] == pytest.approx(scores)  # the candidates are there all the same
    assert all(best.candidates for best in unsure)
    assert {len(best.candidates) for best in scorer.answers(asked, SOME, stop=0.0)} == {2}  # one round
    assert {len(best.candidates) for best in scorer.answers(asked, SOME, stop=0.0, step=3)} == {3}


def test_what_was_scored_to_stop_is_not_scored_again(
    scorer: Cappy, pools: list[Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [pool.example.instruction for pool in pools[:20]]
    expected = list(scorer.answers(asked, SOME))
    scored: list[tuple[str, str]] = []
    logits = Cappy.logits

    def counted(self: Cappy, pairs: list[tuple[str, str]], task: object = None) -> object:
        scored.extend(pairs)
        return logits(self, pairs, task)  # type: ignore[arg-type]

    monkeypatch.setattr(Cappy, "logits", counted)
    found = list(scorer.answers(asked, SOME, stop=1.0, step=2))
    assert len(scored) == len(set(scored))
    assert [best.response for best in found] == [best.response for best in expected]
    assert [best.score for best in found] == pytest.approx([best.score for best in expected], abs=1e-6)


def test_a_real_llm_answers(scorer: Cappy) -> None:
    settings = {"kind": "embedded", "max_tokens": 8, "concurrency": 2}
    shots = [("What color is the sky?", "blue"), ("What color is coal?", "black")]
    questions = [f"What color is {thing}?" for thing in ("a banana", "snow", "a leaf")]
    found = list(scorer.answers(questions, settings, n=3, shots=shots))
    assert [len(best.candidates) for best in found] == [3, 3, 3]
    for best in found:
        assert best.response == best.candidates[0].response
        assert best.score == max(one.score for one in best.candidates)
        assert 0 < best.output_tokens <= 24
        assert best.input_tokens > 0
    assert [best.response for best in scorer.answers(questions, settings, n=3, shots=shots)] == [
        best.response for best in found
    ]


@pytest.mark.parametrize(
    ("backbone", "options", "said"),
    [
        ("llama", {}, "backbone.kind: is 'llama', expected one of"),
        ({"knd": "openai"}, {}, "unknown key 'backbone.knd'"),
        ("embedded", {"n": 0}, "n: is 0, expected at least 1"),
        ("embedded", {"stop": 2.0}, "answer.stop: is 2.0, expected a score from 0 to 1"),
        ({"decodings": {"hot": 3}}, {}, "backbone.decodings.hot: unknown decoding"),
    ],
)
def test_settings_that_cannot_be(scorer: Cappy, backbone: object, options: dict[str, float], said: str) -> None:
    with pytest.raises(InputError) as error:
        scorer.answer("Hello", backbone, **options)  # type: ignore[arg-type]
    assert said in str(error.value)


def test_what_works_ahead_hands_on_errors_and_can_be_left() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise InputError("here", "is wrong")

    with Ahead[int](1) as ahead:
        read = ahead.read(items())
        assert [next(read), next(read)] == [1, 2]
        with pytest.raises(InputError, match="here: is wrong"):
            next(read)
    before = threading.active_count()
    with Ahead[int](2) as ahead:
        assert next(ahead.read(iter(range(1000)))) == 0
    assert threading.active_count() == before
    with Ahead[int](2) as ahead:
        assert list(ahead.read(iter(()))) == []
    with Ahead[int](2):  # what goes wrong before anything is read
        pass


def test_settings_are_taken_as_they_are() -> None:
    template = "\U0001f600 \u2028 \x7f é: {instruction} # [x] 'q' \"z\" \\ud83d \n"
    config = _answer_config({"kind": "openai", "template": template, "url": None, "timeout": 1e-3}, 3, {"stop": 1e-7})
    assert (config.backbone.template, config.backbone.timeout, config.answer.stop) == (template, 1e-3, 1e-7)


def test_leaving_early_does_not_wait_for_an_llm_that_has_stalled(
    scorer: Cappy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "WAVE", 16)
    settings = {"kind": "openai", "max_tokens": 4, "concurrency": 1, "chat": True}
    with (
        embedded_server() as llm,
        running_proxy(llm, lambda number, _: "hang" if number > 40 else None) as (url, proxy),
    ):
        for options in ({}, {"stop": 1.0}):
            proxy.seen.clear()  # 2 requests of the probe, then 2 for each instruction
            answers = scorer.answers((f"Say {n}" for n in range(60)), {**settings, "url": url}, n=2, **options)
            assert next(answers).candidates
            start = time.monotonic()
            answers.close()
            assert time.monotonic() - start < 10

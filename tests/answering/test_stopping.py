"""Sampling until the scorer is sure, by a real scorer over recorded candidates of a real LLM."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import QUICKSTART_POOL

from cappy_lightning import Cappy
from cappy_lightning.answering.stopping import NOTHING, ScoredAnswer, StoppingBackbone, enough, plan_rounds, until_sure
from cappy_lightning.backbones.backbone import LACKING, ONLY_EMPTY, Answer, Request
from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.backbones.recorded import RecordedBackbone
from cappy_lightning.config import AnswerConfig
from cappy_lightning.records import Candidate, Example, Pool

DECODINGS = [Decoding("greedy", 1), Decoding("temperature_0.7", 4), Decoding("nucleus_0.9", 4)]
STEP = 3


@pytest.fixture(scope="module")
def scorer(lora_run: Path) -> Cappy:
    return Cappy.from_pretrained(lora_run / "adapter")


@pytest.fixture(scope="module")
def asked(pools: list[Pool]) -> list[Pool]:
    return pools[:70]  # more than two waves


def sampled(scorer: Cappy, pools: list[Pool], config: AnswerConfig) -> list[Answer]:
    backbone = StoppingBackbone(RecordedBackbone([str(QUICKSTART_POOL)]), scorer, config)
    return list(backbone.answer((Request(pool.example, "") for pool in pools), DECODINGS))


def test_decodings_contribute_in_turns_and_say_what_came_before() -> None:
    decodings = [Decoding("greedy", 1), Decoding("beam_4", 4, beams=4), Decoding("sampling", 5), Decoding("top_k_9", 2)]
    found = [[(d.name, d.n, d.skip) for d in one] for one in plan_rounds(decodings, 3)]
    assert found == [
        [("greedy", 1, 0), ("beam_4", 4, 0), ("sampling", 1, 0)],
        [("sampling", 1, 1), ("top_k_9", 2, 0)],
        [("sampling", 3, 2)],
    ]
    assert plan_rounds([Decoding("sampling", 2)], 10) == [[Decoding("sampling", 2)]]


def test_it_stops_with_the_first_round_that_has_a_good_candidate(scorer: Cappy, asked: list[Pool]) -> None:
    everything = sampled(scorer, asked, AnswerConfig(step=STEP, stop=1.0))
    for answer in everything:
        assert Counter(c.decoding for c in answer.candidates) == {one.name: one.n for one in DECODINGS}
        assert [c.decoding for c in answer.candidates[:STEP]] == [one.name for one in DECODINGS]
    scores = [
        scorer.score([(pool.example.instruction, c.response) for c in answer.candidates]).tolist()
        for pool, answer in zip(asked, everything, strict=True)
    ]
    stop = sorted(max(own) for own in scores)[len(scores) // 3]  # some never get there
    lengths = set()
    for own, answer, whole in zip(
        scores, sampled(scorer, asked, AnswerConfig(step=STEP, stop=stop)), everything, strict=True
    ):
        enough = next((end for end in (STEP, 2 * STEP) if max(own[:end]) >= stop), 3 * STEP)
        assert answer.candidates == whole.candidates[:enough]
        lengths.add(enough)
    assert lengths == {STEP, 2 * STEP, 3 * STEP}


def test_without_a_reason_to_stop_the_backbone_is_left_alone(scorer: Cappy) -> None:
    backbone = RecordedBackbone([str(QUICKSTART_POOL)])
    assert until_sure(backbone, scorer, AnswerConfig()) is backbone
    assert until_sure(backbone, scorer, AnswerConfig(stop=0.5)) is not backbone
    assert until_sure(backbone, scorer, AnswerConfig(budget_tokens=5)) is not backbone


def test_when_it_is_enough() -> None:
    neither, both = AnswerConfig(), AnswerConfig(stop=0.5, budget_tokens=10)
    assert not enough(neither, 1.0, 10**9)
    assert [enough(both, best, tokens) for best, tokens in ((NOTHING, 9), (0.4, 9), (0.5, 0), (0.0, 10))] == [
        False,
        False,
        True,
        True,
    ]
    assert not enough(AnswerConfig(stop=0.0), NOTHING, 0)  # there is no candidate yet


class Talking:
    """Says what it is told to, round by round; a budget and refusals are nothing that recordings have."""

    group = 4

    def __init__(self, *rounds: Answer) -> None:
        self.rounds, self.asked = rounds, [0] * 8

    def refuses(self, decoding: Decoding) -> str | None:
        return None

    def answer(self, requests: Iterator[Request], decodings: Sequence[Decoding]) -> Iterator[Answer]:
        for request in requests:
            number = int(request.example.id)
            self.asked[number] += 1
            yield self.rounds[self.asked[number] - 1]


def said(*texts: str, tokens: int = 10) -> Answer:
    return Answer(tuple(Candidate(text, "sampling") for text in texts), tokens, len(texts))


def test_budgets_refusals_and_empty_answers(scorer: Cappy) -> None:
    requests = [Request(Example("t", str(number), "Say something"), "") for number in range(2)]
    three = [Decoding("sampling", 3)]

    def answers(config: AnswerConfig, *rounds: Answer) -> tuple[Answer, int]:
        talking = Talking(*rounds)
        first, second = StoppingBackbone(talking, scorer, config).answer(iter(requests), three)
        assert first == second
        return first, talking.asked[0]

    one_each = AnswerConfig(step=1, budget_tokens=22)
    assert answers(one_each, said("a"), said("b"), said("c")) == (
        Answer(said("a", "b").candidates, 20, 2),  # 22 tokens are spent: the third is not asked for
        2,
    )
    refusal = Answer((), 3, 0, problem="too long")
    assert answers(one_each, refusal) == (refusal, 1)
    # What has been sampled before a refusal counts.
    found, rounds = answers(one_each, said("a"), refusal)
    assert (found, rounds) == (Answer(said("a").candidates, 13, 1), 2)
    # An empty answer is no refusal: the next round may have one.
    empty = Answer((), 3, 1, empty=1, problem=ONLY_EMPTY)
    unlimited = replace(one_each, budget_tokens=None, stop=1.0)
    scored = answers(unlimited, empty, said("b"), empty)[0]
    logits = tuple(scorer.logits([("Say something", "b")]).tolist())
    assert scored == ScoredAnswer(said("b").candidates, 16, 3, empty=2, logits=logits)
    assert answers(unlimited, empty, empty, empty)[0] == Answer((), 9, 3, empty=3, problem=ONLY_EMPTY)
    # Nor is it one that a recording has left out.
    assert answers(unlimited, Answer((), problem=LACKING), said("b"), empty)[0].candidates == said("b").candidates


def test_an_answer_is_given_as_soon_as_it_and_those_before_it_are_done(scorer: Cappy) -> None:
    requests = [Request(Example("t", str(number), "Say something"), "") for number in range(3)]
    config = AnswerConfig(step=1, budget_tokens=22)

    class Uneven(Talking):
        """The second request needs two rounds, the others one."""

        def answer(self, requests: Iterator[Request], decodings: Sequence[Decoding]) -> Iterator[Answer]:
            for request in requests:
                self.asked[number := int(request.example.id)] += 1
                yield said("a", tokens=10 if number == 1 else 30)

    talking = Uneven()
    answers = StoppingBackbone(talking, scorer, config).answer(iter(requests), [Decoding("sampling", 3)])
    assert next(answers).input_tokens == 30
    assert [talking.asked[number] for number in range(3)] == [1, 1, 1]
    assert [answer.input_tokens for answer in answers] == [20, 30]
    assert [talking.asked[number] for number in range(3)] == [1, 2, 1]

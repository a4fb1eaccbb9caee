"""Sampling that goes on only until the scorer is sure.

Best-of-n samples as much for an easy instruction as for a hard one. A pointwise score in [0, 1] says when a
candidate is good enough: an optimal-stopping rule with a fixed threshold.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from cappy_lightning.backbones.backbone import LACKING, ONLY_EMPTY, Answer, Backbone, Request
from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.config import AnswerConfig
from cappy_lightning.errors import InputError
from cappy_lightning.records import Candidate
from cappy_lightning.scorer.pretrained import PretrainedScorer

#: Requests whose rounds go side by side: while some are scored, others are under way.
WAVE = 32
#: Answers that are scored together.
SCORED_TOGETHER = 8

#: The best score where there is none.
NOTHING = -1.0


@dataclass(frozen=True)
class ScoredAnswer(Answer):
    """An answer whose candidates have been scored, with the logit of each."""

    logits: tuple[float, ...] = ()


def sampling_words(n: int) -> list[str]:
    """The words of a config for `n` candidates: the greedy one, and others of a temperature at which they are good.

    Raises:
        InputError: `n` is below 1.
    """
    if n < 1:
        raise InputError("n", f"is {n}, expected at least 1")
    return [f"backbone.decodings={{greedy: 1, temperature_0.7: {n - 1}}}"]


def abstains(score: float, config: AnswerConfig) -> bool:
    """Whether a selected candidate is not good enough to be the answer."""
    return config.abstain is not None and score < config.abstain


def enough(config: AnswerConfig, best: float, tokens: int) -> bool:
    """Whether no more candidates are asked for.

    Args:
        config: when to stop; the section `answer`.
        best: the highest score of the candidates so far, or `NOTHING`.
        tokens: of all prompts and answers so far.
    """
    stop, budget = config.stop, config.budget_tokens
    return (stop is not None and best >= stop) or (budget is not None and tokens >= budget)


def until_sure(backbone: Backbone, scorer: PretrainedScorer, config: AnswerConfig) -> Backbone:
    """The backbone, asked in rounds where something can stop them, else all at once."""
    if config.stop is None and config.budget_tokens is None:
        return backbone
    return StoppingBackbone(backbone, scorer, config)


def in_turns(counts: Sequence[int]) -> list[int]:
    """Which of several gives the next candidate, until all have given theirs: one each, turn by turn."""
    return [place for turn in range(max(counts, default=0)) for place, count in enumerate(counts) if turn < count]


def plan_rounds(decodings: Sequence[Decoding], step: int) -> list[list[Decoding]]:
    """Rounds of `step` candidates, to which decodings contribute in turns; beams, found together, count as one."""
    order = in_turns([1 if decoding.beams > 1 else decoding.n for decoding in decodings])
    rounds: list[list[Decoding]] = []
    given: Counter[int] = Counter()
    for start in range(0, len(order), step):
        own = Counter(order[start : start + step])
        rounds.append(
            [
                decodings[place]
                if decodings[place].beams > 1
                else replace(decodings[place], n=count, skip=given[place])
                for place, count in sorted(own.items())
            ]
        )
        given += own
    return rounds


@dataclass
class _Draft:
    """What is known of a request's answer so far. `best` is the highest score, `known` the logit of each text."""

    request: Request
    candidates: list[Candidate] = field(default_factory=list)
    input_tokens: int = 0
    output_tokens: int = 0
    empty: int = 0
    refused: str | None = None
    best: float = NOTHING
    known: dict[str, float] = field(default_factory=dict)

    def add(self, answer: Answer) -> None:
        self.candidates += answer.candidates
        self.input_tokens += answer.input_tokens
        self.output_tokens += answer.output_tokens
        self.empty += answer.empty
        if answer.problem not in (ONLY_EMPTY, LACKING):
            self.refused = answer.problem

    def answer(self) -> Answer:
        problem = None if self.candidates else self.refused or ONLY_EMPTY
        facts = tuple(self.candidates), self.input_tokens, self.output_tokens, self.empty, problem
        if not self.known:
            return Answer(*facts)
        return ScoredAnswer(*facts, tuple(self.known[candidate.response] for candidate in self.candidates))


class StoppingBackbone:
    """A backbone that is asked in rounds, until a candidate's score is high enough.

    Args:
        backbone: who answers.
        scorer: whose scores decide.
        config: when to stop; the section `answer`.
    """

    def __init__(self, backbone: Backbone, scorer: PretrainedScorer, config: AnswerConfig) -> None:
        self._backbone, self._scorer, self._config = backbone, scorer, config
        self.group = backbone.group * -(-WAVE // backbone.group)

    def refuses(self, decoding: Decoding) -> str | None:
        """Why the backbone cannot decode like this; None if it can."""
        return self._backbone.refuses(decoding)

    def answer(self, requests: Iterator[Request], decodings: Sequence[Decoding]) -> Iterator[Answer]:
        """Answer every request with as many of the decodings' candidates as it takes, in order.

        Raises:
            InputError: see `Backbone.answer`.
        """
        rounds = plan_rounds(decodings, self._config.step)
        while wave := list(islice(requests, self.group)):
            drafts = [_Draft(request) for request in wave]
            for asked in rounds:
                self._ask([draft for draft in drafts if not self._done(draft)], asked)
                while drafts and self._done(drafts[0]):  # the next of the caller's order
                    yield drafts.pop(0).answer()
            yield from (draft.answer() for draft in drafts)

    def _done(self, draft: _Draft) -> bool:
        return bool(draft.refused) or enough(self._config, draft.best, draft.input_tokens + draft.output_tokens)

    def _ask(self, drafts: Sequence[_Draft], asked: Sequence[Decoding]) -> None:
        answers = self._backbone.answer((draft.request for draft in drafts), asked)
        unscored: list[_Draft] = []
        for draft, answer in zip(drafts, answers, strict=True):
            draft.add(answer)
            unscored.append(draft)
            if len(unscored) == SCORED_TOGETHER:
                self._score(unscored)
                unscored = []
        self._score(unscored)

    def _score(self, drafts: Sequence[_Draft]) -> None:
        if self._config.stop is None:
            return
        new = [
            (draft, text)
            for draft in drafts
            for text in dict.fromkeys(candidate.response for candidate in draft.candidates)
            if text not in draft.known
        ]
        pairs = [(draft.request.example.instruction, text) for draft, text in new]
        logits = self._scorer.logits(pairs, [draft.request.example.task for draft, _ in new])
        scores = self._scorer.to_scores(logits).tolist()
        for (draft, text), logit, score in zip(new, logits.tolist(), scores, strict=True):
            draft.best, draft.known[text] = max(draft.best, score), logit

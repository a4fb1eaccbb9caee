"""Candidates are scored once, while the next ones are sampled; their logits are kept until they are selected from."""

import json
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

from cappy_lightning.answering.stopping import SCORED_TOGETHER, ScoredAnswer
from cappy_lightning.backbones.backbone import Answer, Backbone, Request
from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.records import Example, Pool
from cappy_lightning.scorer.pretrained import PretrainedScorer


def answered(
    backbone: Backbone, requests: Iterator[Request], decodings: Sequence[Decoding]
) -> Iterator[tuple[Example, Answer]]:
    """The answer of every request, with its example."""
    under_way: deque[Example] = deque()

    def noted() -> Iterator[Request]:
        for request in requests:
            under_way.append(request.example)
            yield request

    for answer in backbone.answer(noted(), decodings):
        yield under_way.popleft(), answer


def fill_logits(
    scorer: PretrainedScorer, pools: Sequence[Pool], known: Sequence[Sequence[float] | None]
) -> list[Sequence[float]]:
    """The logits of every pool's candidates: those that are known, and the others, scored together."""
    unknown = [pool for pool, logits in zip(pools, known, strict=True) if logits is None]
    pairs = [(pool.example.instruction, candidate.response) for pool in unknown for candidate in pool.candidates]
    found = iter(scorer.logits(pairs, [pool.example.task for pool in unknown for _ in pool.candidates]).tolist())
    return [
        list(islice(found, len(pool.candidates))) if logits is None else logits
        for pool, logits in zip(pools, known, strict=True)
    ]


class KeptLogits:
    """The logits of pools, in a file that goes with this object, as there may be many: first written, then read.

    They are read in the order in which they were written.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("w+", encoding="ascii")
        self._next: list[object] | None = None
        self._reading = False

    def write(self, pool: Pool, logits: Sequence[float]) -> None:
        """Keep the logits of a pool's candidates."""
        self._file.write(json.dumps([*_key(pool), list(logits)]) + "\n")

    def read(self, pool: Pool) -> list[float] | None:
        """The logits of a pool's candidates; None where they were not kept."""
        if not self._reading:
            self._file.seek(0)
            self._reading = True
            self._advance()
        if self._next is None or self._next[:2] != _key(pool)[:2]:
            return None
        *key, logits = self._next
        self._advance()
        return logits if key == _key(pool) else None  # type: ignore[return-value]  # as it was written

    def _advance(self) -> None:
        line = self._file.readline()
        self._next = json.loads(line) if line else None


def _key(pool: Pool) -> list[object]:
    example = pool.example
    return [example.task, example.id, example.instruction, [candidate.response for candidate in pool.candidates]]


class ScoringBackbone:
    """A backbone whose answers are scored after they were handed on, while it works on the next ones.

    Args:
        backbone: who answers.
        scorer: who scores, unless the answers come scored.
        kept: gets the logits.
    """

    def __init__(self, backbone: Backbone, scorer: PretrainedScorer, kept: KeptLogits) -> None:
        self._backbone, self._scorer, self._kept = backbone, scorer, kept
        self.group = backbone.group

    def refuses(self, decoding: Decoding) -> str | None:
        """Why the backbone cannot decode like this; None if it can."""
        return self._backbone.refuses(decoding)

    def answer(self, requests: Iterator[Request], decodings: Sequence[Decoding]) -> Iterator[Answer]:
        """The backbone's answers, in order.

        Raises:
            InputError: see `Backbone.answer`.
        """
        waiting: list[tuple[Pool, Answer]] = []
        for example, answer in answered(self._backbone, requests, decodings):
            yield answer  # what it has cost is recorded before it is scored
            if answer.candidates:
                waiting.append((Pool(example, answer.candidates), answer))
            if len(waiting) == SCORED_TOGETHER:
                self._score(waiting)
                waiting = []
        self._score(waiting)

    def _score(self, waiting: Sequence[tuple[Pool, Answer]]) -> None:
        pools = [pool for pool, _ in waiting]
        known = [known_logits(answer) for _, answer in waiting]
        for pool, logits in zip(pools, fill_logits(self._scorer, pools, known), strict=True):
            self._kept.write(pool, logits)


def known_logits(answer: Answer) -> Sequence[float] | None:
    """The logits of an answer's candidates, if it came scored."""
    return answer.logits if isinstance(answer, ScoredAnswer) else None

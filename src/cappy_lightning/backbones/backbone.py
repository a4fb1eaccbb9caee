"""The one small interface to LLMs: requests go in, answers come out in the same order."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.backbones.prompts import Prompt
from cappy_lightning.progress import say
from cappy_lightning.records import Candidate, Example

#: Why an example may have no candidate.
ONLY_EMPTY = "the LLM gave only empty answers"
#: The same of a recording, which holds no empty answers.
LACKING = "its recorded pool has no such candidates"


@dataclass(frozen=True)
class Request:
    """An example and the prompt that asks for its response."""

    example: Example
    prompt: Prompt


@dataclass(frozen=True)
class Answer:
    """The candidates of one request, and the tokens that they took, where known.

    An answer of white space alone is no candidate; `empty` counts them. `problem` says why there is no
    candidate at all, which may be so for single examples (a prompt that is too long, a filter).
    """

    candidates: tuple[Candidate, ...]
    input_tokens: int = 0
    output_tokens: int = 0
    empty: int = 0
    problem: str | None = None


class Backbone(Protocol):
    """A frozen LLM."""

    #: Requests that are answered together, so that a recording must start at a multiple of them.
    group: int

    def refuses(self, decoding: Decoding) -> str | None:
        """Why it cannot decode like this; None if it can."""

    def answer(self, requests: Iterator[Request], decodings: Sequence[Decoding]) -> Iterator[Answer]:
        """Answer every request with every decoding, in order.

        Raises:
            InputError: it cannot be reached, refuses, answers nonsense, or a budget is spent.
        """


class CutAnswers:
    """Says once if many answers end at the limit of their length instead of where the LLM ends them.

    Args:
        limit: `backbone.max_tokens`.
    """

    #: So many answers have to be there, and this share of them to be cut.
    LEAST, SHARE = 20, 0.2

    def __init__(self, limit: int) -> None:
        self._limit, self._count, self._cut, self._said = limit, 0, 0, False

    def add(self, cut: bool) -> None:
        """Count an answer."""
        self._count += 1
        self._cut += cut
        if not self._said and self._count >= self.LEAST and self._cut > self.SHARE * self._count:
            self._said = True
            say(f"warning: {self._cut} of {self._count} answers were cut off at backbone.max_tokens={self._limit}")


def candidate(response: str, decoding: Decoding, log_likelihoods: Sequence[float | None]) -> Candidate:
    """A candidate from its text and the log-probabilities of its tokens, if all are known.

    Half of a surrogate pair, which an endpoint may cut an answer to, becomes a question mark.
    """
    response = response.strip().encode(errors="replace").decode()
    values = [value for value in log_likelihoods if value is not None and math.isfinite(value)]
    if not values or len(values) != len(log_likelihoods):
        return Candidate(response, decoding.name)
    total = sum(values)
    return Candidate(response, decoding.name, round(total, 4), round(total / len(values), 4))

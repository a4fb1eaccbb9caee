"""Rouge-L F-measure, equal to the `rouge-score` package's to the last bit, and faster.

The tokens are rouge-score's own (lower case, letters a-z and digits, Porter stems of words of more than
three letters), with stems and texts cached; the longest common subsequence is rapidfuzz's.
"""

import functools
from collections.abc import Sequence

from nltk.stem.porter import PorterStemmer
from rapidfuzz.distance import LCSseq
from rouge_score.tokenize import tokenize


class _CachedStemmer:
    """rouge-score's stemmer, each word stemmed once."""

    def __init__(self) -> None:
        self.stem = functools.lru_cache(maxsize=1 << 18)(PorterStemmer().stem)


_STEMMER = _CachedStemmer()


@functools.lru_cache(maxsize=1 << 14)
def rouge_tokens(text: str) -> tuple[str, ...]:
    """The tokens that Rouge-L compares. Texts in other scripts than Latin give none."""
    return tuple(tokenize(text, _STEMMER))


def rouge_l(references: Sequence[str], response: str) -> float:
    """Rouge-L F-measure of a response, the best over the references, in [0, 1].

    F = 2PR / (P + R) with P = LCS / (tokens of the response), R = LCS / (tokens of the reference)
    (Lin 2004, https://aclanthology.org/W04-1013). Without tokens on either side it is 0.
    """
    return max(_f_measure(rouge_tokens(reference), rouge_tokens(response)) for reference in references)


def _f_measure(reference: tuple[str, ...], response: tuple[str, ...]) -> float:
    if not reference or not response:
        return 0.0
    common = LCSseq.similarity(reference, response)
    precision, recall = common / len(response), common / len(reference)
    return 2 * precision * recall / (precision + recall) if common else 0.0

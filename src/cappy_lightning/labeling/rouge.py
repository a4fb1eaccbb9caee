"""Rouge-L F-measure, equal to the `rouge-score` package's to the last bit, and many times as fast.

Texts are encoded once each (`tokens.Encoder`); the longest common subsequences of a whole block of pairs
are one call of rapidfuzz's.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from cappy_lightning.labeling.tokens import Encoder

#: An instruction, its references, and a response to be judged.
Item = tuple[str, Sequence[str], str]

#: Comparisons in one call, and characters: enough to make the calls cheap, few enough for memory and the encoder.
BLOCK, CHARACTERS = 1 << 15, 1 << 20


class RougeL:
    """Rouge-L of responses, each the best over its references.

    F = 2PR / (P + R) with P = LCS / (tokens of the response), R = LCS / (tokens of the reference)
    (Lin 2004, https://aclanthology.org/W04-1013). Without tokens on either side it is 0.

    Args:
        tokenizer: `paper` (as rouge-score with stemmer) or `unicode`.
    """

    name = "rougeL"

    def __init__(self, tokenizer: str = "paper") -> None:
        self._encoder = Encoder(tokenizer)

    def scores(self, items: Sequence[Item]) -> list[float]:
        """The F-measure of every item, in [0, 1]; each needs a reference."""
        found: list[float] = []
        for part in blocks(items):
            self._encoder.renew()
            found += self._block(part)
        return found

    def _block(self, items: Sequence[Item]) -> list[float]:
        encoded: dict[str, str] = {}
        encode = self._encoder.encode
        for _, references, response in items:
            for text in (response, *references):
                if text not in encoded:
                    encoded[text] = encode(text)
        ours = [encoded[response] for _, references, response in items for _ in references]
        theirs = [encoded[reference] for _, references, _ in items for reference in references]
        values = _f_measures(theirs, ours)
        counts = np.fromiter((len(references) for _, references, _ in items), dtype=np.int64, count=len(items))
        starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
        best: list[float] = np.maximum.reduceat(values, starts).tolist()
        return best


def _f_measures(references: Sequence[str], responses: Sequence[str]) -> NDArray[np.float64]:
    common = process.cpdist(references, responses, scorer=LCSseq.similarity, dtype=np.int64).astype(np.float64)
    lengths = [np.fromiter(map(len, texts), dtype=np.float64, count=len(texts)) for texts in (responses, references)]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = common / lengths[0], common / lengths[1]
        values: NDArray[np.float64] = 2 * precision * recall / (precision + recall)
    return np.where(common > 0, values, 0.0)


def blocks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """The items in parts of one vocabulary each, which `Encoder` has room for."""
    start = comparisons = characters = 0
    for end, (_, references, response) in enumerate(items):
        if comparisons >= BLOCK or characters >= CHARACTERS:
            yield items[start:end]
            start, comparisons, characters = end, 0, 0
        comparisons += len(references)
        characters += len(response) + sum(map(len, references))
    if start < len(items):
        yield items[start:]

"""What an inspection finds, in a form that text and page are both made of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cappy_lightning.config import ScorerConfig
from cappy_lightning.page import Table
from cappy_lightning.scorer.encoding import PairEncoder
from cappy_lightning.scorer.model import load_tokenizer

#: Bins of a histogram of scores over [0, 1].
SCORE_BINS = 20
#: Rows drawn at random for sample rows and lengths in tokens.
DRAWN = 20_000
#: Rows that are shown.
SHOWN = 12
#: Tasks that are shown as the worst.
WORST = 10


@dataclass(frozen=True)
class Histogram:
    """Counts between `edges`; `mark` is a value to be marked."""

    title: str
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    mark: float | None = None


@dataclass
class Findings:
    """Everything that an inspection found.

    Attributes:
        title: what was inspected.
        facts: one line each.
        tables: counts.
        histograms: distributions.
        samples: rows of the data, drawn at random.
    """

    title: str
    facts: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)


class Drawn:
    """Up to `size` of the rows that come by, each with the same chance (reservoir by random keys).

    Args:
        size: the most rows that are kept.
    """

    def __init__(self, size: int = DRAWN) -> None:
        self._size, self._generator = size, np.random.default_rng(0)
        self._offered: NDArray[np.float64] = np.empty(0)
        self._kept: list[tuple[float, dict[str, Any]]] = []

    def offer(self, count: int) -> list[int]:
        """Which of the next `count` rows to hand to `add`, by their place among them."""
        keys = self._generator.random(count)
        limit = np.sort(np.concatenate([[key for key, _ in self._kept], keys]))[: self._size][-1]
        places = np.flatnonzero(keys <= limit)
        self._offered = keys[places]
        self._kept = [(key, row) for key, row in self._kept if key <= limit]
        return [int(place) for place in places]

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """The rows that the last `offer` asked for."""
        self._kept += zip(self._offered.tolist(), rows, strict=True)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows that are kept, in random order."""
        return [row for _, row in sorted(self._kept, key=lambda kept: kept[0])]


def score_histogram(title: str, counts: NDArray[np.int64]) -> Histogram:
    """A histogram of scores from counts in `SCORE_BINS` bins."""
    return Histogram(title, np.linspace(0, 1, SCORE_BINS + 1), counts)


def count_scores(scores: Sequence[float] | NDArray[np.float64]) -> NDArray[np.int64]:
    """Scores by bin."""
    return np.histogram(np.asarray(scores, dtype=np.float64), bins=SCORE_BINS, range=(0, 1))[0].astype(np.int64)


def open_encoder(config: ScorerConfig) -> PairEncoder:
    """What turns pairs into tokens, by `scorer.base` or `scorer.tokenizer`, and `scorer.max_length`.

    Raises:
        InputError: the tokenizer cannot be found or read.
    """
    return PairEncoder(load_tokenizer(config), config.max_length, "left", False)


def token_findings(findings: Findings, pairs: Sequence[tuple[str, str]], encoder: PairEncoder) -> None:
    """Add the lengths of pairs, drawn at random, in tokens, and the share that the maximum would cut."""
    max_length = encoder.max_length
    encoded = encoder.encode([one for one, _ in pairs], [other for _, other in pairs])
    lengths = np.array([len(pair.ids) + pair.cut for pair in encoded])
    share = float((lengths > max_length).mean())
    findings.facts.append(
        f"{100 * share:.1f}% of the pairs are longer than {max_length} tokens and would be cut"
        f" (of {len(lengths):,} drawn at random)"
    )
    levels = (50, 90, 95, 99, 100)
    values = [f"{value:.0f}" for value in np.percentile(lengths, levels)]
    header = [f"{level}%" if level < 100 else "longest" for level in levels]
    findings.tables.append(Table("Tokens of a pair, percentiles", header, [values]))
    step = max(1, math.ceil((lengths.max() - lengths.min() + 1) / 25))
    edges = np.arange(lengths.min(), lengths.max() + step + 1, step, dtype=np.float64)
    counts = np.histogram(lengths, bins=edges)[0].astype(np.int64)
    findings.histograms.append(Histogram("Tokens of a pair", edges, counts, mark=float(max_length)))


def shortened(text: str, most: int = 400) -> str:
    """A text for display."""
    return text if len(text) <= most else text[:most] + " ..."

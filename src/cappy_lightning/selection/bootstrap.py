"""Percentile intervals of a paired bootstrap over examples (Efron 1979)."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000


def resample(matrix: Floats, generator: np.random.Generator) -> Floats:
    """Means over resampled examples, [methods, resamples], of values [methods, examples].

    Memory grows with a chunk of the resamples only.
    """
    count, chunks = matrix.shape[1], 20
    even = np.full(count, 1 / count)
    return np.concatenate(
        [matrix @ generator.multinomial(count, even, size=RESAMPLES // chunks).T / count for _ in range(chunks)], axis=1
    )


def interval(value: float, draws: Floats) -> dict[str, float]:
    """A value with its 95% percentile interval over resamples."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"mean": float(value), "low": float(low), "high": float(high)}


def percent_range(value: dict[str, float], sign: str = "", digits: int = 1) -> str:
    """The ends of an interval, times 100."""
    return f"{100 * value['low']:{sign}.{digits}f}, {100 * value['high']:{sign}.{digits}f}"

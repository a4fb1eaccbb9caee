"""Percentile intervals of a paired bootstrap over examples (Efron 1979)."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000

#: Counts of resampled examples that are held at a time.
HELD = 4_000_000


def resample(matrix: Floats, generator: np.random.Generator) -> Floats:
    """Means over resampled examples, [methods, resamples], of values [methods, examples].

    The resamples are drawn in parts, so that their memory does not grow with the number of examples.
    """
    count = matrix.shape[1]
    even, part = np.full(count, 1 / count), max(1, min(RESAMPLES // 20, HELD // count))
    sizes = [min(part, RESAMPLES - start) for start in range(0, RESAMPLES, part)]
    return np.concatenate([matrix @ generator.multinomial(count, even, size=size).T / count for size in sizes], axis=1)


def interval(value: float, draws: Floats) -> dict[str, float]:
    """A value with its 95% percentile interval over resamples."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"mean": float(value), "low": float(low), "high": float(high)}


def percent_range(value: dict[str, float], sign: str = "", digits: int = 1) -> str:
    """The ends of an interval, times 100."""
    return f"{100 * value['low']:{sign}.{digits}f}, {100 * value['high']:{sign}.{digits}f}"

"""Which instances each optimizer step sees: a pure function of (rows, seed, epoch).

Neither the number of ranks nor of loader workers changes the set of pairs behind a step.
"""

import math

import numpy as np
from numpy.typing import NDArray

#: Stands for a zero-weight pair that fills up the last step of an epoch.
FILL = -1


def steps_per_epoch(rows: int, global_size: int) -> int:
    """Optimizer steps that one pass over the rows takes; the last may be filled up."""
    return math.ceil(rows / global_size)


def epoch_order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of the rows."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def step_rows(order: NDArray[np.int64], step: int, global_size: int) -> NDArray[np.int64]:
    """The rows of a step within an epoch, `global_size` of them, `FILL` where the epoch ran out."""
    rows = order[step * global_size : (step + 1) * global_size]
    return np.pad(rows, (0, global_size - len(rows)), constant_values=FILL)


def deal(rows: NDArray[np.int64], lengths: NDArray[np.int64], world: int, micro_size: int) -> NDArray[np.int64]:
    """Deal a step's rows to its forwards and ranks, pairs of like length together.

    Sorting stays within the step, so that the step's gradient is that of any other order, and one
    forward's micro batches are neighbours in length on all ranks.

    Returns:
        [forwards, world, micro_size]
    """
    longest = np.where(rows == FILL, 0, lengths[rows])
    by_length = rows[np.argsort(-longest, kind="stable")]
    return by_length.reshape(-1, world, micro_size)

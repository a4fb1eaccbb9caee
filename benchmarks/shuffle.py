"""How evenly steps are mixed: the variance of a task's count over the steps, as a multiple of a true shuffle's.

    python benchmarks/shuffle.py [--rows 10000 100000 1000000 10000000] [--sizes 32 256 1024] [--window 256]

The set stands sorted by 39 tasks of uneven sizes (a Dirichlet draw), in row groups of 1,000. The true shuffle is a
permutation of all rows, measured in the same way.
"""

import argparse

import numpy as np
from numpy.typing import NDArray

from cappy_lightning.data.mixture import Mixture
from cappy_lightning.data.order import Order

TASKS = 39
GROUP_ROWS = 1_000


def sequence(order: Order) -> NDArray[np.int64]:
    """The rows of the first epoch by position."""
    epoch, rows = order.epoch(0), np.empty(order.rows, np.int64)
    for lane in range(order.lanes):
        found = []
        for window, _ in epoch.windows(lane):
            held = [piece.group * GROUP_ROWS + np.arange(piece.start, piece.stop) for piece in window.pieces]
            found.append(np.concatenate(held)[window.order])
        rows[lane :: order.lanes] = np.concatenate(found)
    return rows


def variances(rows: NDArray[np.int64], task: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Of each task: the variance of its count over the steps, over that of independent draws."""
    steps = len(rows) // size
    keys = task[rows[: steps * size]] + TASKS * np.repeat(np.arange(steps), size)
    counts = np.bincount(keys, minlength=steps * TASKS).reshape(steps, TASKS)
    share = np.bincount(task, minlength=TASKS) / len(task)
    found: NDArray[np.float64] = counts.var(axis=0) / (size * share * (1 - share))
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 256, 1024])
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--window", type=int, default=256)
    options = parser.parse_args()
    shares = np.random.default_rng(0).dirichlet(np.full(TASKS, 2.0))
    print("| rows | pairs of a step | mean of the tasks | largest | true shuffle: mean | largest |")
    print("|---|---|---|---|---|---|")
    for rows in options.rows:
        task = np.sort(np.random.default_rng(1).choice(TASKS, rows, p=shares))
        mixture = Mixture(np.full(rows // GROUP_ROWS, GROUP_ROWS), {})
        mine = sequence(Order(mixture, 0, options.lanes, options.window))
        true = np.random.default_rng(2).permutation(rows)
        for size in options.sizes:
            if rows >= 100 * size:
                found = [f"{f(variances(order, task, size)):.2f}" for order in (mine, true) for f in (np.mean, np.max)]
                print(f"| {rows:,} | {size:,} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()

"""How often each instance comes in an epoch: caps and weights of tasks, without copying data.

An epoch has `round(weight * min(rows, cap))` instances of a task. Each of its rows comes equally often, to
within one; which ones come once more is drawn anew in each epoch. T0 (Sanh et al. 2022, section 4) samples data sets
in proportion to their sizes capped in this way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from cappy_lightning.errors import InputError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Draw:
    """What an epoch takes of a task: its rows `whole` times, and `rest` (by group) of them once more."""

    groups: Ints
    rows: Ints
    whole: int
    rest: Ints | None

    def taken(self, turn: int) -> Ints | None:
        """Rows by group in pass number `turn`; None: none."""
        return self.rows if turn < self.whole else self.rest if turn == self.whole else None


@dataclass(frozen=True)
class Kept:
    """What an epoch takes: entry by entry a row group, the number of the pass over it, and how many rows of it."""

    groups: Ints
    passes: Ints
    rows: Ints
    draws: dict[str, _Draw]

    def counts(self, group: int, turn: int) -> dict[str, int]:
        """The rows of each task that a pass takes of a group."""
        found = {}
        for name, draw in self.draws.items():
            taken, place = draw.taken(turn), int(np.searchsorted(draw.groups, group))
            if taken is not None and place < len(draw.groups) and draw.groups[place] == group and taken[place]:
                found[name] = int(taken[place])
        return found


class Mixture:
    """The row groups of a set, and how often an epoch takes their rows.

    Args:
        group_rows: rows of each row group.
        tasks: for each task the groups that have rows of it, ascending, and how many rows each.
        caps: shell pattern of task names to the most instances of each such task; of several that match, the last.
        weights: shell pattern to a factor, likewise.

    Raises:
        InputError: a pattern matches no task, or nothing is left.
    """

    def __init__(
        self,
        group_rows: Sequence[int] | Ints,
        tasks: Mapping[str, tuple[Ints, Ints]],
        caps: Mapping[str, int] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.group_rows = np.asarray(group_rows, dtype=np.int64)
        self._tasks = {name: (groups, rows) for name, (groups, rows) in tasks.items() if len(rows)}
        self._targets: dict[str, int] | None = None
        if caps or weights:
            capped, weighed = (_matched(found or {}, list(self._tasks)) for found in (caps, weights))
            self._targets = {
                name: round(weighed.get(name, 1) * min(int(rows.sum()), capped.get(name, int(rows.sum()))))
                for name, (_, rows) in self._tasks.items()
            }
            if not any(self._targets.values()):
                raise InputError("data", "its caps and weights leave no instance, expected at least one")

    @property
    def rows(self) -> int:
        """Instances of an epoch."""
        return int(self.group_rows.sum()) if self._targets is None else sum(self._targets.values())

    def epoch(self, number: int, seed: int) -> Kept:
        """What epoch `number` takes, in the order in which it is stored."""
        everything = np.arange(len(self.group_rows))
        if self._targets is None:
            return Kept(everything, np.zeros_like(everything), self.group_rows, {})
        draws = {}
        for index, (name, (groups, rows)) in enumerate(self._tasks.items()):
            whole, rest = divmod(self._targets[name], int(rows.sum()))
            generator = np.random.default_rng([seed, number, 2, index])
            drawn = generator.multivariate_hypergeometric(rows, rest, method="marginals") if rest else None
            draws[name] = _Draw(groups, rows, whole, drawn)
        found: list[tuple[Ints, Ints, Ints]] = []
        for turn in range(max(draw.whole for draw in draws.values()) + 1):
            total = np.zeros_like(self.group_rows)
            for draw in draws.values():
                if (taken := draw.taken(turn)) is not None:
                    total[draw.groups] += taken
            groups = np.flatnonzero(total)
            found.append((groups, np.full_like(groups, turn), total[groups]))
        groups, turns, rows = (np.concatenate(parts) for parts in zip(*found, strict=True))
        stored = np.lexsort((turns, groups))
        return Kept(groups[stored], turns[stored], rows[stored], draws)


def choose_rows(tasks: NDArray[np.object_], counts: Mapping[str, int], seed: Sequence[int]) -> Ints:
    """Draw rows of a group, so many of each task, in the order in which they are stored.

    Args:
        tasks: of every row of the group, [rows].
        counts: rows to draw of each task.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    drawn = [
        generator.choice(np.flatnonzero(tasks == name), count, replace=False, shuffle=False)
        for name, count in counts.items()
        if count
    ]
    return np.sort(np.concatenate(drawn))


def _matched(patterns: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for pattern, value in patterns.items():
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            raise InputError(
                "data", f"'{pattern}' in its caps or weights matches no task among {', '.join(names)}"[:300]
            )
        found |= dict.fromkeys(matches, value)
    return found

"""Which instance comes when: a pure function of row groups, mixture, seed, epoch and lanes.

Neither the number of ranks nor of loader workers has a part in it. The epoch's list is dealt to `lanes`
in turn, position `t` to lane `t % lanes`, so a rank that takes every lane congruent to its number, modulo
the number of ranks, has its share of every step, and reads nothing else.

The order of a lane is made in two stages, so that it reads each row group about once and holds few at a time:

1. The row groups, cut into pieces where there are few of them, stand as they are stored, and so by
   task. They are divided into strata, runs of neighbours; a window takes one piece from each stratum of its
   lane. All lanes together hold one piece of every part of the set at any time, so each window has nearly the
   mixture of the whole (stratified sampling; Cochran, Sampling Techniques, 1977, chapter 5).
2. Within a window the rows are permuted.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cappy_lightning.data.mixture import Mixture

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Some of the rows of a row group: of those that `choose_rows` gives for a pass, from `start` to before `stop`."""

    group: int
    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class Window:
    """What a lane holds at a time, and the order in which it goes through it.

    Attributes:
        pieces: where the rows are; together they are numbered from 0.
        order: a permutation of the rows.
    """

    pieces: tuple[Piece, ...]
    order: Ints


@dataclass(frozen=True)
class Order:
    """The order of the instances of a set, for every epoch.

    Args:
        mixture: the row groups, and which of their rows an epoch takes how often.
        seed: another seed, another order.
        lanes: into how many streams the set is dealt; the number of ranks must divide it.
        window: row groups, or pieces of them, that all lanes together hold at a time.
    """

    mixture: Mixture
    seed: int
    lanes: int
    window: int

    @property
    def rows(self) -> int:
        """Instances of an epoch; the same in all epochs."""
        return self.mixture.rows

    def steps(self, global_size: int) -> int:
        """Optimizer steps of an epoch; the last may be filled up."""
        return math.ceil(self.rows / global_size)

    def epoch(self, number: int) -> "Epoch":
        """The order of one epoch, from 0."""
        return Epoch(self, number)


class Epoch:
    """One epoch of an `Order`."""

    def __init__(self, order: Order, number: int) -> None:
        self.order, self.number = order, number
        self.kept = order.mixture.epoch(number, order.seed)
        self._groups, self._passes, self._starts, self._stops = self._arrange(*self._cut())
        self._ends = np.cumsum(self._stops - self._starts)

    def lane_rows(self, lane: int) -> int:
        """Instances of a lane; those of two lanes differ by at most one."""
        return lane_share(self.order.rows, lane, self.order.lanes)

    def windows(self, lane: int, start: int = 0) -> Iterator[tuple[Window, int]]:
        """The windows of a lane from its instance number `start` on, each with how many rows to pass over first."""
        pieces = self.pieces(lane)
        # Near equal numbers of pieces, so that none is left with a few.
        for number, part in enumerate(np.array_split(np.arange(len(pieces)), self._turns)):
            chosen = tuple(pieces[i] for i in part)
            rows = sum(piece.stop - piece.start for piece in chosen)
            if start >= rows:
                start -= rows
                continue
            generator = np.random.default_rng([self.order.seed, self.number, 1, lane, number])
            yield Window(chosen, generator.permutation(rows)), start
            start = 0

    def _cut(self) -> tuple[Ints, Ints, Ints, Ints]:
        """All pieces of the epoch in the order in which they are stored: group, pass, start and stop of each."""
        groups, passes, rows = self.kept.groups, self.kept.passes, self.kept.rows
        # A set that is smaller than the window is cut finer, so that each lane still sees all parts of it.
        size = max(1, self.order.rows // self.order.window)
        parts = -(-rows // size)
        of = np.repeat(np.arange(len(rows)), parts)
        place = np.arange(len(of)) - np.repeat(np.cumsum(parts) - parts, parts)
        starts, stops = place * rows[of] // parts[of], (place + 1) * rows[of] // parts[of]
        return groups[of], passes[of], starts, stops

    def _arrange(self, *pieces: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """The pieces in the order of the lanes: all of the first, then all of the second ..."""
        count, lanes = len(pieces[0]), self.order.lanes
        generator = np.random.default_rng([self.order.seed, self.number, 0])
        self._turns = max(1, round(count / self.order.window))  # windows of each lane, pieces of each stratum
        strata = math.ceil(count / self._turns)
        # Where the first stratum begins, and to which lane each one belongs, is drawn.
        stored = np.roll(np.arange(count), -int(generator.integers(count)))
        drawn = [generator.permutation(stratum) for stratum in np.array_split(stored, strata)]
        generator.shuffle(drawn)
        order = np.concatenate([_in_turn(drawn[lane::lanes]) for lane in range(lanes)])
        a, b, c, d = (values[order] for values in pieces)
        return a, b, c, d

    def pieces(self, lane: int) -> list[Piece]:
        """The pieces of a lane, of which the first and the last may be shared with its neighbours."""
        rows, lanes = self.order.rows, self.order.lanes
        begin = lane * (rows // lanes) + min(lane, rows % lanes)
        end = begin + self.lane_rows(lane)
        first, last = np.searchsorted(self._ends, [begin, end - 1], side="right")
        found = []
        for i in range(first, last + 1) if end > begin else ():
            offset = int(self._ends[i]) - int(self._stops[i])  # of the piece's row 0 in the list
            start, stop = max(int(self._starts[i]), begin - offset), min(int(self._stops[i]), end - offset)
            found.append(Piece(int(self._groups[i]), int(self._passes[i]), start, stop))
        return found


def _in_turn(strata: Sequence[Ints]) -> Ints:
    """The first of each stratum, then the second of each ..."""
    longest = max(map(len, strata), default=0)
    table = np.full((longest, len(strata)), -1)
    for column, stratum in enumerate(strata):
        table[: len(stratum), column] = stratum
    return table[table >= 0]


def lane_share(positions: int, lane: int, lanes: int) -> int:
    """How many of the first `positions` of an epoch fall to a lane: those congruent to it."""
    return max(0, -(-(positions - lane) // lanes))

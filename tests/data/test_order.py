"""Which instance comes when: on any number of ranks, from any step, and how well it is mixed."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cappy_lightning.data.mixture import Mixture
from cappy_lightning.data.order import Order, lane_share
from cappy_lightning.data.reading import RowGroups
from cappy_lightning.data.shards import MANIFEST, read_manifest

Ints = NDArray[np.int64]
GROUPS = st.lists(st.integers(1, 30), min_size=1, max_size=12)
SMALL = st.integers(1, 9)


def make(groups: list[int] | Ints, lanes: int = 4, window: int = 8, seed: int = 0) -> Order:
    return Order(Mixture(groups, {}), seed, lanes, window)


def lane_rows(order: Order, number: int, lane: int, start: int = 0) -> Ints:
    """The rows of a lane, numbered over the whole set."""
    firsts = np.cumsum([0, *order.mixture.group_rows])
    found = [np.zeros(0, np.int64)]
    for window, passed in order.epoch(number).windows(lane, start):
        rows = np.concatenate([firsts[piece.group] + np.arange(piece.start, piece.stop) for piece in window.pieces])
        assert sorted(window.order) == list(range(len(rows)))
        found.append(rows[window.order][passed:])
    return np.concatenate(found)


def sequence(order: Order, number: int = 0) -> Ints:
    """The rows of an epoch by position."""
    rows = np.full(order.rows, -1)
    for lane in range(order.lanes):
        rows[lane :: order.lanes] = lane_rows(order, number, lane)
    return rows


@settings(deadline=None)
@given(GROUPS, SMALL, SMALL, st.integers(0, 3))
def test_an_epoch_has_every_row_exactly_once(groups: list[int], lanes: int, window: int, number: int) -> None:
    order = make(groups, lanes, window)
    assert sorted(sequence(order, number)) == list(range(sum(groups)))


@settings(deadline=None)
@given(GROUPS, SMALL, st.integers(1, 5), st.data())
def test_a_lane_from_any_of_its_rows_goes_on_as_from_the_first(
    groups: list[int], lanes: int, window: int, data: st.DataObject
) -> None:
    order = make(groups, lanes, window)
    lane = data.draw(st.integers(0, lanes - 1))
    whole = lane_rows(order, 1, lane)
    start = data.draw(st.integers(0, len(whole)))
    assert (lane_rows(order, 1, lane, start) == whole[start:]).all()


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(1, 12))
def test_positions_are_dealt_to_the_lanes_in_turn(positions: int, lanes: int) -> None:
    counts = Counter(t % lanes for t in range(positions))
    assert [lane_share(positions, lane, lanes) for lane in range(lanes)] == [counts[lane] for lane in range(lanes)]


def test_the_order_is_made_of_the_groups_seed_epoch_and_lanes_alone() -> None:
    groups = [10] * 20
    first = sequence(make(groups, seed=3), 5)
    np.random.seed(0)
    assert (sequence(make(groups, seed=3), 5) == first).all()
    others = [sequence(make(groups, seed=4), 5), sequence(make(groups, seed=3), 6), sequence(make(groups, lanes=5), 5)]
    assert not any((other == first).all() for other in [*others, np.arange(200)])


@pytest.mark.parametrize(("rows", "size", "steps"), [(1, 8, 1), (7, 8, 1), (8, 8, 1), (9, 8, 2), (64, 8, 8)])
def test_an_epoch_has_as_many_steps_as_hold_its_rows(rows: int, size: int, steps: int) -> None:
    assert make([rows]).steps(size) == steps


def test_every_row_group_is_read_about_once() -> None:
    order = make([100] * 1000, lanes=16, window=64)
    epoch = order.epoch(0)
    reads = Counter(piece.group for lane in range(16) for window, _ in epoch.windows(lane) for piece in window.pieces)
    assert len(reads) == 1000
    assert reads.total() <= 1000 + 2 * 16  # a group between two lanes is read by both
    held = [
        sum(len(w.pieces) for w in windows)
        for windows in zip(*([w for w, _ in epoch.windows(lane)] for lane in range(16)), strict=True)
    ]
    assert max(held) <= 64 * 1.1 + 2 * 16  # what all lanes hold at a time


def test_160_million_rows_for_512_ranks_from_the_manifest_alone(tmp_path: Path) -> None:
    """1,600 shards that are not there: the pieces of all lanes tile all row groups, on any number of ranks."""
    shard = {"rows": 100_000, "row_groups": [1000] * 100, "bytes": 1, "sha256": "0", "tasks": {"t": [1000] * 100}}
    shards = [shard | {"file": f"shard-{number:05d}.parquet"} for number in range(1600)]
    (tmp_path / MANIFEST).write_text(
        json.dumps({"schema_version": 2, "rows": 160_000_000, "shards": shards, "score_histogram": [160_000_000]})
    )
    order = Order(Mixture(RowGroups([read_manifest(tmp_path)]).rows, {}), 0, 512, 2048)
    epoch = order.epoch(0)
    pieces = []
    for lane in range(512):
        found = epoch.pieces(lane)
        assert sum(piece.stop - piece.start for piece in found) == epoch.lane_rows(lane) == 312_500
        pieces += [(piece.group, piece.start, piece.stop) for piece in found]
    pieces.sort()
    assert len({group for group, _, _ in pieces}) == 160_000
    for (group, _, stop), (after, start, _) in pairwise([(-1, 0, 1000), *pieces, (160_000, 0, 0)]):
        assert (start == stop) if group == after else (start == 0 and stop == 1000)
    window, passed = next(epoch.windows(511, 200_000))  # in the middle of the epoch
    assert sorted(window.order) == list(range(len(window.order)))
    assert 0 <= passed < len(window.order) <= 6 * 1000
    for step in (0, 77_777, order.steps(1024) - 1):
        shares = [lane_share((step + 1) * 1024, lane, 512) - lane_share(step * 1024, lane, 512) for lane in range(512)]
        for world in (1, 2, 8, 64, 512):
            assert {sum(shares[rank::world]) for rank in range(world)} == {1024 // world}


# How well it is mixed, against a true shuffle. The set is sorted by task, as `cappy label` writes it.


def composition(rows: Ints, task: Ints, size: int) -> NDArray[np.float64]:
    """Variance over the steps of each task's count, as a multiple of a true shuffle's (binomial)."""
    steps = len(rows) // size
    by_step = task[rows[: steps * size]].reshape(steps, size)
    share = np.bincount(task) / len(task)
    counts = np.stack([(by_step == number).sum(axis=1) for number in range(len(share))])
    variance: NDArray[np.float64] = counts.var(axis=1) / (size * share * (1 - share))
    return variance


@pytest.mark.parametrize(("rows", "size", "mean", "most"), [
    (6_000, 32, 1.1, 2.0),
    (300_000, 256, 1.0, 1.5),
    (2_000_000, 256, 1.1, 2.0),
    (2_000_000, 1024, 1.7, 4.0),
])  # fmt: skip
def test_every_step_has_about_the_mixture_of_the_whole(rows: int, size: int, mean: float, most: float) -> None:
    """The claim of the docs: as even as a true shuffle, or not much less (for tasks of 0.5% and more)."""
    shares = np.random.default_rng(0).dirichlet(np.full(39, 2.0))
    task = np.sort(np.random.default_rng(1).choice(39, rows, p=shares))
    order = Order(Mixture([1000] * (rows // 1000), {}), 0, 64, 256)
    found = composition(sequence(order), task, size)[shares > 0.005]
    assert found.mean() < mean
    assert found.max() < most
    sorted_ones = composition(np.arange(rows), task, size)[shares > 0.005]
    assert sorted_ones.mean() > 20 * mean  # the measure tells


def test_a_row_comes_at_any_time_of_an_epoch_with_equal_probability() -> None:
    """Chi-squared of the tenths in which rows come over 400 seeds; 99.9% of 9 degrees of freedom is 27.9."""
    rows, seeds = 2000, 400
    positions = np.empty((seeds, rows), np.int64)
    for seed in range(seeds):
        positions[seed, sequence(make([20] * 100, lanes=4, window=16, seed=seed))] = np.arange(rows)
    tenth = positions * 10 // rows
    counts = np.stack([(tenth == number).sum(axis=0) for number in range(10)])  # [tenths, rows]
    statistic = ((counts - seeds / 10) ** 2 / (seeds / 10)).sum(axis=0)
    assert statistic.mean() == pytest.approx(9, rel=0.05)
    assert (statistic > 27.9).mean() < 0.004


def test_neighbours_on_disk_are_no_more_often_in_a_step_than_a_lane_makes_them() -> None:
    """Pairs of one example stand side by side; a step of 64 out of windows of 320 rows may join them by chance only."""
    rows, size, together = 6400, 64, 0
    for seed in range(60):
        position = np.empty(rows, np.int64)
        position[sequence(make([20] * 320, lanes=8, window=16, seed=seed))] = np.arange(rows)
        together += int((position[:-1] // size == position[1:] // size).sum())
    share = together / (60 * (rows - 1))
    # Neighbours are in the same group and so window (of 2 groups, 40 rows of a lane) with 19 in 20; a step takes 8 of it.
    assert share == pytest.approx(19 / 20 * 7 / 39, rel=0.1)

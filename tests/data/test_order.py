"""Which instances each optimizer step sees, on any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cappy_lightning.data.order import FILL, deal, epoch_order, step_rows, steps_per_epoch

WORLDS = (1, 2, 4, 8)
SIZES = st.integers(1, 200), st.integers(1, 40)
Rows = NDArray[np.int64]


def epoch(rows: int, size: int, seed: int = 0, number: int = 0) -> list[Rows]:
    order = epoch_order(rows, seed, number)
    return [step_rows(order, step, size) for step in range(steps_per_epoch(rows, size))]


def lengths(rows: int) -> Rows:
    return np.random.default_rng(1).integers(1, 50, rows)


@settings(deadline=None)
@given(*SIZES)
def test_every_row_is_in_exactly_one_step_of_an_epoch(rows: int, size: int) -> None:
    seen = np.concatenate(epoch(rows, size))
    assert sorted(seen[seen != FILL]) == list(range(rows))


@settings(deadline=None)
@given(*SIZES)
def test_every_step_has_the_global_size_and_only_the_last_is_filled_up(rows: int, size: int) -> None:
    steps = epoch(rows, size)
    assert [step.shape for step in steps] == [(size,)] * len(steps)
    assert not any((step == FILL).any() for step in steps[:-1])
    filled = int((steps[-1] == FILL).sum())
    assert filled == -rows % size < size
    assert (steps[-1][size - filled :] == FILL).all()


@pytest.mark.parametrize(("rows", "size", "steps"), [(0, 8, 0), (1, 8, 1), (7, 8, 1), (8, 8, 1), (9, 8, 2), (64, 8, 8)])
def test_an_epoch_has_as_many_steps_as_hold_its_rows(rows: int, size: int, steps: int) -> None:
    assert steps_per_epoch(rows, size) == steps


def test_the_order_is_made_of_rows_seed_and_epoch_alone() -> None:
    first = epoch_order(100, 3, 5)
    np.random.seed(0)
    assert (epoch_order(100, 3, 5) == first).all()
    others = [epoch_order(100, 4, 5), epoch_order(100, 3, 6), epoch_order(100, 5, 3), np.arange(100)]
    assert not any((other == first).all() for other in others)


@settings(deadline=None)
@given(st.integers(1, 6), st.sampled_from([1, 2, 3]), st.integers(1, 300))
def test_the_rows_behind_a_step_are_the_same_on_any_number_of_ranks(forwards: int, micro: int, rows: int) -> None:
    size = forwards * micro * max(WORLDS)
    for step in epoch(rows, size):
        for world in WORLDS:
            dealt = deal(step, lengths(rows), world, micro)
            assert dealt.shape == (size // (world * micro), world, micro)
            assert sorted(dealt.ravel()) == sorted(step)


@settings(deadline=None)
@given(st.integers(1, 300))
def test_pairs_of_one_forward_are_neighbours_in_length_over_all_ranks(rows: int) -> None:
    size, known = 48, lengths(rows)
    for step in epoch(rows, size):
        for world in WORLDS:
            dealt = deal(step, known, world, 48 // (2 * world) if world < 8 else 3)
            flat = np.where(dealt == FILL, 0, known[dealt]).ravel()
            assert (np.diff(flat) <= 0).all()  # longest first, filling last


def test_dealing_pairs_of_equal_length_keeps_their_order() -> None:
    step = np.array([4, 2, 0, 3, 1, 5, FILL, FILL])
    assert deal(step, np.full(6, 7), 2, 2).tolist() == [[[4, 2], [0, 3]], [[1, 5], [FILL, FILL]]]


def test_dealing_by_hand() -> None:
    # lengths by row: 5, 1, 9, 3, 7; the step holds rows 1 4 2 and a filling
    known = np.array([5, 1, 9, 3, 7])
    assert deal(np.array([1, 4, 2, FILL]), known, 2, 1).tolist() == [[[2], [4]], [[1], [FILL]]]
    assert deal(np.array([1, 4, 2, FILL]), known, 1, 2).tolist() == [[[2, 4]], [[1, FILL]]]

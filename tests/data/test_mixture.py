"""Caps and weights: exact counts, fair draws, nothing copied."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cappy_lightning.data.mixture import Kept, Mixture, choose_rows
from cappy_lightning.errors import InputError

#: Rows of each task in each of the groups: 3 groups of 10, 6 and 4 rows.
TABLE = {"a/x": [6, 0, 4], "a/y": [4, 1, 0], "b": [0, 5, 0]}
GROUP_ROWS = [10, 6, 4]


def mixture(table: dict[str, list[int]], group_rows: list[int], **patterns: dict[str, float]) -> Mixture:
    arrays = {name: np.array(rows) for name, rows in table.items()}
    return Mixture(
        group_rows, {name: (np.flatnonzero(rows), rows[rows > 0]) for name, rows in arrays.items()}, **patterns
    )


def by_task(kept: Kept) -> Counter[str]:
    found: Counter[str] = Counter()
    for group, turn, rows in zip(kept.groups.tolist(), kept.passes.tolist(), kept.rows.tolist(), strict=True):
        counts = kept.counts(group, turn)
        assert sum(counts.values()) == rows
        found.update(counts)
    return found


def test_without_caps_and_weights_an_epoch_takes_every_group_as_it_is() -> None:
    whole = mixture(TABLE, GROUP_ROWS)
    kept = whole.epoch(3, seed=1)
    assert (whole.rows, kept.groups.tolist(), kept.passes.tolist(), kept.rows.tolist()) == (
        20,
        [0, 1, 2],
        [0] * 3,
        GROUP_ROWS,
    )


@pytest.mark.parametrize(("caps", "weights", "expected"), [
    ({"*": 3}, {}, {"a/x": 3, "a/y": 3, "b": 3}),
    ({"*": 3, "b": 100}, {}, {"a/x": 3, "a/y": 3, "b": 5}),
    ({}, {"a/*": 2.0}, {"a/x": 20, "a/y": 10, "b": 5}),
    ({}, {"a/x": 0.5, "b": 0}, {"a/x": 5, "a/y": 5}),
    ({"a/x": 4}, {"a/x": 1.5, "b": 2.4}, {"a/x": 6, "a/y": 5, "b": 12}),
])  # fmt: skip
def test_an_epoch_has_weight_times_the_capped_rows(
    caps: dict[str, float], weights: dict[str, float], expected: dict[str, int]
) -> None:
    made = mixture(TABLE, GROUP_ROWS, caps=caps, weights=weights)
    assert made.rows == sum(expected.values())
    for number in range(3):
        kept = made.epoch(number, seed=7)
        assert by_task(kept) == expected
        entries = list(zip(kept.groups.tolist(), kept.passes.tolist(), strict=True))
        assert entries == sorted(set(entries))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8),
    st.integers(1, 60),
    st.floats(0.1, 4),
)
def test_each_row_comes_equally_often_to_within_one(pairs: list[tuple[int, int]], cap: int, weight: float) -> None:
    assume(any(a for a, _ in pairs))
    table = {"a": [a for a, _ in pairs], "b": [b + 1 for _, b in pairs]}
    made = mixture(table, [a + b + 1 for a, b in pairs], caps={"b": cap}, weights={"b": weight})
    kept = made.epoch(0, seed=0)
    rows = sum(table["b"])
    wanted = round(weight * min(rows, cap))
    found = by_task(kept)
    assert (found["a"], found["b"]) == (sum(table["a"]), wanted)
    for group, most in enumerate(table["b"]):
        counts = [kept.counts(group, turn).get("b", 0) for turn in range(wanted // rows + 2)]
        assert counts[: wanted // rows] == [most] * (wanted // rows)
        assert sum(1 for count in counts if 0 < count < most) <= 1


def test_what_a_cap_leaves_out_is_drawn_anew_and_fairly_in_every_epoch() -> None:
    made = mixture({"a": [300, 100], "b": [10, 10]}, [310, 110], caps={"a": 100})
    taken = np.array([[made.epoch(n, seed=0).counts(group, 0).get("a", 0) for group in (0, 1)] for n in range(400)])
    assert (taken.sum(axis=1) == 100).all()
    assert taken[:, 0].std() > 1
    # 100 of 400 rows, 300 of them in the first group: 75 expected, with a standard deviation of 3.75
    assert taken[:, 0].mean() == pytest.approx(75, abs=4 * 3.75 / 20)


def test_rows_are_drawn_fairly_within_a_group() -> None:
    tasks = np.array(["a", "b", "a", "a", "b", "a"], dtype=object)
    drawn = [choose_rows(tasks, {"a": 2, "b": 1}, [0, n]) for n in range(600)]
    assert all(sorted(rows) == list(rows) and Counter(tasks[rows]) == {"a": 2, "b": 1} for rows in drawn)
    times = Counter(int(row) for rows in drawn for row in rows)
    assert all(times[row] == pytest.approx(300, abs=50) for row in range(6))  # 4 standard deviations


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"^data: 'c\*' in its caps or weights matches no task among a/x, a/y, b$"):
        mixture(TABLE, GROUP_ROWS, weights={"c*": 1.0})


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="leave no instance"):
        mixture(TABLE, GROUP_ROWS, weights={"*": 0.0})

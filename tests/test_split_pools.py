"""The split that examples name, or that is made of them, and its caps."""

from collections.abc import Sequence
from typing import Any

import pytest

from cappy_lightning.config import Config, DataConfig
from cappy_lightning.errors import InputError
from cappy_lightning.preparation import split_pools
from cappy_lightning.records import Candidate, Example, Pool, Split


def config(**data: Any) -> Config:
    return Config(data=DataConfig(**data))


def pools(count: int, splits: Sequence[Split | None] = (None,), task: str = "t") -> list[Pool]:
    examples = (Example(task, str(n), "i", ("a",), split=splits[n % len(splits)]) for n in range(count))
    return [Pool(example, ()) for example in examples]


def test_every_example_is_on_exactly_one_side() -> None:
    given = [*pools(100), *pools(100, task="u")]
    train, validation = split_pools(config(validation_fraction=0.3), given)
    ids = [(pool.example.task, pool.example.id) for pool in given]
    assert sorted((pool.example.task, pool.example.id) for pool in train + validation) == sorted(ids)
    assert 35 <= len(validation) <= 85  # 60 expected, over 3 standard deviations to either side


def test_an_example_keeps_its_side_when_others_come_or_go() -> None:
    made = config(validation_fraction=0.4)
    _, validation = split_pools(made, pools(60))
    _, grown = split_pools(made, [*reversed(pools(90)), *pools(30, task="u")])
    few = {p.example.id for p in validation}
    assert few == {p.example.id for p in grown if p.example.task == "t" and int(p.example.id) < 60}


def test_the_split_is_drawn_by_the_seed_of_the_data_and_not_of_the_training() -> None:
    made = config(validation_fraction=0.5)
    assert split_pools(made, pools(50)) == split_pools(Config(seed=5, data=made.data), pools(50))
    assert split_pools(made, pools(50)) != split_pools(config(validation_fraction=0.5, seed=1), pools(50))


def test_splits_that_the_examples_name_are_kept() -> None:
    given = pools(20, ["train", "validation", "train"])
    train, validation = split_pools(config(validation_fraction=0.9), given)
    assert train + validation == sorted(given, key=lambda p: str(p.example.split))
    assert {p.example.split for p in train} == {"train"}


@pytest.mark.parametrize("splits", [["train", None], [None, None, "validation"]])
def test_splits_are_named_by_all_examples_or_none(splits: list[Split | None]) -> None:
    with pytest.raises(InputError) as error:
        split_pools(config(), pools(6, splits))
    assert str(error.value) == f"data: {3 if len(splits) == 2 else 2} of 6 examples name a split, expected all or none"


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (pools(5, ["train"]), "validation"),
        (pools(5, ["validation"]), "training"),
        (pools(1), "validation"),
        ([], "training"),
    ],
)
def test_a_side_without_any_example_is_refused(given: list[Pool], missing: str) -> None:
    with pytest.raises(InputError) as error:
        split_pools(config(validation_fraction=1e-9), given)
    expected = f"data: there is no {missing} example among {len(given)}, expected at least one"
    assert str(error.value) == expected


def test_references_and_choices_are_not_mixed() -> None:
    choice = Pool(Example("u", "1", "i", choices=("a", "b"), label=0), ())
    with pytest.raises(InputError) as error:
        split_pools(config(validation_fraction=0.5), [*pools(9), choice])
    assert str(error.value) == "data: some examples have references and some choices, expected one kind"


def test_names_that_would_stand_twice_in_the_report_are_refused_before_the_training() -> None:
    given = [Pool(pool.example, (Candidate("a", "top_k_4"),)) for pool in pools(9)]
    made = config(validation_fraction=0.5)
    for name in ("mbr", "top_k_4"):
        made.scorer.name = name
        with pytest.raises(InputError) as error:
            split_pools(made, given)
        assert str(error.value) == f"scorer.name: is '{name}', which is a baseline's name"
    made.scorer.name = "sampling"  # no candidate is made by it
    split_pools(made, given)


def test_caps_keep_so_many_of_each_side_in_their_order_by_the_seed() -> None:
    given = pools(80, ["train", "train", "train", "validation"])
    cap = {"max_train": 7, "max_validation": 5}
    whole, capped = split_pools(config(), given), split_pools(config(**cap), given)
    assert tuple(map(len, capped)) == (7, 5)
    for side, kept in zip(whole, capped, strict=True):
        assert kept == [pool for pool in side if pool in kept]
    assert split_pools(config(**cap), given) == capped
    assert split_pools(config(**cap, seed=1), given)[0] != capped[0]
    assert split_pools(config(**cap, validation_fraction=0.5), given) == capped

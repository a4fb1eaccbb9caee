"""The weak-label rules."""

import importlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import rouge_l
from hypothesis import given, settings
from hypothesis import strategies as st

from cappy_lightning.config import LabelConfig
from cappy_lightning.errors import InputError
from cappy_lightning.labeling import weak_labels
from cappy_lightning.labeling.weak_labels import (
    Labeler,
    cap_examples,
    draw_mismatches,
    in_validation,
    with_split,
)
from cappy_lightning.matching import normalize
from cappy_lightning.records import Candidate, Example, Instance, Pool


def pool(identity: str, truth: Sequence[str], candidates: Sequence[str] = (), **more: Any) -> Pool:
    settings = {"task": "t", "instruction": f"instruction {identity}"} | more
    key = "choices" if "label" in settings else "references"
    example = Example(id=identity, **{key: tuple(truth)}, **settings)
    return Pool(example, tuple(Candidate(text, "sampling") for text in candidates))


def labels(instances: Sequence[Instance]) -> list[tuple[str, float, str]]:
    return [(i.response, i.score, i.origin) for i in instances]


def label(pools: Sequence[Pool], mismatches: int = 0, seed: int = 0) -> list[Instance]:
    return list(Labeler(LabelConfig(mismatches=mismatches), seed).training(pools))


def label_candidates(pools: Sequence[Pool]) -> list[Instance]:
    return list(Labeler(LabelConfig(), 0).validation(pools))


MANY = [pool(str(n), [f"answer {n}", f"reply {n}"], [f"answer {n + 1}", "none"]) for n in range(40)]


def test_every_reference_is_gold_and_every_candidate_has_its_best_rouge_l() -> None:
    found = label([pool("1", ["a b", "c d"], ["a", "c d e f", "x"])])
    assert labels(found) == [
        ("a b", 1.0, "gold"),
        ("c d", 1.0, "gold"),
        ("a", 2 / 3, "sampled"),  # P = 1, R = 1/2
        ("c d e f", 2 / 3, "sampled"),  # P = 1/2, R = 1
        ("x", 0.0, "sampled"),
    ]
    assert {(i.instruction, i.task, i.example_id) for i in found} == {("instruction 1", "t", "1")}


def test_the_right_choice_is_gold_and_the_others_are_wrong() -> None:
    found = label([pool("1", ["x", "y", "z"], ["y", "x"], label=1)], mismatches=3)
    assert labels(found) == [("y", 1.0, "gold"), ("x", 0.0, "wrong_choice"), ("z", 0.0, "wrong_choice")]


def test_gold_beats_sampled_for_the_same_pair() -> None:
    found = labels(label([pool("1", ["東京"], ["東京", "京都"])]))  # no token: Rouge-L alone would say 0
    assert found == [("東京", 1.0, "gold"), ("京都", 0.0, "sampled")]


def test_gold_beats_wrong_choice_for_the_same_pair() -> None:
    assert labels(label([pool("1", ["x", "x", "y"], label=1)])) == [("x", 1.0, "gold"), ("y", 0.0, "wrong_choice")]


def test_sampled_beats_mismatch_for_the_same_pair() -> None:
    found = label([pool("1", ["a b c"], ["a x"]), pool("2", ["a x"])], mismatches=1)
    assert [i.origin for i in found if (i.example_id, i.response) == ("1", "a x")] == ["sampled"]


def test_a_judge_is_asked_only_for_what_has_no_stronger_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_counting_judge.py").write_text(
        "asked = []\ndef judge(i, r, one):\n    asked.append(one)\n    return 0.5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    candidates = (*(Candidate(text, "d") for text in ("b", "a", "c", "b")), Candidate("c", "d", score=0.25))
    example = Example("t", "1", "i", references=("a",))
    labeler = Labeler(LabelConfig(score="my_counting_judge:judge"), 0)
    found = labels(list(labeler.validation([Pool(example, candidates)])))
    assert found == [("a", 1.0, "gold"), ("c", 0.25, "given"), ("b", 0.5, "sampled")]
    assert importlib.import_module("my_counting_judge").asked == ["b"]


def test_no_pair_of_an_example_stands_twice() -> None:
    found = label([*MANY, pool("r", ["a", "a", "b"], ["b", "c", "c", "a"])], mismatches=5)
    pairs = [(i.example_id, i.response) for i in found]
    assert len(pairs) == len(set(pairs))
    assert all(0 <= i.score <= 1 for i in found)


def test_no_pair_has_two_scores_even_where_examples_share_an_instruction() -> None:
    found = label([pool(n, [n], instruction="the same") for n in "ab"], mismatches=1)
    pairs = [(i.instruction, i.response) for i in found]
    assert len(pairs) == len(set(pairs))


def test_mismatches_are_references_of_other_examples_of_the_task_and_none_of_its_own() -> None:
    others = [pool(f"o{n}", [f"other {n}"], task="u") for n in range(10)]
    alike = [pool(f"a{n}", [text]) for n, text in enumerate(("Answer 1!", "REPLY  1", "answer 1."))]
    pools = [*MANY, *others, *alike]
    found = [i for i in label(pools, mismatches=3) if i.origin == "mismatch"]
    assert found
    for instance in found:
        (example,) = (
            p.example for p in pools if (p.example.task, p.example.id) == (instance.task, instance.example_id)
        )
        assert instance.score == 0
        assert normalize(instance.response) not in map(normalize, example.references)
        assert any(instance.response in p.example.references for p in pools if p.example.task == instance.task)


def drawn(example: Example, others: Sequence[Example], count: int) -> list[str]:
    """Mismatches for an example whose own references alone are right."""
    return draw_mismatches(example, others, set(map(normalize, example.references)), count, seed=0)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_an_example_gets_as_many_distinct_mismatches_as_asked_for(count: int) -> None:
    examples = [p.example for p in MANY]
    for example in examples:
        found = drawn(example, examples, count)
        assert len(found) == len({normalize(text) for text in found}) == count


def test_where_all_references_are_alike_there_is_no_mismatch() -> None:
    examples = [pool(str(n), ["Yes", "yes!"]).example for n in range(5)]
    assert drawn(examples[0], examples, 3) == []


def test_what_else_is_right_is_no_mismatch_either() -> None:
    examples = [pool(text, [text]).example for text in ("a", "B!", "c")]
    right = {"a", "b"}
    assert draw_mismatches(examples[0], examples, right, 3, seed=0) == ["c"]
    assert right == {"a", "b"}


def test_an_example_with_choices_neither_gets_nor_gives_mismatches() -> None:
    examples = [pool("c", ["x", "y"], label=0).example, pool("1", ["a"]).example, pool("2", ["b"]).example]
    assert drawn(examples[0], examples, 3) == []
    assert drawn(examples[1], examples, 3) == ["b"]


def test_mismatches_depend_on_the_seed_and_not_on_global_randomness() -> None:
    random.seed(1)
    one = label(MANY, mismatches=2)
    random.seed(2)
    assert label(MANY, mismatches=2) == one != label(MANY, mismatches=2, seed=1)


def test_validation_holds_every_distinct_candidate_and_nothing_else() -> None:
    pools = [pool("first", ["a b", "not proposed"], ["a", "a b", "A B", "a", "x"]), *MANY]
    found = label_candidates(pools)
    first = [("a b", 1.0, "gold"), ("a", 2 / 3, "sampled"), ("A B", 1.0, "sampled"), ("x", 0.0, "sampled")]
    assert labels(found)[:4] == first
    for one in pools:
        responses = [i.response for i in found if i.example_id == one.example.id]
        assert sorted(responses) == sorted({c.response for c in one.candidates})


def test_validation_of_choices_scores_the_choices_that_are_candidates() -> None:
    found = label_candidates([pool("1", ["x", "y", "z"], ["z", "y"], label=1)])
    assert labels(found) == [("y", 1.0, "gold"), ("z", 0.0, "wrong_choice")]


def test_every_sampled_score_is_the_best_rouge_l() -> None:
    for instance in label(MANY):
        if instance.origin == "sampled":
            (one,) = (p for p in MANY if p.example.id == instance.example_id)
            assert instance.score == rouge_l(one.example.references, instance.response)


@pytest.mark.parametrize(("most", "kept"), [(None, 40), (100, 40), (40, 40), (39, 39), (1, 1)])
def test_a_cap_keeps_so_many_in_their_order(most: int | None, kept: int) -> None:
    found = cap_examples(iter(MANY), most, seed=3)
    assert len(found) == kept
    assert found == [p for p in MANY if p in found]


def test_which_ones_a_cap_keeps_is_drawn_by_the_seed() -> None:
    assert cap_examples(MANY, 10, 1) == cap_examples(MANY, 10, 1) != cap_examples(MANY, 10, 2)


@settings(deadline=None)
@given(st.text(), st.text(), st.integers(), st.floats(0, 1), st.floats(0, 1))
def test_a_greater_fraction_only_adds_to_validation(
    identity: str, text: str, seed: int, one: float, other: float
) -> None:
    small, great = sorted((one, other))
    assert in_validation(identity, text, great, seed) or not in_validation(identity, text, small, seed)
    assert not in_validation(identity, text, 0, seed)
    assert in_validation(identity, text, 1, seed)


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_the_share_in_validation_is_near_the_fraction(fraction: float) -> None:
    for seed in range(3):
        share = sum(in_validation(str(n), "i", fraction, seed) for n in range(4000)) / 4000
        assert abs(share - fraction) < 0.03  # over 3 standard deviations


def test_the_split_depends_on_the_seed() -> None:
    sides = [[in_validation(str(n), "i", 0.5, seed) for n in range(64)] for seed in range(2)]
    assert sides[0] != sides[1]


def test_a_row_or_an_instruction_is_on_one_side_whatever_is_made_of_it() -> None:
    words = [f"{number}" for number in range(64)]
    for number in words:  # by several templates
        for own in (f"row:{number}", f"{int(number):016x}"):
            assert in_validation(own, f"{number}?", 0.5, 0) == in_validation(own, f"A: {number}", 0.5, 0)
    rows = [{"task": "t", "instruction": number, "references": [own]} for number in words for own in ("a", "b")]
    made = list(with_split(lambda: [Example.from_row(row, "") for row in rows], 0.5, 0)())
    assert len({example.id for example in made}) == 128
    assert [example.split for example in made[::2]] == [example.split for example in made[1::2]]
    assert {example.split for example in made} == {"train", "validation"}


def test_a_candidate_that_is_no_choice_is_wrong_unless_it_means_the_right_one() -> None:
    odd = pool("1", ["yes", "no"], ["yes", "Yes.", "maybe", "yes", "No."], label=0)
    told = [("No.", 0.0, "wrong_choice"), ("Yes.", 1.0, "sampled"), ("maybe", 0.0, "wrong_choice")]
    assert sorted(labels(label([odd]))) == sorted([("yes", 1.0, "gold"), ("no", 0.0, "wrong_choice"), *told])
    assert sorted(labels(label_candidates([odd]))) == sorted([("yes", 1.0, "gold"), *told])


def test_a_split_is_kept_made_or_refused() -> None:
    bare = [one.example for one in MANY]
    made = list(with_split(lambda: bare, 0.25, 0)())
    assert {example.split for example in made} == {"train", "validation"}
    assert [e.split == "validation" for e in made] == [in_validation(e.id, e.instruction, 0.25, 0) for e in bare]
    assert list(with_split(lambda: made, 0.9, 7)()) == made
    with pytest.raises(InputError, match="1 of 2 examples name a split, expected all or none"):
        with_split(lambda: [made[0], bare[1]], 0.25, 0)


def labeler(seed: int = 0, **settings: Any) -> Labeler:
    return Labeler(LabelConfig(**{"mismatches": 0} | settings), seed)


def test_a_cap_on_wrong_choices_draws_some_and_keeps_the_right_one() -> None:
    many = [pool(str(n), [f"c{k}" for k in range(20)], label=n % 20) for n in range(30)]
    found = list(labeler(max_wrong_choices=3).training(many))
    kept: dict[str, list[Instance]] = {}
    for instance in found:
        kept.setdefault(instance.example_id, []).append(instance)
    assert all([i.origin for i in own] == ["gold"] + ["wrong_choice"] * 3 for own in kept.values())
    assert len({i.response for i in found if i.origin == "wrong_choice"}) == 20
    assert found == list(labeler(max_wrong_choices=3).training(many))
    assert found != list(labeler(seed=1, max_wrong_choices=3).training(many))
    # Also where the choices are the candidates, as in a pool of choices.
    candidates = [Pool.of_example(one.example) for one in many]
    assert found == list(labeler(max_wrong_choices=3).training(candidates))
    assert len(list(labeler(max_wrong_choices=0).training(many))) == 30


def test_a_candidates_own_score_goes_before_what_the_measure_says() -> None:
    example = Example("t", "1", "i", ("a b",))
    candidates = (Candidate("a", "x", score=0.9), Candidate("b", "x"), Candidate("a b", "x", score=0.2))
    found = labels(list(labeler().training([Pool(example, candidates)])))
    assert found == [("a b", 1.0, "gold"), ("a", 0.9, "given"), ("b", 2 / 3, "sampled")]
    bare = Pool(Example("t", "2", "i"), (Candidate("a", "x", score=0.9),))
    assert labels(list(labeler().training([bare]))) == [("a", 0.9, "given")]
    with pytest.raises(InputError, match="example 2 of task t: has a candidate without a score, but neither"):
        list(labeler().training([Pool(bare.example, (Candidate("a", "x"),))]))


def test_the_measure_judges_what_was_sampled() -> None:
    one = pool("1", ["a b"], ["A b!", "b a", "x"])
    assert [i.score for i in labeler(score="exact_match").training([one])] == [1, 1, 0, 0]
    assert [i.score for i in labeler(score="token_f1").training([one])] == [1, 1, 1, 0]


def test_references_that_the_tokenizer_leaves_empty_are_counted() -> None:
    pools = [pool("1", ["東京"], ["東"]), pool("2", ["a", "京"], ["a"]), pool("3", ["x"], label=0)]
    for tokenizer, scores, warned in (("paper", 0.0, 1), ("unicode", 2 / 3, 0)):
        one = labeler(tokenizer=tokenizer)
        found = [i.score for i in one.training(pools) if i.origin == "sampled" and i.example_id == "1"]
        assert found == [scores]
        assert len(one.warnings()) == warned
    paper = labeler()
    list(paper.validation(pools))
    assert paper.warnings() == [
        "warning: 1 of 3 examples have no reference with a token of the tokenizer, which knows a-z and 0-9 only:"
        " label.tokenizer=unicode"
    ]


def test_labels_do_not_depend_on_how_pools_are_handed_in() -> None:
    assert list(labeler(mismatches=2).training(iter(MANY))) == list(labeler(mismatches=2).training(MANY))


def test_what_is_gold_for_an_instruction_is_gold_for_all_its_examples() -> None:
    found = list(labeler().training([pool(n, [n], ["a", "b", "c"], instruction="the same") for n in "ab"]))
    assert [(i.response, i.score, i.origin) for i in found if i.response in "ab"] == [
        ("a", 1, "gold"),
        ("b", 1, "gold"),
    ]
    assert sum(i.response == "c" for i in found) == 2


def test_other_measures_do_not_look_at_tokens() -> None:
    one = labeler(score="exact_match")
    list(one.training([pool("1", ["東京"], ["東"])]))
    assert one.warnings() == []


def test_a_block_of_pools_is_labelled_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weak_labels, "BLOCK", 8)
    taken = 0

    def counted() -> Iterator[Pool]:
        nonlocal taken
        for one in MANY:
            taken += 1
            yield one

    found = labeler(mismatches=1).training(counted())
    next(found)
    assert taken == 8
    instances = [*found]
    for instance in instances:
        if instance.origin == "mismatch":  # from the same block
            own, other = int(instance.example_id), int(instance.response.split()[1])
            assert own // 8 == other // 8

"""The weak-label rules: how examples and pools become instances."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from cappy_lightning.errors import InputError
from cappy_lightning.labeling.rouge import rouge_l
from cappy_lightning.progress import say
from cappy_lightning.records import ORIGINS, Example, Instance, Origin, Pool, normalize


def label_pools(pools: Sequence[Pool], *, mismatches: int, seed: int) -> Iterator[Instance]:
    """Training instances by the paper's rules, pool by pool.

    - `gold`, 1.0: the instruction with each reference, or with the right choice;
    - `wrong_choice`, 0.0: with each other choice, and with a candidate that is none of the choices;
    - `mismatch`, 0.0: with `mismatches` references of other examples of the task that are no reference,
      normalized, of this one; drawn by (seed, task, example id). Only for examples with references;
    - `sampled`: with each distinct candidate, scored with Rouge-L, best over the references.

    The same pair twice becomes one instance, the stronger origin staying (`ORIGINS`).
    """
    by_task: dict[str, list[Example]] = defaultdict(list)
    right: dict[tuple[str, str], set[str]] = defaultdict(set)  # an instruction may stand in several examples
    for pool in pools:
        by_task[pool.example.task].append(pool.example)
        right[pool.example.task, pool.example.instruction].update(map(normalize, pool.example.references))
    for pool in pools:
        example = pool.example
        pairs = _truth(example)
        known = right[example.task, example.instruction]
        drawn = draw_mismatches(example, by_task[example.task], known, mismatches, seed)
        pairs += [(text, 0.0, "mismatch") for text in drawn]
        yield from _instances(example, pairs + _candidates(pool))


def label_candidates(pools: Sequence[Pool]) -> Iterator[Instance]:
    """Validation instances: what selection will meet, and nothing else.

    The distinct candidates of each pool: scored 1.0 (`gold`) where a candidate is a reference or the
    right choice, else as `label_pools` does. References that no LLM proposed and mismatches are left out,
    so that "the best is ranked first" speaks of candidates.
    """
    for pool in pools:
        proposed = {candidate.response for candidate in pool.candidates}
        truth = [pair for pair in _truth(pool.example) if pair[0] in proposed]
        yield from _instances(pool.example, truth + _candidates(pool))


def draw_mismatches(
    example: Example, others: Sequence[Example], right: Collection[str], count: int, seed: int
) -> list[str]:
    """Up to `count` distinct references of other examples that are, normalized, none of the `right` ones."""
    if not example.references or not count:
        return []
    own = set(right)
    generator = random.Random(f"{seed} {example.task} {example.id}")
    found: list[str] = []
    for _ in range(10 * count):  # enough draws unless nearly all references of the task are alike
        other = generator.choice(others)
        text = generator.choice(other.references) if other.references else ""
        if text and normalize(text) not in own:
            own.add(normalize(text))
            found.append(text)
            if len(found) == count:
                break
    return found


def cap_examples(pools: Iterable[Pool], most: int | None, seed: int) -> list[Pool]:
    """At most `most` pools, drawn by `seed`, in their original order."""
    kept = list(pools)
    if most is not None and len(kept) > most:
        kept = [kept[i] for i in sorted(random.Random(seed).sample(range(len(kept)), most))]
    return kept


def in_validation(example_id: str, task: str, fraction: float, seed: int) -> bool:
    """Whether an example without a split belongs to the validation split: by a hash of its id.

    The answer does not depend on the other examples, so a grown data set keeps its split.
    """
    digest = hashlib.sha256(f"{seed} {task} {example_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def with_split(examples: Sequence[Example], fraction: float, seed: int) -> list[Example]:
    """The examples, each with a split: its own, or where none has one, one made by `in_validation`, and said.

    Raises:
        InputError: some have a split and some do not.
    """
    named = sum(example.split is not None for example in examples)
    if named == len(examples):
        return list(examples)
    if named:
        raise InputError("data", f"{named} of {len(examples)} examples name a split, expected all or none")
    held_out = [in_validation(example.id, example.task, fraction, seed) for example in examples]
    say(
        f"the examples name no split: made one of {held_out.count(False)} for training"
        f" and {held_out.count(True)} for validation"
    )
    return [
        replace(example, split="validation" if held else "train")
        for example, held in zip(examples, held_out, strict=True)
    ]


def _truth(example: Example) -> list[tuple[str, float, Origin]]:
    if example.references:
        return [(reference, 1.0, "gold") for reference in example.references]
    return [
        (choice, 1.0, "gold") if index == example.label else (choice, 0.0, "wrong_choice")
        for index, choice in enumerate(example.choices)
    ]


def _candidates(pool: Pool) -> list[tuple[str, float, Origin]]:
    """Rouge-L for each distinct candidate; where there are choices, one that is not the right one is wrong."""
    responses = dict.fromkeys(candidate.response for candidate in pool.candidates)
    if not pool.example.references:
        return [(response, 0.0, "wrong_choice") for response in responses]
    return [(response, rouge_l(pool.example.references, response), "sampled") for response in responses]


def _instances(example: Example, pairs: list[tuple[str, float, Origin]]) -> Iterator[Instance]:
    strongest: dict[str, tuple[str, float, Origin]] = {}
    for pair in sorted(pairs, key=lambda p: ORIGINS.index(p[2])):  # stable: references stay in their order
        strongest.setdefault(pair[0], pair)
    for response, score, origin in strongest.values():
        yield Instance(example.instruction, response, score, origin, example.task, example.id)

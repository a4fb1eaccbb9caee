"""The weak-label rules: how examples and pools become instances."""

import hashlib
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from cappy_lightning.config import LabelConfig
from cappy_lightning.errors import InputError
from cappy_lightning.labeling.measures import open_measure
from cappy_lightning.labeling.rouge import Item
from cappy_lightning.labeling.tokens import TOKENIZERS
from cappy_lightning.matching import normalize
from cappy_lightning.progress import say
from cappy_lightning.records import ORIGINS, Example, Instance, Origin, Pool, is_made_id

#: Pools that are labelled together: mismatches come from the same block.
BLOCK = 4096

#: A response with its score and the reason of it.
Label = tuple[str, float, Origin]


class Labeler:
    """The paper's rules with their settings.

    Args:
        config: the section `label`.
        seed: of mismatches and of capped wrong choices, together with task and example id.

    Attributes:
        counts: `examples` seen, and `voiceless`, those of whose references the tokenizer leaves nothing.
        measure: of sampled candidates.
    """

    def __init__(self, config: LabelConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.counts: Counter[str] = Counter()
        self.measure = open_measure(config.score, config.tokenizer)
        # Other measures do not look at tokens.
        self._words = TOKENIZERS[config.tokenizer] if config.score in ("rouge_l", "token_f1") else None

    def training(self, pools: Iterable[Pool]) -> Iterator[Instance]:
        """Training instances, block by block of pools, in the order of the pools.

        - `gold`, 1.0: the instruction with each reference, or with the right choice;
        - `wrong_choice`, 0.0: with each other choice, at most `label.max_wrong_choices` of them, and with
          a candidate that is none of the choices;
        - `given`: with each candidate that brings a score of its own;
        - `sampled`: with each other distinct candidate, scored by `label.score` against the references;
        - `mismatch`, 0.0: with `label.mismatches` references of other examples of the task in the same
          block that are no reference, normalized, of this one. Only for examples with references.

        The same pair twice in an example becomes one instance, the stronger origin staying (`ORIGINS`);
        where several examples of a block share an instruction, gold of one goes before all else in the others.

        Raises:
            InputError: an example without references and choices that has a candidate without a score.
        """
        iterator = iter(pools)
        while block := list(itertools.islice(iterator, BLOCK)):
            yield from self._block(block)

    def _block(self, pools: Sequence[Pool]) -> Iterator[Instance]:
        by_task: dict[str, list[Example]] = defaultdict(list)
        # An instruction may stand in several examples: what is right for one is wrong for none.
        right: dict[tuple[str, str], set[str]] = defaultdict(set)
        gold: dict[tuple[str, str], set[str]] = defaultdict(set)
        for pool in pools:
            example = pool.example
            by_task[example.task].append(example)
            key = example.task, example.instruction
            right[key].update(map(normalize, example.references))
            gold[key].update(response for response, _, origin in _truth(example) if origin == "gold")
        for pool, candidates in zip(pools, self._candidates(pools), strict=True):
            example = pool.example
            known = right[example.task, example.instruction]
            drawn = draw_mismatches(example, by_task[example.task], known, self.config.mismatches, self.seed)
            self._count(example)
            mismatches: list[Label] = [(text, 0.0, "mismatch") for text in drawn]
            elsewhere = gold[example.task, example.instruction]
            labels = self._truth(example) + mismatches + candidates
            yield from _instances(example, [one for one in labels if one[2] == "gold" or one[0] not in elsewhere])

    def validation(self, pools: Iterable[Pool]) -> Iterator[Instance]:
        """Validation instances: what selection will meet, and nothing else.

        The distinct candidates of each pool: scored 1.0 (`gold`) where a candidate is a reference or the
        right choice, else as `training` does. References that no LLM proposed and mismatches are left
        out, so that "the best is ranked first" speaks of candidates.
        """
        iterator = iter(pools)
        while block := list(itertools.islice(iterator, BLOCK)):
            for pool, candidates in zip(block, self._candidates(block), strict=True):
                self._count(pool.example)
                proposed = {candidate.response for candidate in pool.candidates}
                truth = [label for label in _truth(pool.example) if label[0] in proposed]
                yield from _instances(pool.example, truth + candidates)

    def _truth(self, example: Example) -> list[Label]:
        labels, most = _truth(example), self.config.max_wrong_choices
        wrong = [index for index, label in enumerate(labels) if label[2] == "wrong_choice"]
        if most is None or len(wrong) <= most:
            return labels
        generator = random.Random(f"{self.seed} {example.task} {example.id} wrong choices")
        left_out = set(wrong) - set(generator.sample(wrong, most))
        return [label for index, label in enumerate(labels) if index not in left_out]

    def _candidates(self, pools: Sequence[Pool]) -> list[list[Label]]:
        """A label for each distinct candidate but the choices; beside these only what means the right one is right."""
        labels: list[list[Label]] = [[] for _ in pools]
        items: list[Item] = []
        places: list[int] = []
        for place, pool in enumerate(pools):
            example = pool.example
            # Of a response that is labelled stronger nobody is asked: it may be an LLM or a person who judges.
            seen = {*example.choices, *example.references}
            seen.update(candidate.response for candidate in pool.candidates if candidate.score is not None)
            for candidate in pool.candidates:
                response = candidate.response
                if candidate.score is not None:
                    labels[place].append((response, candidate.score, "given"))
                elif response in seen:
                    continue
                elif example.references:
                    items.append((example.instruction, example.references, response))
                    places.append(place)
                elif example.choices:
                    right = example.choice_of(response) == example.right_choice
                    labels[place].append((response, 1.0, "sampled") if right else (response, 0.0, "wrong_choice"))
                else:
                    raise InputError(
                        f"example {example.id} of task {example.task}",
                        "has a candidate without a score, but neither references nor choices to judge it by",
                    )
                seen.add(response)
        for place, item, score in zip(places, items, self.measure.scores(items), strict=True):
            labels[place].append((item[2], score, "sampled"))
        return labels

    def _count(self, example: Example) -> None:
        self.counts["examples"] += 1
        if self._words and example.references:
            self.counts["voiceless"] += not any(map(self._words, example.references))

    def warnings(self) -> list[str]:
        """What the counts tell to worry about."""
        examples, voiceless = self.counts["examples"], self.counts["voiceless"]
        if not voiceless:
            return []
        hint = ", which knows a-z and 0-9 only: label.tokenizer=unicode" if self.config.tokenizer == "paper" else ""
        return [f"warning: {voiceless} of {examples} examples have no reference with a token of the tokenizer{hint}"]


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


def in_validation(example_id: str, instruction: str, fraction: float, seed: int) -> bool:
    """Whether an example without a split belongs to the validation split: by a hash of its id, if it came with one.

    So what several templates make of a row is on one side. Examples without an id of their own are by their
    instruction, which can have several references, each in an example. The answer does not depend on the other
    examples: a grown data set keeps its split.
    """
    digest = hashlib.sha256(f"{seed} {instruction if is_made_id(example_id) else example_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def with_split(
    examples: Callable[[], Iterable[Example]], fraction: float, seed: int
) -> Callable[[], Iterator[Example]]:
    """The examples, each with a split: its own, or where none has one, one made by `in_validation`, and said.

    Args:
        examples: gives the examples from the start, the same ones each time.
        fraction: the share of the validation split that is made.
        seed: of the split that is made.

    Raises:
        InputError: some have a split and some do not.
    """
    total = named = held = 0
    for example in examples():
        total += 1
        named += example.split is not None
        held += in_validation(example.id, example.instruction, fraction, seed)
    if 0 < named < total:
        raise InputError("data", f"{named} of {total} examples name a split, expected all or none")
    if named == total:
        return lambda: iter(examples())
    say(f"the examples name no split: made one of {total - held} for training and {held} for validation")

    def split(example: Example) -> Example:
        held = in_validation(example.id, example.instruction, fraction, seed)
        return replace(example, split="validation" if held else "train")

    return lambda: map(split, examples())


def _truth(example: Example) -> list[Label]:
    if example.references:
        return [(reference, 1.0, "gold") for reference in example.references]
    return [
        (choice, 1.0, "gold") if index == example.label else (choice, 0.0, "wrong_choice")
        for index, choice in enumerate(example.choices)
    ]


def _instances(example: Example, labels: list[Label]) -> Iterator[Instance]:
    strongest: dict[str, Label] = {}
    for label in sorted(labels, key=lambda label: ORIGINS.index(label[2])):  # stable: references stay in their order
        strongest.setdefault(label[0], label)
    for response, score, origin in strongest.values():
        yield Instance(example.instruction, response, score, origin, example.task, example.id)

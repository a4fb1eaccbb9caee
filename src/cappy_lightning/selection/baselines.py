"""What a selection is compared with: every other way to pick from the same pool.

Each method has a value per pool: the reward of the candidate that it picks. A reward is what the measure
says of a candidate against the references, or whether the choice is right.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from cappy_lightning.errors import InputError
from cappy_lightning.labeling.measures import Measure
from cappy_lightning.labeling.rouge import RougeL
from cappy_lightning.matching import normalize
from cappy_lightning.records import Pool, Selection
from cappy_lightning.selection.classes import most_frequent_class, shared_classes

#: What a scorer is called in reports that do not say its name.
SCORER = "cappy"

#: The best that a choice can do, which looks at the truth, and what a blind one gets on average.
ORACLE, RANDOM = "oracle", "random"

#: The scorer together with what the candidates tell of themselves (`fusion.py`).
FUSED = "fused"

#: Names that no scorer and no decoding may have.
RESERVED = (
    RANDOM,
    "self_score_sum",
    "self_score_mean",
    "majority",
    "mbr",
    "most_frequent_class",
    "shortest",
    "longest",
    FUSED,
    ORACLE,
)

#: Why methods are left out that judge an LLM's answers.
GIVEN = "the candidates are given choices, not samples"

#: Decodings that say that nothing was decoded.
NOT_DECODED = ("choice", "given")


def rewards(pools: Sequence[Pool], measure: Measure) -> list[list[float]]:
    """The reward of every candidate of every pool, in [0, 1]."""
    distinct = [list(dict.fromkeys(candidate.response for candidate in pool.candidates)) for pool in pools]
    scores = iter(
        measure.scores(
            [
                (pool.example.instruction, pool.example.references, response)
                for pool, responses in zip(pools, distinct, strict=True)
                if pool.example.references
                for response in responses
            ]
        )
    )
    found: list[list[float]] = []
    for pool, responses in zip(pools, distinct, strict=True):
        example = pool.example
        if example.references:
            known = {response: next(scores) for response in responses}
        else:
            known = {response: float(example.choice_of(response) == example.right_choice) for response in responses}
        found.append([known[candidate.response] for candidate in pool.candidates])
    return found


def method_values(
    pools: Sequence[Pool],
    all_rewards: Sequence[Sequence[float]],
    selections: Mapping[str, Sequence[Selection]],
    rouge: RougeL,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """The value of every method on every pool, [method][pool], and the reasons of those left out.

    - `random`: the mean over the candidates, what a blind choice gets on average;
    - one per decoding: the mean over its candidates (`greedy` has one), and 0 where it gave none (`unanswered`);
    - `self_score_sum`, `self_score_mean`: the highest log-likelihood, by sum and per token;
    - `majority`: the most frequent answer, normalized; `mbr`: the highest mean Rouge-L to the others;
    - `most_frequent_class`: where all pools have the same choices, the one that is right most often, whatever is asked;
    - `shortest`, `longest`: by characters; what is given as selections; `oracle`: the best candidate.

    Ties go to the first candidate.

    Args:
        pools: pools with references or choices.
        all_rewards: of every candidate (`rewards`).
        selections: by method, one for each pool.
        rouge: what `mbr` compares candidates by.
    """
    values: dict[str, list[float]] = {RANDOM: [sum(r) / len(r) for r in all_rewards]}
    skipped: dict[str, str] = {}

    def pick(name: str, chosen: Sequence[int]) -> None:
        values[name] = [r[i] for r, i in zip(all_rewards, chosen, strict=True)]

    for decoding in dict.fromkeys(c.decoding for pool in pools for c in pool.candidates):
        own = [
            [r for r, c in zip(rs, p.candidates, strict=True) if c.decoding == decoding]
            for rs, p in zip(all_rewards, pools, strict=True)
        ]
        if decoding not in NOT_DECODED:
            values[decoding] = [sum(r) / len(r) if r else 0.0 for r in own]
    for name in ("log_likelihood_sum", "log_likelihood_mean"):
        method = name.replace("log_likelihood", "self_score")
        known = [[getattr(c, name) for c in pool.candidates] for pool in pools]
        if are_choices(pools):
            skipped[method] = GIVEN
        elif lacking := sum(None in likelihoods for likelihoods in known):
            skipped[method] = f"{lacking} of {len(pools)} pools have candidates without {name}"
        else:
            pick(method, [first_best(likelihoods) for likelihoods in known])
    if are_choices(pools):
        skipped |= dict.fromkeys(("majority", "mbr"), GIVEN)
        if shared_classes(pools):
            frequent = most_frequent_class(pools)
            values["most_frequent_class"] = [float(pool.example.right_choice == frequent) for pool in pools]
    else:
        pick("majority", [majority(pool) for pool in pools])
        pick("mbr", [minimum_bayes_risk(pool, rouge) for pool in pools])
    pick("shortest", [first_best([-len(c.response) for c in pool.candidates]) for pool in pools])
    pick("longest", [first_best([len(c.response) for c in pool.candidates]) for pool in pools])
    for name, chosen in selections.items():
        pick(name, [selection.index for selection in chosen])
    pick(ORACLE, [first_best(r) for r in all_rewards])
    return values, skipped


def unanswered(pools: Sequence[Pool]) -> dict[str, int]:
    """To how many examples a decoding gave no candidate, of the decodings that gave some; empty answers are none."""
    given = [{candidate.decoding for candidate in pool.candidates} for pool in pools]
    decodings = dict.fromkeys(c.decoding for pool in pools for c in pool.candidates if c.decoding not in NOT_DECODED)
    counts = {decoding: sum(decoding not in own for own in given) for decoding in decodings}
    return {decoding: count for decoding, count in counts.items() if count}


def are_choices(pools: Sequence[Pool]) -> bool:
    """Whether the candidates are the choices of the examples, and no answers of an LLM."""
    return all({c.response for c in pool.candidates} == set(pool.example.choices) for pool in pools)


def check_kind(pools: Sequence[Pool], where: str = "pools") -> None:
    """Refuse examples whose rewards would be of two kinds.

    Raises:
        InputError: some have references and some choices.
    """
    if len({bool(pool.example.references) for pool in pools}) > 1:
        raise InputError(where, "some examples have references and some choices, expected one kind")


def check_names(pools: Sequence[Pool], scorer_name: str) -> None:
    """Refuse names that would stand twice in a report.

    Raises:
        InputError: the scorer or a decoding has a baseline's name.
    """
    decodings = {candidate.decoding for pool in pools for candidate in pool.candidates} - set(NOT_DECODED)
    for name in sorted(decodings & set(RESERVED)):
        raise InputError("pool", f"a decoding is called '{name}', which is a baseline's name")
    if scorer_name in decodings | set(RESERVED):
        raise InputError("scorer.name", f"is '{scorer_name}', which is a baseline's name")


def first_best(values: Sequence[float]) -> int:
    """The index of the greatest value, the first of equal ones."""
    return max(range(len(values)), key=lambda i: (values[i], -i))


def answer_counts(pool: Pool) -> list[int]:
    """How often the answer of each candidate stands in the pool, answers being compared normalized."""
    answers = [normalize(candidate.response) for candidate in pool.candidates]
    counts = Counter(answers)
    return [counts[answer] for answer in answers]


def agreement(pool: Pool, rouge: RougeL) -> list[float]:
    """The mean Rouge-L of each candidate to the other candidates, in [0, 1]; 0 where there is no other."""
    counts = Counter(candidate.response for candidate in pool.candidates)
    others = max(1, len(pool.candidates) - 1)
    likeness = rouge.scores([("", [other], one) for one in counts for other in counts])
    gains: dict[str, float] = {}
    for row, one in enumerate(counts):
        alike = zip(counts.items(), likeness[row * len(counts) : (row + 1) * len(counts)], strict=True)
        # Rounded, because equal sums differ in the last bits with the order of their terms.
        gains[one] = round(sum((n - (other == one)) * value for (other, n), value in alike) / others, 9)
    return [gains[candidate.response] for candidate in pool.candidates]


def majority(pool: Pool) -> int:
    """The first candidate of the most frequent answer."""
    return first_best(answer_counts(pool))


def minimum_bayes_risk(pool: Pool, rouge: RougeL) -> int:
    """The candidate with the highest mean Rouge-L to the other candidates (Kumar and Byrne 2004)."""
    return first_best(agreement(pool, rouge))

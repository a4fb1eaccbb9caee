"""Thresholds of answering, chosen on pools with references: when to stop sampling, and when to abstain.

The pools say what sampling one by one would have given. Their decodings contribute in turns, as they do in answering;
the candidates of one decoding, which are draws from the same distribution, come in several random orders. (Those of
beam search come together in answering; here they are counted one by one, and that is said.)

- `stop` is the score that needs the fewest candidates among those with which the selected ones have, on average, at
  least a given share of the reward that selecting among all candidates has.
- `abstain` is the lowest score with which the answers that are given have, on average, at least a given reward. Where
  that is above `stop`, `stop` becomes as high, and `abstain` is chosen anew.

What thresholds promise is told by examples that they were not chosen on: each fifth by those chosen on the others.
A reward is what the metric says of a candidate, in [0, 1].
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cappy_lightning.answering.stopping import in_turns
from cappy_lightning.backbones.decoding import parse_decoding
from cappy_lightning.cappy import Cappy
from cappy_lightning.config import Config
from cappy_lightning.errors import InputError
from cappy_lightning.labeling.measures import open_measure
from cappy_lightning.progress import say
from cappy_lightning.records import Pool, Selection
from cappy_lightning.selection.baselines import are_choices, check_kind, rewards
from cappy_lightning.sources.jsonl import read_labelled_pools

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

#: Random orders of each pool's candidates.
ORDERS = 10
#: Parts of the examples; each is judged by thresholds chosen on the others.
FOLDS = 5
#: Thresholds that are tried.
TRIED = 200
#: The least share of examples that a threshold may be chosen on.
LEAST_COVERAGE = 0.05


@dataclass(frozen=True)
class Sampled:
    """What sampling gives, [runs, candidates so far, from 1]; a run is a pool in one order.

    Attributes:
        pools: of which pool a run is, [runs].
        rounds: after how many candidates it can be stopped.
        counts: candidates so far; a pool with fewer than others stays at its last one.
        best: their highest score.
        scores: the score of the selected one.
        rewards: its reward.
    """

    pools: Rows
    rounds: Sequence[int]
    counts: Floats
    best: Floats
    scores: Floats
    rewards: Floats

    def of(self, rows: NDArray[np.bool_]) -> "Sampled":
        """Some of the runs."""
        own = (getattr(self, name)[rows] for name in ("counts", "best", "scores", "rewards"))
        return Sampled(self.pools[rows], self.rounds, *own)

    def stopped(self, stop: float | None) -> tuple[Floats, Floats, Floats]:
        """Candidates, the selected one's score and its reward of every run, with a threshold."""
        ends = np.array(self.rounds) - 1
        hit = self.best[:, ends] >= (np.inf if stop is None else stop)
        hit[:, -1] = True
        place = np.arange(len(hit)), ends[hit.argmax(axis=1)]
        return self.counts[place], self.scores[place], self.rewards[place]


def sample(
    cappy: Cappy, pools: Sequence[Pool], all_rewards: Sequence[Sequence[float]], step: int, seed: int = 0
) -> Sampled:
    """Play the sampling from pools.

    Args:
        cappy: who scores and selects.
        pools: with their candidates.
        all_rewards: of every candidate.
        step: candidates of a round.
        seed: of the orders.
    """
    generator = np.random.default_rng(seed)
    most = max(len(pool.candidates) for pool in pools)
    rounds = [most] if are_choices(pools) else [*range(step, most, step), most]
    columns: list[list[tuple[float, float, float, float]]] = []
    owners: list[int] = []
    for number, (pool, (whole, _)) in enumerate(zip(pools, cappy.choose(pools), strict=True)):
        for order in _orders(pool, generator):
            states = [_state(cappy, pool, whole, all_rewards[number], order[:end]) for end in range(1, len(order) + 1)]
            columns.append(states + states[-1:] * (most - len(states)))
            owners.append(number)
    table = np.array(columns)  # [runs, candidates so far, 4]
    return Sampled(np.array(owners), rounds, *np.moveaxis(table, 2, 0))


def _orders(pool: Pool, generator: np.random.Generator) -> list[list[int]]:
    by_decoding: dict[str, list[int]] = {}
    for place, candidate in enumerate(pool.candidates):
        by_decoding.setdefault(candidate.decoding, []).append(place)
    groups = list(by_decoding.values())
    turns = in_turns([len(own) for own in groups])
    orders = []
    for _ in range(ORDERS if max(map(len, groups)) > 1 else 1):
        shuffled = [iter(generator.permutation(own).tolist()) for own in groups]
        orders.append([next(shuffled[place]) for place in turns])
    return orders


def _state(
    cappy: Cappy, pool: Pool, whole: Selection, own_rewards: Sequence[float], seen: Sequence[int]
) -> tuple[float, float, float, float]:
    """Count, best score, score and reward of the selected one among some of a pool's candidates."""
    candidates = tuple(pool.candidates[i] for i in seen)
    logits, scores = ([values[i] for i in seen] for values in (whole.logits, whole.scores))
    selection = Selection.best(logits, scores, [one.response for one in candidates])
    selection, _ = cappy.final(Pool(pool.example, candidates), selection)
    return len(seen), max(scores), selection.score, own_rewards[seen[selection.index]]


def choose_stop(sampled: Sampled, keep: float) -> float | None:
    """The threshold with the fewest candidates that keeps a share of the reward; None where only all of them do."""
    needed = keep * sampled.rewards[:, -1].mean() - 1e-12
    found: tuple[float, float | None] = (float(sampled.counts[:, -1].mean()), None)
    for stop in _tried(sampled.best):
        counts, _, own_rewards = sampled.stopped(stop)
        if own_rewards.mean() >= needed:
            found = min(found, (float(counts.mean()), float(stop)), key=lambda one: one[0])
    return found[1]


def choose_abstain(scores: Floats, own_rewards: Floats, precision: float) -> float:
    """The lowest score at which the answers given have a mean reward; infinity where none has.

    Args:
        scores: of the selected candidates.
        own_rewards: of these.
        precision: the mean reward that is asked for, of at least a twentieth of the examples.
    """
    for threshold in _tried(scores):
        given = scores >= threshold
        if given.mean() >= LEAST_COVERAGE and own_rewards[given].mean() >= precision:
            return float(threshold)
    return np.inf


def choose_thresholds(sampled: Sampled, keep: float, precision: float | None) -> tuple[float | None, float | None]:
    """`stop` and `abstain`, such that sampling ends at no answer that would be withheld.

    Args:
        sampled: what sampling gives.
        keep: see `choose_stop`.
        precision: see `choose_abstain`; None: `abstain` is None.
    """
    stop = choose_stop(sampled, keep)
    if precision is None:
        return stop, None
    while True:
        _, scores, own_rewards = sampled.stopped(stop)
        abstain = choose_abstain(scores, own_rewards, precision)
        if stop is None or abstain <= stop:
            return stop, abstain
        stop = abstain if abstain < np.inf else None  # higher each time


def _tried(scores: Floats) -> Floats:
    """Thresholds from low to high."""
    return np.unique(np.quantile(scores, np.linspace(0, 1, TRIED)))


def read_held_out(path: str) -> list[Pool]:
    """The pools of a file that a scorer has not been trained on, as far as the file says it.

    Raises:
        InputError: a line that is no pool with references or choices, they are all of the split train, or too few.
    """
    pools = read_labelled_pools([path])
    held_out = [pool for pool in pools if pool.example.split == "validation"]
    if held_out:
        say(f"{path}: the {len(held_out)} examples of the split validation are used")
    else:
        held_out = [pool for pool in pools if pool.example.split is None]
        if pools and not held_out:
            raise InputError(path, "has examples of the split train only, expected some that no scorer was trained on")
        say(f"warning: {path} names no split validation; the scorer must not have been trained on its examples")
    if len(held_out) < FOLDS:
        raise InputError(path, f"has {len(held_out)} pools to choose by, expected at least {FOLDS}")
    return held_out


def calibrate(
    cappy: Cappy, pools: Sequence[Pool], config: Config, keep: float, precision: float | None
) -> dict[str, Any]:
    """Choose the thresholds, and tell what they promise.

    Args:
        cappy: who scores and selects.
        pools: with references or choices, at least `FOLDS` of them.
        config: whose sections `answer` (the step) and `label` (the metric) are used.
        keep: the share of the reward of selecting among all candidates that stopping may not lose.
        precision: the mean reward of the answers that are given; None: never abstain.

    Returns:
        `stop` and `abstain` (None: not used), the `decodings` of the candidates (None: not known), `all` candidates
        and the `reward` with them, what `stopping` and `abstaining` promise, and the curves `fixed`, `adaptive` and
        `coverage`.

    Raises:
        InputError: the precision cannot be reached; or some pools have references and some choices.
    """
    check_kind(pools)
    if any(candidate.decoding.startswith("beam_") for pool in pools for candidate in pool.candidates):
        say("warning: candidates of beam search are counted one by one; in answering they come together")
    measure, choices = open_measure(config.label.score, config.label.tokenizer), are_choices(pools)
    sampled = sample(cappy, pools, rewards(pools, measure), config.answer.step)

    thresholds = partial(choose_thresholds, keep=keep, precision=precision)
    stop, abstain = thresholds(sampled)
    coverage = _coverage(*sampled.stopped(stop)[1:])
    if abstain == np.inf:
        most = max(reward for _, reward in coverage)
        shown = math.floor(1000 * most) / 1000
        raise InputError("--precision", f"is {precision}, expected what can be reached, at most {shown}")
    counts, scores, own_rewards = _held_out(sampled, thresholds)
    given = ~np.isnan(scores)
    result: dict[str, Any] = {
        "metric": measure.name if pools[0].example.references else "accuracy",
        "n_examples": len(pools),
        "step": config.answer.step,
        "stop": stop,
        "abstain": abstain,
        "decodings": None if choices else _decodings(pools),
        "all": float(sampled.counts[:, -1].mean()),
        "reward": float(sampled.rewards[:, -1].mean()),
        "coverage": coverage,
    }
    if not choices:
        result["stopping"] = {"candidates": float(counts.mean()), "reward": float(own_rewards.mean())}
        means = sampled.counts.mean(axis=0), sampled.rewards.mean(axis=0)
        result["fixed"] = [list(point) for point in zip(*(mean.tolist() for mean in means), strict=True)]
        curve = [(own.mean(), found.mean()) for own, _, found in map(sampled.stopped, _tried(sampled.best))]
        result["adaptive"] = sorted([float(count), float(reward)] for count, reward in curve)
    if precision is not None:
        result["abstaining"] = {
            "asked": precision,
            "precision": float(own_rewards[given].mean()) if given.any() else None,
            "coverage": float(given.mean()),
        }
    _say_missed(result, keep)
    return result


def overlay(result: dict[str, Any], by: str = "scorer") -> str:
    """The thresholds, and what they are for, as YAML for `cappy answer` and `cappy serve`.

    Args:
        result: of `calibrate`.
        by: `select.by` of its config.
    """
    lines = [] if by == "scorer" else ["select:", f"  by: {by}"]
    lines += ["answer:"]
    lines += [f"  {name}: {result[name]}" for name in ("step", "stop", "abstain") if result[name] is not None]
    if result["decodings"] is not None:
        counts = (f"    {json.dumps(name)}: {n}" for name, n in result["decodings"].items())
        lines += ["backbone:", "  decodings:", *counts]
    return "\n".join([*lines, ""])


def _decodings(pools: Sequence[Pool]) -> dict[str, int] | None:
    """How many candidates of each decoding most pools have; None where some were not decoded as a backbone does it."""
    counts = [Counter(candidate.decoding for candidate in pool.candidates) for pool in pools]
    names = dict.fromkeys(name for own in counts for name in own)
    usual = {name: Counter(own[name] for own in counts).most_common(1)[0][0] for name in names}
    try:
        for name in names:
            parse_decoding(name, usual[name] or 1)
    except InputError:
        return None
    return {name: n for name, n in usual.items() if n} or None


def _say_missed(result: dict[str, Any], keep: float) -> None:
    """Say where examples that the thresholds were not chosen on have less than what was asked for."""
    missed = []
    if "stopping" in result and result["stopping"]["reward"] < keep * result["reward"] - 1e-9:
        kept = result["stopping"]["reward"] / result["reward"]
        missed.append(f"{100 * kept:.1f}% of the reward is kept (asked: {100 * keep:g}%)")
    if "abstaining" in result and (result["abstaining"]["precision"] or 0.0) < result["abstaining"]["asked"] - 1e-9:
        precision, asked = result["abstaining"]["precision"], result["abstaining"]["asked"]
        found = "no answer is given" if precision is None else f"the precision is {precision:.3f}"
        missed.append(f"{found} (asked: {asked:g})")
    if missed:
        say(f"on examples that the thresholds were not chosen on, {' and '.join(missed)}")


def _coverage(scores: Floats, own_rewards: Floats) -> list[list[float]]:
    """Shares of the examples, those with the highest scores first, each with their mean reward."""
    order = np.argsort(-scores, kind="stable")
    precisions = np.cumsum(own_rewards[order]) / np.arange(1, len(order) + 1)
    places = np.unique(np.linspace(LEAST_COVERAGE * len(order), len(order) - 1, 100).astype(int))
    return [[float((place + 1) / len(order)), float(precisions[place])] for place in places]


def _held_out(
    sampled: Sampled, thresholds: Callable[[Sampled], tuple[float | None, float | None]]
) -> tuple[Floats, Floats, Floats]:
    """Candidates, score (nan where it abstains) and reward of every run, by thresholds chosen on other pools."""
    parts = []
    # By chance, as files are often sorted, by tasks or by sources.
    folds = np.random.default_rng(0).permutation(int(sampled.pools.max()) + 1) % FOLDS
    for fold in range(FOLDS):
        own = folds[sampled.pools] == fold
        stop, abstain = thresholds(sampled.of(~own))
        counts, scores, own_rewards = sampled.of(own).stopped(stop)
        parts.append((counts, np.where(scores < (abstain or 0.0), np.nan, scores), own_rewards))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]

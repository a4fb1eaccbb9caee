"""What a report tells beyond means: quality against cost, calibration, length, and the choices to read."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cappy_lightning.records import Pool, Selection
from cappy_lightning.selection.baselines import ORACLE

Floats = NDArray[np.float64]

#: Bins of scores over [0, 1].
BINS = 10
#: Selections that are shown to be read.
SHOWN = 20


def quality_by_cost(
    selections: Sequence[Selection], rewards: Sequence[Sequence[float]], scorer_name: str
) -> dict[str, list[float]]:
    """What choosing among n candidates gives, n = 1 ... N, by the scorer and at best.

    Expected over all subsets of n of a pool's N candidates: the candidate at place j (from 0) of a ranking is
    chosen from C(N - 1 - j, n - 1) of the C(N, n) subsets. N is the number of candidates of the largest pool; of
    pools with fewer than n all are taken.

    Returns:
        by the scorer's name and `oracle`, a value for each n.
    """
    most = max(map(len, rewards))
    curve: dict[str, list[float]] = {}
    for name in (scorer_name, ORACLE):
        total = np.zeros(most)
        for selection, own in zip(selections, rewards, strict=True):
            by = own if name == ORACLE else selection.logits
            ranked = np.array([own[i] for i in sorted(range(len(own)), key=lambda i: -by[i])])
            total += _chances(len(own), most) @ ranked
        curve[name] = (total / len(rewards)).tolist()
    return curve


@functools.cache
def _chances(count: int, most: int) -> Floats:
    """The chance of each place of a ranking to be the best of n candidates, [n, places]."""
    return np.array(
        [
            [math.comb(count - 1 - place, n - 1) / math.comb(count, n) for place in range(count)]
            for n in (min(n, count) for n in range(1, most + 1))
        ]
    )


def calibration_bins(scores: Floats, rewards: Floats) -> list[dict[str, float]]:
    """Means by score: `count`, mean `score`, mean `reward` and its standard `deviation` of every filled bin."""
    which = np.minimum((scores * BINS).astype(int), BINS - 1)
    return [
        {
            "count": int(chosen.sum()),
            "score": float(scores[chosen].mean()),
            "reward": float(rewards[chosen].mean()),
            "deviation": float(rewards[chosen].std()),
        }
        for chosen in (which == b for b in range(BINS))
        if chosen.any()
    ]


def length_bias(
    pools: Sequence[Pool], selections: Sequence[Selection], rewards: Sequence[Sequence[float]]
) -> dict[str, float]:
    """Whether the scorer likes long or short responses more than they deserve.

    Returns:
        mean characters of `all` candidates, of the `selected` and of the `best` ones, and the correlation (Pearson's,
        within examples) of length with the logit, `logit_correlation`, and with the reward, `reward_correlation`.
    """
    lengths = [np.array([len(c.response) for c in pool.candidates], dtype=np.float64) for pool in pools]
    best = [own[int(np.argmax(gains))] for own, gains in zip(lengths, rewards, strict=True)]
    found = {
        "all": float(np.mean([own.mean() for own in lengths])),
        "selected": float(np.mean([own[s.index] for own, s in zip(lengths, selections, strict=True)])),
        "best": float(np.mean(best)),
    }
    centred = np.concatenate([own - own.mean() for own in lengths])
    for name, columns in (("logit", [s.logits for s in selections]), ("reward", rewards)):
        others = np.concatenate([np.array(own) - np.mean(own) for own in columns])
        size = math.sqrt(float(centred @ centred) * float(others @ others))
        found[f"{name}_correlation"] = float(centred @ others) / size if size else 0.0
    return found


def most_wrong(
    pools: Sequence[Pool], selections: Sequence[Selection], rewards: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """The selections that lose most against the best candidate, the worst first."""
    lost = [max(own) - own[s.index] for own, s in zip(rewards, selections, strict=True)]
    order = sorted(range(len(pools)), key=lambda i: -lost[i])[:SHOWN]
    return [_told(pools[i], selections[i], rewards[i]) for i in order if lost[i] > 0]


def _told(pool: Pool, selection: Selection, rewards: Sequence[float]) -> dict[str, Any]:
    example, best = pool.example, int(np.argmax(rewards))
    right = list(example.references) or [example.right_choice]
    told: dict[str, Any] = {"task": example.task, "id": example.id, "instruction": example.instruction, "right": right}
    for name, index in (("selected", selection.index), ("best", best)):
        told[name] = {
            "response": pool.candidates[index].response,
            "score": selection.scores[index],
            "reward": rewards[index],
        }
    return told

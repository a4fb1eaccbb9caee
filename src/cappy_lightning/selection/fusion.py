"""Fusion: the scorer's logit together with what the candidates tell of themselves.

Where an answer hangs on knowledge that a small scorer lacks, choosing by the scorer alone can be worse than taking
the LLM's first answer. A fusion is a linear combination of a few features of a candidate, fitted on training
examples whose logits come from scorers that have not seen them, and drawn towards the best single feature.
"""

import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from numpy.typing import NDArray

from cappy_lightning.errors import InputError
from cappy_lightning.files import write_json
from cappy_lightning.labeling.rouge import RougeL
from cappy_lightning.labeling.tokens import TOKENIZERS
from cappy_lightning.records import Pool, Selection
from cappy_lightning.scorer.adapter import find_adapter
from cappy_lightning.scorer.places import expanded
from cappy_lightning.selection.baselines import NOT_DECODED, agreement, answer_counts, first_best

Floats = NDArray[np.float64]

#: Its file, in a run and beside the adapter or the model.
FILE = "fusion.json"

#: What every pool has: texts and a scorer are enough.
OF_TEXTS = ("logit", "count", "agreement")

#: Before the name of a decoding.
DECODING = "decoding:"

#: How strongly the weights are drawn towards the best single feature; infinity is that feature alone.
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, math.inf)

#: Parts of the training examples by which the strength is chosen.
FOLDS = 10


def features(pool: Pool, logits: Sequence[float], rouge: RougeL) -> dict[str, list[float]]:
    """What is known of every candidate of a pool, by name.

    - `logit`: the scorer's;
    - `count`: the share of the candidates that give the same answer, normalized;
    - `agreement`: the mean Rouge-L to the other candidates;
    - `log_likelihood_sum`, `log_likelihood_mean`: where every candidate has them;
    - `decoding:NAME`: 1 for the candidates of a decoding, 0 for others, where every candidate was decoded.
    """
    candidates = pool.candidates
    found: dict[str, list[float]] = {
        "logit": list(logits),
        "count": [count / len(candidates) for count in answer_counts(pool)],
        "agreement": agreement(pool, rouge),
    }
    for name in ("log_likelihood_sum", "log_likelihood_mean"):
        known = [getattr(candidate, name) for candidate in candidates]
        if None not in known:
            found[name] = known
    if not any(candidate.decoding in NOT_DECODED for candidate in candidates):
        for decoding in dict.fromkeys(candidate.decoding for candidate in candidates):
            found[DECODING + decoding] = [float(candidate.decoding == decoding) for candidate in candidates]
    return found


@dataclass(frozen=True)
class Combination:
    """Weights by feature.

    Attributes:
        weights: of raw features; a decoding that a pool does not have counts 0.
        nearest: the feature that alone was best on the training examples.
        strength: how strongly the weights were drawn towards it; infinity: it stands alone.
        examples: how many it was fitted on.
    """

    weights: Mapping[str, float]
    nearest: str
    strength: float
    examples: int

    def values(self, known: Mapping[str, Sequence[float]]) -> list[float] | None:
        """The weighted sum of every candidate's features, or None where one that it needs is not known."""
        needed = [name for name, weight in self.weights.items() if weight]
        decoded = any(name.startswith(DECODING) for name in known)
        if any(name not in known and not (decoded and name.startswith(DECODING)) for name in needed):
            return None
        columns = [np.array(known[name], dtype=np.float64) * self.weights[name] for name in needed if name in known]
        count = len(known["logit"])
        # Rounded, so that candidates with equal features stay equal whatever the order of the sum.
        return np.round(np.sum(columns, axis=0), 9).tolist() if columns else [0.0] * count


@dataclass(frozen=True)
class Fusion:
    """The combinations for pools with more and with less known of them, the one that asks most first.

    Attributes:
        combinations: the last asks only for what texts give.
        tokenizer: by which candidates are compared (`label.tokenizer`).
    """

    combinations: tuple[Combination, ...]
    tokenizer: str

    def select(self, pools: Iterable[Pool], selections: Iterable[Selection]) -> Iterator[Selection]:
        """The selection of every pool, each by the first combination that the pool has all features for.

        Args:
            pools: with their candidates.
            selections: the scorer's own, one for each pool; their logits count as a feature.
        """
        for pool, selection in zip(pools, selections, strict=True):
            yield self.choose(pool, selection)[0]

    def choose(self, pool: Pool, selection: Selection) -> tuple[Selection, list[float]]:
        """The selection of one pool, given the scorer's own, and the value of every candidate that decided."""
        known = features(pool, selection.logits, self._rouge)
        values = next(values for one in self.combinations if (values := one.values(known)) is not None)
        index = first_best(values)
        return selection.other(index, pool.candidates[index].response), values

    @functools.cached_property
    def _rouge(self) -> RougeL:
        return RougeL(self.tokenizer)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        rows = [dict(vars(one)) for one in self.combinations]
        for row in rows:
            row["strength"] = None if math.isinf(row["strength"]) else row["strength"]
        write_json(path, {"tokenizer": self.tokenizer, "combinations": rows})

    @classmethod
    def read(cls, path: Path) -> "Fusion":
        """Read what `write` has written.

        Raises:
            InputError: it is not there or cannot be read.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = tuple(map(_combination, content["combinations"]))
            if content["tokenizer"] not in TOKENIZERS or not set(found[-1].weights) <= set(OF_TEXTS):
                raise ValueError
        except FileNotFoundError:
            problem = "is not there: this scorer was trained without select.by=fused, expected one trained with it"
            raise InputError(path, problem) from None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise InputError(path, "is no fusion, expected what a training with select.by=fused leaves") from None
        return cls(found, content["tokenizer"])


def find_fusion(source: str | Path, revision: str | None = None) -> Path | None:
    """The fusion beside an export, or in a run; None where there is none.

    Args:
        source: a directory, or the hub name of an adapter or a model.
        revision: of a hub name.
    """
    source = expanded(source)
    path = (find_adapter(source, revision) or Path(source)) / FILE
    if path.is_file():
        return path
    if Path(source).exists():
        return None
    try:
        return Path(hf_hub_download(str(source), FILE, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError):  # no such file or repository, or no hub
        return None


def _combination(row: dict[str, Any]) -> Combination:
    weights = {str(name): float(weight) for name, weight in row["weights"].items()}
    if not all(map(math.isfinite, weights.values())):
        raise ValueError
    strength = math.inf if row["strength"] is None else float(row["strength"])
    return Combination(weights, str(row["nearest"]), strength, int(row["examples"]))


def fit_fusion(
    pools: Sequence[Pool],
    logits: Sequence[Sequence[float]],
    gains: Sequence[Sequence[float]],
    tokenizer: str = "paper",
) -> Fusion:
    """Fit combinations on training examples: one of all features, and one of those that texts alone give.

    Ridge regression of the rewards on the features, both centred within each example, drawn towards the feature
    that alone selects best; how strongly, is what selects best in a cross-validation over the examples.

    Args:
        pools: training examples with their candidates.
        logits: of every candidate, from a scorer that was not trained on the example.
        gains: the reward of every candidate, in [0, 1].
        tokenizer: by which candidates are compared (`label.tokenizer`).
    """
    rouge = RougeL(tokenizer)
    known = [features(pool, own, rouge) for pool, own in zip(pools, logits, strict=True)]
    decoded = all(any(name.startswith(DECODING) for name in one) for one in known)
    common = [
        name
        for name in dict.fromkeys(name for one in known for name in one)
        if (decoded if name.startswith(DECODING) else all(name in one for one in known))
    ]
    sets = [common, list(OF_TEXTS)] if len(common) > len(OF_TEXTS) else [common]
    return Fusion(tuple(_fit(names, known, gains) for names in sets), tokenizer)


def _fit(
    names: Sequence[str], known: Sequence[Mapping[str, Sequence[float]]], rewards: Sequence[Sequence[float]]
) -> Combination:
    matrices = [
        np.array([one.get(name, [0.0] * len(one["logit"])) for name in names], dtype=np.float64).T for one in known
    ]
    gains = [np.array(own, dtype=np.float64) for own in rewards]
    count = len(matrices)
    # [strengths, examples]: what is selected of an example by weights that were fitted without it.
    found = np.zeros((len(STRENGTHS), count))
    for part in range(min(FOLDS, count)):
        test = [i for i in range(count) if i % FOLDS == part]
        train = [i for i in range(count) if i % FOLDS != part] or test
        ridge = _Ridge([matrices[i] for i in train], [gains[i] for i in train])
        for row, strength in enumerate(STRENGTHS):
            weights = ridge.weights(strength)
            found[row, test] = [_reward(matrices[i], gains[i], weights) for i in test]
    means = found.mean(axis=1).round(9).tolist()
    # Of equally good ones the strongest, the most simple.
    strength = STRENGTHS[max(range(len(STRENGTHS)), key=lambda i: (means[i], i))]
    ridge = _Ridge(matrices, gains)
    by_name = dict(zip(names, ridge.weights(strength).tolist(), strict=True))
    return Combination(by_name, names[ridge.nearest], strength, count)


class _Ridge:
    """Ridge regression of rewards on features, both centred within each example, towards the best single feature.

    Attributes:
        nearest: the place of that feature.
    """

    def __init__(self, matrices: Sequence[Floats], gains: Sequence[Floats]) -> None:
        centred = np.concatenate([matrix - matrix.mean(axis=0) for matrix in matrices])
        target = np.concatenate([gain - gain.mean() for gain in gains])
        scale = np.sqrt(np.mean(centred**2, axis=0))
        single = [
            np.mean([_reward(matrix[:, [k]], gain, np.ones(1)) for matrix, gain in zip(matrices, gains, strict=True)])
            for k in range(len(scale))
        ]
        # A feature that never differs says nothing: it would select what stands first.
        self.nearest = int(np.argmax(np.where(scale > 1e-12, single, -1)))
        scale[scale <= 1e-12] = math.inf
        standard = centred / scale
        self._scale, self._prior = scale, np.zeros(len(scale))
        slope = standard[:, self.nearest] @ target / max(1e-12, standard[:, self.nearest] @ standard[:, self.nearest])
        self._prior[self.nearest] = max(slope, 1e-6)  # it selects by its greatest value, whatever the slope
        self._gram = standard.T @ standard
        self._rest = standard.T @ (target - standard @ self._prior)
        self._rows = len(standard)

    def weights(self, strength: float) -> Floats:
        """Of the raw features; the stronger, the nearer to the best single one."""
        prior = self._prior
        if not math.isinf(strength):
            prior = prior + np.linalg.solve(self._gram + strength * self._rows * np.eye(len(prior)), self._rest)
        found: Floats = prior / self._scale
        return found


def _reward(matrix: Floats, gains: Floats, weights: Floats) -> float:
    return float(gains[first_best(np.round(matrix @ weights, 9).tolist())])

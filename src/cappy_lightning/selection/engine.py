"""Pools and a scorer make selections, a bounded number of pools at a time."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from cappy_lightning.progress import say
from cappy_lightning.records import Pool, Selection
from cappy_lightning.scorer.pretrained import PretrainedScorer

#: Pools whose candidates are scored together, so that pairs of like length share a forward.
POOLS_AT_ONCE = 256


def select_from_pools(scorer: PretrainedScorer, pools: Iterable[Pool]) -> Iterator[Selection]:
    """The selection of every pool, in order; with adapters for several tasks, by that of the pool's task."""
    iterator = iter(pools)
    while chunk := list(islice(iterator, POOLS_AT_ONCE)):
        pairs = [(pool.example.instruction, candidate.response) for pool in chunk for candidate in pool.candidates]
        tasks = [pool.example.task for pool in chunk for _ in pool.candidates]
        logits = iter(scorer.logits(pairs, tasks).tolist())
        for pool in chunk:
            yield select_by_logits(scorer, pool, list(islice(logits, len(pool.candidates))))


def check_loadable(names: Iterable[str]) -> None:
    """Refuse other scorers that could not be used before anything is scored: each is loaded once.

    Raises:
        InputError: one cannot be loaded.
    """
    for name in names:
        _other(name)


def selections_beside(names: Iterable[str], pools: Sequence[Pool]) -> dict[str, list[Selection]]:
    """What other scorers select, each as it is: any classifiers with one logit, such as reward models and rerankers.

    Args:
        names: directories or hub names.
        pools: to be selected from.

    Raises:
        InputError: a scorer that cannot be loaded.
    """
    found = {}
    for name in names:
        say(f"selecting by {name}")
        found[name] = list(select_from_pools(_other(name), pools))
    return found


def _other(name: str) -> PretrainedScorer:
    """With any activation: the highest logit is chosen, whatever score it stands for."""
    return PretrainedScorer.from_pretrained(name, activation="sigmoid")


def select_by_logits(scorer: PretrainedScorer, pool: Pool, logits: Sequence[float]) -> Selection:
    """The selection of one pool, given the scorer's logits of its candidates."""
    scores = scorer.to_scores(np.array(logits, dtype=np.float32)).tolist()
    return Selection.best(logits, scores, [candidate.response for candidate in pool.candidates], pool.example)

"""Pools and a scorer make selections, a bounded number of pools at a time."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np

from cappy_lightning.records import Pool, Selection
from cappy_lightning.scorer.cappy import Cappy, Pair

#: Pools whose candidates are scored together, so that pairs of like length share a forward.
POOLS_AT_ONCE = 256


def select_from_pools(cappy: Cappy, pools: Iterable[Pool]) -> Iterator[Selection]:
    """The selection of every pool, in order."""
    iterator = iter(pools)
    while chunk := list(islice(iterator, POOLS_AT_ONCE)):
        pairs = [(pool.example.instruction, candidate.response) for pool in chunk for candidate in pool.candidates]
        logits = dict(zip(pairs, cappy.logits(pairs).tolist(), strict=True))
        for pool in chunk:
            yield select_by_logits(cappy, pool, logits)


def select_by_logits(cappy: Cappy, pool: Pool, logits: Mapping[Pair, float]) -> Selection:
    """The selection of one pool, given the scorer's logits of its pairs."""
    responses = [candidate.response for candidate in pool.candidates]
    values = [logits[pool.example.instruction, response] for response in responses]
    scores = cappy.to_scores(np.array(values, dtype=np.float32)).tolist()
    return Selection.best(values, scores, responses, pool.example)

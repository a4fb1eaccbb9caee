"""Pools and a scorer make selections, a bounded number of pools at a time."""

from collections.abc import Iterable, Iterator
from itertools import islice

from cappy_lightning.records import Pool, Selection
from cappy_lightning.scorer.cappy import Cappy

#: Pools whose candidates are scored together, so that pairs of like length share a forward.
POOLS_AT_ONCE = 256


def select_from_pools(cappy: Cappy, pools: Iterable[Pool]) -> Iterator[Selection]:
    """The selection of every pool, in order."""
    iterator = iter(pools)
    while chunk := list(islice(iterator, POOLS_AT_ONCE)):
        pairs = [(pool.example.instruction, candidate.response) for pool in chunk for candidate in pool.candidates]
        logits = cappy.logits(pairs)
        scores = cappy.to_scores(logits)
        start = 0
        for pool in chunk:
            stop = start + len(pool.candidates)
            responses = [candidate.response for candidate in pool.candidates]
            yield Selection.best(logits[start:stop].tolist(), scores[start:stop].tolist(), responses, pool.example)
            start = stop

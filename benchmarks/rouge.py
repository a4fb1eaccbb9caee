"""Rouge-L against rouge-score: equal values, and how many times as fast, on one core.

    python benchmarks/rouge.py [POOL.jsonl ...] [--pairs 100000]

The pairs are the candidates of recorded pools, 13 an example, with the references of their examples; when the file
is through, it begins again, with one word more in every response and reference, so that no text
comes twice. rouge-score is used as the reference implementation of Cappy uses it: one scorer with stemmer,
`score_multi` for each response.
"""

import argparse
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

from rouge_score.rouge_scorer import RougeScorer

from cappy_lightning.labeling.rouge import Item, RougeL
from cappy_lightning.records import Pool
from cappy_lightning.sources.jsonl import read_labelled_pools

QUICKSTART = Path(__file__).parent.parent / "data" / "quickstart" / "pool.jsonl"


def pairs(pools: list[Pool]) -> Iterator[Item]:
    """The candidates of all pools with their references, then again with a word more ..."""
    for number in itertools.count():
        more = f" again{number}" if number else ""
        for pool in pools:
            references = [reference + more for reference in pool.example.references]
            for candidate in pool.candidates:
                yield "", references, candidate.response + more


def main() -> None:
    """Time both on the same pairs, turn by turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="*", type=Path, default=[QUICKSTART])
    parser.add_argument("--pairs", type=int, default=100_000)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    items = list(itertools.islice(pairs(read_labelled_pools(options.pools)), options.pairs))
    theirs = RougeScorer(["rougeL"], use_stemmer=True)
    rounds, seconds, equal = 5, [0.0, 0.0], 0
    size = -(-len(items) // rounds)
    rouge = RougeL()
    for start in range(0, len(items), size):
        part = items[start : start + size]
        begun = time.perf_counter()
        mine = rouge.scores(part)
        seconds[0] += time.perf_counter() - begun
        begun = time.perf_counter()
        other = [theirs.score_multi(refs, response)["rougeL"].fmeasure for _, refs, response in part]
        seconds[1] += time.perf_counter() - begun
        equal += sum(a == b for a, b in zip(mine, other, strict=True))
    print(f"{len(items):,} pairs, {equal:,} with equal floats")
    for name, value in zip(("cappy-lightning", "rouge-score"), seconds, strict=True):
        print(f"{name:16} {len(items) / value:12,.0f} pairs/s")
    print(f"ratio {seconds[1] / seconds[0]:.1f}")


if __name__ == "__main__":
    main()

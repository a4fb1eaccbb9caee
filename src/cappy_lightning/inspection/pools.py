"""A look at pools."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cappy_lightning.config import Config
from cappy_lightning.errors import InputError
from cappy_lightning.inspection.findings import (
    SCORE_BINS,
    SHOWN,
    WORST,
    Drawn,
    Findings,
    count_scores,
    open_encoder,
    score_histogram,
    shortened,
    token_findings,
)
from cappy_lightning.labeling.measures import Measure, open_measure
from cappy_lightning.page import Table
from cappy_lightning.progress import counted
from cappy_lightning.records import Pool
from cappy_lightning.selection.baselines import rewards

#: Pools that are judged together.
BLOCK = 1024
#: Pools drawn at random for sample rows and lengths in tokens.
DRAWN_POOLS = 2_000


@dataclass
class _Sums:
    """Sums over the pools of a task."""

    splits: Counter[str] = field(default_factory=Counter)
    judged: int = 0
    candidates: int = 0
    distinct: int = 0
    random: float = 0.0
    oracle: float = 0.0
    hopeless: int = 0
    choices: bool = False

    def add(self, pool: Pool, values: Sequence[float] | None) -> None:
        self.splits[pool.example.split or "no split"] += 1
        self.choices |= bool(pool.example.choices)
        self.candidates += len(pool.candidates)
        self.distinct += len({candidate.response for candidate in pool.candidates})
        if values:
            self.judged += 1
            self.random += sum(values) / len(values)
            self.oracle += max(values)
            self.hopeless += max(values) == 0


def inspect_pools(pools: Iterable[Pool], title: str, config: Config) -> Findings:
    """Read pools one block at a time; memory does not grow with them.

    Args:
        pools: with or without references, choices and candidates.
        title: what they are, for the reader.
        config: `label.score` and `label.tokenizer` judge the candidates; the section `scorer` names
            tokenizer and maximum for lengths in tokens.

    Raises:
        InputError: there is no pool.
    """
    measure = open_measure(config.label.score, config.label.tokenizer)
    encoder = open_encoder(config.scorer)
    tasks: dict[str, _Sums] = defaultdict(_Sums)
    decodings: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])  # candidates, likelihoods, scores
    histogram, drawn = np.zeros(SCORE_BINS, dtype=np.int64), Drawn(DRAWN_POOLS)
    iterator = iter(pools)
    while block := list(itertools.islice(iterator, BLOCK)):
        for pool, values in zip(block, _judge(block, measure), strict=True):
            tasks[pool.example.task].add(pool, values)
            for place, candidate in enumerate(pool.candidates):
                sums = decodings[candidate.decoding]
                sums[0] += 1
                sums[1] += candidate.log_likelihood_sum is not None
                sums[2] += values[place] if values else 0
            histogram += count_scores(values or [])
        drawn.add([block[place].to_row() for place in drawn.offer(len(block))])
    if not tasks:
        raise InputError(title, "there is no pool")
    findings = Findings(title)
    count = sum(sums.splits.total() for sums in tasks.values())
    candidates = sum(sums.candidates for sums in tasks.values())
    held = f"{counted(count, 'example')} of {counted(len(tasks), 'task')}"
    findings.facts.append(f"{held} with {counted(candidates, 'candidate')}")
    findings.tables.append(_tasks(tasks, measure))
    judged = sum(sums.judged for sums in tasks.values())
    if candidates:
        lines = [
            (name, f"{n:,.0f}", f"{score / n:.3f}" if judged == count else "", f"{100 * known / n:.0f}%")
            for name, (n, known, score) in decodings.items()
        ]
        header = ("decoding", "candidates", f"mean {measure.name}", "with log-likelihood")
        findings.tables.append(Table("By decoding", header, lines))
    if judged:
        findings.tables.append(_worst(tasks))
        findings.histograms.append(score_histogram(f"{measure.name} of the candidates", histogram))
    pairs = [(row["instruction"], one["response"]) for row in drawn.rows for one in row["candidates"]]
    if pairs:
        token_findings(findings, pairs, encoder)
    findings.samples = [_sample(row) for row in drawn.rows[:SHOWN]]
    return findings


def _judge(pools: Sequence[Pool], measure: Measure) -> list[list[float] | None]:
    known = [bool(pool.candidates and (pool.example.references or pool.example.choices)) for pool in pools]
    found = iter(rewards(list(itertools.compress(pools, known)), measure))
    return [next(found) if judged else None for judged in known]


def _tasks(tasks: dict[str, _Sums], measure: Measure) -> Table:
    splits = list(dict.fromkeys(split for sums in tasks.values() for split in sums.splits))
    lines = []
    for task, sums in sorted(tasks.items(), key=lambda item: -item[1].splits.total()):
        count = sums.splits.total()
        line = [task, *(f"{sums.splits[split]:,}" for split in splits), f"{sums.candidates / count:.1f}"]
        line.append(f"{100 * sums.distinct / sums.candidates:.0f}%" if sums.candidates else "")
        line += [f"{sums.random / sums.judged:.3f}", f"{sums.oracle / sums.judged:.3f}"] if sums.judged else ["", ""]
        lines.append(line)
    header = ("task", *splits, "candidates", "distinct", f"random {measure.name}", f"oracle {measure.name}")
    note = "Choices are judged by whether they are right." if any(sums.choices for sums in tasks.values()) else ""
    return Table("By task", header, lines, note)


def _worst(tasks: dict[str, _Sums]) -> Table:
    judged = {task: sums for task, sums in tasks.items() if sums.judged}
    worst = sorted(judged.items(), key=lambda item: item[1].oracle / item[1].judged)[:WORST]
    lines = [
        (task, f"{s.oracle / s.judged:.3f}", f"{100 * s.hopeless / s.judged:.0f}%",
         f"{(s.oracle - s.random) / s.judged:.3f}")
        for task, s in worst
    ]  # fmt: skip
    note = (
        "Where the best candidate is least good. Without headroom between random and oracle there is nothing to choose."
    )
    return Table("Worst tasks", ("task", "oracle", "no good candidate", "oracle - random"), lines, note)


def _sample(row: dict[str, object]) -> dict[str, object]:
    candidates = row["candidates"]
    assert isinstance(candidates, list)
    texts = list(dict.fromkeys(one["response"] for one in candidates))
    shown = {name: shortened(value) if isinstance(value, str) else value for name, value in row.items()}
    return shown | {"candidates": [shortened(text, 80) for text in texts[:8]]}

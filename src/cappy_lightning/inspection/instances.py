"""A look at directories of instances."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from cappy_lightning.config import Config
from cappy_lightning.data.reading import iterate
from cappy_lightning.data.shards import find_directories, read_manifest
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
from cappy_lightning.page import Table
from cappy_lightning.progress import counted
from cappy_lightning.records import ORIGINS


def inspect_instances(paths: Sequence[Path], config: Config) -> Findings:
    """Read directories of instances batch by batch; memory does not grow with them.

    Args:
        paths: the directories, or directories of parts.
        config: the section `scorer` names tokenizer and maximum for lengths in tokens.

    Raises:
        InputError: a directory or shard that cannot be read.
    """
    manifests = [read_manifest(directory) for path in paths for directory in find_directories(str(path))]
    encoder = open_encoder(config.scorer)
    rows: Counter[tuple[str, str]] = Counter()  # by task and origin
    sums: dict[tuple[str, str], float] = defaultdict(float)
    zeros: Counter[tuple[str, str]] = Counter()
    histogram = np.zeros(SCORE_BINS, dtype=np.int64)
    drawn = Drawn()
    for table in iterate(manifests):
        for batch in table.to_batches():
            _count(batch, rows, sums, zeros)
            histogram += count_scores(batch["score"].to_numpy())
            drawn.add(batch.take(pa.array(drawn.offer(len(batch)), pa.int64())).to_pylist())
    findings = Findings(", ".join(map(str, paths)))
    total = rows.total()
    tasks = list(dict.fromkeys(task for task, _ in rows))
    places = counted(len(manifests), "directory", "directories")
    findings.facts.append(f"{counted(total, 'instance')} of {counted(len(tasks), 'task')} in {places}")
    findings.tables.append(_origins(rows, sums))
    findings.tables.append(_tasks(tasks, rows, sums))
    findings.tables.append(_worst(tasks, rows, sums, zeros))
    findings.histograms.append(score_histogram("Scores", histogram))
    token_findings(findings, [(row["instruction"], row["response"]) for row in drawn.rows], encoder)
    findings.samples = [
        {name: shortened(value) if isinstance(value, str) else round(value, 4) for name, value in row.items()}
        for row in drawn.rows[:SHOWN]
    ]
    return findings


def _count(
    batch: pa.RecordBatch, rows: Counter[tuple[str, str]], sums: dict[tuple[str, str], float],
    zeros: Counter[tuple[str, str]],
) -> None:  # fmt: skip
    table = pa.table({"task": batch["task"].cast(pa.string()), "origin": batch["origin"].cast(pa.string()),
                      "score": batch["score"].cast(pa.float64())})  # fmt: skip
    table = table.append_column("zero", pa.compute.equal(table["score"], 0.0).cast(pa.int64()))
    grouped = table.group_by(["task", "origin"]).aggregate([("score", "count"), ("score", "sum"), ("zero", "sum")])
    for row in grouped.to_pylist():
        key = row["task"], row["origin"]
        rows[key] += row["score_count"]
        sums[key] += row["score_sum"]
        zeros[key] += row["zero_sum"]


def _origins(rows: Counter[tuple[str, str]], sums: dict[tuple[str, str], float]) -> Table:
    lines = []
    for origin in ORIGINS:
        count = sum(n for (_, o), n in rows.items() if o == origin)
        if count:
            mean = sum(s for (_, o), s in sums.items() if o == origin) / count
            lines.append((origin, f"{count:,}", f"{100 * count / rows.total():.1f}%", f"{mean:.3f}"))
    return Table("By origin", ("origin", "instances", "share", "mean score"), lines)


def _tasks(tasks: Sequence[str], rows: Counter[tuple[str, str]], sums: dict[tuple[str, str], float]) -> Table:
    origins = [origin for origin in ORIGINS if any(o == origin for _, o in rows)]
    lines = []
    for task in sorted(tasks, key=lambda task: -sum(rows[task, o] for o in origins)):
        total = sum(rows[task, o] for o in origins)
        mean = sum(sums[task, o] for o in origins if (task, o) in sums) / total
        lines.append((task, f"{total:,}", *(f"{rows[task, o]:,}" for o in origins), f"{mean:.3f}"))
    return Table("By task", ("task", "instances", *origins, "mean score"), lines)


def _worst(
    tasks: Sequence[str], rows: Counter[tuple[str, str]], sums: dict[tuple[str, str], float],
    zeros: Counter[tuple[str, str]],
) -> Table:  # fmt: skip
    sampled = {task: rows[task, "sampled"] for task in tasks if rows[task, "sampled"]}
    worst = sorted(sampled, key=lambda task: sums[task, "sampled"] / sampled[task])[:WORST]
    return Table(
        "Worst tasks",
        ("task", "sampled", "mean score", "score 0"),
        [
            (
                task,
                f"{sampled[task]:,}",
                f"{sums[task, 'sampled'] / sampled[task]:.3f}",
                f"{100 * zeros[task, 'sampled'] / sampled[task]:.0f}%",
            )
            for task in worst
        ],
        "Where the LLM's samples score least: too hard for it, badly prompted, or references that no answer is like.",
    )

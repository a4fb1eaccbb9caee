"""The report: means with paired bootstrap intervals, differences, recovered share and headroom."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cappy_lightning.config import LabelConfig
from cappy_lightning.errors import InputError
from cappy_lightning.labeling.measures import open_measure
from cappy_lightning.labeling.rouge import RougeL
from cappy_lightning.records import Pool, Selection
from cappy_lightning.selection.baselines import ORACLE, RANDOM, method_values

Floats = NDArray[np.float64]

RESAMPLES = 10_000


def make_report(
    pools: Sequence[Pool],
    selections: Sequence[Selection],
    scorer_name: str = "cappy",
    label: LabelConfig | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare a scorer's selections with the baselines, per task and on the average over tasks.

    Intervals are 95% percentile intervals of a paired bootstrap over examples (Efron 1979): every
    method sees the same resampled examples, 10,000 times. Averages resample within each task.

    Args:
        pools: pools with references or choices.
        selections: one for each pool, in the same order.
        scorer_name: the scorer's name in the report.
        label: whose `score` and `tokenizer` are the metric; None: Rouge-L as the paper takes it.
        seed: of the bootstrap.

    Raises:
        InputError: the name is that of a baseline, or references and choices are mixed.
    """
    if len({bool(pool.example.references) for pool in pools}) > 1:
        raise InputError("pools", "some have references and some choices, expected one kind")
    label = label or LabelConfig()
    measure, rouge = open_measure(label.score, label.tokenizer), RougeL(label.tokenizer)
    by_task: dict[str, list[int]] = defaultdict(list)
    for i, pool in enumerate(pools):
        by_task[pool.example.task].append(i)
    tasks: dict[str, Any] = {}
    means: dict[str, dict[str, float]] = {}
    resampled: dict[str, dict[str, Floats]] = {}
    generator = np.random.default_rng(seed)
    for task, chosen in by_task.items():
        values, skipped = method_values(
            [pools[i] for i in chosen], [selections[i] for i in chosen], scorer_name, measure, rouge
        )
        matrix = np.array(list(values.values()))  # [methods, examples]
        draws = _resample(matrix, generator)
        means[task] = {name: float(row.mean()) for name, row in zip(values, matrix, strict=True)}
        resampled[task] = dict(zip(values, draws, strict=True))
        tasks[task] = {"n_examples": len(chosen), **_compare(means[task], resampled[task], scorer_name)}
        if skipped:
            tasks[task]["skipped"] = skipped | tasks[task].get("skipped", {})
    common = [name for name in next(iter(means.values())) if all(name in m for m in means.values())]
    names = dict.fromkeys(name for m in means.values() for name in m)
    lacking = {
        name: "is missing in " + ", ".join(task for task, m in means.items() if name not in m)
        for name in names
        if name not in common
    }
    average = {name: float(np.mean([m[name] for m in means.values()])) for name in common}
    average_draws = {name: np.mean([r[name] for r in resampled.values()], axis=0) for name in common}
    overall = {"n_tasks": len(tasks), **_compare(average, average_draws, scorer_name)}
    if lacking:
        overall["skipped"] = lacking | overall.get("skipped", {})
    return {
        "metric": measure.name if pools[0].example.references else "accuracy",
        "scorer": scorer_name,
        "tasks": tasks,
        "average": overall,
    }


def _resample(matrix: Floats, generator: np.random.Generator) -> Floats:
    """Means over resampled examples, [methods, resamples]; memory grows with a chunk of the resamples only."""
    count, chunks = matrix.shape[1], 20
    even = np.full(count, 1 / count)
    return np.concatenate(
        [matrix @ generator.multinomial(count, even, size=RESAMPLES // chunks).T / count for _ in range(chunks)], axis=1
    )


def best_baseline(means: dict[str, float], scorer_name: str) -> str:
    """The baseline with the highest mean: any method but the scorer and the oracle."""
    return max((name for name in means if name not in (scorer_name, ORACLE)), key=lambda name: means[name])


def _compare(means: dict[str, float], draws: dict[str, Floats], scorer_name: str) -> dict[str, Any]:
    others = [name for name in means if name != scorer_name]
    best = best_baseline(means, scorer_name)
    result: dict[str, Any] = {
        "methods": {name: _interval(means[name], draws[name]) for name in means},
        "differences": {
            name: _interval(means[scorer_name] - means[name], draws[scorer_name] - draws[name]) for name in others
        },
        "best_baseline": best,
    }
    skipped = {}
    for share, floor in (("recovered", RANDOM), ("headroom", best)):
        if means[ORACLE] - means[floor] > 1e-12:
            gained, possible = draws[scorer_name] - draws[floor], draws[ORACLE] - draws[floor]
            ratios = gained[possible > 1e-12] / possible[possible > 1e-12]
            value = (means[scorer_name] - means[floor]) / (means[ORACLE] - means[floor])
            result[share] = _interval(value, ratios)
        else:
            skipped[share] = f"the oracle is no better than {floor}"
    return result | ({"skipped": skipped} if skipped else {})


def _interval(value: float, draws: Floats) -> dict[str, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"mean": float(value), "low": float(low), "high": float(high)}


def metric_title(report: dict[str, Any]) -> str:
    """The metric of a report as a reader would write it."""
    name = str(report["metric"])
    return {"rougeL": "Rouge-L", "exact_match": "exact match", "token_f1": "token F1"}.get(name, name)


def print_report(report: dict[str, Any], console: Console) -> None:
    """The report as tables, one a task and one for the average over several; figures times 100."""
    unit = metric_title(report)
    sections = [(f"{task}, {part['n_examples']} examples", part) for task, part in report["tasks"].items()]
    if len(sections) > 1:
        sections.append((f"average over {len(sections)} tasks", report["average"]))
    for title, part in sections:
        console.print(f"{title}: {unit} x 100 with 95% intervals", markup=False, highlight=False)
        table = Table()
        table.add_column("method")
        table.add_column("mean", justify="right")
        table.add_column("interval", justify="right")
        table.add_column(f"{escape(report['scorer'])} is better by", justify="right")
        scorer = report["scorer"]
        for name, value in sorted(part["methods"].items(), key=lambda item: item[1]["mean"]):
            difference = part["differences"].get(name)
            better = f"{100 * difference['mean']:+.1f} [{_range(difference, '+')}]" if difference else ""
            row = (escape(name), f"{100 * value['mean']:.1f}", f"[{_range(value)}]", better)
            table.add_row(*row, style="bold" if name == scorer else "dim" if name == ORACLE else None)
        console.print(table)
        for share, text in (
            ("recovered", "of the way from random to oracle"),
            ("headroom", f"of the way from {part['best_baseline']} to oracle"),
        ):
            if share in part:
                console.print(
                    f"{scorer} goes {100 * part[share]['mean']:.0f}% [{_range(part[share], digits=0)}] {text}",
                    markup=False,
                )
        for name, reason in part.get("skipped", {}).items():
            console.print(f"left out: {name} ({reason})", markup=False)


def _range(value: dict[str, float], sign: str = "", digits: int = 1) -> str:
    return f"{100 * value['low']:{sign}.{digits}f}, {100 * value['high']:{sign}.{digits}f}"

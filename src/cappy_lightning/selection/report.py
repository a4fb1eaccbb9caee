"""The report: means with paired bootstrap intervals, differences, recovered share and headroom, and more."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from cappy_lightning.config import LabelConfig
from cappy_lightning.errors import InputError
from cappy_lightning.labeling.measures import open_measure
from cappy_lightning.labeling.rouge import RougeL
from cappy_lightning.page import Table, print_table
from cappy_lightning.progress import counted
from cappy_lightning.records import Pool, Selection
from cappy_lightning.selection.analysis import calibration_bins, length_bias, most_wrong, quality_by_cost
from cappy_lightning.selection.baselines import (
    FUSED,
    ORACLE,
    RANDOM,
    SCORER,
    are_choices,
    check_kind,
    check_names,
    method_values,
    rewards,
    unanswered,
)
from cappy_lightning.selection.bootstrap import interval, percent_range, resample
from cappy_lightning.selection.classes import class_report, class_tables, shared_classes

Floats = NDArray[np.float64]


def make_report(
    pools: Sequence[Pool],
    selections: Sequence[Selection],
    scorer_name: str = SCORER,
    label: LabelConfig | None = None,
    seed: int = 0,
    fused: Sequence[Selection] | None = None,
    beside: Mapping[str, Sequence[Selection]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Compare a scorer's selections with the baselines, per task and on the average over tasks.

    Intervals are 95% percentile intervals of a paired bootstrap over examples (Efron 1979): every
    method sees the same resampled examples, 10,000 times. Averages resample within each task, but tasks
    `DATASET/TEMPLATE` of the same data set and ids together: they are several templates over the same rows.

    Args:
        pools: pools with references or choices.
        selections: the scorer's own, one for each pool, in the same order.
        scorer_name: the scorer's name in the report.
        label: whose `score` and `tokenizer` are the metric; None: Rouge-L as the paper takes it.
        seed: of the bootstrap.
        fused: the selections of a fusion of the scorer with other features, where there is one.
        beside: by name, those of other scorers, which are baselines.

    Raises:
        InputError: the scorer or a decoding has a baseline's name, two scorers have the same, or references and
            choices are mixed.
    """
    check_reportable(pools, scorer_name, list(beside))
    label = label or LabelConfig()
    measure, rouge = open_measure(label.score, label.tokenizer), RougeL(label.tokenizer)
    gains = rewards(pools, measure)
    chosen = {**beside, scorer_name: selections} | ({FUSED: fused} if fused is not None else {})
    final = FUSED if fused is not None else scorer_name
    by_task: dict[str, list[int]] = defaultdict(list)
    for i, pool in enumerate(pools):
        by_task[pool.example.task].append(i)
    parts: dict[str, _Part] = {}
    generator = np.random.default_rng(seed)
    states: dict[tuple[str, ...], Any] = {}
    for task, places in by_task.items():
        rows = (task.partition("/")[0], *(pools[i].example.id for i in places))
        own_generator = generator if rows not in states else np.random.default_rng(seed)
        own_generator.bit_generator.state = states.setdefault(rows, generator.bit_generator.state)
        parts[task] = _of_task(
            [pools[i] for i in places],
            [gains[i] for i in places],
            {name: [own[i] for i in places] for name, own in chosen.items()},
            scorer_name,
            rouge,
            own_generator,
        )
    flat_scores, flat_gains = (
        np.array([value for own in each for value in own]) for each in ([s.scores for s in selections], gains)
    )
    return {
        "metric": measure.name if pools[0].example.references else "accuracy",
        "scorer": scorer_name,
        "tasks": {task: part.found for task, part in parts.items()},
        "average": {"n_tasks": len(parts), "n_examples": len(pools), **_average(parts, scorer_name)},
        "calibration": calibration_bins(flat_scores, flat_gains),
        "length": length_bias(pools, chosen[final], gains),
        "most_wrong": most_wrong(pools, chosen[final], gains),
    }


def check_reportable(pools: Sequence[Pool], scorer_name: str = SCORER, beside: Sequence[str] = ()) -> None:
    """Refuse what no report can be made of, see `make_report`.

    Args:
        pools: pools with references or choices.
        scorer_name: the scorer's name in the report.
        beside: those of other scorers.

    Raises:
        InputError: two kinds of rewards, or a name that would stand twice.
    """
    check_beside(beside, scorer_name)
    check_kind(pools)
    for name in (scorer_name, *beside):
        check_names(pools, name)


def check_beside(names: Sequence[str], scorer_name: str = SCORER) -> None:
    """Refuse another scorer with the scorer's name: they could not be told apart."""
    if scorer_name in names:
        raise InputError("--beside", f"names '{scorer_name}', as the scorer is called, expected another path or name")


@dataclass(frozen=True)
class _Part:
    """What a task is in a report, and what the average over tasks is made of: by method the mean and its resamples."""

    found: dict[str, Any]
    means: dict[str, float]
    draws: dict[str, Floats]
    macro_draws: Floats | None


def _of_task(
    pools: Sequence[Pool],
    gains: Sequence[Sequence[float]],
    chosen: Mapping[str, Sequence[Selection]],
    scorer_name: str,
    rouge: RougeL,
    generator: np.random.Generator,
) -> _Part:
    values, skipped = method_values(pools, gains, chosen, rouge)
    matrix = np.array(list(values.values()))  # [methods, examples]
    means = {name: float(row.mean()) for name, row in zip(values, matrix, strict=True)}
    draws = dict(zip(values, resample(matrix, generator), strict=True))
    found = {"n_examples": len(pools), **_compare(means, draws, scorer_name)}
    macro_draws = None
    if not are_choices(pools):
        found["by_candidates"] = quality_by_cost(chosen[scorer_name], gains, scorer_name)
    if classes := shared_classes(pools):
        final = chosen.get(FUSED, chosen[scorer_name])
        answers = [
            (pool.example.right_choice, pool.example.choice_of(selection.response) or selection.response)
            for pool, selection in zip(pools, final, strict=True)
        ]
        found["classification"], macro_draws = class_report(classes, answers, generator)
    if skipped:
        found["skipped"] = skipped | found.get("skipped", {})
    if missing := unanswered(pools):
        found["unanswered"] = missing
    return _Part(found, means, draws, macro_draws)


def _average(parts: Mapping[str, _Part], scorer_name: str) -> dict[str, Any]:
    """The means over tasks of what all of them have, and why the rest is left out."""
    names = list(dict.fromkeys(name for part in parts.values() for name in part.means))
    lacking = {name: [task for task, part in parts.items() if name not in part.means] for name in names}
    common = [name for name in names if not lacking[name]]
    means = {name: float(np.mean([part.means[name] for part in parts.values()])) for name in common}
    draws = {name: np.mean([part.draws[name] for part in parts.values()], axis=0) for name in common}
    found = _compare(means, draws, scorer_name)
    if curves := [part.found["by_candidates"] for part in parts.values() if "by_candidates" in part.found]:
        most = max(len(curve[ORACLE]) for curve in curves)  # a task with fewer candidates gives what it has
        found["by_candidates"] = {
            name: [float(np.mean([curve[name][min(n, len(curve[name]) - 1)] for curve in curves])) for n in range(most)]
            for name in curves[0]
        }
    macro_draws = [part.macro_draws for part in parts.values() if part.macro_draws is not None]
    if len(macro_draws) == len(parts):
        mean = float(np.mean([part.found["classification"]["macro_f1"]["mean"] for part in parts.values()]))
        found["macro_f1"] = interval(mean, np.mean(macro_draws, axis=0))
    reasons = {name: f"is missing in {', '.join(tasks)}" for name, tasks in lacking.items() if tasks}
    if reasons:
        found["skipped"] = reasons | found.get("skipped", {})
    missing = Counter[str]()
    for part in parts.values():
        missing.update(part.found.get("unanswered", {}))
    if of_all := {name: missing[name] for name in common if missing[name]}:
        found["unanswered"] = of_all
    return found


def best_baseline(means: dict[str, float], scorer_name: str) -> str:
    """The baseline with the highest mean: any method but the scorer, its fusion and the oracle."""
    others = [name for name in means if name not in (scorer_name, FUSED, ORACLE)]
    return max(others, key=lambda name: means[name])


def _compare(means: dict[str, float], draws: dict[str, Floats], scorer_name: str) -> dict[str, Any]:
    best = best_baseline(means, scorer_name)
    result = {
        "methods": {name: interval(means[name], draws[name]) for name in means},
        "best_baseline": best,
        **_standing(scorer_name, best, means, draws),
    }
    if FUSED in means:
        result[FUSED] = _standing(FUSED, best, means, draws)
    return result


def _standing(name: str, best: str, means: dict[str, float], draws: dict[str, Floats]) -> dict[str, Any]:
    """How one method stands against all others, on the way from random and from the best baseline to the oracle."""
    result: dict[str, Any] = {
        "differences": {
            other: interval(means[name] - means[other], draws[name] - draws[other]) for other in means if other != name
        }
    }
    skipped = {}
    for share, floor in (("recovered", RANDOM), ("headroom", best)):
        if means[ORACLE] - means[floor] > 1e-12:
            gained, possible = draws[name] - draws[floor], draws[ORACLE] - draws[floor]
            ratios = gained[possible > 1e-12] / possible[possible > 1e-12]
            value = (means[name] - means[floor]) / (means[ORACLE] - means[floor])
            result[share] = interval(value, ratios)
        else:
            skipped[share] = f"the oracle is no better than {floor}"
    return result | ({"skipped": skipped} if skipped else {})


def metric_title(report: dict[str, Any]) -> str:
    """The metric of a report as a reader would write it."""
    name = str(report["metric"])
    return {"rougeL": "Rouge-L", "exact_match": "exact match", "token_f1": "token F1"}.get(name, name)


def print_report(report: dict[str, Any], console: Console) -> None:
    """The report as tables, one a task and one for the average over several; figures times 100."""
    for table in report_tables(report):
        print_table(table, console, bold=(report["scorer"], FUSED), dim=(ORACLE,))


def report_tables(report: dict[str, Any]) -> list[Table]:
    """A table for each task, and one for the average over several; figures times 100."""
    tables = []
    for task, part in report["tasks"].items():
        title = f"{task}, {counted(part['n_examples'], 'example')}"
        tables.append(_method_table(report, title, part))
        if "classification" in part:
            tables += class_tables(title, part["classification"])
    if len(report["tasks"]) > 1:
        tables.append(average_table(report))
    return tables


def average_table(report: dict[str, Any]) -> Table:
    """All methods on the average over the tasks; figures times 100."""
    return _method_table(report, f"average over {len(report['tasks'])} tasks", report["average"])


def _method_table(report: dict[str, Any], title: str, part: dict[str, Any]) -> Table:
    compared = {report["scorer"]: part} | ({FUSED: part[FUSED]} if FUSED in part else {})
    rows = []
    for name, value in sorted(part["methods"].items(), key=lambda item: item[1]["mean"]):
        row = [name, f"{100 * value['mean']:.1f}", f"[{percent_range(value)}]"]
        for one in compared.values():
            difference = one["differences"].get(name)
            row.append(f"{100 * difference['mean']:+.1f} [{percent_range(difference, '+')}]" if difference else "")
        rows.append(row)
    notes = [
        f"{name} goes {100 * one[share]['mean']:.0f}% [{percent_range(one[share], digits=0)}]"
        f" of the way from {floor} to oracle"
        for name, one in compared.items()
        for share, floor in (("recovered", RANDOM), ("headroom", part["best_baseline"]))
        if share in one
    ]
    notes += [
        f"{name} gave no answer to {count} of {part['n_examples']} examples, which count 0"
        for name, count in part.get("unanswered", {}).items()
    ]
    by_reason: dict[str, list[str]] = {}
    for name, reason in part.get("skipped", {}).items():
        by_reason.setdefault(reason, []).append(name)
    notes += [f"left out: {', '.join(names)} ({reason})" for reason, names in by_reason.items()]
    header = ["method", "mean", "interval", *(f"{name} is better by" for name in compared)]
    return Table(f"{title}: {metric_title(report)} x 100 with 95% intervals", header, rows, "\n".join(notes))

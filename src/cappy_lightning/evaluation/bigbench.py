"""`cappy evaluate bigbench`: the job of conf/bigbench.yaml for every task, and one report.

Each task is a run of its own in `OUT/tasks/TASK`: what is finished is not done again, and what was interrupted
goes on. When all are there, the report is made of them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cappy_lightning.backbones.survey import settings
from cappy_lightning.callbacks.results import REPORT
from cappy_lightning.config import Config
from cappy_lightning.config_loading import load_config, word
from cappy_lightning.errors import InputError
from cappy_lightning.evaluation.published import published_bigbench
from cappy_lightning.files import make_dir, read_jsonl, write_json
from cappy_lightning.page import Table, print_table, write_page, write_picture
from cappy_lightning.preparation import validation_pools
from cappy_lightning.progress import console, say, show_places, warn
from cappy_lightning.records import Pool, Selection
from cappy_lightning.run_dir import is_finished, rank, read_selections, versions
from cappy_lightning.scorer.places import check_base
from cappy_lightning.selection.baselines import FUSED, ORACLE, RANDOM
from cappy_lightning.selection.charts import methods_chart, report_page
from cappy_lightning.selection.engine import check_loadable, selections_beside
from cappy_lightning.selection.report import average_table, check_beside, make_report, metric_title
from cappy_lightning.sources.bigbench import GENERATION_TASKS, cached_path, fetch, is_name
from cappy_lightning.sources.config import Shard
from cappy_lightning.training import finish

PAGE, PICTURE = "report.html", "report.png"


def evaluate_bigbench(
    words: Sequence[str], tasks: Sequence[str], out: Path, shard: Shard, as_json: bool, beside: Sequence[str] = ()
) -> int:
    """Run every task of the shard that is not finished; once all tasks are, make the report.

    Args:
        words: recipe, overlays and key=value words, as for a training of one task.
        tasks: names; none: the paper's generation tasks, as far as they can be fetched.
        out: the directory of it all.
        shard: which of the tasks, for job arrays.
        as_json: print the report as JSON instead of tables.
        beside: other scorers, used as they are, as baselines.

    Returns:
        the exit code: 0, or that of a run that was stopped by a signal.

    Raises:
        InputError: words, tasks or a directory that cannot be used, or a task that failed, when the others are done
            and, if none is left to other shards, reported.
    """
    if not any(one.endswith((".yaml", ".yml")) for one in words):
        raise InputError("cappy evaluate bigbench", "no recipe, expected RECIPE.yaml, such as conf/bigbench.yaml")
    names = _fetched(tasks, load_config([*words, "data.task=task"]))
    configs = {task: _task_config(words, task, out) for task in names}
    for config in configs.values():  # before an LLM is asked
        if not is_finished(Path(config.run_dir)):
            check_base(config.scorer)
        check_beside(beside, config.scorer.name)
    check_loadable(beside)
    make_dir(out)
    own = list(shard.of(configs.items()))
    failed: dict[str, str] = {}
    for number, (task, config) in enumerate(own, start=1):
        say(f"task {number} of {len(own)}: {task}")
        try:
            stopped_by = finish(config)
        except InputError as error:  # the other tasks can do without it
            if config.trainer.devices * config.trainer.nodes > 1:  # but other ranks wait for this one
                raise
            warn(f"{task}: {error}")
            failed[task] = str(error)
            continue
        if stopped_by:
            return stopped_by
    left = {task: config for task, config in configs.items() if task not in failed}
    finished = {task: config for task, config in left.items() if is_finished(Path(config.run_dir))}
    waiting = [task for task in left if task not in finished]
    if waiting:
        say(f"{len(waiting)} of {len(configs)} tasks are left to other shards; the report is made when all are there")
        if as_json:
            print(json.dumps({"directory": str(out), "waiting": waiting}))
    elif rank() == 0 and finished:
        report = _gather(finished, beside) | ({"failed": failed} if failed else {})
        _write(report, out)
        _show(report, out, as_json)
    if failed:
        raise InputError(out, f"{len(failed)} of {len(own)} tasks failed: {', '.join(failed)}; the others are done")
    return 0


def _fetched(tasks: Sequence[str], config: Config) -> list[str]:
    """The tasks that there are; a task that was named must be there."""
    for task in tasks:
        if not is_name(task):
            raise InputError("--tasks", f"names '{task}', expected names of tasks, separated by commas")
    if len(set(tasks)) < len(tasks):
        raise InputError("--tasks", "names a task twice")
    if config.data.pool and not tasks:
        raise InputError("--tasks", "is missing, expected the tasks of data.pool")
    if tasks:
        if not config.data.pool:
            fetch(tasks)
            if len({"references" in next(read_jsonl(cached_path(task)))[1] for task in tasks}) > 1:
                raise InputError("--tasks", "names tasks with references and tasks with choices, expected one kind")
        return list(tasks)
    # The hub's alone; everything else lies in the archive, too. The last, so that in the jobs of an array, some of
    # which may not reach the hub, all others have the same places.
    common = [task for task in GENERATION_TASKS if task != "tellmewhy"]
    fetch(common)
    try:
        fetch(["tellmewhy"])
    except InputError as error:
        say(f"left out: {error}")
        return common
    return [*common, "tellmewhy"]


def _task_config(words: Sequence[str], task: str, out: Path) -> Config:
    return load_config([*words, f"data.task={task}", f"name={task}", word("run_dir", str(out / "tasks" / task))])


def _gather(configs: dict[str, Config], beside: Sequence[str]) -> dict[str, Any]:
    """One report over the tasks."""
    pools: list[Pool] = []
    scorer: list[Selection] = []
    fused: list[Selection] = []
    config = next(iter(configs.values()))
    for own in configs.values():
        held = validation_pools(own)
        chosen = read_selections(Path(own.run_dir), held)
        pools += held
        fused += chosen
        scorer += [one.by_scorer(pool) for one, pool in zip(chosen, held, strict=True)]
    by_fusion = fused if config.select.by == "fused" else None
    others = selections_beside(beside, pools)
    report = make_report(pools, scorer, config.scorer.name, config.label, fused=by_fusion, beside=others)
    known = published_bigbench()
    asked = {"pools": [pool for own in configs.values() for pool in own.data.pool]}
    if not config.data.pool:
        asked = vars(config.backbone) | {"model": settings(config.backbone)["model"]}
    told = {"candidates": asked, "scorer_base": config.scorer.base, "versions": versions()}
    return report | {"published": {task: known[task] for task in configs if task in known}, "made_by": told}


def _write(report: dict[str, Any], out: Path) -> None:
    write_json(out / REPORT, report)
    write_picture(methods_chart(report), out / PICTURE)
    asked = report["made_by"]["candidates"]
    of = "recorded (data.pool)"
    if "kind" in asked:
        of = f"{asked['kind']} {asked['model'] or ''}, {asked['shots'] if asked['kind'] != 'recorded' else 0} shots"
    facts = [
        f"candidates: {of}",
        f"scorer: {report['scorer']}, adapted from {report['made_by']['scorer_base']}",
        *(f"failed: {task} ({reason})" for task, reason in report.get("failed", {}).items()),
    ]
    tables = [task_table(report), published_table(report)]
    write_page(report_page(report, f"BIG-bench, {len(report['tasks'])} tasks", facts, tables), out / PAGE)


def _show(report: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"directory": str(out)} | report))
        return
    screen = console()
    for table in (task_table(report), average_table(report), published_table(report)):
        print_table(table, screen, bold=(report["scorer"], FUSED), dim=(ORACLE,))
    show_places(out / REPORT, out / PAGE)


def task_table(report: dict[str, Any]) -> Table:
    """A row for each task with what matters most of the report."""
    own = [report["scorer"], *([FUSED] if FUSED in report["average"]["methods"] else [])]
    rows = []
    for task, part in [*report["tasks"].items(), ("average", report["average"])]:
        methods, best = part["methods"], part["best_baseline"]
        row = [task, part.get("n_examples", ""), f"{100 * methods[RANDOM]['mean']:.1f}"]
        row += [f"{100 * methods['greedy']['mean']:.1f}" if "greedy" in methods else ""]
        row += [f"{100 * methods[best]['mean']:.1f} {best}"]
        for name in own:
            difference = (part if name == report["scorer"] else part[name])["differences"][best]
            low, high = 100 * difference["low"], 100 * difference["high"]
            row += [f"{100 * methods[name]['mean']:.1f} ({100 * difference['mean']:+.1f} [{low:+.1f}, {high:+.1f}])"]
        rows.append([*row, f"{100 * methods[ORACLE]['mean']:.1f}"])
    header = ["task", "examples", RANDOM, "greedy", "best baseline", *own, ORACLE]
    note = "In brackets: better than the best baseline by, with its 95% interval."
    return Table(f"By task: {metric_title(report)} x 100", header, rows, note)


def published_table(report: dict[str, Any]) -> Table:
    """Cappy's published figures for the same tasks, by the backbone that proposed the candidates."""
    known = report["published"]
    backbones = list(next(iter(known.values()), {}))
    rows = [[task, *(f"{100 * known[task][name]:.1f}" for name in backbones)] for task in known]
    if rows:
        means = [sum(values[name] for values in known.values()) / len(known) for name in backbones]
        rows.append(["average", *(f"{100 * mean:.1f}" for mean in means)])
    note = "RoBERTa-large, pretrained; 17 candidates each (github.com/tanyuqian/cappy)."
    return Table("Cappy as published: Rouge-L x 100, by backbone", ["task", *backbones], rows, note)

"""The commands that score and choose: score, select, answer, calibrate, serve."""

import argparse
import json
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cappy_lightning.commands.inputs import (
    check_input,
    check_outputs,
    check_scorer,
    load_sections,
    made_by,
    open_cappy,
    open_sources,
    sampled_words,
    split_words,
)
from cappy_lightning.config import Config
from cappy_lightning.errors import InputError
from cappy_lightning.files import write_json, write_text
from cappy_lightning.progress import console, counted, say, show_places, warn
from cappy_lightning.records import Example, Pool, Selection, check_task

if TYPE_CHECKING:
    from rich.console import Console


def score(options: argparse.Namespace) -> int:
    """`cappy score`: rows with their scores."""
    check_outputs(options.out)
    check_input(options.source)
    check_scorer(options)
    from cappy_lightning.score import score as score_rows

    score_rows(open_cappy(options), options.source, options.out, made_by(options))
    if options.out != "-":
        show_places(options.out)
    return 0


def select(options: argparse.Namespace) -> int:
    """`cappy select`: selections, and a report where pools have references or choices."""
    if "=" in options.source and not Path(options.source).exists():  # a key=value word where a file could stand
        options.config, options.source = [options.source, *options.config], "-"
    config = load_sections(options.config, "select", "label")
    check_outputs(options.out, options.report, options.html)
    check_input(options.source)
    check_scorer(options)
    from cappy_lightning.select import check_report
    from cappy_lightning.select import select as select_from
    from cappy_lightning.selection.engine import check_loadable
    from cappy_lightning.selection.report import check_beside

    check_beside(options.beside)
    check_loadable(options.beside)
    cappy = open_cappy(options, config.select.by)
    if (options.report or options.html) and options.source != "-":  # standard input cannot be read twice
        check_report(cappy, options.source, options.split, options.beside)
    by = made_by(options) | {"by": config.select.by, "split": options.split}
    judged = select_from(cappy, options.source, options.out, options.split, by)
    if any(pool.example.split == "train" for pool, _, _ in judged):
        say("warning: the report is also of examples of the split train, which the scorer may know from its training")
    elif judged and not any(pool.example.split for pool, _, _ in judged):
        say("warning: no pool names a split; the scorer must not have been trained on these examples")
    _report(options, judged, cappy.fusion is not None, config)
    return 0


def answer(options: argparse.Namespace) -> int:
    """`cappy answer`: answers to examples, or to one instruction."""
    sections = ("answer", "select", "backbone", "label")
    check_scorer(options)
    if options.instruction is not None:
        return _answer_one(options, *sections)
    if options.source is None or options.out is None or options.json:
        raise InputError("cappy answer", "expected EXAMPLES -o ANSWERS.jsonl, or --instruction TEXT")
    # What is to be answered has no references that could be shown; a template can have examples in it.
    options.config[:0] = [*sampled_words(options, split_words(options.config)[1]), "backbone.shots=0"]
    sources, config, out = open_sources(options, ".jsonl", *sections, labelled=False)
    check_outputs(str(out), options.report, options.html)
    cappy = open_cappy(options, config.select.by)
    from cappy_lightning.answer import answer as answer_examples
    from cappy_lightning.answer import say_given
    from cappy_lightning.selection.report import metric_title

    answered = answer_examples(
        lambda: (_of_task(pool.example, cappy.tasks, options.source) for pool in sources.pools()),
        cappy,
        config,
        out,
        part=sources.partial,
        made_by=made_by(options) | {"select": config.select.by},
    )
    options.out = str(out)
    given = answered.given(config.label)
    told = {"answered": given} if given else {}
    report = _report(options, answered.judged, config.select.by == "fused", config, told)
    if given:
        say_given(given, metric_title(report) if report else "reward")
    return 0


def _of_task(example: Example, tasks: Collection[str], source: str) -> Example:
    check_task(example.task, tasks, f"{source}: example {example.id}")
    return example


def _answer_one(options: argparse.Namespace, *sections: str) -> int:
    for name in ("out", "report", "html", "shard"):
        if getattr(options, name):
            raise InputError(f"--{name}", "stands beside --instruction, expected it with EXAMPLES only")
    words = [*([options.source] if options.source else []), *options.config]  # the source is the first key=value word
    config = load_sections([*sampled_words(options, words), "backbone.shots=0", *words], *sections)
    cappy, limits = open_cappy(options, config.select.by), config.answer
    best = cappy.answer(
        options.instruction,
        vars(config.backbone),
        step=limits.step,
        stop=limits.stop,
        budget_tokens=limits.budget_tokens,
        abstain=limits.abstain,
        task=options.task,
    )
    if best.problem:
        raise InputError("backbone", f"gives no answer ({best.problem})")
    if options.json:
        print(json.dumps(asdict(best)))
        return 0
    for one in best.candidates:
        say(f"{one.score:.3f}  {one.response}")
    if best.empty:
        say(f"left out: {counted(best.empty, 'empty answer')}")
    if best.response is None:
        warn(f"not sure: the best score is below answer.abstain={limits.abstain}")
    else:
        print(best.response)
    return 0


def calibrate(options: argparse.Namespace) -> int:
    """`cappy calibrate`: thresholds for sampling and for abstaining, as an overlay."""
    check_scorer(options)
    from cappy_lightning.answering.calibration import calibrate as find_thresholds
    from cappy_lightning.answering.calibration import overlay, read_held_out
    from cappy_lightning.answering.charts import calibration_page, calibration_table
    from cappy_lightning.page import print_table, write_page

    config = load_sections(options.config, "answer", "select", "label")
    for name, value in (("--keep", options.keep), ("--precision", options.precision)):
        if value is not None and not 0 < value <= 1:
            raise InputError(name, f"is {value}, expected a share above 0, at most 1")
    check_outputs(options.out, options.report, options.html)
    pools = read_held_out(options.source)
    cappy = open_cappy(options, config.select.by)
    result = find_thresholds(cappy, pools, config, options.keep, options.precision)
    asked = ["--keep", f"{options.keep:g}"] + (["--precision", f"{options.precision:g}"] if options.precision else [])
    for adapter in options.adapter or ():
        asked += ["--adapter", adapter]
    for name in ("activation", "dtype"):
        asked += [f"--{name}", getattr(options, name)] if getattr(options, name) else []
    command = ["cappy", "calibrate", options.source, "--scorer", options.scorer, *asked, *options.config]
    text = f"# {shlex.join(command)}\n{overlay(result, config.select.by)}"
    if options.out == "-":
        print(text, end="")
    else:
        write_text(Path(options.out), text)
    if options.report:
        write_json(Path(options.report), result)
    if options.html:
        scorer = " ".join([options.scorer, *(options.adapter or ())])
        write_page(calibration_page(result, f"{options.source}: {scorer}"), Path(options.html))
    _show(options, lambda screen: print_table(calibration_table(result), screen))
    return 0


def serve(options: argparse.Namespace) -> int:
    """`cappy serve`: the HTTP service, until a signal ends it."""
    check_scorer(options)
    # A failure is the client's to try again: it knows how long it can wait.
    words = ["backbone.retries=0", "backbone.concurrency=64", *sampled_words(options, options.config), *options.config]
    config = load_sections(words, "serve", "answer", "select", "backbone")
    try:
        from cappy_lightning.serving.server import serve as start
    except ModuleNotFoundError as error:
        problem = f"needs {error.name}, expected the extra 'serve' (in the checkout: pip install '.[serve]')"
        raise InputError("cappy serve", problem) from None
    start(lambda: open_cappy(options, config.select.by), config)
    return 0


def _report(
    options: argparse.Namespace,
    judged: Sequence[tuple[Pool, Selection, Selection]],
    fused: bool,
    config: Config,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any] | None:
    """The report of selections, also as JSON and as a page where these are asked for, and where all of it lies.

    Args:
        options: of the command.
        judged: pools with references or choices, each with the scorer's own selection and the final one.
        fused: whether the final ones are those of a fusion.
        config: whose section `label` is the metric.
        more: that belongs into the report.

    Returns:
        the report; None where none can be made.

    Raises:
        InputError: a report was asked for, and there is nothing to judge by.
    """
    from cappy_lightning.page import write_page
    from cappy_lightning.select import NOTHING_TO_JUDGE
    from cappy_lightning.selection.charts import report_page
    from cappy_lightning.selection.engine import selections_beside
    from cappy_lightning.selection.report import make_report, print_report

    report = None
    try:
        if not judged:
            raise InputError(options.source, NOTHING_TO_JUDGE)
        pools, own, final = zip(*judged, strict=True)
        others = selections_beside(getattr(options, "beside", ()), pools)
        report = make_report(pools, own, label=config.label, fused=final if fused else None, beside=others)
    except InputError as error:  # the selections are as good without it
        if options.report or options.html:
            raise
        say(f"no report: {error}" if judged else NOTHING_TO_JUDGE)
    if report and options.report:
        write_json(Path(options.report), {**report, **more})
    if report and options.html:
        write_page(report_page(report, f"{options.source}: {options.scorer}"), Path(options.html))
    _show(options, lambda screen: print_report(report, screen) if report else None)
    return report


def _show(options: argparse.Namespace, show: Callable[["Console"], None]) -> None:
    """Show results and say where they lie; on standard error where standard output has what was made."""
    if options.out == "-":
        show(console(stderr=True))
    else:
        show(console())
        show_places(options.out, options.report, options.html)

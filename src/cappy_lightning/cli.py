"""The command `cappy`. Modules that need torch are imported by the commands that use them."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from cappy_lightning.command_line import parse
from cappy_lightning.config import Config
from cappy_lightning.config_loading import NO_DATA, load_config
from cappy_lightning.errors import InputError
from cappy_lightning.files import atomic_path, find_parts, part_name, read_jsonl, to_line, write_json
from cappy_lightning.progress import error_console, say, set_quiet
from cappy_lightning.records import Pool, Selection
from cappy_lightning.sources.spec import Shard, Sources, SourcesConfig

if TYPE_CHECKING:
    from cappy_lightning.cappy import Cappy


def entry() -> None:
    """The console command."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        the exit code: 0; 2 for input that cannot be used, said in one line; 130 and 143 when
        interrupted by Ctrl-C and SIGTERM.
    """
    try:
        options = parse(arguments)
        set_quiet(getattr(options, "quiet", False))
        return _COMMANDS[options.command](options)
    except InputError as error:
        print(f"cappy: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cappy: interrupted; train, generate, label and evaluate continue with the same command", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _train(options: argparse.Namespace) -> int:
    config: Config = load_config(options.config)
    from cappy_lightning.training import train

    return train(config, options.json)


def _submit(options: argparse.Namespace) -> int:
    from cappy_lightning.slurm.submit import split_chain, submit

    words = [word for word in options.words if word != "--dry-run"]
    # Of these commands train alone has keys of `slurm`; the others' are the job's.
    stages = [
        (stage, parse([word for word in stage if stage[0] == "train" or not word.startswith("slurm.")]))
        for stage in split_chain(words)
    ]
    return submit(stages, options.cluster, options.dry_run or words != options.words)


def _jobs(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cappy_lightning.slurm.jobs import find_jobs, print_jobs

    rows = find_jobs([Path(folder) for folder in options.folder])
    if options.json:
        print(json.dumps(rows))
    else:
        print_jobs(rows, Console(width=None if sys.stdout.isatty() else 160))
    return 0


def _generate(options: argparse.Namespace) -> int:
    from cappy_lightning.backbones.generate import record_pools
    from cappy_lightning.labeling.weak_labels import with_split

    sources, config, out = _open_sources(options, ".jsonl")
    if out.exists():  # said at once; the recording looks again when nobody else can write it
        raise InputError(out, "exists already, expected a new file")
    examples = with_split(
        lambda: (pool.example for pool in sources.pools()), config.data.validation_fraction, config.data.seed
    )
    for note in sources.notes():
        say(note)
    record_pools(examples, config.backbone, out, part=sources.partial)
    print(out)
    return 0


def _label(options: argparse.Namespace) -> int:
    from cappy_lightning.label import label

    sources, config, out = _open_sources(options, "")
    label(sources, config, out, options.split)
    print(out)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from rich.console import Console

    from cappy_lightning.inspection.instances import inspect_instances
    from cappy_lightning.inspection.page import findings_page, print_findings
    from cappy_lightning.inspection.pools import inspect_pools
    from cappy_lightning.page import write_page

    folder = Path(options.source)
    if folder.is_dir() and not find_parts(folder, ".jsonl"):
        config = load_config([*options.config, *NO_DATA])
        findings = inspect_instances([folder], config)
    else:
        sources, config = _read_words(options.source, options.config, Shard())
        findings = inspect_pools(sources.pools(), options.source, config)
        findings.facts += sources.notes()
    print_findings(findings, Console(width=None if sys.stdout.isatty() else 120))
    if options.html:
        write_page(findings_page(findings), Path(options.html))
        say(f"page: {options.html}")
    return 0


def _open_sources(options: argparse.Namespace, suffix: str, *, labelled: bool = True) -> tuple[Sources, Config, Path]:
    """The sources, the config and the output of a command that makes something of examples."""
    shard = Shard.parse(options.shard) if options.shard else Shard()
    out = Path(options.out)
    if shard.count > 1:
        out = out / f"{part_name(shard.index, shard.count)}{suffix}"
    return *_read_words(options.source, options.config, shard, labelled=labelled), out


def _read_words(source: str, words: Sequence[str], shard: Shard, *, labelled: bool = True) -> tuple[Sources, Config]:
    """The sources and the config of a command line: `key=value` words go where their key belongs."""
    own = {field.name for field in fields(SourcesConfig)}
    for_sources = [word for word in words if word.partition("=")[0].partition(".")[0] in own]
    rest = [word for word in words if word not in for_sources]
    return Sources([source, *for_sources], shard, labelled=labelled), load_config([*rest, *NO_DATA])


def _score(options: argparse.Namespace) -> int:
    from itertools import islice

    from cappy_lightning.records import pair_from_row

    cappy = _open_cappy(options)
    rows = read_jsonl(options.source)
    with _output(options.out) as stream:
        while chunk := list(islice(rows, 4096)):
            tasks = [row.get("task") for _, row in chunk]
            logits = cappy.logits([pair_from_row(row, where) for where, row in chunk], tasks)
            for (_, row), logit, score in zip(chunk, logits.tolist(), cappy.to_scores(logits).tolist(), strict=True):
                stream.write(to_line({**row, "score": score, "logit": logit}))
    return 0


def _select(options: argparse.Namespace) -> int:
    from itertools import tee

    from cappy_lightning.selection.engine import select_from_pools
    from cappy_lightning.sources.jsonl import read_pools

    config = load_config([*options.config, *NO_DATA])
    cappy = _open_cappy(options, config.select.by)
    pools, judging = tee(read_pools(options.source, labelled=False))
    own, chosen = tee(select_from_pools(cappy, pools))
    fused = cappy.fusion
    if fused:
        judging, fusing = tee(judging)
        chosen = fused.select(fusing, chosen)
    judged: list[tuple[Pool, Selection, Selection]] = []
    with _output(options.out) as stream:
        for pool, by_scorer, selection in zip(judging, own, chosen, strict=True):
            stream.write(to_line(selection.to_row()))
            if pool.example.references or pool.example.choices:
                judged.append((pool, by_scorer, selection))
    _report(options, judged, bool(fused), config)
    return 0


def _answer(options: argparse.Namespace) -> int:
    from cappy_lightning.answering.stopping import sampling_words

    # What is to be answered has no references that could be shown; a template can have examples in it.
    options.config[:0] = [*sampling_words(options.n), "backbone.shots=0"]
    if options.instruction is not None:
        words = [options.source] if options.source else []  # the first key=value word
        return _answer_one(options, load_config([*words, *options.config, *NO_DATA]))
    if options.source is None or options.out is None:
        raise InputError("cappy answer", "expected EXAMPLES -o ANSWERS.jsonl, or --instruction TEXT")
    sources, config, out = _open_sources(options, ".jsonl", labelled=False)
    if out.exists():
        raise InputError(out, "exists already, expected a new file")
    cappy = _open_cappy(options, config.select.by)
    from cappy_lightning.answer import answer

    answered = answer(
        lambda: (pool.example for pool in sources.pools()),
        cappy,
        config,
        out,
        part=sources.partial,
        made_by={"scorer": options.scorer, "adapter": options.adapter, "select": config.select.by},
    )
    _report(options, answered.judged, config.select.by == "fused", config)
    print(out)
    return 0


def _answer_one(options: argparse.Namespace, config: Config) -> int:
    cappy, limits = _open_cappy(options, config.select.by), config.answer
    best = cappy.answer(
        options.instruction,
        vars(config.backbone),
        stop=limits.stop,
        budget_tokens=limits.budget_tokens,
        abstain=limits.abstain,
    )
    for one in best.candidates:
        say(f"{one.score:.3f}  {one.response}")
    if best.response is None:
        why = f"the best score is below answer.abstain={limits.abstain}" if best.candidates else best.problem
        say(f"no answer: {why}")
    else:
        print(best.response)
    return 0


def _calibrate(options: argparse.Namespace) -> int:

    from cappy_lightning.answering.calibration import calibrate, overlay, read_held_out
    from cappy_lightning.answering.charts import calibration_page, calibration_table
    from cappy_lightning.page import print_table, write_page

    config = load_config([*options.config, *NO_DATA])
    for name, value in (("--keep", options.keep), ("--precision", options.precision)):
        if value is not None and not 0 < value <= 1:
            raise InputError(name, f"is {value}, expected a share above 0, at most 1")
    pools = read_held_out(options.source)
    cappy = _open_cappy(options, config.select.by)
    result = calibrate(cappy, pools, config, options.keep, options.precision)
    print_table(calibration_table(result), error_console())
    with _output(options.out) as stream:
        stream.write(f"# cappy calibrate {options.source} --scorer {options.scorer}\n{overlay(result)}")
    if options.json:
        write_json(Path(options.json), result)
    if options.html:
        write_page(calibration_page(result, f"{options.source}: {options.scorer}"), Path(options.html))
    return 0


def _serve(options: argparse.Namespace) -> int:
    from cappy_lightning.answering.stopping import sampling_words

    # A failure is the client's to try again: it knows how long it can wait.
    config = load_config([*sampling_words(options.n), "backbone.retries=0", *options.config, *NO_DATA])
    try:
        from cappy_lightning.serving.server import serve
    except ModuleNotFoundError as error:
        raise InputError("cappy serve", f"needs {error.name}, expected pip install 'cappy-lightning[serve]'") from None
    serve(lambda: _open_cappy(options, config.select.by), config)
    return 0


def _report(
    options: argparse.Namespace, judged: Sequence[tuple[Pool, Selection, Selection]], fused: bool, config: Config
) -> None:
    """The report of selections on standard error, and where it is asked for as JSON and as a page.

    Args:
        options: of the command.
        judged: pools with references or choices, each with the scorer's own selection and the final one.
        fused: whether the final ones are those of a fusion.
        config: whose section `label` is the metric.
    """
    if not judged:
        if options.json or options.html:
            say("no report: no pool has references or choices")
        return

    from cappy_lightning.page import write_page
    from cappy_lightning.selection.charts import report_page
    from cappy_lightning.selection.report import make_report, print_report

    try:
        pools, own, final = zip(*judged, strict=True)
        report = make_report(pools, own, label=config.label, fused=final if fused else None)
    except InputError as error:  # the selections are as good without it
        say(f"no report: {error}")
        return
    print_report(report, error_console())
    if options.json:
        write_json(Path(options.json), report)
    if options.html:
        write_page(report_page(report, f"{options.source}: {options.scorer}"), Path(options.html))


def _open_cappy(options: argparse.Namespace, by: str = "scorer") -> "Cappy":
    from cappy_lightning.cappy import Cappy

    return Cappy.from_pretrained(options.scorer, _adapters(options.adapter), by=by, activation=options.activation)


def _adapters(words: list[str] | None) -> str | dict[str, str] | None:
    """One adapter for all rows, or several by task."""
    named = {task: path for task, equals, path in (word.partition("=") for word in words or ()) if equals}
    if words and not named and len(words) == 1:
        return words[0]
    if len(named) != len(words or ()):
        raise InputError("--adapter", f"is {' '.join(words or ())}, expected one, or TASK=ADAPTER for each task")
    return named or None


def _export(options: argparse.Namespace) -> int:
    from cappy_lightning.export import export_any

    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, "exists already, expected a new or empty directory")
    kind = export_any(options.source, out, options.kind)
    say(f"exported and verified: {out} ({kind})")
    print(out)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    if options.benchmark == "promptsource":
        from cappy_lightning.evaluation.promptsource import evaluate_promptsource

        source = [options.source, *options.config]
        evaluate_promptsource(
            source, options.scorer, options.adapter, options.activation, Path(options.out), options.json
        )
        return 0
    from cappy_lightning.evaluation.bigbench import evaluate_bigbench

    shard = Shard.parse(options.shard) if options.shard else Shard()
    words = list(options.config)
    for key, value in (("backbone.kind", options.backbone), ("scorer.base", options.scorer)):
        words += [f"{key}={value}"] if value else []
    return evaluate_bigbench(words, options.tasks, Path(options.out), shard, options.json)


def _memory(options: argparse.Namespace) -> int:
    config = load_config([*options.config, *NO_DATA])
    from cappy_lightning.memory import estimate, print_estimate

    print_estimate(estimate(config), options.json)
    return 0


@contextlib.contextmanager
def _output(path: str) -> Iterator[TextIO]:
    """Standard output for `-`; else a file that appears when all is written."""
    if path == "-":
        yield sys.stdout
        return
    out = Path(path)
    if out.is_dir():
        raise InputError(out, "is a directory, expected a file or nothing")
    try:
        with atomic_path(out) as scratch, open(scratch, "w", encoding="utf-8") as stream:
            yield stream
    except OSError as error:
        raise InputError(out, f"cannot be written ({error.strerror})") from None


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": _train,
    "generate": _generate,
    "label": _label,
    "inspect": _inspect,
    "score": _score,
    "select": _select,
    "answer": _answer,
    "calibrate": _calibrate,
    "serve": _serve,
    "evaluate": _evaluate,
    "export": _export,
    "submit": _submit,
    "jobs": _jobs,
    "memory": _memory,
}

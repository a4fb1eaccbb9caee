"""The command `cappy`. Modules that need torch are imported by the commands that use them."""

import argparse
import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cappy_lightning.command_line import parse
from cappy_lightning.config import Config
from cappy_lightning.config_loading import NO_DATA, load_config
from cappy_lightning.errors import InputError
from cappy_lightning.files import check_new, find_parts, open_input, part_name, stamps, write_json, write_text
from cappy_lightning.progress import console, say, set_quiet, show_places, warn
from cappy_lightning.records import Example, Pool, Selection, check_task
from cappy_lightning.sources.config import Shard, SourcesConfig

if TYPE_CHECKING:
    from rich.console import Console

    from cappy_lightning.cappy import Cappy
    from cappy_lightning.sources.spec import Sources

#: Commands that go on where they were stopped, when they are given once more.
_CONTINUED = ("train", "generate", "label", "score", "select", "answer", "evaluate")


class _Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C's that ends the command: everything is put in order as with Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and the loss of the terminal end the work as Ctrl-C does."""

    def stop(number: int, _: object) -> None:
        raise _Stopped(number)

    # `nohup` has the second one ignored.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


#: What a disk says that is full or broken.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS)


def entry() -> None:
    """The console command."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        the exit code: 0; 2 for input that cannot be used, said in one line; 128 + the signal when interrupted (130 by
        Ctrl-C, 143 by SIGTERM, 129 by a lost terminal), and 141 when nobody reads the output any more.
    """
    options = parse(arguments)
    set_quiet(options.quiet)
    try:
        with _stopped_by_signals():
            code = _COMMANDS[options.command](options)
        sys.stdout.flush()
        return code
    except InputError as error:
        warn(f"cappy: {error}")
        return 2
    except KeyboardInterrupt as error:
        continued = options.command in _CONTINUED and "-" not in (getattr(options, "out", None), _source(options))
        warn(f"cappy: interrupted{'; the same command continues' if continued else ''}")
        return 128 + getattr(error, "number", signal.SIGINT)
    except BrokenPipeError:  # the reader of our output has seen enough
        _drop_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _FULL:
            raise
        warn(f"cappy: {error.filename or 'output'}: cannot be written ({error.strerror})")
        _drop_output()
        return 2


def _source(options: argparse.Namespace) -> str | None:
    source: str | None = getattr(options, "source", None)
    return source


def _drop_output() -> None:
    """Nothing more can be written: Python would try it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _load(words: Sequence[str], *sections: str) -> Config:
    """The config of a command that is not a training: whole recipes, and keys of the sections that it reads.

    Raises:
        InputError: a key of another section, which would change nothing.
    """
    for word in words:
        key, equals, _ = word.partition("=")
        if equals and "/" not in key and key.partition(".")[0] not in sections:
            expected = ", ".join(f"{section}.KEY" for section in sections)
            raise InputError(key, f"is no key of this command, expected {expected} or a YAML file")
    return load_config([*words, *NO_DATA])


def _sampled(options: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """How many candidates `-n` asks for, as words, where the config does not say which decodings.

    Raises:
        InputError: both say it, or `-n` is no number of candidates.
    """
    from cappy_lightning.answering.stopping import sampling_words

    # Of so many candidates nobody speaks: what differs from it was said.
    probe = [*sampling_words(1_000_000), *NO_DATA]
    named = load_config([*probe, *words]).backbone.decodings != load_config(probe).backbone.decodings
    if options.n is not None and (named or options.n < 1):
        problem = (
            "stands beside backbone.decodings, expected one of them" if named else f"is {options.n}, expected 1 up"
        )
        raise InputError("-n", problem)
    return [] if named else sampling_words(options.n or 8)


def _train(options: argparse.Namespace) -> int:
    config: Config = load_config(options.config)
    from cappy_lightning.training import train

    return train(config, options.json)


def _submit(options: argparse.Namespace) -> int:
    from cappy_lightning.slurm.submit import split_chain, submit

    flags = ("--dry-run", "--json", "--quiet", "-q")  # wherever they stand
    words = [word for word in options.words if word not in flags]
    dry_run, as_json = (
        getattr(options, flag) or f"--{flag.replace('_', '-')}" in options.words for flag in ("dry_run", "json")
    )
    set_quiet(options.quiet or len({"--quiet", "-q"} & set(options.words)) > 0)
    # Of these commands train alone has keys of `slurm`; the others' are the job's.
    stages = [
        (stage, parse([word for word in stage if stage[0] == "train" or not word.startswith("slurm.")]))
        for stage in split_chain(words)
    ]
    return submit(stages, options.cluster, dry_run, as_json)


def _jobs(options: argparse.Namespace) -> int:
    from cappy_lightning.slurm.jobs import find_jobs, print_jobs

    rows = find_jobs([Path(folder) for folder in options.folder])
    if options.json:
        print(json.dumps(rows))
    else:
        print_jobs(rows, console())
    return 0


def _generate(options: argparse.Namespace) -> int:
    from cappy_lightning.backbones.generate import record_pools
    from cappy_lightning.labeling.weak_labels import with_split

    sources, config, out = _open_sources(options, ".jsonl", "backbone", "data")
    first = next(iter(sources.pools()), None)
    if first and first.candidates and not first.example.choices:
        say("the answers that rows have are left aside: the LLM is asked for all")
    examples = with_split(sources.distinct, config.data.validation_fraction, config.data.seed)
    for note in sources.notes():
        say(note)
    record_pools(examples, config.backbone, out, part=sources.partial)
    print(out)
    return 0


def _label(options: argparse.Namespace) -> int:
    from cappy_lightning.label import label

    sources, config, out = _open_sources(options, "", "label", "data")
    label(sources, config, out, options.split)
    print(out)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from cappy_lightning.inspection.instances import inspect_instances
    from cappy_lightning.inspection.page import findings_page, findings_row, print_findings
    from cappy_lightning.inspection.pools import inspect_pools
    from cappy_lightning.page import write_page

    _check_outputs(options.html)
    sections = ("scorer", "label", "data")
    folder = Path(options.source)
    if folder.is_dir() and not find_parts(folder, ".jsonl"):
        findings = inspect_instances([folder], _load(options.config, *sections))
    else:
        sources, config = _read_words(options.source, options.config, Shard(), *sections)
        findings = inspect_pools(sources.pools(), options.source, config)
        findings.facts += sources.notes()
    if options.json:
        print(json.dumps(findings_row(findings)))
    else:
        print_findings(findings, console())
    if options.html:
        write_page(findings_page(findings), Path(options.html))
        if not options.json:
            show_places(options.html)
    return 0


def _open_sources(
    options: argparse.Namespace, suffix: str, *sections: str, labelled: bool = True
) -> tuple["Sources", Config, Path]:
    """The sources, the config and the output of a command that makes something of examples."""
    shard = Shard.parse(options.shard) if options.shard else Shard()
    out = Path(options.out)
    if shard.count > 1:
        out = out / f"{part_name(shard.index, shard.count)}{suffix}"
    return *_read_words(options.source, options.config, shard, *sections, labelled=labelled), out


def _read_words(
    source: str, words: Sequence[str], shard: Shard, *sections: str, labelled: bool = True
) -> tuple["Sources", Config]:
    """The sources and the config of a command line: `key=value` words go where their key belongs."""
    for_sources, rest = _split_words(words)
    from cappy_lightning.sources.spec import Sources

    return Sources([source, *for_sources], shard, labelled=labelled), _load(rest, *sections)


def _split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words for the sources file, and those for the config."""
    own = {field.name for field in fields(SourcesConfig)}
    for_sources = [word for word in words if word.partition("=")[0].partition(".")[0] in own]
    return for_sources, [word for word in words if word not in for_sources]


def _score(options: argparse.Namespace) -> int:
    _check_outputs(options.out)
    _check_input(options.source)
    from cappy_lightning.score import score

    score(_open_cappy(options), options.source, options.out, _made_by(options))
    if options.out != "-":
        show_places(options.out)
    return 0


def _select(options: argparse.Namespace) -> int:
    if "=" in options.source and not Path(options.source).exists():  # a key=value word where a file could stand
        options.config, options.source = [options.source, *options.config], "-"
    config = _load(options.config, "select", "label")
    _check_outputs(options.out, options.report, options.html)
    _check_input(options.source)
    from cappy_lightning.select import select

    cappy = _open_cappy(options, config.select.by)
    made_by = _made_by(options) | {"by": config.select.by, "split": options.split}
    judged = select(cappy, options.source, options.out, options.split, made_by)
    if any(pool.example.split == "train" for pool, _, _ in judged):
        say("warning: the report is also of examples of the split train, which the scorer may know from its training")
    _report(options, judged, cappy.fusion is not None, config)
    return 0


def _made_by(options: argparse.Namespace) -> dict[str, Any]:
    """By what the interrupted work of a scorer on a file is known."""
    adapters = options.adapter or []
    places = [options.source, options.scorer, *(place for word in adapters for place in (word, word.partition("=")[2]))]
    told = {key: getattr(options, key) for key in ("source", "scorer", "adapter", "activation", "dtype")}
    return told | {"stamps": stamps([place for place in places if place])}


def _answer(options: argparse.Namespace) -> int:
    sections = ("answer", "select", "backbone", "label")
    if options.instruction is not None:
        return _answer_one(options, *sections)
    if options.source is None or options.out is None or options.json:
        raise InputError("cappy answer", "expected EXAMPLES -o ANSWERS.jsonl, or --instruction TEXT")
    # What is to be answered has no references that could be shown; a template can have examples in it.
    options.config[:0] = [*_sampled(options, _split_words(options.config)[1]), "backbone.shots=0"]
    sources, config, out = _open_sources(options, ".jsonl", *sections, labelled=False)
    _check_outputs(str(out), options.report, options.html)
    cappy = _open_cappy(options, config.select.by)
    from cappy_lightning.answer import answer, say_given
    from cappy_lightning.selection.report import metric_title

    answered = answer(
        lambda: (_of_task(pool.example, cappy.tasks, options.source) for pool in sources.pools()),
        cappy,
        config,
        out,
        part=sources.partial,
        made_by=_made_by(options) | {"select": config.select.by},
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
    config = _load([*_sampled(options, words), "backbone.shots=0", *words], *sections)
    cappy, limits = _open_cappy(options, config.select.by), config.answer
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
    if best.response is None:
        warn(f"not sure: the best score is below answer.abstain={limits.abstain}")
    else:
        print(best.response)
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from cappy_lightning.answering.calibration import calibrate, overlay, read_held_out
    from cappy_lightning.answering.charts import calibration_page, calibration_table
    from cappy_lightning.page import print_table, write_page

    config = _load(options.config, "answer", "select", "label")
    for name, value in (("--keep", options.keep), ("--precision", options.precision)):
        if value is not None and not 0 < value <= 1:
            raise InputError(name, f"is {value}, expected a share above 0, at most 1")
    _check_outputs(options.out, options.report, options.html)
    pools = read_held_out(options.source)
    cappy = _open_cappy(options, config.select.by)
    result = calibrate(cappy, pools, config, options.keep, options.precision)
    text = f"# cappy calibrate {options.source} --scorer {options.scorer}\n{overlay(result, config.select.by)}"
    if options.out == "-":
        print(text, end="")
    else:
        write_text(Path(options.out), text)
    if options.report:
        write_json(Path(options.report), result)
    if options.html:
        write_page(calibration_page(result, f"{options.source}: {options.scorer}"), Path(options.html))
    _show(options, lambda screen: print_table(calibration_table(result), screen))
    return 0


def _serve(options: argparse.Namespace) -> int:
    # A failure is the client's to try again: it knows how long it can wait.
    words = ["backbone.retries=0", "backbone.concurrency=64", *_sampled(options, options.config), *options.config]
    config = _load(words, "serve", "answer", "select", "backbone")
    try:
        from cappy_lightning.serving.server import serve
    except ModuleNotFoundError as error:
        problem = f"needs {error.name}, expected the extra 'serve' (in the checkout: pip install '.[serve]')"
        raise InputError("cappy serve", problem) from None
    serve(lambda: _open_cappy(options, config.select.by), config)
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
    from cappy_lightning.selection.charts import report_page
    from cappy_lightning.selection.engine import selections_beside
    from cappy_lightning.selection.report import make_report, print_report

    report = None
    try:
        if not judged:
            raise InputError(options.source, "no report: no pool has references or choices")
        pools, own, final = zip(*judged, strict=True)
        others = selections_beside(getattr(options, "beside", ()), pools)
        report = make_report(pools, own, label=config.label, fused=final if fused else None, beside=others)
    except InputError as error:  # the selections are as good without it
        if options.report or options.html:
            raise
        say(f"no report: {error}" if judged else "no report: no pool has references or choices")
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


def _check_outputs(*paths: str | None) -> None:
    """Refuse before any work what cannot be written at its end, or would go over something else."""
    named = [path for path in paths if path is not None]
    for path in named:
        check_new(path)
        if path != "-" and named.count(path) > 1:
            raise InputError(path, "is named twice, expected a file of its own for each output")


def _check_input(source: str) -> None:
    """Refuse before a scorer is loaded what cannot be read."""
    if not Path(source).is_dir():
        with open_input(source):
            pass


def _open_cappy(options: argparse.Namespace, by: str = "scorer") -> "Cappy":
    from cappy_lightning.cappy import Cappy

    adapters = _adapters(options.adapter)
    return Cappy.from_pretrained(
        options.scorer, adapters, by=by, activation=options.activation, dtype=options.dtype or "float32"
    )


def _adapters(words: list[str] | None) -> str | dict[str, str] | None:
    """One adapter for all rows, or several by task."""
    if words and len(words) == 1 and ("=" not in words[0] or Path(words[0]).exists()):
        return words[0]
    named = {task: path for task, equals, path in (word.partition("=") for word in words or ()) if equals}
    if len(named) != len(words or ()):
        raise InputError("--adapter", f"is {' '.join(words or ())}, expected one, or TASK=ADAPTER for each task")
    return named or None


def _export(options: argparse.Namespace) -> int:
    from cappy_lightning.export import export_any

    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, "exists already, expected a new or empty directory")
    say(export_any(options.source, out, options.kind))
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
    return evaluate_bigbench(words, options.tasks, Path(options.out), shard, options.json, options.beside)


def _memory(options: argparse.Namespace) -> int:
    config = load_config([*options.config, *NO_DATA])
    from cappy_lightning.memory import estimate, print_estimate

    print_estimate(estimate(config), options.json)
    return 0


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

"""The command `cappy`. Modules that need torch are imported by the commands that use them."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TextIO

from cappy_lightning.config import BackboneConfig, Config, LabelConfig, SlurmConfig
from cappy_lightning.config_loading import load_config
from cappy_lightning.errors import InputError
from cappy_lightning.files import atomic_path, find_parts, part_name, read_jsonl, to_line
from cappy_lightning.progress import say
from cappy_lightning.records import SPLITS
from cappy_lightning.schema import describe_keys
from cappy_lightning.sources.spec import Shard, SourceConfig, Sources, SourcesConfig


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
        options = _parse(arguments)
        return int(options.run(options))
    except InputError as error:
        print(f"cappy: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cappy: interrupted; train, generate and label continue with the same command", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in rest) or (rest and "config" not in options):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse gives up on key=value words that come after an option
        options.config += rest
    return options


_SOURCES_HELP = (
    "\n\nA sources file (YAML) has the keys:\n"
    + describe_keys(SourcesConfig)
    + "\n\nand each of its sources:\n"
    + describe_keys(SourceConfig)
)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="cappy", description="Cappy: a small scorer that picks the best answer of an LLM."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = commands.add_parser(
        "train",
        help="adapt or pretrain a scorer",
        formatter_class=raw,
        description="Train a scorer by a recipe. What comes later on the line goes before what came earlier.\n\n"
        "  cappy train conf/quickstart.yaml\n"
        "  cappy train conf/adapt.yaml data.pool=my_pool.jsonl seed=1\n"
        "  cappy train conf/pretrain.yaml conf/smoke.yaml",
        epilog="Keys:\n" + describe_keys(Config),
    )
    train.add_argument("config", nargs="*", metavar="RECIPE.yaml [OVERLAY.yaml ...] [key=value ...]")
    train.add_argument("--json", action="store_true", help="print the metrics as one JSON object")
    train.set_defaults(run=_train)

    generate = commands.add_parser(
        "generate",
        help="let an LLM propose candidates for examples",
        formatter_class=raw,
        description="Examples become a pool file (JSONL). Run it again after an interruption to continue.\n\n"
        "  cappy generate examples.jsonl -o pool.jsonl backbone.shots=8\n"
        "  cappy generate sources.yaml -o pool.jsonl backbone.kind=openai backbone.url=http://localhost:8000 \\\n"
        "      backbone.model=NAME backbone.chat=true",
        epilog="Keys:\n" + describe_keys(BackboneConfig, "backbone.") + _SOURCES_HELP,
    )
    _source_options(generate, "EXAMPLES", "POOL.jsonl", "backbone")
    generate.set_defaults(run=_generate)

    label = commands.add_parser(
        "label",
        help="turn examples or pools into weakly labelled instances",
        formatter_class=raw,
        description="Examples or pools become a directory of instances (Parquet shards and a manifest). Run it again\n"
        "after an interruption to continue.\n\n"
        "  cappy label pool.jsonl -o instances/train\n"
        "  cappy label pool.jsonl -o instances/validation --split validation\n"
        "  cappy label conf/sources/t0.yaml templates=promptsource/promptsource/templates -o t0 --shard 0/64",
        epilog="Keys:\n" + describe_keys(LabelConfig, "label.") + _SOURCES_HELP,
    )
    _source_options(label, "POOL.jsonl", "DIRECTORY", "label")
    label.add_argument(
        "--split",
        choices=SPLITS,
        default="train",
        help="train (default): all examples but those of the split validation; validation: the candidates of those",
    )
    label.set_defaults(run=_label)

    inspect = commands.add_parser(
        "inspect",
        help="look at instances, pools or examples",
        formatter_class=raw,
        description="Counts by task and origin, scores, lengths in tokens, the worst tasks and sample rows.\n\n"
        "  cappy inspect instances/train --html page.html\n"
        "  cappy inspect pool.jsonl scorer.base=roberta-large scorer.max_length=512",
    )
    inspect.add_argument("source", metavar="PATH", help="directory of instances, pool or example file, sources file")
    inspect.add_argument("config", nargs="*", metavar="[scorer.key=value ...] [label.key=value ...]")
    inspect.add_argument("--html", metavar="PAGE.html", help="write one self-contained page, too")
    inspect.set_defaults(run=_inspect)

    score = commands.add_parser(
        "score",
        help="score pairs",
        formatter_class=raw,
        description='Rows {"instruction", "response", ...} (JSONL) come out with "score" and "logit" added.\n\n'
        "  cappy score pairs.jsonl --scorer runs/quickstart/adapter -o scores.jsonl",
    )
    _scorer_options(score, "PAIRS.jsonl")
    score.set_defaults(run=_score)

    select = commands.add_parser(
        "select",
        help="select the best candidate of each pool",
        formatter_class=raw,
        description="Pools (JSONL) become selections (JSONL); where the pools have references or choices, a report is\n"
        "printed on standard error.\n\n"
        "  cappy select pool.jsonl --scorer runs/quickstart/adapter -o selections.jsonl",
    )
    _scorer_options(select, "POOL.jsonl")
    select.add_argument("config", nargs="*", metavar="[label.key=value ...]", help="what the report judges by")
    select.set_defaults(run=_select)

    export = commands.add_parser(
        "export",
        help="turn a run, a checkpoint or a scorer into an adapter, a model directory or ONNX",
        formatter_class=raw,
        description="What is written is loaded back and compared before it counts. A run gives its latest checkpoint;\n"
        "directories with the shards of ZeRO need neither GPUs nor as many processes as have written them.\n\n"
        "  cappy export runs/quickstart -o adapter\n"
        "  cappy export runs/pretrain/checkpoints/step-5000.ckpt -o model\n"
        "  cappy export runs/quickstart/adapter -o merged --as model\n"
        "  cappy export btan2/cappy-large -o onnx --as onnx",
    )
    export.add_argument("source", metavar="SOURCE", help="run directory, checkpoint, adapter, saved scorer, hub name")
    export.add_argument("-o", "--out", required=True, metavar="DIRECTORY")
    export.add_argument(
        "--as",
        dest="kind",
        choices=("adapter", "model", "onnx"),
        help="default: what the run exports itself; model: one model, adapters merged into it",
    )
    export.set_defaults(run=_export)

    submit = commands.add_parser(
        "submit",
        help="queue a training, recording, labelling or export, or a chain of them, under SLURM",
        formatter_class=raw,
        description="Check a command, write a batch script for it, and submit that. In a chain each job starts when"
        " the one before has ended well.\n\n"
        "  cappy submit conf/pretrain.yaml conf/zero2.yaml slurm.nodes=4 slurm.gpus_per_node=8 slurm.time=24:00:00\n"
        "  cappy submit label examples.jsonl -o instances slurm.array=0-63%8\n"
        "  cappy submit --cluster mine.yaml generate examples.jsonl -o pools slurm.array=0-63%8 \\\n"
        "      then label pools -o instances then conf/pretrain.yaml data.instances=instances",
        epilog="Keys:\n" + describe_keys(SlurmConfig, "slurm."),
    )
    submit.add_argument("--cluster", metavar="FILE.yaml", help="a section `slurm` for all jobs of a chain")
    submit.add_argument("--dry-run", action="store_true", help="print the scripts; submit nothing")
    submit.add_argument("words", nargs=argparse.REMAINDER, metavar="[COMMAND] WORDS [then ...]")
    submit.set_defaults(run=_submit)

    jobs = commands.add_parser(
        "jobs",
        help="what has become of submitted jobs",
        formatter_class=raw,
        description="State, progress, restarts and reasons of the jobs that `cappy submit` has queued from a folder.",
    )
    jobs.add_argument("folder", nargs="*", default=["."], help="where runs and outputs lie, up to three levels below")
    jobs.add_argument("--json", action="store_true", help="print a list of JSON objects")
    jobs.set_defaults(run=_jobs)

    memory = commands.add_parser(
        "memory",
        help="estimate the memory that a recipe needs on each device",
        formatter_class=raw,
        description="Builds the model without its weights and counts what a step keeps.\n\n"
        "  cappy memory conf/pretrain.yaml conf/gpu.yaml conf/zero2.yaml trainer.devices=8",
    )
    memory.add_argument("config", nargs="*", metavar="RECIPE.yaml [OVERLAY.yaml ...] [key=value ...]")
    memory.add_argument("--json", action="store_true", help="print one JSON object")
    memory.set_defaults(run=_memory)
    return parser


def _source_options(parser: argparse.ArgumentParser, what: str, out: str, section: str) -> None:
    parser.add_argument("source", metavar=what, help="JSONL, CSV or Parquet, or a sources file (YAML)")
    parser.add_argument("config", nargs="*", metavar=f"[RECIPE.yaml ...] [{section}.key=value ...]")
    parser.add_argument("-o", "--out", required=True, metavar=out)
    parser.add_argument("--shard", metavar="I/N", help="only part I (from 0) of N, into a place of its own in OUT")


def _scorer_options(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("input", nargs="?", default="-", metavar=what, help="input file; - or nothing: standard input")
    parser.add_argument("-o", "--out", default="-", metavar="OUT.jsonl", help="output file; default: standard output")
    parser.add_argument("--scorer", required=True, help="a saved scorer, an adapter, or a hub name")
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="[TASK=]ADAPTER",
        help='an adapter to put onto the scorer; several, each with its task: the rows\' "task" says which',
    )
    parser.add_argument(
        "--activation", choices=("sigmoid", "identity"), help="for scorers that do not say it themselves"
    )


def _train(options: argparse.Namespace) -> int:
    config: Config = load_config(options.config)
    from cappy_lightning.training import train

    return train(config, options.json)


def _submit(options: argparse.Namespace) -> int:
    from cappy_lightning.slurm.submit import split_chain, submit

    words = [word for word in options.words if word != "--dry-run"]
    # Of these commands train alone has keys of `slurm`; the others' are the job's.
    stages = [
        (stage, _parse([word for word in stage if stage[0] == "train" or not word.startswith("slurm.")]))
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
    from cappy_lightning.inspection.page import print_findings, write_page
    from cappy_lightning.inspection.pools import inspect_pools

    folder = Path(options.source)
    if folder.is_dir() and not find_parts(folder, ".jsonl"):
        config = load_config([*options.config, *_NO_SOURCE])
        findings = inspect_instances([folder], config)
    else:
        sources, config = _read_words(options.source, options.config, Shard())
        findings = inspect_pools(sources.pools(), options.source, config)
        findings.facts += sources.notes()
    print_findings(findings, Console(width=None if sys.stdout.isatty() else 120))
    if options.html:
        write_page(findings, Path(options.html))
        say(f"page: {options.html}")
    return 0


def _open_sources(options: argparse.Namespace, suffix: str) -> tuple[Sources, Config, Path]:
    """The sources, the config and the output of a command that makes something of examples."""
    shard = Shard.parse(options.shard) if options.shard else Shard()
    out = Path(options.out)
    if shard.count > 1:
        out = out / f"{part_name(shard.index, shard.count)}{suffix}"
    return *_read_words(options.source, options.config, shard), out


#: For commands whose data are not those of the config.
_NO_SOURCE = ("data.task=null", "data.instances=[]", "data.pool=[]", "data.examples=-")


def _read_words(source: str, words: Sequence[str], shard: Shard) -> tuple[Sources, Config]:
    """The sources and the config of a command line: `key=value` words go where their key belongs."""
    own = {field.name for field in fields(SourcesConfig)}
    for_sources = [word for word in words if word.partition("=")[0].partition(".")[0] in own]
    rest = [word for word in words if word not in for_sources]
    return Sources([source, *for_sources], shard), load_config([*rest, *_NO_SOURCE])


def _score(options: argparse.Namespace) -> int:
    from itertools import islice

    from cappy_lightning.records import pair_from_row
    from cappy_lightning.scorer.cappy import Cappy

    cappy = Cappy.from_pretrained(options.scorer, _adapters(options.adapter), activation=options.activation)
    rows = read_jsonl(options.input)
    with _output(options.out) as stream:
        while chunk := list(islice(rows, 4096)):
            tasks = [row.get("task") for _, row in chunk]
            logits = cappy.logits([pair_from_row(row, where) for where, row in chunk], tasks)
            for (_, row), logit, score in zip(chunk, logits.tolist(), cappy.to_scores(logits).tolist(), strict=True):
                stream.write(to_line({**row, "score": score, "logit": logit}))
    return 0


def _select(options: argparse.Namespace) -> int:
    from itertools import tee

    from cappy_lightning.scorer.cappy import Cappy
    from cappy_lightning.selection.engine import select_from_pools
    from cappy_lightning.selection.report import make_report, print_report
    from cappy_lightning.sources.jsonl import read_pools

    label = load_config([*options.config, *_NO_SOURCE]).label
    cappy = Cappy.from_pretrained(options.scorer, _adapters(options.adapter), activation=options.activation)
    pools, seen = tee(read_pools(options.input, labelled=False))
    judged, selections = [], []
    with _output(options.out) as stream:
        for pool, selection in zip(seen, select_from_pools(cappy, pools), strict=True):
            stream.write(to_line(selection.to_row()))
            if pool.example.references or pool.example.choices:
                judged.append(pool)
                selections.append(selection)
    if judged:
        from rich.console import Console

        try:
            print_report(make_report(judged, selections, label=label), Console(stderr=True))
        except InputError as error:  # the selections are as good without it
            say(f"no report: {error}")
    return 0


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


def _memory(options: argparse.Namespace) -> int:
    config = load_config([*options.config, *_NO_SOURCE])
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

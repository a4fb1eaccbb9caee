"""The commands about runs: train, evaluate, export, submit, jobs, memory."""

import argparse
import json
from pathlib import Path

from cappy_lightning.command_line import parse
from cappy_lightning.commands.inputs import check_input
from cappy_lightning.config_loading import NO_DATA, load_config
from cappy_lightning.errors import InputError
from cappy_lightning.progress import console, say, set_quiet
from cappy_lightning.scorer.places import check_places
from cappy_lightning.sources.config import Shard


def train(options: argparse.Namespace) -> int:
    """`cappy train`: a run."""
    config = load_config(options.config)
    if not Path(config.run_dir).exists():  # a finished run shows its results without its data
        for path in filter(None, (*config.data.pool, config.data.examples)):
            check_input(path)
    from cappy_lightning.training import train as fit

    return fit(config, options.json)


def submit(options: argparse.Namespace) -> int:
    """`cappy submit`: jobs under SLURM."""
    from cappy_lightning.slurm.submit import split_chain
    from cappy_lightning.slurm.submit import submit as queue

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
    return queue(stages, options.cluster, dry_run, as_json)


def jobs(options: argparse.Namespace) -> int:
    """`cappy jobs`: what has become of them."""
    from cappy_lightning.slurm.jobs import find_jobs, print_jobs

    rows = find_jobs([Path(folder) for folder in options.folder])
    if options.json:
        print(json.dumps(rows))
    else:
        print_jobs(rows, console())
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """`cappy evaluate`: a benchmark of the paper."""
    if options.benchmark == "promptsource":
        check_places(options.scorer, options.adapter)
        from cappy_lightning.evaluation.promptsource import evaluate_promptsource

        evaluate_promptsource(
            [options.source, *options.config],
            options.scorer,
            options.adapter,
            options.activation,
            Path(options.out),
            options.json,
            options.beside,
        )
        return 0
    from cappy_lightning.evaluation.bigbench import evaluate_bigbench

    shard = Shard.parse(options.shard) if options.shard else Shard()
    words = list(options.config)
    for key, value in (("backbone.kind", options.backbone), ("scorer.base", options.scorer)):
        words += [f"{key}={value}"] if value else []
    return evaluate_bigbench(words, options.tasks, Path(options.out), shard, options.json, options.beside)


def export(options: argparse.Namespace) -> int:
    """`cappy export`: a run, checkpoint or scorer as a directory that others load."""
    check_places(options.source)
    from cappy_lightning.export import export_any

    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, "exists already, expected a new or empty directory")
    say(export_any(options.source, out, options.kind, options.activation))
    print(out)
    return 0


def memory(options: argparse.Namespace) -> int:
    """`cappy memory`: the memory that a recipe needs."""
    config = load_config([*options.config, *NO_DATA])
    from cappy_lightning.memory import estimate, print_estimate

    print_estimate(estimate(config), options.json)
    return 0

"""`cappy submit`: commands become jobs, checked before they are queued, each after the one before."""

import argparse
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cappy_lightning.config import Config, SlurmConfig
from cappy_lightning.config_loading import load_config
from cappy_lightning.errors import InputError
from cappy_lightning.files import make_dir, part_name, read_whole_lines, to_line, write_text
from cappy_lightning.progress import say
from cappy_lightning.run_dir import CONFIG, SLURM, check_run_dir, write_config
from cappy_lightning.schema import merge, section
from cappy_lightning.slurm.checks import check_data, check_offline, check_settings, expect, warn_of_local
from cappy_lightning.slurm.queue import ALIVE, JOBS, queued
from cappy_lightning.slurm.script import Job, render, seconds, tasks_per_node

#: In the directory of a job.
SCRIPT = "job.sh"

#: Commands that can be a job; a recipe alone is `train`.
COMMANDS = ("train", "generate", "label", "evaluate", "export")

#: Between the commands of a chain.
THEN = "then"

#: Seconds that a job needs at least before the moment at which it saves.
_START = 60


@dataclass
class _Cluster:
    """The schema of a cluster's own file."""

    slurm: SlurmConfig = section(SlurmConfig)


def split_chain(words: Sequence[str]) -> list[tuple[str, ...]]:
    """The commands of a chain, each as its words; a recipe alone is the command `train`.

    Raises:
        InputError: a command without words, or one that cannot be a job.
    """
    stages: list[tuple[str, ...]] = []
    for text in "\0".join(words).split(f"\0{THEN}\0"):
        stage = tuple(text.split("\0")) if text else ()
        if not stage or THEN in stage:
            raise InputError("submit", f"expected a command before and after each '{THEN}'")
        if stage[0] not in COMMANDS:
            if not stage[0].endswith((".yaml", ".yml")) and "=" not in stage[0]:
                raise InputError("submit", f"'{stage[0]}' is no recipe, nor one of {', '.join(COMMANDS)}")
            stage = ("train", *stage)
        stages.append(stage)
    return stages


def submit(
    stages: Sequence[tuple[Sequence[str], argparse.Namespace]], cluster: str | None, dry_run: bool, as_json: bool
) -> int:
    """Queue jobs, each to start when the one before has ended well.

    Args:
        stages: the words of each command, from `split_chain`, and its options.
        cluster: a YAML file with a section `slurm` for all of them.
        dry_run: print the scripts instead.
        as_json: print what was queued as JSON.

    Raises:
        InputError: what can be known to fail; then nothing is queued.
    """
    here = Path.cwd()
    made: list[Path] = []  # what the commands so far will have made
    jobs = [_plan(words, options, cluster, made) for words, options in stages]
    scripts = [render(job, here) for job in jobs]
    if dry_run:
        for job, text in zip(jobs, scripts, strict=True):
            print(f"# {job.directory / SCRIPT}\n{text}")
        return 0
    if not shutil.which("sbatch"):
        raise InputError("sbatch", "is not on this machine, expected to be called where jobs are submitted")
    for job, text in zip(jobs, scripts, strict=True):
        _refuse_second(job)
        _sbatch(["--test-only", *_dependency(job, None)], text)
    for job, text in zip(jobs, scripts, strict=True):
        make_dir(job.directory)
        if job.config:
            write_config(job.directory / CONFIG, job.config)
        write_text(job.directory / SCRIPT, text)
    before: list[str] = []
    entries: list[dict[str, Any]] = []
    for job, text in zip(jobs, scripts, strict=True):
        try:
            number = _sbatch(["--parsable", *_dependency(job, before[-1] if before else None)], text).split(";")[0]
        except BaseException:  # Ctrl-C, too
            if before:  # a chain is queued whole or not at all
                subprocess.run(["scancel", *before], check=False)
            raise
        entry = {
            "job": number,
            "name": job.name,
            "command": f"cappy {shlex.join(job.command)}",
            "submitted": datetime.now().astimezone().isoformat(timespec="seconds"),
            "after": before[-1] if before else None,
            "parts": job.parts,
        }
        with open(job.directory / JOBS, "a", encoding="utf-8") as stream:
            stream.write(to_line(entry))
        before.append(number)
        entries.append(entry | {"script": str(job.directory / SCRIPT)})
        if not as_json:
            print(f"{number}  {job.name}: {job.directory / SCRIPT}, log {job.directory}/{number}*.log")
    if as_json:
        print(json.dumps(entries))
    return 0


def _refuse_second(job: Job) -> None:
    """Two jobs must not write the same."""
    for number, entries in (queued([entry["job"] for entry in read_whole_lines(job.directory / JOBS)]) or {}).items():
        if any(entry["state"] in ALIVE for entry in entries):
            raise InputError(job.directory, f"is of job {number}, which has not ended; expected it to have ended")


def _dependency(job: Job, before: str | None) -> list[str]:
    given = [job.settings.dependency] if job.settings.dependency else []
    conditions = [*given, *([f"afterok:{before}"] if before else [])]
    return [f"--dependency={','.join(conditions)}"] if conditions else []


def _sbatch(options: Sequence[str], script: str) -> str:
    done = subprocess.run(["sbatch", *options], input=script, capture_output=True, text=True, check=False)
    if done.returncode:
        reasons = [line.partition("error: ")[2] for line in done.stderr.splitlines() if "error: " in line]
        raise InputError("sbatch", f"refuses the job ({'; '.join(reasons) or done.stderr.strip()})")
    return done.stdout.strip()


def _plan(words: Sequence[str], options: argparse.Namespace, cluster: str | None, made: list[Path]) -> Job:
    """The job of one command; what the command makes is added to `made`."""
    if words[0] == "train":
        return _plan_training([*([cluster] if cluster else []), *words[1:]], made)
    own = [word for word in words if word.startswith("slurm.")]
    settings = merge(_Cluster, [*([cluster] if cluster else []), *own]).slurm
    check_settings(settings)
    out = Path(options.out).absolute()
    read = [options.source] if "source" in options else []
    for source in read:
        expect(source, made, hub=words[0] == "export")
    warn_of_local([*read, options.out])
    if getattr(options, "benchmark", "") == "bigbench":
        load_config([*options.config, "data.task=task"])
    made.append(out)
    array, parts = None, None
    if settings.array:
        if "shard" not in options or options.shard:
            raise InputError("slurm.array", "expected it for generate, label and evaluate bigbench, without --shard")
        array, parts = settings.array, _parts(settings.array)
        if words[0] != "evaluate":  # which finds itself what is not finished
            array = _missing_parts(array, parts, out, ".jsonl" if words[0] == "generate" else "")
    directory = out.with_name(out.name + ".slurm")
    command = tuple(word for word in words if word not in own)
    return Job(f"{words[0]}-{out.name}", directory, command, settings, parts=parts, array=array)


def _plan_training(words: Sequence[str], made: list[Path]) -> Job:
    settings = merge(Config, words).slurm
    check_settings(settings)
    config = load_config([*words, f"trainer.nodes={settings.nodes}", f"trainer.devices={tasks_per_node(settings)}"])
    if settings.array:
        raise InputError("slurm.array", "is for generate, label and evaluate, expected none for a training")
    if settings.time and seconds(settings.time) < settings.save_before + _START:
        raise InputError(
            "slurm.time",
            f"is {settings.time}, expected at least {settings.save_before + _START} seconds:"
            f" {_START} to start and slurm.save_before={settings.save_before} to save",
        )
    check_run_dir(config)
    check_data(config, made)
    if settings.offline:
        check_offline(config, made)
    warn_of_local([config.run_dir, *config.data.instances, *config.data.pool])
    run = Path(config.run_dir).absolute()
    made.append(run)
    directory = run / SLURM
    return Job(config.name, directory, ("train", str(directory / CONFIG)), settings, config)


def _parts(array: str) -> int:
    """How many tasks an array has."""
    found = re.fullmatch(r"0-(\d+)(?:%\d+)?", array)
    if not found:
        raise InputError("slurm.array", f"is '{array}', expected all parts from 0, as 0-63 or 0-63%8")
    return int(found[1]) + 1


def _missing_parts(array: str, parts: int, out: Path, suffix: str) -> str:
    """The tasks of an array whose parts are not there yet, as sbatch takes them."""
    missing = [n for n in range(parts) if not (out / f"{part_name(n, parts)}{suffix}").exists()]
    if not missing:
        raise InputError(out, f"has all {parts} parts already")
    if len(missing) == parts:
        return array
    say(f"{out}: {parts - len(missing)} of {parts} parts are there; the others are submitted")
    _, percent, together = array.partition("%")
    return ",".join(map(str, missing)) + percent + together

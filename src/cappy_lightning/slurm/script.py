"""The batch script of a job: what sbatch reads, the set-up, the command, and what follows from how it ends."""

import re
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from cappy_lightning.config import Config, SlurmConfig
from cappy_lightning.errors import InputError
from cappy_lightning.slurm.restarts import TOLD

#: Beside the script: a line of JSON for each end of the command.
EXITS = "exits.jsonl"

#: The exit code of what SIGUSR1 has ended: a run that has saved, or has not begun to train.
SAVED = 128 + signal.SIGUSR1


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        name: as squeue shows it.
        directory: for the script, the logs and the exit codes.
        command: the words after `cappy`.
        settings: the config's section `slurm`.
        config: of a training, which saves on SIGUSR1, to be continued by the same job; None: another command.
        parts: how many parts the command makes, one a task of an array; None: no array.
        array: which of them.
    """

    name: str
    directory: Path
    command: tuple[str, ...]
    settings: SlurmConfig
    config: Config | None = None
    parts: int | None = None
    array: str | None = None


def tasks_per_node(settings: SlurmConfig) -> int:
    """Processes on each node: as many as are asked for, else one for each GPU."""
    return settings.tasks_per_node or settings.gpus_per_node or 1


def render(job: Job, directory: Path) -> str:
    """The text of the script.

    Args:
        job: what it is for.
        directory: where the command runs; relative paths mean what they meant at the submission.
    """
    settings, continues = job.settings, job.config is not None
    log = str(job.directory).replace("%", "%%") + ("/%A_%a.log" if job.array else "/%j.log")
    options = {
        "job-name": job.name,
        "output": log,
        "open-mode": "append",  # a job that goes on writes into the same log
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "nodes": settings.nodes,
        "ntasks-per-node": tasks_per_node(settings),
        "gpus-per-node": settings.gpus_per_node or None,
        "cpus-per-task": settings.cpus_per_task,
        "mem": settings.memory,
        "time": settings.time,
        "signal": f"USR1@{settings.save_before}" if continues else None,
        "array": job.array,
    }
    lines = ["#!/bin/bash"]
    given = {name: str(value) for name, value in options.items() if value is not None}
    for name, value in given.items():
        if not value.isprintable():  # a line break would begin a line of the script
            raise InputError(f"slurm: {name}", f"is {value!r}, expected a text without line breaks")
    lines += [f"#SBATCH --{name}={shlex.quote(value)}" for name, value in given.items()]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {flag}" for flag in settings.flags), ""]
    lines += [f"cd {shlex.quote(str(directory))} || exit 1"]
    if settings.offline:
        lines.append("export HF_HUB_OFFLINE=1")
    lines += [*settings.setup, ""]
    call = settings.command or shlex.join([sys.executable, "-m", "cappy_lightning"])
    srun = "srun --kill-on-bad-exit=1"
    if settings.cpus_per_task:
        srun += f" --cpus-per-task={settings.cpus_per_task}"  # srun does not take it over from sbatch
    part = f" --shard $SLURM_ARRAY_TASK_ID/{job.parts}" if job.parts else ""
    told = shlex.quote(str(job.directory / TOLD))
    if continues:
        lines.append(f"rm -f {told}")
    lines += [f"{srun} {call} {shlex.join(job.command)}{part}", "code=$?", ""]
    entry = r'{"job": "%s", "task": "%s", "restarts": %d, "code": %d}\n'
    values = '"${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}" "${SLURM_ARRAY_TASK_ID:-}" "${SLURM_RESTART_COUNT:-0}" "$code"'
    lines += [f"printf '{entry}' {values} >> {shlex.quote(str(job.directory / EXITS))}"]
    if continues:
        # Not by the exit code alone: when the first rank has ended, srun ends the others, by SIGTERM.
        lines += [
            "# The run has saved: told that its time is nearly over, or by a SIGTERM that does not end its job (before",
            "# a preemption, or for a step lost with its node, too late). The same job goes on with it later.",
            'state=""',
            '[ "$code" -eq 143 ] && state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)',
            f'if [ -e {told} ] || [ "$code" -eq {SAVED} ] || [ "$state" = RUNNING ]; then',
            '    scontrol requeue "$SLURM_JOB_ID" && sleep 60  # it ends this script; an exit code would be a failure',
            "fi",
        ]
    lines += [
        "# When a node dies, what runs on the others fails first. SLURM notices later, and queues the job again.",
        f'case "$code" in 0|2|130|143|{SAVED}) ;; *) srun --ntasks-per-node=1 true || sleep 900 ;; esac',
    ]
    return "\n".join([*lines, 'exit "$code"', ""])


def seconds(time: str) -> int:
    """A time limit in seconds, in any of SLURM's forms.

    Raises:
        InputError: it is in none of them.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time.strip())
    if not found:
        raise InputError("slurm.time", f"is '{time}', expected a time as 24:00:00, 2-00:00:00 or minutes")
    days, *rest = found.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None:  # hours[:minutes[:seconds]]
        hours, minutes, secs = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, secs = numbers
    else:  # minutes[:seconds]
        hours, (minutes, secs) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + secs

"""What a run under SLURM notes for its job: that it is to be continued, and whether it gets anywhere."""

import os
from pathlib import Path
from typing import Any

from cappy_lightning.errors import InputError
from cappy_lightning.files import read_whole_lines, to_line, write_json

#: In the folder of a job: where each start of a job began; and that a run was told to save, to be continued.
STARTS, TOLD = "starts.jsonl", "told"

#: And how far a training is.
PROGRESS = "progress.json"

#: Starts in a row at the same step after which a job is given up.
MOST = 3


def note_told(directory: Path) -> None:
    """Note that the run saves because it was told to, and that its job is to go on; nothing outside of jobs."""
    if "SLURM_JOB_ID" in os.environ and directory.is_dir():
        (directory / TOLD).touch()


def note_progress(directory: Path, facts: dict[str, Any]) -> None:
    """Note how far the training is, where there is a folder for jobs."""
    if directory.is_dir():
        write_json(directory / PROGRESS, facts)


def note_start(directory: Path, run: str, step: int) -> None:
    """Note the step at which a job goes on; nothing outside of jobs.

    Args:
        directory: of the job.
        run: the name of what is trained: the run, or one of its folds.
        step: of the checkpoint with which it begins, 0 without one.

    Raises:
        InputError: its last starts were all at this step.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or not directory.is_dir():
        return
    path = directory / STARTS
    starts = [(line["run"], line["step"]) for line in read_whole_lines(path) if line["job"] == job]
    if len(starts) >= MOST - 1 and set(starts[1 - MOST :]) == {(run, step)}:
        raise InputError(
            directory.parent,
            f"was started {MOST} times in a row at step {step} and is given up: the time limit may be too short for"
            f" a checkpoint, or the nodes fail; see the logs in {directory}",
        )
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(to_line({"job": job, "restarts": restarts, "run": run, "step": step}))

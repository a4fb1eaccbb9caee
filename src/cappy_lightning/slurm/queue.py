"""What was submitted, as noted beside the script, and what squeue knows of it."""

import shutil
import subprocess
from collections.abc import Sequence

from cappy_lightning.errors import InputError

#: Beside the script of a job: a line of JSON for each submission.
JOBS = "jobs.jsonl"

#: The states of a job that has not ended.
ALIVE = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED")


def queued(jobs: Sequence[str]) -> dict[str, list[dict[str, str]]] | None:
    """What squeue knows of jobs, by their numbers: `state`, `reason`.

    Of an array there is one entry for each of its tasks or groups of them. SLURM forgets a job some minutes after
    its end. None: there is no squeue on this machine.

    Raises:
        InputError: squeue fails.
    """
    if not shutil.which("squeue"):
        return None
    found: dict[str, list[dict[str, str]]] = {}
    if not jobs:
        return found
    command = ["squeue", "--noheader", "--states=all", "--format=%F|%T|%r", f"--jobs={','.join(jobs)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "Invalid job id" not in done.stderr:  # which it says where it has forgotten all of them
        raise InputError("squeue", f"cannot tell of the jobs ({done.stderr.strip() or 'no reason given'})")
    for line in done.stdout.splitlines():
        job, state, reason = line.split("|")
        found.setdefault(job, []).append({"state": state, "reason": reason})
    return found

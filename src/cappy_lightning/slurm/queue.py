"""What was submitted, as noted beside the script, and what squeue knows of it."""

import shutil
import subprocess
from collections.abc import Sequence

#: Beside the script of a job: a line of JSON for each submission.
JOBS = "jobs.jsonl"

#: The states of a job that has not ended.
ALIVE = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED")


def queued(jobs: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """What squeue knows of jobs, by their numbers: `state`, `reason`.

    Of an array there is one entry for each of its tasks or groups of them. SLURM forgets a job some minutes after
    its end; without squeue on this machine nothing is known.
    """
    found: dict[str, list[dict[str, str]]] = {}
    if not jobs or not shutil.which("squeue"):
        return found
    command = ["squeue", "--noheader", "--states=all", "--format=%F|%T|%r", f"--jobs={','.join(jobs)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        job, state, reason = line.split("|")
        found.setdefault(job, []).append({"state": state, "reason": reason})
    return found

"""`cappy jobs`: what has become of submitted jobs, from their directories and squeue."""

import contextlib
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cappy_lightning.errors import InputError
from cappy_lightning.files import part_name, read_json, read_whole_lines
from cappy_lightning.run_dir import METRICS
from cappy_lightning.slurm.queue import ALIVE, JOBS, queued
from cappy_lightning.slurm.restarts import PROGRESS
from cappy_lightning.slurm.script import EXITS, SAVED

#: What exit codes mean.
_CODES = {0: "finished", 2: "refused, see the log", 130: "interrupted", 143: "cancelled", SAVED: "saved, to go on"}


def find_jobs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """All submissions whose scripts lie in the folders or up to three levels below, the oldest first.

    Returns:
        of each job `job`, `name`, `state`, `note` (the reason of what it waits for, how it ended), `restarts`,
        `step`, `total_steps`, `loss`, `pairs_per_second`, `end` (as expected; of jobs under way), `directory`.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(folder, "is no folder, expected one with jobs in it or below")
    levels = ["", "*/", "*/*/", "*/*/*/"]
    files = {path.resolve() for folder in folders for level in levels for path in folder.glob(f"{level}{JOBS}")}
    submitted: list[tuple[Path, dict[str, Any]]] = []
    for path in files:
        with contextlib.suppress(InputError):  # other programs may have files of this name, too
            submitted += [(path.parent, entry) for entry in read_whole_lines(path) if _is_job(entry)]
    submitted.sort(key=lambda pair: (pair[1]["submitted"], int(pair[1]["job"])))
    known = queued([entry["job"] for _, entry in submitted])
    return [
        _row(directory, entry, None if known is None else known.get(entry["job"], [])) for directory, entry in submitted
    ]


def _is_job(entry: dict[str, Any]) -> bool:
    texts = (entry.get(name) for name in ("job", "name", "submitted"))
    known = all(isinstance(text, str) for text in texts) and re.fullmatch("[0-9]{1,18}", entry["job"])
    parts = entry.get("parts", "")
    return bool(known) and "after" in entry and (parts is None or (isinstance(parts, int) and 0 < parts < 1_000_000))


def _row(directory: Path, entry: dict[str, Any], queue: list[dict[str, str]] | None) -> dict[str, Any]:
    exits = [line for line in read_whole_lines(directory / EXITS) if line["job"] == entry["job"]]
    last = {line["task"]: line for line in exits}  # of each task of an array, or of the one job
    known = queue or []
    states = sorted({one["state"] for one in known})
    alive = [one for one in known if one["state"] in ALIVE]
    row: dict[str, Any] = {"job": entry["job"], "name": entry["name"], "directory": str(directory)}
    row["restarts"] = max((line["restarts"] for line in exits), default=0)
    row["state"], row["note"] = ", ".join(states).lower() or "gone", ""
    if alive:
        reasons = sorted({one["reason"] for one in alive if one["state"] == "PENDING"} - {"None"})
        row["note"] = ", ".join(_explained(reason, entry) for reason in reasons)
    elif last:
        bad = {task: line["code"] for task, line in last.items() if line["code"]}
        row["state"] = "failed" if bad else "finished"
        row["note"] = "; ".join(
            f"{f'task {task}: ' if task else ''}{_CODES.get(code, f'exit code {code}')}" for task, code in bad.items()
        )
    elif queue is None:
        row["state"], row["note"] = "unknown", "there is no squeue on this machine to ask"
    elif not known:
        row["note"] = "ended without a word: cancelled while it waited, or killed with its node"
    if entry["parts"]:
        out = directory.with_name(directory.name.removesuffix(".slurm"))
        count = entry["parts"]
        names = {f"{part_name(n, count)}{suffix}" for n in range(count) for suffix in ("", ".jsonl")}
        done = sum((out / name).exists() for name in names)
        ended = sum(line["code"] == 0 for line in last.values())  # a benchmark's tasks leave no parts
        row |= {"step": max(done, ended), "total_steps": count}
    return row | _progress(directory, bool(alive))


def _explained(reason: str, entry: dict[str, Any]) -> str:
    if reason == "DependencyNeverSatisfied":
        return f"never starts: job {entry['after']} before it failed"
    if reason == "Dependency" and entry["after"]:
        return f"waits for job {entry['after']}"
    return reason


def _progress(directory: Path, alive: bool) -> dict[str, Any]:
    """How far the run is to which a job belongs."""
    path = directory / PROGRESS
    if not path.is_file():
        return {}
    facts = read_json(path)
    row = {name: facts[name] for name in ("step", "total_steps", "loss", "pairs_per_second")}
    if alive and not (directory.parent / METRICS).exists():
        end = datetime.fromisoformat(facts["at"]) + timedelta(seconds=facts["seconds_left"])
        row["end"] = end.isoformat(timespec="seconds")
    return row


def print_jobs(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print jobs as a table."""
    table = Table("job", "name", "state", "done", "loss", "pairs/s", "expected end", "restarts", "note")
    for row in rows:
        done = f"{row['step']:,}/{row['total_steps']:,}" if "step" in row else ""
        loss = f"{row['loss']:.4f}" if row.get("loss") is not None else ""
        rate = f"{row['pairs_per_second']:,.0f}" if "pairs_per_second" in row else ""
        end = row.get("end", "").replace("T", " ")[:16]
        cells = (row["job"], row["name"], row["state"], done, loss, rate, end, str(row["restarts"]), row["note"])
        table.add_row(*map(escape, cells))
    console.print(table)

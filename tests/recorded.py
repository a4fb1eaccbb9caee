"""What `data/record_run.py` has noted: the instances behind every step."""

import json
from collections import defaultdict
from pathlib import Path


def steps_ended(record: Path) -> int:
    file = record / "rank-0.jsonl"
    return file.read_bytes().count(b'"ended": true') if file.exists() else 0


def steps_of_rank(file: Path) -> dict[int, list[tuple[int, list[float]]]]:
    """For every step, each time that a rank trained it to its end: the number of ranks, and its rows."""
    found: dict[int, list[tuple[int, list[float]]]] = defaultdict(list)
    rows: list[float] = []
    step = None
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        if entry["step"] != step:  # a new step, or the first after a kill
            rows, step = [], entry["step"]
        rows += entry["rows"]
        if entry["ended"]:
            found[entry["step"]].append((entry["world"], rows))
            step = None
    return found


def instances_of_steps(record: Path) -> dict[int, list[list[float]]]:
    """For every step, the rows behind it over all ranks, each time that it was trained."""
    first, *others = (steps_of_rank(file) for file in sorted(record.iterdir()))
    found: dict[int, list[list[float]]] = defaultdict(list)
    for step, times in first.items():
        shares = [rows for other in others for _, rows in other.get(step, [])]
        for world, rows in times:
            if world == 1:
                found[step].append(rows)
            elif shares:  # else the kill came before the second rank had noted its own
                found[step].append(rows + shares.pop(0))
    return found

"""BIG-bench's generation tasks as examples, in its standard split.

A task comes from the hub (`tasksource/bigbench`) where that is reachable, else from the source archive
of the package `bigbench` 1.0.0, which pip fetches; its code is never imported. What was read is kept in
the cache as JSONL, so a task is fetched once.

The archive's rules are those of BIG-bench's own bridge (`bigbench/bbseqio/bigbench_bridge.py`): equal
examples once, shuffled by `random.seed(42)`, validation being the last max(20%, 16), of each subtask
max(20%, 16 / subtasks); inputs are the task prefix, the input prefix, the input and the output prefix.
"""

import json
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cappy_lightning.errors import InputError
from cappy_lightning.files import atomic_path, cache_dir, make_dir, to_line
from cappy_lightning.progress import say
from cappy_lightning.records import SPLITS, Example, Split
from cappy_lightning.sources.jsonl import read_examples

HUB_NAME = "tasksource/bigbench"
ARCHIVE = "bigbench-1.0.0.tar.gz"
TASKS_FOLDER = "bigbench-1.0.0/bigbench/benchmark_tasks"
SPLIT_SEED = 42
MIN_VALIDATION = 16


def bigbench_examples(task: str) -> list[Example]:
    """The usable examples of a generation task, with their standard split.

    Examples without any text in input or target are left out, and said.

    Raises:
        InputError: no such task, a task without references, or no way to fetch it.
    """
    if not task.replace("_", "").isalnum():
        raise InputError("data.task", f"is '{task}', expected the name of a BIG-bench task")
    path = cache_dir() / "bigbench" / f"{task}.jsonl"
    if not path.exists():
        rows = _from_hub(task) or _from_archive(task)
        examples = list(_usable(task, rows))
        if not examples:
            raise InputError("data.task", f"'{task}' has no example with an input and a reference")
        with atomic_path(path) as scratch, open(scratch, "w", encoding="utf-8") as stream:
            stream.writelines(to_line(example.to_row()) for example in examples)
    return read_examples(path)


def _usable(task: str, rows: list[tuple[Split, str, list[str]]]) -> Iterator[Example]:
    left_out = 0
    for number, (split, text, targets) in enumerate(rows):
        references = tuple(dict.fromkeys(target.strip() for target in targets if target.strip()))
        if text.strip() and references:
            yield Example(task, f"{task}:{number}", text.strip(), references, split=split)
        else:
            left_out += 1
    if left_out:
        say(f"{task}: {left_out} of {len(rows)} examples are empty and left out")


def _from_hub(task: str) -> list[tuple[Split, str, list[str]]] | None:
    """(split, input, targets) rows from the hub, or None where it cannot be reached."""
    try:
        from datasets import load_dataset
        from datasets.utils.logging import set_verbosity_error
        from huggingface_hub import HfApi
    except ImportError:
        return None
    try:
        HfApi().dataset_info(HUB_NAME, timeout=10)
    except Exception:  # offline, blocked or down, in whatever way: there is another source
        return None
    set_verbosity_error()
    try:
        splits = load_dataset(HUB_NAME, task)
    except ValueError as error:  # an unknown configuration
        raise InputError(
            "data.task", f"is '{task}', which {HUB_NAME} does not have ({str(error).splitlines()[0]})"
        ) from None
    except Exception as error:  # a connection that broke, in whatever way: there is another source
        say(f"{HUB_NAME}: {type(error).__name__}, trying the archive instead")
        return None
    if any(row["multiple_choice_targets"] for row in splits["train"]):
        raise InputError("data.task", f"'{task}' is a multiple-choice task, expected one with targets to generate")
    return [(split, row["inputs"], list(row["targets"])) for split in SPLITS for row in splits[split]]


def _from_archive(task: str) -> list[tuple[Split, str, list[str]]]:
    files = _task_files(_archive(), task)
    if not files:
        raise InputError("data.task", f"is '{task}', which the BIG-bench archive does not have")
    parts = [content for content in files if "examples" in content]
    smallest = max(1, MIN_VALIDATION // len(parts)) if parts else MIN_VALIDATION
    rows: dict[Split, list[tuple[Split, str, list[str]]]] = {split: [] for split in SPLITS}
    for content in parts:
        for split, text, targets in _split(task, content, smallest):
            rows[split].append((split, text, targets))
    return [row for split in SPLITS for row in rows[split]]


def _split(task: str, content: dict[str, Any], smallest: int) -> Iterator[tuple[Split, str, list[str]]]:
    """The rows of one `task.json` in shuffled order, each with its split."""
    distinct = {json.dumps(example): example for example in content["examples"]}
    examples = list(distinct.values())
    if any("target" not in example for example in examples):
        raise InputError("data.task", f"'{task}' is a multiple-choice task, expected one with targets to generate")
    random.Random(SPLIT_SEED).shuffle(examples)
    validation = max(int(0.2 * len(examples)), smallest)
    before = content.get("task_prefix", "") + content.get("example_input_prefix", "\nQ: ")
    after = content.get("example_output_prefix", "\nA: ")
    for number, example in enumerate(examples):
        text, target = example["input"], example["target"]
        if "target_scores" in example and content.get("append_choices_to_input", True):
            raise InputError("data.task", f"'{task}' is a multiple-choice task, expected one with targets to generate")
        targets = target if isinstance(target, list) else [target]
        split: Split = "train" if number < len(examples) - validation else "validation"
        yield split, before + text + after, [str(value) for value in targets]


def _task_files(archive: Path, task: str) -> list[dict[str, Any]]:
    """The task's own `task.json` and those of its subtasks, by folder name."""
    found: dict[str, dict[str, Any]] = {}
    prefix = f"{TASKS_FOLDER}/{task}/"
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.startswith(prefix) and member.name.endswith("/task.json"):
                stream = tar.extractfile(member)
                if stream is not None:
                    found[member.name] = json.load(stream)
            elif found and not member.name.startswith(f"{TASKS_FOLDER}/{task}"):
                break  # folders are stored one after the other
    return [found[name] for name in sorted(found)]


def _archive() -> Path:
    """The archive in the cache, fetched with pip where it is not there yet (358 MB)."""
    path = cache_dir() / "bigbench" / ARCHIVE
    if path.exists():
        return path
    make_dir(path.parent)
    say(f"fetching the BIG-bench archive (358 MB) to {path}")
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "bigbench"]
        done = subprocess.run([*command, "bigbench==1.0.0", "-d", scratch], capture_output=True, text=True, check=False)
        fetched = Path(scratch) / ARCHIVE
        if done.returncode or not fetched.exists():
            reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
            raise InputError(
                "data.task", f"neither the hub nor the package index gave BIG-bench ({reason}), expected {path}"
            )
        fetched.replace(path)
    return path

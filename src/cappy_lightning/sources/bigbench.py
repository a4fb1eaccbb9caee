"""BIG-bench's JSON tasks as examples, in its standard split.

A task comes from the hub (`tasksource/bigbench`) where that is reachable, else from the source archive
of the package `bigbench` 1.0.0, which pip fetches; its code is never imported. What was read is kept in
the cache as JSONL, so a task is fetched once.

The archive's rules are those of BIG-bench's own bridge (`bigbench/bbseqio/bigbench_bridge.py` and
`bigbench/api/json_task.py`): equal examples once, shuffled by `random.seed(42)`, validation being the last
max(20%, 16), of each subtask max(20%, 16 / subtasks); inputs are the task prefix, the input prefix, the input,
the choices in random order unless the task says otherwise, and the output prefix.
"""

import json
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cappy_lightning.errors import InputError, first_line
from cappy_lightning.files import atomic_path, cache_dir, make_dir, open_locked, to_line
from cappy_lightning.progress import say
from cappy_lightning.records import SPLITS, Example, Split
from cappy_lightning.sources.jsonl import read_examples

HUB_NAME = "tasksource/bigbench"
ARCHIVE = "bigbench-1.0.0.tar.gz"
TASKS_FOLDER = "bigbench-1.0.0/bigbench/benchmark_tasks/"
SPLIT_SEED = 42
MIN_VALIDATION = 16

#: The generation tasks of the paper's Table 2, as github tanyuqian/cappy lists them. The hub has all 45, the
#: archive all but `tellmewhy`.
GENERATION_TASKS = (
    "ascii_word_recognition",
    "auto_categorization",
    "auto_debugging",
    "bridging_anaphora_resolution_barqa",
    "chess_state_tracking",
    "chinese_remainder_theorem",
    "codenames",
    "conlang_translation",
    "cryptonite",
    "disfl_qa",
    "few_shot_nlg",
    "gem",
    "gender_inclusive_sentences_german",
    "hindi_question_answering",
    "international_phonetic_alphabet_transliterate",
    "language_games",
    "linguistic_mappings",
    "linguistics_puzzles",
    "list_functions",
    "matrixshapes",
    "minute_mysteries_qa",
    "modified_arithmetic",
    "mult_data_wrangling",
    "object_counting",
    "operators",
    "paragraph_segmentation",
    "parsinlu_reading_comprehension",
    "physics_questions",
    "polish_sequence_labeling",
    "qa_wikidata",
    "repeat_copy_logic",
    "rephrase",
    "scientific_press_release",
    "semantic_parsing_in_context_sparc",
    "semantic_parsing_spider",
    "simp_turing_concept",
    "simple_arithmetic_json",
    "simple_text_editing",
    "sufficient_information",
    "tellmewhy",
    "tense",
    "topical_chat",
    "unnatural_in_context_learning",
    "word_sorting",
    "word_unscrambling",
)


@dataclass(frozen=True)
class _Row:
    """An example as BIG-bench formats it; `scores` are those of its choices, if it has any."""

    split: Split
    text: str
    targets: Sequence[str]
    scores: Mapping[str, float]


def bigbench_examples(task: str) -> list[Example]:
    """The usable examples of a task, with their standard split.

    An example with scored choices has them as choices, the first of the best ones being right; other choices
    with a score above 0 are neither right nor wrong, and left out. In the paper's generation tasks
    the right choice is the reference instead. Examples without text in input or target, or without a wrong
    choice, are left out, and said.

    Raises:
        InputError: no such task, or no way to fetch it.
    """
    fetch([task])
    return read_examples(cached_path(task))


def is_name(task: str) -> bool:
    """Whether a task could be called so."""
    return task.replace("_", "").isalnum()


def fetch(tasks: Sequence[str]) -> None:
    """Bring tasks into the cache that are not there yet, those that come from the archive in one pass over it.

    Raises:
        InputError: a name that is no task's, or no way to fetch it.
    """
    for task in tasks:
        if not is_name(task):
            raise InputError("bigbench", f"is '{task}', expected the name of a BIG-bench task")
    if all(cached_path(task).exists() for task in tasks):
        return
    folder = make_dir(cache_dir() / "bigbench")
    with open_locked(folder / ".lock", folder, "cache", wait=True):  # one of several processes fetches
        _fetch_missing(list(dict.fromkeys(task for task in tasks if not cached_path(task).exists())))


def _fetch_missing(missing: list[str]) -> None:
    while missing and (rows := _from_hub(missing[0])) is not None:
        _keep(missing.pop(0), rows)
    if not missing:
        return
    for task, files in _archive_tasks():
        if task in missing:
            _keep(task, _rows_of(files))
            missing.remove(task)
        if not missing:
            return
    raise InputError("bigbench", f"is '{missing[0]}', which the BIG-bench archive does not have")


def archive_examples() -> Iterator[tuple[str, Iterator[Example | None]]]:
    """Every task of the archive with its examples, None for each that cannot be used; nothing is cached."""
    for task, files in _archive_tasks():
        yield task, (_example(task, number, row) for number, row in enumerate(_rows_of(files)))


def cached_path(task: str) -> Path:
    """Where the examples of a task are kept once they were fetched."""
    return cache_dir() / "bigbench" / f"{task}.jsonl"


def _keep(task: str, rows: Iterator[_Row]) -> None:
    left_out = kept = 0
    with atomic_path(cached_path(task)) as scratch, open(scratch, "w", encoding="utf-8") as stream:
        for number, row in enumerate(rows):
            example = _example(task, number, row)
            if example is None:
                left_out += 1
            else:
                kept += 1
                stream.write(to_line(example.to_row()))
        if not kept:
            raise InputError("bigbench", f"'{task}' has no example with an input and an answer")
    if left_out:
        say(f"{task}: {left_out} of {kept + left_out} examples lack a text or a wrong choice and are left out")


def _example(task: str, number: int, row: _Row) -> Example | None:
    identity, text = f"{task}:{number}", row.text.strip()
    scores: dict[str, float] = {}
    for choice, score in row.scores.items():
        if choice.strip():
            scores.setdefault(choice.strip(), score)
    if scores and task not in GENERATION_TASKS:
        best = max(scores.values())
        right = next(choice for choice, score in scores.items() if score == best)
        choices = tuple(choice for choice, score in scores.items() if score <= 0 or choice == right)
        if not text or best <= 0 or len(choices) < 2:
            return None
        return Example(task, identity, text, choices=choices, label=choices.index(right), split=row.split)
    references = tuple(dict.fromkeys(target.strip() for target in row.targets if target.strip()))
    return Example(task, identity, text, references, split=row.split) if text and references else None


def _from_hub(task: str) -> Iterator[_Row] | None:
    """The rows from the hub, or None where it cannot be reached."""
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
        raise InputError("bigbench", f"is '{task}', which {HUB_NAME} does not have ({first_line(error)})") from None
    except Exception as error:  # a connection that broke, in whatever way: there is another source
        say(f"{HUB_NAME}: {type(error).__name__}, trying the archive instead")
        return None
    return (
        _Row(
            split,
            row["inputs"],
            row["targets"],
            dict(zip(row["multiple_choice_targets"], row["multiple_choice_scores"], strict=True)),
        )
        for split in SPLITS
        for row in splits[split]
    )


def _rows_of(files: Sequence[bytes]) -> Iterator[_Row]:
    """The rows of a task's files, those of the training split first."""
    smallest = max(1, MIN_VALIDATION // len(files))
    validation: list[_Row] = []
    for file in files:
        for row in _split(json.loads(file), smallest):
            if row.split == "train":
                yield row
            else:
                validation.append(row)
    yield from validation


def _split(content: dict[str, Any], smallest: int) -> Iterator[_Row]:
    """The rows of one `task.json` in shuffled order, each with its split."""
    distinct = {json.dumps(example): example for example in content["examples"]}
    examples = list(distinct.values())
    random.Random(SPLIT_SEED).shuffle(examples)
    validation = max(int(0.2 * len(examples)), smallest)
    before = content.get("task_prefix", "") + content.get("example_input_prefix", "\nQ: ")
    after = content.get("example_output_prefix", "\nA: ")
    choice_prefix = content.get("choice_prefix", "\n  choice: ")
    for number, example in enumerate(examples):
        text, scores = example["input"], example.get("target_scores") or {}
        if scores and content.get("append_choices_to_input", True):
            # One generator an example, as in json_task.py.
            shown = np.random.RandomState(SPLIT_SEED).permutation(sorted(scores))
            text += choice_prefix + choice_prefix.join(shown)
        target = example.get("target", [max(scores, key=scores.__getitem__)] if scores else [])
        targets = target if isinstance(target, list) else [target]
        split: Split = "train" if number < len(examples) - validation else "validation"
        yield _Row(split, before + text + after, [str(value) for value in targets], scores)


def _archive_tasks() -> Iterator[tuple[str, list[bytes]]]:
    """The JSON tasks of the archive, each with its own `task.json` or those of its subtasks, by folder name."""
    current = ""
    files: dict[str, bytes] = {}
    with tarfile.open(_archive()) as tar:
        for member in tar:
            if not member.name.startswith(TASKS_FOLDER):
                continue
            # Folders are stored one after the other.
            task = member.name.removeprefix(TASKS_FOLDER).partition("/")[0]
            if task != current:
                if files:
                    yield current, [files[name] for name in sorted(files)]
                current, files = task, {}
            if member.name.endswith("/task.json") and (stream := tar.extractfile(member)) is not None:
                content = stream.read()
                if b'"examples"' in content:
                    files[member.name] = content
    if files:
        yield current, [files[name] for name in sorted(files)]


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
                "bigbench", f"neither the hub nor the package index gave BIG-bench ({reason}), expected {path}"
            )
        fetched.replace(path)
    return path

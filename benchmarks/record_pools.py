"""Record the candidates of BIG-bench tasks once, for several studies of the same pools.

    python benchmarks/record_pools.py runs/pools [TASK ...]

The tasks, unless some of them are said, were fixed by a rule before any result: the generation tasks of the paper with
at least 75 examples, nine in ten of which have an instruction of less than 700 characters, references in ASCII, and
one with a word of three letters. That makes twelve. Writes `runs/pools/TASK.jsonl`: 200 training and 75 validation
examples of each task, as far as there are so many, with the candidates that conf/bigbench.yaml asks for. What is
recorded is not recorded again.
"""

import sys
import tempfile
from pathlib import Path

from cappy_lightning.config_loading import load_config
from cappy_lightning.preparation import prepare
from cappy_lightning.progress import say
from cappy_lightning.sources.jsonl import write_pools

TASKS = (
    "auto_categorization",
    "codenames",
    "cryptonite",
    "few_shot_nlg",
    "language_games",
    "linguistic_mappings",
    "object_counting",
    "qa_wikidata",
    "rephrase",
    "tense",
    "word_sorting",
    "word_unscrambling",
)


def main(folder: str, *tasks: str) -> None:
    """Record every task, or those that are said."""
    for task in tasks or TASKS:
        path = Path(folder) / f"{task}.jsonl"
        if path.exists():
            say(f"recorded before: {path}")
            continue
        caps = ("data.max_train=200", "data.max_validation=75")
        config = load_config(["conf/bigbench.yaml", f"data.task={task}", *caps])
        with tempfile.TemporaryDirectory() as scratch:
            prepared = prepare(config, Path(scratch))
        write_pools(path, prepared.train_pools + prepared.validation_pools)
        say(f"recorded: {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])

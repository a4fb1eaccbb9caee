"""Record the candidates of BIG-bench tasks once, for several studies of the same pools.

    python benchmarks/record_pools.py runs/pools codenames,tense [key=value ...]

Writes `runs/pools/TASK.jsonl`: 200 training and 75 validation examples of each task, as far as there are so many, with
the candidates that conf/bigbench.yaml asks for. What is recorded is not recorded again.
"""

import sys
import tempfile
from pathlib import Path

from cappy_lightning.config_loading import load_config
from cappy_lightning.files import to_line, write_text
from cappy_lightning.preparation import prepare
from cappy_lightning.progress import say


def main(folder: str, tasks: str, *words: str) -> None:
    """Record every task."""
    for task in tasks.split(","):
        path = Path(folder) / f"{task}.jsonl"
        if path.exists():
            say(f"recorded before: {path}")
            continue
        caps = ("data.max_train=200", "data.max_validation=75")
        config = load_config(["conf/bigbench.yaml", f"data.task={task}", *caps, *words])
        with tempfile.TemporaryDirectory() as scratch:
            prepared = prepare(config, Path(scratch))
        pools = prepared.train_pools + prepared.validation_pools
        write_text(path, "".join(to_line(pool.to_row()) for pool in pools))
        say(f"recorded: {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])

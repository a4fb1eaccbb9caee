"""What the parts of the recipe conf/bigbench.yaml are worth, on training examples alone.

    python benchmarks/record_pools.py runs/pools auto_categorization object_counting tense
    python benchmarks/recipe_parts.py runs/pools runs/pretrain_small/model runs/recipe_parts [key=value ...]

Three tasks, their training examples (up to 200) in two folds, seed 1: a scorer that has not seen an example selects for
it. The second argument is a scorer that has seen none of the tasks, to begin with instead of the bare encoder. Each
training is a run of its own; what is finished is not done again. Prints a table and writes `results.json`.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cappy_lightning.config_loading import load_config
from cappy_lightning.crossfit import fold_configs, held_out
from cappy_lightning.files import write_json
from cappy_lightning.labeling.measures import open_measure
from cappy_lightning.labeling.rouge import RougeL
from cappy_lightning.progress import say
from cappy_lightning.records import Pool, Selection
from cappy_lightning.run_dir import read_selections
from cappy_lightning.selection.baselines import ORACLE, RANDOM, method_values, rewards
from cappy_lightning.selection.bootstrap import interval, percent_range, resample
from cappy_lightning.sources.jsonl import read_labelled_pools
from cappy_lightning.training import finish

Floats = NDArray[np.float64]

#: Of different kinds, fixed before the first result: naming a category, counting, rewriting.
TASKS = ("auto_categorization", "object_counting", "tense")
RECIPE = "the recipe"
#: Each differs from the recipe in what it is called by.
SETTINGS = {
    "without the ranking loss": ("optimizer.ranking=0",),
    "without it, pairs of all examples mixed": ("optimizer.ranking=0", "data.lanes=64"),
    "half as long": ("trainer.epochs=4",),
    RECIPE: (),
    "twice as long": ("trainer.epochs=16",),
    "eight mismatches an example": ("label.mismatches=8",),
    "from a pretrained scorer": ("scorer.base={pretrained}",),
}


def select(file: Path, task: str, words: tuple[str, ...], out: Path) -> tuple[list[Pool], list[Selection]]:
    """The training pools of a task, and what scorers select of them that have not seen them."""
    own = (f"data.pool={file}", f"data.task={task}", "seed=1", f"run_dir={out}")
    config = load_config(["conf/bigbench.yaml", *own, *words])
    pools = [pool for pool in read_labelled_pools([file]) if pool.example.split == "train"]
    held: list[Pool] = []
    selections: list[Selection] = []
    for fold, part in enumerate(fold_configs(config, pools)):
        if code := finish(part):
            sys.exit(code)
        held += (unseen := held_out(pools, fold, config.select.folds))
        selections += read_selections(Path(part.run_dir), unseen)
    return held, selections


def main(folder: str, pretrained: str, results: str, *more: str) -> None:
    """Everything that is not done yet, then the table."""
    out, rouge, measure = Path(results), RougeL("paper"), open_measure("rouge_l", "paper")
    by_task: dict[str, dict[str, Floats]] = {}
    for task in TASKS:
        chosen = {}
        for number, (name, words) in enumerate(SETTINGS.items()):
            say(f"{task}: {name}")
            own = (*(word.format(pretrained=pretrained) for word in words), *more)
            pools, chosen[name] = select(Path(folder) / f"{task}.jsonl", task, own, out / task / str(number))
        values, _ = method_values(pools, rewards(pools, measure), chosen, rouge)
        by_task[task] = {name: np.array(row) for name, row in values.items()}
    found: dict[str, Any] = {}
    for name in (RANDOM, ORACLE, *SETTINGS):
        rows = [own[name] for own in by_task.values()]
        gains = [own[name] - own[RECIPE] for own in by_task.values()]
        generator = np.random.default_rng(0)
        draws = np.mean([resample(own[None], generator)[0] for own in gains], axis=0)
        found[name] = {
            "mean": float(np.mean([row.mean() for row in rows])),
            "better_by": interval(float(np.mean([own.mean() for own in gains])), draws),
            "tasks": {task: float(row.mean()) for task, row in zip(by_task, rows, strict=True)},
        }
    write_json(out / "results.json", found)
    print(f"| | {' | '.join(TASKS)} | average | better by |\n|---|{'---|' * (len(TASKS) + 2)}")
    for name, own in found.items():
        gain = own["better_by"]
        told = f"{100 * gain['mean']:+.1f} [{percent_range(gain, '+')}]"
        means = [f"{100 * value:.1f}" for value in (*own["tasks"].values(), own["mean"])]
        print(f"| {name} | {' | '.join(means)} | {told if name in SETTINGS and name != RECIPE else ''} |")
    say(f"results: {out / 'results.json'}")


if __name__ == "__main__":
    main(*sys.argv[1:])

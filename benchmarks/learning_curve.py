"""Adaptation from the small pretrained scorer and from the bare encoder, by the number of training examples.

    python benchmarks/record_pools.py runs/pools auto_categorization object_counting tense
    python benchmarks/learning_curve.py runs/pools runs/pretrain_small/model runs/learning_curve \\
        [key=value ...] [--tasks auto_categorization ...] [--examples 10 50 200]

Held-out BIG-bench tasks that the pretraining (conf/pretrain_small.yaml) has not seen; 10, 50 and 200 training
examples, seed 1, and zero-shot, where the bare encoder has an untrained head. Each adaptation is a run of its own;
what is finished is not done again. Writes `results.json` and `learning_curve.png` into the last folder and prints a
table.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cappy_lightning import Cappy
from cappy_lightning.config import ScorerConfig
from cappy_lightning.config_loading import load_config
from cappy_lightning.files import write_json
from cappy_lightning.labeling.measures import open_measure
from cappy_lightning.labeling.rouge import RougeL
from cappy_lightning.page import write_picture
from cappy_lightning.progress import say
from cappy_lightning.records import Pool, Selection
from cappy_lightning.run_dir import read_selections
from cappy_lightning.scorer.model import build_scorer
from cappy_lightning.selection.baselines import ORACLE, RANDOM, method_values, rewards
from cappy_lightning.selection.bootstrap import interval, percent_range, resample
from cappy_lightning.selection.engine import select_from_pools
from cappy_lightning.sources.jsonl import read_labelled_pools
from cappy_lightning.training import finish

Floats = NDArray[np.float64]

#: Of different kinds, fixed before the first result: naming a category, counting, rewriting.
TASKS = ("auto_categorization", "object_counting", "tense")
#: Passes over the data by the number of examples: fewer examples are read more often.
EPOCHS = {10: 32, 50: 16, 200: 8}
SEED = 1


def adapt(pool: Path, task: str, base: str, count: int, out: Path, words: Sequence[str]) -> list[Selection]:
    """What the scorer selects after adaptation with so many examples."""
    own = [f"data.pool={pool}", f"data.task={task}", f"data.max_train={count}", "data.max_validation=null"]
    own += [f"scorer.base={base}", f"trainer.epochs={EPOCHS[count]}", "trainer.validations=1", f"seed={SEED}"]
    config = load_config(["conf/bigbench.yaml", *own, *words, f"run_dir={out}"])
    if code := finish(config):
        sys.exit(code)
    return read_selections(out, held_out(pool))


def zero_shot(pool: Path, base: str) -> list[Selection]:
    """What the scorer selects as it is."""
    torch.manual_seed(SEED)
    scorer = Cappy(build_scorer(ScorerConfig(base=base)))
    return list(select_from_pools(scorer, held_out(pool)))


def held_out(pool: Path) -> list[Pool]:
    """The validation pools of a file."""
    return [one for one in read_labelled_pools([pool]) if one.example.split == "validation"]


def averages(values: dict[str, list[Floats]], counts: Sequence[int]) -> dict[str, Any]:
    """Means over tasks with intervals of a paired bootstrap, for every method, [tasks][examples] each."""
    generator = np.random.default_rng(0)
    names = [name for name in values if len(values[name]) == len(values[RANDOM])]  # some cannot be had everywhere
    by_task = zip(*(values[name] for name in names), strict=True)
    draws = np.mean([resample(np.array(own), generator) for own in by_task], axis=0)
    means = {name: float(np.mean([own.mean() for own in values[name]])) for name in names}
    found: dict[str, Any] = {name: interval(means[name], draws[row]) for row, name in enumerate(names)}
    for count in (0, *counts):
        ours, theirs = names.index(f"pretrained {count}"), names.index(f"bare {count}")
        gain = means[names[ours]] - means[names[theirs]]
        found[f"pretrained is better at {count}"] = interval(gain, draws[ours] - draws[theirs])
    return found


def chart(found: dict[str, Any], best: str, tasks: int, examples: Sequence[int]) -> Figure:
    """Both curves with their intervals, between random and oracle."""
    counts = (0, *examples)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for start, color in (("pretrained", "tab:blue"), ("bare", "tab:orange")):
        own = [found[f"{start} {count}"] for count in counts]
        means = np.array([100 * one["mean"] for one in own])
        ends = np.array([[100 * one[end] for one in own] for end in ("low", "high")])
        axis.errorbar(
            range(len(counts)), means, yerr=np.abs(ends - means), fmt="o-", capsize=3, color=color, label=start
        )
    for name, style in ((RANDOM, ":"), (best, "--"), (ORACLE, "-.")):
        axis.axhline(100 * found[name]["mean"], color="0.5", linestyle=style, label=name)
    axis.set_xticks(range(len(counts)), ["zero-shot", *map(str, examples)])
    axis.set(xlabel="training examples", ylabel="Rouge-L x 100", title=f"Mean over {tasks} held-out tasks")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right center")  # lines go through everywhere inside
    return figure


def main() -> None:
    """Everything that is not done yet, then the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", type=Path)
    parser.add_argument("pretrained")
    parser.add_argument("out", type=Path)
    parser.add_argument("words", nargs="*", metavar="key=value", help="for every adaptation")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--examples", nargs="+", type=int, choices=list(EPOCHS), default=list(EPOCHS))
    options = parser.parse_args()
    out, rouge, measure = options.out, RougeL("paper"), open_measure("rouge_l", "paper")
    values: dict[str, list[Floats]] = {}
    for task in options.tasks:
        pool = options.pools / f"{task}.jsonl"
        gains = rewards(held_out(pool), measure)
        chosen: dict[str, list[Selection]] = {}
        for start, base in (("pretrained", options.pretrained), ("bare", "embedded")):
            chosen[f"{start} 0"] = zero_shot(pool, base)
            for count in options.examples:
                say(f"{task}: {count} examples, {start}")
                chosen[f"{start} {count}"] = adapt(
                    pool, task, base, count, out / start / str(count) / task, options.words
                )
        own, _ = method_values(held_out(pool), gains, chosen, rouge)
        for name, row in own.items():
            values.setdefault(name, []).append(np.array(row))
    found = averages(values, options.examples)
    known = {name: value for name, value in found.items() if " " not in name and name != ORACLE}
    best = max(known, key=lambda name: known[name]["mean"])
    by_task = {name: [float(own.mean()) for own in rows] for name, rows in values.items()}
    results = {"tasks": options.tasks, "by_task": by_task, "average": found, "best_baseline": best}
    write_json(out / "results.json", results)
    write_picture(chart(found, best, len(options.tasks), options.examples), out / "learning_curve.png")
    print("| training examples | bare encoder | pretrained | pretrained is better by |\n|---|---|---|---|")
    for count in (0, *options.examples):
        gain = found[f"pretrained is better at {count}"]
        cells = [f"{100 * found[f'{start} {count}']['mean']:.1f}" for start in ("bare", "pretrained")]
        told = f"{100 * gain['mean']:+.1f} [{percent_range(gain, '+')}]"
        print(f"| {count} | {' | '.join(cells)} | {told} |")
    for name in (RANDOM, best, ORACLE):
        print(f"{name}: {100 * found[name]['mean']:.1f}")
    counts = (0, *options.examples)
    print(f"\n| task | {RANDOM} | {best} | {ORACLE} | start | {' | '.join(map(str, counts))} |")
    print(f"|{'---|' * (5 + len(counts))}")
    for place, task in enumerate(options.tasks):
        for start in ("bare", "pretrained"):
            names = (RANDOM, best, ORACLE, *(f"{start} {count}" for count in counts))
            cells = [f"{100 * by_task[name][place]:.1f}" for name in names]
            print(f"| {' | '.join([task, *cells[:3], start, *cells[3:]])} |")
    say(f"results: {out / 'results.json'}, {out / 'learning_curve.png'}")


if __name__ == "__main__":
    main()

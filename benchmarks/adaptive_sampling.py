"""Sampling until a score is reached, and abstaining below one, on the held-out examples of finished runs.

    python benchmarks/adaptive_sampling.py OUT runs/quickstart runs/bigbench/tasks/tense ...

Of each run: the scorer that it has exported, and the recorded candidates of its validation examples. Thresholds are
those of `cappy calibrate` with one candidate at a time: a fifth of the examples is judged by thresholds chosen on the
other four. The precision that is asked for is the mean reward of the surer half of the examples; where it cannot be
reached, that is said, and the run is left out of the second table. Prints tables as Markdown, and writes
`adaptive_sampling.json` and `adaptive_sampling.png` into OUT.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cappy_lightning import Cappy
from cappy_lightning.answering.calibration import calibrate
from cappy_lightning.config_loading import load_config
from cappy_lightning.errors import InputError
from cappy_lightning.files import make_dir, write_json
from cappy_lightning.page import write_picture
from cappy_lightning.preparation import validation_pools
from cappy_lightning.progress import say

#: The number of candidates that adaptive sampling is held against.
FIXED = 12


def calibrated(run: Path) -> dict[str, Any]:
    """Thresholds, promises and curves of a run; when to stop is chosen without a precision, `abstaining` with one."""
    config = load_config([str(run / "config.yaml"), "answer.step=1"])
    pools = validation_pools(config)
    export = next(run / name for name in ("adapter", "model") if (run / name).is_dir())
    cappy = Cappy.from_pretrained(export, by=config.select.by)
    stopping = calibrate(cappy, pools, config, 1.0, None)
    surer_half = next(reward for share, reward in stopping["coverage"] if share >= 0.5)
    try:
        both = calibrate(cappy, pools, config, 1.0, surer_half)
    except InputError as problem:  # an abstention takes more candidates, and of a few examples may not gain by them
        say(f"{run}: {problem}")
        return {**stopping, "abstaining": None}
    return {**stopping, "abstaining": {**both["abstaining"], "candidates": both["stopping"]["candidates"]}}


def at(curve: list[list[float]], candidates: float) -> float:
    """The reward of a curve at a mean number of candidates."""
    x, y = np.array(curve).T
    return float(np.interp(candidates, x, y))


def needed(curve: list[list[float]], reward: float) -> float:
    """The fewest candidates with which a curve has a reward."""
    return next((count for count, own in curve if own >= reward - 1e-9), curve[-1][0])


def chart(found: dict[str, dict[str, Any]]) -> Figure:
    """Reward against candidates, a panel for each run."""
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(3 * columns, 2.6 * rows), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axis, (name, result) in zip(axes, found.items(), strict=False):
        for kind, color, label in (("fixed", "0.6", "fixed number"), ("adaptive", "tab:blue", "until a score")):
            x, y = np.array(result[kind]).T
            axis.plot(x, 100 * y, color=color, label=label)
        axis.set_title(name, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(found) :]:
        axis.set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("candidates of an instruction, on average", fontsize=9)
    figure.supylabel("reward x 100", fontsize=9)
    return figure


def main() -> None:
    """All runs, one after the other."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    out, runs = make_dir(Path(sys.argv[1])), [Path(word) for word in sys.argv[2:]]
    found: dict[str, dict[str, Any]] = {}
    if len({run.name for run in runs}) < len(runs):
        sys.exit("two runs have the same name, expected different ones: it is their row's")
    for run in runs:
        say(f"{run}")
        found[run.name] = calibrated(run)
    write_json(out / "adaptive_sampling.json", found)
    write_picture(chart(found), out / "adaptive_sampling.png")
    print(
        f"| run | {FIXED} candidates | half as many | adaptive, as good with | chosen threshold: candidates | reward |"
    )
    print("|---|---|---|---|---|---|")
    for name, result in found.items():
        whole, half = at(result["fixed"], FIXED), at(result["fixed"], FIXED / 2)
        enough, chosen = needed(result["adaptive"], whole), result["stopping"]
        print(
            f"| {name} | {100 * whole:.1f} | {100 * half:.1f} | {enough:.1f} | {chosen['candidates']:.1f} |"
            f" {100 * chosen['reward']:.1f} |"
        )
    print(
        "\n| run | all answered | precision asked for | precision | answered | candidates |\n|---|---|---|---|---|---|"
    )
    for name, result in found.items():
        if (chosen := result["abstaining"]) is None:
            continue
        precision = "" if chosen["precision"] is None else f"{100 * chosen['precision']:.1f}"
        print(
            f"| {name} | {100 * result['coverage'][-1][1]:.1f} | {100 * chosen['asked']:.1f} | {precision} |"
            f" {100 * chosen['coverage']:.0f}% | {chosen['candidates']:.1f} |"
        )


if __name__ == "__main__":
    main()

"""The scorer together with other ways to adapt an LLM to a task, and what each costs.

    python benchmarks/record_pools.py runs/pools auto_categorization object_counting tense
    python benchmarks/llm_adaptation.py runs/pools runs/llm_adaptation [key=value ...]

For three BIG-bench tasks (150 training examples, at most 75 held-out ones) and the embedded LLM: prompts without
examples, prompts with three, and the LLM finetuned by LoRA on the same training examples; each without the scorer,
which is the LLM's greedy answer, and with it, adapted to the candidates of each. Then the cost of adapting the scorer
and that of adapting the LLM, each in a process of its own, without the words `key=value`, which are for the adaptations
that are compared.

What is finished is not done again. The results are written to `results.json` and `llm_adaptation.png` in the folder,
and printed as Markdown.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure

from cappy_lightning.backbones.generate import record_pools
from cappy_lightning.config import Config
from cappy_lightning.config_loading import load_config
from cappy_lightning.crossfit import fold_configs
from cappy_lightning.files import read_json, remove, write_json
from cappy_lightning.page import write_picture
from cappy_lightning.preparation import prepare
from cappy_lightning.progress import say
from cappy_lightning.records import Pool
from cappy_lightning.sources.jsonl import read_labelled_pools, write_pools
from cappy_lightning.training import finish

#: Of different kinds, fixed before the first result: naming a category, counting, rewriting.
TASKS = ("auto_categorization", "object_counting", "tense")
RECIPE = ("conf/bigbench.yaml", "data.max_train=150", "data.max_validation=75", "seed=1")
SHOTS = {"no examples": 0, "three examples": 3}
FINETUNED = "finetuned by LoRA"


def run(*command: object) -> tuple[Any, float]:
    """Run a child of this Python; its last line, as JSON, and the seconds that the whole process took."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - begin


def finetune_llm(pool: Path, out: Path, mode: str = "lora") -> dict[str, Any]:
    """Finetune the LLM on the training examples of a pool; what it cost."""
    cost, seconds = run("benchmarks/finetune_llm.py", pool, out, "--mode", mode)
    return {**cost, "process_seconds": seconds}


def adapted(config: Config) -> dict[str, Any]:
    """Train the scorer of a config, unless it is there already; its report."""
    if code := finish(config):
        sys.exit(code)
    return cast(dict[str, Any], read_json(Path(config.run_dir) / "report.json"))


def prompted(task: str, recorded: Path, folder: Path, more: Sequence[str]) -> dict[str, Any]:
    """The reports of both prompts; leaves the pools of the one with examples in `pool.jsonl`."""
    reports = {}
    for name, shots in SHOTS.items():
        words = [*RECIPE, f"data.task={task}", f"backbone.shots={shots}", *more]
        if shots:
            words.append(f"data.pool={recorded}")
        config = load_config([*words, f"run_dir={folder / name.replace(' ', '_')}"])
        reports[name] = adapted(config)
    prepared = prepare(config, Path(config.run_dir) / "instances")
    write_pools(folder / "pool.jsonl", prepared.train_pools + prepared.validation_pools)
    return reports


def answered(pool: Path, llm: Path) -> list[Pool]:
    """Finetune the LLM on the training examples of a pool file: what it then answers to the held-out ones."""
    recorded = llm.with_suffix(".jsonl")
    if not recorded.exists():
        cost = llm.with_suffix(".json")
        if not cost.exists():
            say(f"finetuning the LLM: {llm}")
            write_json(cost, finetune_llm(pool, llm))
        held = [one.example for one in read_labelled_pools([pool]) if one.example.split == "validation"]
        words = ("backbone.kind=transformers", f"backbone.model={llm}", "backbone.shots=0", "backbone.batch_size=25")
        config = load_config([*RECIPE, "data.pool=-", *words])
        record_pools(lambda: held, config.backbone, recorded)
    return read_labelled_pools([recorded])


def finetuned(task: str, folder: Path, more: Sequence[str]) -> dict[str, Any]:
    """The report on the answers of the finetuned LLM, by a scorer adapted to such answers.

    A finetuned LLM answers the examples that it has seen too well to learn from. So the scorer learns from what it
    answers to each half of the training examples when it is finetuned on the other.
    """
    file = folder / "finetuned.jsonl"
    words = [*RECIPE, f"data.task={task}", f"data.pool={file}", *more]
    config = load_config([*words, f"run_dir={folder / FINETUNED.replace(' ', '_')}"])
    seen = [pool for pool in read_labelled_pools([folder / "pool.jsonl"]) if pool.example.split == "train"]
    pools = answered(folder / "pool.jsonl", folder / "llm")
    for fold, half in enumerate(fold_configs(load_config([*words, f"run_dir={folder / 'halves'}"]), seen)):
        unseen = answered(Path(half.data.pool[0]), folder / f"llm-{fold}")
        pools += [replace(pool, example=replace(pool.example, split="train")) for pool in unseen]
    write_pools(file, pools)
    return adapted(config)


def costs(pool: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Adapting the scorer and adapting the LLM, on the same training examples."""
    found = {}
    for mode in ("lora", "full"):
        path = folder / f"scorer-{mode}.json"
        if not path.exists():
            say(f"cost: {path.stem}")
            out = folder / f"scorer-{mode}"
            remove(out)  # what was interrupted would go on, and seem to take less
            words = (*RECIPE, f"data.pool={pool}", f"finetune.mode={mode}", "trainer.validations=1", f"run_dir={out}")
            peak, seconds = run("benchmarks/peak_memory.py", "train", *words)
            metrics = read_json(out / "metrics.json")
            trained = int(metrics["parameters_trained"])
            write_json(path, {"peak_mib": peak, "process_seconds": seconds, "trained": trained})
        found[f"scorer, {mode}"] = read_json(path)
    for mode in ("lora", "full"):
        path = folder / f"llm-{mode}.json"
        if not path.exists():
            say(f"cost: {path.stem}")
            write_json(path, finetune_llm(pool, folder / f"llm-{mode}", mode))
        found[f"LLM, {mode}"] = read_json(path)
    return found


def show(results: dict[str, Any]) -> None:
    """Both tables as Markdown."""
    print("| task | LLM | random | greedy | best baseline | Cappy | than greedy by | oracle |")
    print("|---|---|---|---|---|---|---|---|")
    for task, ways in results["tasks"].items():
        for name, part in ways.items():
            methods, best = part["methods"], part["best_baseline"]
            mean = {method: f"{100 * value['mean']:.1f}" for method, value in methods.items()}
            gain = part["differences"].get("greedy")  # missing where every greedy answer is empty
            told = f"{100 * gain['mean']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]" if gain else ""
            cells = [task, name, mean["random"], mean.get("greedy", ""), f"{mean[best]} {best}", mean["cappy"], told]
            print(f"| {' | '.join(cells)} | {mean['oracle']} |")
    print("\n| adapted | parameters trained | peak memory, MiB | whole process, s |\n|---|---|---|---|")
    for name, cost in results["costs"].items():
        print(f"| {name} | {cost['trained']:,} | {cost['peak_mib']:,} | {cost['process_seconds']:.0f} |")


def chart(tasks: dict[str, Any]) -> Figure:
    """Greedy answers and Cappy's choice with their intervals, and the oracle, for each LLM of each task."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axis, (task, ways) in zip(figure.subplots(1, len(tasks), sharey=True), tasks.items(), strict=True):
        for number, (method, color) in enumerate((("greedy", "0.6"), ("cappy", "tab:blue"))):
            own = [part["methods"].get(method, {"mean": 0, "low": 0, "high": 0}) for part in ways.values()]
            means, low, high = (np.array([100 * one[name] for one in own]) for name in ("mean", "low", "high"))
            places = np.arange(len(ways)) + 0.35 * (number - 0.5)
            axis.bar(places, means, 0.35, yerr=(means - low, high - means), capsize=3, color=color, label=method)
        for place, part in enumerate(ways.values()):
            best = 100 * part["methods"]["oracle"]["mean"]
            axis.hlines(best, place - 0.4, place + 0.4, color="0.3", linestyle="--", label="" if place else "oracle")
        axis.set_xticks(range(len(ways)), [name.replace(" ", "\n", 1) for name in ways])
        axis.set_title(task)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("Rouge-L x 100")
    figure.axes[0].legend(frameon=False, loc="upper left")
    return figure


def main(pools: str, folder: str, *more: str) -> None:
    """Everything that is not done yet."""
    out = Path(folder)
    results: dict[str, Any] = {"tasks": {}}
    for task in TASKS:
        say(f"task: {task}")
        reports = prompted(task, Path(pools) / f"{task}.jsonl", out / task, more)
        reports[FINETUNED] = finetuned(task, out / task, more)
        results["tasks"][task] = {name: report["tasks"][task] for name, report in reports.items()}
    results["costs"] = costs(out / TASKS[0] / "pool.jsonl", out / "costs")
    write_json(out / "results.json", results)
    write_picture(chart(results["tasks"]), out / "llm_adaptation.png")
    show(results)
    say(f"results: {out / 'results.json'}, {out / 'llm_adaptation.png'}")


if __name__ == "__main__":
    main(*sys.argv[1:])

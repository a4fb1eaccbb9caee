"""Classification without an LLM: the bare encoder, the small pretrained scorer, and both finetuned on 32 rows a class.

    python benchmarks/few_shot_classification.py ROWS TEMPLATES SCORER runs/few_shot [NAME ...] [key=value ...]

SCORER is the small pretrained one (runs/pretrain_small/model), ROWS a folder with NAME.jsonl, TEMPLATES PromptSource's
folder of templates, NAME ag_news, rotten_tomatoes and trec unless it is said. Rows are drawn by seed 0: 32 a class
for training, 20 to be looked at meanwhile, 200 to test on; of the templates that give choices the first three by name
count. What is finished is not done again. Prints a table and writes `results.json`.
"""

import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cappy_lightning import Cappy
from cappy_lightning.config import ScorerConfig
from cappy_lightning.config_loading import load_config
from cappy_lightning.evaluation.promptsource import evaluate_promptsource
from cappy_lightning.files import read_jsonl, to_line, write_json, write_text
from cappy_lightning.progress import say
from cappy_lightning.scorer.model import build_scorer
from cappy_lightning.sources.spec import Sources
from cappy_lightning.training import finish

NAMES = ("ag_news", "rotten_tomatoes", "trec")
A_CLASS, LOOKED_AT, TESTED, TEMPLATES = 32, 20, 200, 3


def draw(rows: list[dict[str, Any]], out: Path, templates: Path) -> None:
    """Write the rows of each part, and the sources files that name them with their templates."""
    label = next(name for name in rows[0] if name.endswith("label"))
    random.Random(0).shuffle(rows)
    by_class: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    # Those to test on are drawn first: what is left when the classes have their rows has fewer of the rare ones.
    for row in rows[TESTED + LOOKED_AT :]:
        if len(own := by_class[row[label]]) < A_CLASS:
            own.append(row)
    train = [row for own in by_class.values() for row in own]
    parts = {"train": train, "validation": rows[TESTED : TESTED + LOOKED_AT], "test": rows[:TESTED]}
    for part, own in parts.items():
        write_text(out / f"{part}.jsonl", "".join(map(to_line, own)))
    for name, of in (("adapt", ("train", "validation")), ("test", ("test",))):
        heads = [f"files: [{out / part}.jsonl], templates: {templates}, split: {part}" for part in of]
        write_text(out / f"{name}.yaml", "sources:\n" + "".join(f"  - {{{head}}}\n" for head in heads))
        # Open-ended templates are no classification.
        closed = {pool.example.task for pool in Sources([str(out / f"{name}.yaml")]).pools() if pool.example.choices}
        names = json.dumps(sorted(task.partition("/")[2] for task in closed)[:TEMPLATES])
        lines = [f"  - {{{head}, template_names: {names}}}\n" for head in heads]
        write_text(out / f"{name}.yaml", "sources:\n" + "".join(lines))


def scorers(out: Path, pretrained: str, words: Sequence[str]) -> dict[str, str]:
    """All of them by name; trains those that are not there yet."""
    bare = out.parent / "bare"
    if not bare.exists():  # with an untrained head
        torch.manual_seed(0)
        Cappy(build_scorer(ScorerConfig())).save_pretrained(bare)
    found = {"bare, zero-shot": str(bare), "pretrained, zero-shot": pretrained}
    for name, base in (("bare", "embedded"), ("pretrained", pretrained)):
        run = out / name
        own = (f"data.examples={out / 'adapt.yaml'}", f"scorer.base={base}", "seed=1", f"run_dir={run}")
        if code := finish(load_config(["conf/classify.yaml", *own, *words])):
            sys.exit(code)
        found[f"{name}, finetuned"] = str(run / "model")
    return found


def main(folder: str, templates: str, pretrained: str, results: str, *more: str) -> None:
    """Everything that is not done yet, then the table."""
    words = [word for word in more if "=" in word]
    names = [word for word in more if "=" not in word]
    report: dict[str, dict[str, Any]] = {}
    for name in names or NAMES:
        out = Path(results) / name
        if not (out / "test.yaml").exists():
            draw([row for _, row in read_jsonl(Path(folder) / f"{name}.jsonl")], out, Path(templates) / name)
        report[name] = {}
        for kind, scorer in scorers(out, pretrained, words).items():
            say(f"{name}: {kind}")
            place = out / kind.replace(", ", "_")
            evaluate_promptsource([str(out / "test.yaml")], scorer, None, None, place, as_json=False)
            (own,) = json.loads((place / "report.json").read_text(encoding="utf-8"))["datasets"].values()
            report[name][kind] = own
    write_json(Path(results) / "results.json", report)
    kinds = list(next(iter(report.values())))
    print(f"| data set | random | {' | '.join(kinds)} |\n|---|---|{'---|' * len(kinds)}")
    for name, own in report.items():
        accuracies = [own[kind]["accuracy"] for kind in kinds]
        shown = [f"{100 * a['mean']:.1f} [{100 * a['low']:.1f}, {100 * a['high']:.1f}]" for a in accuracies]
        print(f"| {name} | {100 * own[kinds[0]]['random']:.1f} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])

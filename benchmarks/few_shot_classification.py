"""Classification without an LLM: the bare encoder, the small pretrained scorer, and both finetuned on 32 rows a class.

    python benchmarks/few_shot_classification.py ROWS TEMPLATES SCORER runs/few_shot [NAME ...] [key=value ...]

SCORER is the small pretrained one (runs/pretrain_small/model), ROWS a folder with NAME.jsonl, TEMPLATES PromptSource's
folder of templates, NAME ag_news, rotten_tomatoes and trec unless it is said. Drawn by seed 0 are 200 rows to test on
and 20 to be looked at meanwhile; by the seeds 1 to 3, of the others, 32 a class for training. Of the templates that
give choices the first three by name count. Beside them stands logistic regression on the embeddings of the same
encoder, trained on the same rows without any template. What is finished is not done again. Prints a table, of the mean
over the draws with the lowest and the highest, and writes `results.json`.
"""

import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegressionCV

from cappy_lightning import Cappy
from cappy_lightning.config import ScorerConfig
from cappy_lightning.config_loading import load_config
from cappy_lightning.evaluation.promptsource import evaluate_promptsource
from cappy_lightning.files import read_jsonl, to_line, write_json, write_text
from cappy_lightning.progress import say
from cappy_lightning.scorer.model import build_scorer, resolve_base
from cappy_lightning.sources.spec import Sources
from cappy_lightning.training import finish

NAMES = ("ag_news", "rotten_tomatoes", "trec")
A_CLASS, LOOKED_AT, TESTED, TEMPLATES = 32, 20, 200, 3
DRAWS = (1, 2, 3)
PEER = "logistic regression"


def read_rows(file: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows of a data set in the order of seed 0, and the column of their labels."""
    rows = [row for _, row in read_jsonl(file)]
    random.Random(0).shuffle(rows)
    return rows, next(name for name in rows[0] if name.endswith("label"))


def draw(rows: list[dict[str, Any]], label: str, seed: int) -> list[dict[str, Any]]:
    """Training rows, equally many of each class where there are so many."""
    rest = rows[TESTED + LOOKED_AT :]
    random.Random(seed).shuffle(rest)
    by_class: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rest:
        if len(own := by_class[row[label]]) < A_CLASS:
            own.append(row)
    return [row for own in by_class.values() for row in own]


def write_sources(out: Path, parts: dict[str, list[dict[str, Any]]], templates: Path) -> str:
    """Write the rows of each split, and the sources file that names them with their templates."""
    for split, own in parts.items():
        write_text(out / f"{split}.jsonl", "".join(map(to_line, own)))
    file = out / "sources.yaml"

    def write(more: str) -> None:
        heads = [f"files: [{out / split}.jsonl], templates: {templates}, split: {split}{more}" for split in parts]
        write_text(file, "sources:\n" + "".join(f"  - {{{head}}}\n" for head in heads))

    write("")
    closed = {pool.example.task for pool in Sources([str(file)]).pools() if pool.example.choices}  # others ask openly
    write(f", template_names: {json.dumps(sorted(task.partition('/')[2] for task in closed)[:TEMPLATES])}")
    return str(file)


def finetuned(base: str, sources: str, out: Path, words: Sequence[str]) -> str:
    """A scorer that has learned from the training rows."""
    own = (f"data.examples={sources}", f"scorer.base={base}", "seed=1", f"run_dir={out}")
    if code := finish(load_config(["conf/classify.yaml", *own, *words])):
        sys.exit(code)
    return str(out / "model")


def accuracy(scorer: str, test: str, out: Path) -> dict[str, Any]:
    """What a scorer has on the test rows, all templates together, with its interval over the rows."""
    evaluate_promptsource([test], scorer, None, None, out, as_json=False)
    (own,) = json.loads((out / "report.json").read_text(encoding="utf-8"))["datasets"].values()
    return {"random": own["random"], **own["accuracy"]}


def peer(train: list[dict[str, Any]], test: list[dict[str, Any]], label: str) -> float:
    """The accuracy of logistic regression on the encoder's embeddings, its regularization by cross-validation."""
    encoder = SentenceTransformer(resolve_base("embedded"), device="cpu")
    seen, unseen = (encoder.encode([row["text"] for row in rows], show_progress_bar=False) for rows in (train, test))
    classifier = LogisticRegressionCV(max_iter=1000).fit(seen, [row[label] for row in train])
    return float(classifier.score(unseen, [row[label] for row in test]))


def main(folder: str, templates: str, pretrained: str, results: str, *more: str) -> None:
    """Everything that is not done yet, then the table."""
    words = [word for word in more if "=" in word]
    names = [word for word in more if "=" not in word]
    bare = Path(results) / "bare"
    if not bare.exists():  # with an untrained head
        torch.manual_seed(0)
        Cappy(build_scorer(ScorerConfig())).save_pretrained(bare)
    report: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in names or NAMES:
        out = Path(results) / name
        rows, label = read_rows(Path(folder) / f"{name}.jsonl")
        tested, looked_at = rows[:TESTED], rows[TESTED : TESTED + LOOKED_AT]
        test = write_sources(out, {"test": tested}, Path(templates) / name)
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for kind, scorer in (("bare", str(bare)), ("pretrained", pretrained)):
            found[f"{kind}, zero-shot"].append(accuracy(scorer, test, out / f"{kind}-zero-shot"))
        for seed in DRAWS:
            own = out / f"draw-{seed}"
            train = draw(rows, label, seed)
            sources = write_sources(own, {"train": train, "validation": looked_at}, Path(templates) / name)
            found[PEER].append({"mean": peer(train, tested, label)})
            for kind, base in (("bare", "embedded"), ("pretrained", pretrained)):
                say(f"{name}, draw {seed}: {kind}")
                scorer = finetuned(base, sources, own / kind, words)
                found[f"{kind}, finetuned"].append(accuracy(scorer, test, own / f"{kind}-test"))
        report[name] = dict(found)
    write_json(Path(results) / "results.json", report)
    kinds = list(next(iter(report.values())))
    print(f"| data set | random | {' | '.join(kinds)} |\n|---|---|{'---|' * len(kinds)}")
    for name, by_kind in report.items():
        shown = []
        for kind in kinds:
            values = [100 * one["mean"] for one in by_kind[kind]]
            several = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
            shown.append(f"{sum(values) / len(values):.1f}{several}")
        print(f"| {name} | {100 * by_kind[kinds[0]][0]['random']:.1f} | {' | '.join(shown)} |")
    say(f"results: {Path(results) / 'results.json'}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""`cappy evaluate promptsource`: a scorer alone as a classifier, over templates of classification data sets.

Each data set's result lies in `OUT/datasets` as soon as it is there: what is finished is not done again.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure

from cappy_lightning.errors import InputError
from cappy_lightning.evaluation.published import published_promptsource
from cappy_lightning.files import hashes, is_scratch, make_dir, open_locked, read_json, read_jsonl, write_json
from cappy_lightning.page import Page, Table, print_table, write_page, write_picture
from cappy_lightning.progress import Ticker, console, counted, say, show_places
from cappy_lightning.records import Example, Pool
from cappy_lightning.scorer.pretrained import PretrainedScorer
from cappy_lightning.selection.baselines import first_best
from cappy_lightning.selection.bootstrap import RESAMPLES, interval, percent_range, resample
from cappy_lightning.selection.classes import macro_f1
from cappy_lightning.selection.engine import select_from_pools
from cappy_lightning.sources.spec import Dataset, Sources

REPORT, PAGE, PICTURE, MADE_BY, DATASETS = "report.json", "report.html", "report.png", "made_by.json", "datasets"

#: Pools that are scored before the progress is shown again.
BLOCK = 256

#: Characters of a data set's name in the name of a file, which may have 255.
_LONGEST = 200

#: Choices that do not look at the question.
BLIND = ("random", "shortest", "longest")


def evaluate_promptsource(
    source: Sequence[str], scorer: str, adapter: str | None, activation: str | None, out: Path, as_json: bool
) -> None:
    """Classify every example of every data set under every template, and make the report.

    Args:
        source: a file in the reference implementation's test format (JSONL), or what `Sources` takes: a sources file
            with data sets and templates, `key=value` words for it, or a table of examples with choices.
        scorer: a saved scorer, an adapter or a hub name; any classifier with one logit.
        adapter: an adapter to put onto it.
        activation: for scorers that do not say theirs.
        out: the directory of the results.
        as_json: print the report as JSON instead of tables.

    Raises:
        InputError: what cannot be used; `out` is of another evaluation.
    """
    datasets, read = open_datasets(source)
    make_dir(out)
    with open_locked(out / ".lock", out, "evaluation"):
        made_by = {"source": list(source), "scorer": scorer, "adapter": adapter, "activation": activation}
        missing = [dataset for dataset in datasets if not _file(out, dataset).exists()]
        # Before the directory is claimed: what cannot be loaded leaves nothing behind.
        loaded = PretrainedScorer.from_pretrained(scorer, adapter, activation=activation) if missing else None
        _claim(out, made_by | {"sha256": hashes([scorer, *([adapter] if adapter else []), *read])})
        for dataset in missing:
            assert loaded is not None
            say(f"{dataset.key}: data set {datasets.index(dataset) + 1} of {len(datasets)}")
            write_json(_file(out, dataset), classify(loaded, dataset))
        results = {d.key: read_json(_file(out, d)) for d in datasets}
        report = make_accuracy_report(results, {d.key: (d.name, d.split or "") for d in datasets})
        write_json(out / REPORT, report)
        write_picture(_chart(report), out / PICTURE)
        tables = accuracy_tables(report)
        facts = [f"source: {' '.join(source)}", *(note for one in results.values() for note in one["notes"])]
        page = Page(f"{scorer}: accuracy", facts, [("Accuracy", _chart(report))], tables)
        write_page(page, out / PAGE)
    if as_json:
        print(json.dumps({"directory": str(out)} | report))
        return
    screen = console()
    for table in tables:
        print_table(table, screen, bold=("average",))
    show_places(out / REPORT, out / PAGE)


def open_datasets(source: Sequence[str]) -> tuple[list[Dataset], list[str]]:
    """The data sets of a test file or of sources, and the local files and folders that they are read from.

    Raises:
        InputError: what cannot be read, or a data set that stands there twice.
    """
    first = next((row for _, row in read_jsonl(source[0])), {}) if source[0].endswith(".jsonl") else {}
    if "dataset_name" in first:
        if len(source) > 1:
            raise InputError(source[1], f"stands after {source[0]}, expected it only after a sources file (YAML)")
        datasets, read = _of_test_file(source[0]), [source[0]]
    else:
        sources = Sources(source)
        datasets, read = sources.apart(), sources.places
    keys = [dataset.key for dataset in datasets]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(source[0], f"names the data set '{key}' twice, expected another split or task")
    return datasets, read


def _of_test_file(path: str) -> list[Dataset]:
    """The data sets of the reference implementation's test format: a line for each response."""
    found: dict[str, dict[tuple[str, str], list[tuple[str, str, int]]]] = defaultdict(lambda: defaultdict(list))
    places: dict[tuple[str, str, str], str] = {}
    for where, row in read_jsonl(path):
        texts = [row.get(name) for name in ("dataset_name", "template_name", "instruction", "response")]
        if not all(isinstance(text, str) and text for text in texts) or row.get("label") not in (0, 1):
            names = "dataset_name, template_name, example_idx, instruction, response and label (0 or 1)"
            raise InputError(where, f"expected {names}")
        dataset, template, instruction, response = map(str, texts)
        identity = str(row.get("example_idx"))
        found[dataset][template, identity].append((instruction, response, int(row["label"])))
        places.setdefault((dataset, template, identity), where)

    def pools(dataset: str) -> Iterator[Pool]:
        for (template, identity), rows in found[dataset].items():
            labels = [label for _, _, label in rows]
            if labels.count(1) != 1 or len({instruction for instruction, _, _ in rows}) > 1:
                raise InputError(
                    f"{path}: {dataset}, {template}, example {identity}",
                    "expected one instruction, and the label 1 for one response",
                )
            example = {"task": f"{dataset}/{template}", "id": identity, "instruction": rows[0][0]}
            choices = {"choices": [response for _, response, _ in rows], "label": labels.index(1)}
            yield Pool.of_example(Example.from_row(example | choices, places[dataset, template, identity]))

    return [Dataset(name, None, lambda name=name: pools(name)) for name in found]  # type: ignore[misc]


def _claim(out: Path, made_by: dict[str, Any]) -> None:
    path = out / MADE_BY
    if not path.exists() and any(one.name != ".lock" and not is_scratch(one.name) for one in out.iterdir()):
        raise InputError(out, "holds other files, expected a new directory or one of the same evaluation")
    if path.exists() and read_json(path) != made_by:
        raise InputError(
            out,
            "holds an evaluation of another source or scorer, or these have changed since, expected a new directory",
        )
    write_json(path, made_by)


def _file(out: Path, dataset: Dataset) -> Path:
    name = quote(dataset.key, safe="", errors="surrogatepass")
    if len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}-{sha256(name.encode()).hexdigest()[:16]}"
    return out / DATASETS / f"{name}.json"


def classify(scorer: PretrainedScorer, dataset: Dataset) -> dict[str, Any]:
    """What the scorer gets right of a data set.

    Returns:
        `templates`: of each its `right` ones, `examples`, and `macro_f1` where all have the same choices; `rows`, with
        a value for each row of the data set over the templates: `right`, `examples`, `random`, the expected number
        that a blind choice gets right, and `shortest` and `longest`, what these choices get right; and `notes`.

    Raises:
        InputError: there is no example with choices.
    """
    #: By template how often a choice was selected where one was right, and the choices, None where they differ.
    answers: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    choices: dict[str, frozenset[str] | None] = {}
    rights: Counter[str] = Counter()
    #: By row, which all templates of a data set share, what was counted.
    rows: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    open_ended = trained = 0
    pools = dataset.pools()
    with Ticker(f"classifying {dataset.key}", None, 0) as ticker:
        while block := list(islice(pools, BLOCK)):
            closed = [pool for pool in block if pool.example.choices]
            open_ended += len(block) - len(closed)
            for pool, selection in zip(closed, select_from_pools(scorer, closed), strict=True):
                example, own = pool.example, list(pool.example.choices)
                right = int(selection.response == example.right_choice)
                template = example.task.removeprefix(f"{dataset.name}/")
                if choices.setdefault(template, frozenset(own)) != frozenset(own):
                    choices[template] = None
                # Without classes there is nothing to tell apart.
                answers[template][(example.right_choice, selection.response) if choices[template] else ("", "")] += 1
                rights[template] += right
                trained += example.split == "train"
                row = rows["" if template != example.task else example.task, example.id]
                row["right"] += right
                row["examples"] += 1
                row["random"] += own.count(example.right_choice) / len(own)
                for name, sign in (("shortest", -1), ("longest", 1)):
                    row[name] += own[first_best([sign * len(choice) for choice in own])] == example.right_choice
            ticker.advance(len(block))
    if not rows:
        raise InputError(dataset.key, "has no example with choices, expected what can be classified")
    notes = dataset.notes()
    if open_ended:
        notes = [*notes, f"{dataset.key}: {counted(open_ended, 'example')} without choices left out"]
    if trained:
        notes = [*notes, f"{dataset.key}: {counted(trained, 'example')} of the split train, which the scorer may know"]
    for note in notes:
        say(note)
    return {
        "notes": notes,
        "templates": {
            name: {"right": rights[name], "examples": own.total()}
            | ({"macro_f1": macro_f1(own)} if choices[name] else {})
            for name, own in answers.items()
        },
        "rows": {name: [row[name] for row in rows.values()] for name in ("right", "examples", *BLIND)},
    }


def make_accuracy_report(
    results: dict[str, dict[str, Any]], known_as: dict[str, tuple[str, str]], seed: int = 0
) -> dict[str, Any]:
    """Accuracies with 95% bootstrap intervals over the rows of the data sets, and the published ones.

    The accuracy of a data set is the mean over its templates and rows, the average that over the data sets.

    Args:
        results: by data set, what `classify` gives.
        known_as: name and split of each, by which published figures are found.
        seed: of the bootstrap.
    """
    generator, published = np.random.default_rng(seed), published_promptsource()
    datasets: dict[str, Any] = {}
    draws = []
    for key, result in results.items():
        columns = np.array([result["rows"][name] for name in ("right", "examples", *BLIND)], dtype=np.float64)
        right, examples, *blind = columns.sum(axis=1)
        # A row is resampled with all its templates.
        sampled = resample(columns[:2], generator)
        draws.append(sampled[0] / sampled[1])
        datasets[key] = {
            "n_rows": columns.shape[1],
            "n_examples": int(examples),
            "notes": result["notes"],
            "accuracy": interval(right / examples, draws[-1]),
            **{name: value / examples for name, value in zip(BLIND, blind, strict=True)},
            "templates": {
                name: {"n_examples": own["examples"], "accuracy": _accuracy(own["right"], own["examples"], generator)}
                | ({"macro_f1": own["macro_f1"]} if "macro_f1" in own else {})
                for name, own in result["templates"].items()
            },
        }
        name, split = known_as[key]
        # A test file does not name its split.
        known = [figures for (one, part), figures in published.items() if one == name and split in ("", part)]
        if len(known) == 1:
            datasets[key]["known_as"], datasets[key]["published"] = known[0]
    mean = float(np.mean([one["accuracy"]["mean"] for one in datasets.values()]))
    return {
        "metric": "accuracy",
        "datasets": datasets,
        "average": {
            "n_datasets": len(datasets),
            "accuracy": interval(mean, np.mean(draws, axis=0)),
            **{name: float(np.mean([one[name] for one in datasets.values()])) for name in BLIND},
        },
    }


def _accuracy(right: int, examples: int, generator: np.random.Generator) -> dict[str, float]:
    """With its interval: the number of right ones among as many examples drawn again is binomial."""
    return interval(right / examples, generator.binomial(examples, right / examples, RESAMPLES) / examples)


def accuracy_tables(report: dict[str, Any]) -> list[Table]:
    """By data set, and by template; figures times 100."""
    parts = report["datasets"]
    models = list(next((part["published"] for part in parts.values() if "published" in part), {}))
    rows = []
    for key, part in [*parts.items(), ("average", report["average"])]:
        accuracy = part["accuracy"]
        row = [part.get("known_as", key), part.get("n_rows", ""), *(f"{100 * part[name]:.1f}" for name in BLIND)]
        row += [f"{100 * accuracy['mean']:.1f}", f"[{percent_range(accuracy)}]"]
        known = part.get("published", {})
        if key == "average" and all("published" in one for one in parts.values()):
            known = {name: float(np.mean([one["published"][name] for one in parts.values()])) for name in models}
        rows.append([*row, *(f"{100 * known[name]:.1f}" if name in known else "" for name in models)])
    header = ["data set", "rows", *BLIND, "accuracy", "interval", *models]
    note = "Right of the interval: as published (arXiv 2311.06720)." if models else ""
    by_template = [
        [
            key,
            name,
            own["n_examples"],
            f"{100 * own['accuracy']['mean']:.1f}",
            f"[{percent_range(own['accuracy'])}]",
            f"{100 * own['macro_f1']:.1f}" if "macro_f1" in own else "",
        ]
        for key, part in parts.items()
        for name, own in part["templates"].items()
    ]
    return [
        Table("Accuracy x 100 with 95% intervals", header, rows, note),
        Table("By template", ["data set", "template", "examples", "accuracy", "interval", "macro-F1"], by_template),
    ]


def _chart(report: dict[str, Any]) -> Figure:
    parts = report["datasets"]
    names = list(parts)[::-1]
    means = np.array([100 * parts[name]["accuracy"]["mean"] for name in names])
    ends = np.array([[100 * parts[name]["accuracy"][end] for name in names] for end in ("low", "high")])
    figure = Figure(figsize=(7, 0.4 * len(names) + 1.4), layout="constrained")
    axis = figure.subplots()
    axis.barh(names, means, color="tab:blue", xerr=np.abs(ends - means), error_kw={"ecolor": "0.35", "capsize": 2})
    axis.plot(
        [100 * parts[name]["random"] for name in names], names, "|", color="tab:red", label="random", markersize=12
    )
    axis.set(xlabel="accuracy x 100", xlim=(0, 100))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure

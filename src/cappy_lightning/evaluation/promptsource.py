"""`cappy evaluate promptsource`: a scorer alone as a classifier, over templates of classification data sets.

Each data set's result lies in `OUT/datasets` as soon as it is there, with its report of selections as a page: what is
finished is not done again.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cappy_lightning.config import LabelConfig
from cappy_lightning.errors import InputError
from cappy_lightning.evaluation.published import published_promptsource
from cappy_lightning.files import hashes, is_scratch, make_dir, open_locked, read_json, read_jsonl, write_json
from cappy_lightning.labeling.measures import open_measure
from cappy_lightning.labeling.rouge import RougeL
from cappy_lightning.page import Page, Table, print_table, write_page, write_picture
from cappy_lightning.progress import Ticker, console, counted, say, show_places
from cappy_lightning.records import Example, Pool, Selection
from cappy_lightning.scorer.pretrained import PretrainedScorer
from cappy_lightning.selection.baselines import RANDOM, SCORER, method_values, rewards
from cappy_lightning.selection.bootstrap import interval, percent_range, resample
from cappy_lightning.selection.charts import report_page
from cappy_lightning.selection.engine import check_loadable, select_from_pools, selections_beside
from cappy_lightning.selection.report import check_beside, make_report
from cappy_lightning.sources.spec import Dataset, Sources

Floats = NDArray[np.float64]

REPORT, PAGE, PICTURE, MADE_BY, DATASETS = "report.json", "report.html", "report.png", "made_by.json", "datasets"

#: Pools that are scored before the progress is shown again.
BLOCK = 256

#: Characters of a data set's name in the name of a file, which may have 255.
_LONGEST = 200

#: Choices that do not look at the question.
BLIND = (RANDOM, "shortest", "longest")


def evaluate_promptsource(
    source: Sequence[str],
    scorer: str,
    adapter: str | None,
    activation: str | None,
    out: Path,
    as_json: bool,
    beside: Sequence[str] = (),
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
        beside: other scorers, used as they are, to be compared with.

    Raises:
        InputError: what cannot be used; `out` is of another evaluation.
    """
    datasets, read = open_datasets(source)
    make_dir(out)
    with open_locked(out / ".lock", out, "evaluation"):
        missing = [dataset for dataset in datasets if not _file(out, dataset).exists()]
        loaded = None
        if missing:  # before the directory is claimed: what cannot be loaded leaves nothing behind
            check_beside(beside, SCORER)
            check_loadable(beside)
            loaded = PretrainedScorer.from_pretrained(scorer, adapter, activation=activation)
        made_by = {
            "source": list(source),
            "scorer": scorer,
            "adapter": adapter,
            "activation": activation,
            "beside": list(beside),
            "sha256": hashes([scorer, *([adapter] if adapter else []), *beside, *read]),
        }
        _claim(out, made_by)
        for dataset in missing:
            assert loaded is not None
            say(f"{dataset.key}: data set {datasets.index(dataset) + 1} of {len(datasets)}")
            result, file = classify(loaded, dataset, beside), _file(out, dataset)
            make_dir(file.parent)
            write_page(report_page(result["report"], f"{dataset.key}: {scorer}"), file.with_suffix(".html"))
            write_json(file, result)
        results = {d.key: read_json(_file(out, d)) for d in datasets}
        report = make_accuracy_report(results, {d.key: (d.name, d.split or "") for d in datasets})
        write_json(out / REPORT, report)
        write_picture(_chart(report), out / PICTURE)
        tables = accuracy_tables(report)
        facts = [f"source: {' '.join(source)}", f"the report of each data set: {out / DATASETS}"]
        facts += [note for one in results.values() for note in one["notes"]]
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
        given = all(isinstance(text, str) and text for text in texts) and row.get("example_idx") is not None
        if not given or row.get("label") not in (0, 1):
            names = "dataset_name, template_name, example_idx, instruction, response and label (0 or 1)"
            raise InputError(where, f"expected {names}")
        dataset, template, instruction, response = map(str, texts)
        identity = str(row["example_idx"])
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


def classify(scorer: PretrainedScorer, dataset: Dataset, beside: Sequence[str] = ()) -> dict[str, Any]:
    """What the scorer, and others beside it, choose in a data set.

    Returns:
        `report`: that of the selections, with a task for each template; `rows`: for each row of the data set the
        `examples` that the templates make of it, and how many of these each method gets `right`, `random` on average;
        and `notes`.

    Raises:
        InputError: there is no example with choices.
    """
    pools: list[Pool] = []
    selections: list[Selection] = []
    left_out: Counter[str] = Counter()
    everything = dataset.pools()
    with Ticker(f"classifying {dataset.key}", None, 0) as ticker:
        while block := list(islice(everything, BLOCK)):
            closed = []
            for pool in block:
                if not pool.example.choices:
                    left_out["without choices"] += 1
                elif len(set(pool.example.choices)) == 1:  # right whatever is chosen
                    left_out["with one choice"] += 1
                else:
                    closed.append(pool)
            pools += closed
            selections += select_from_pools(scorer, closed)
            ticker.advance(len(block))
    if not pools:
        raise InputError(dataset.key, "has no example with choices, expected what can be classified")
    counts = [f"{dataset.key}: {counted(count, 'example')} {what} left out" for what, count in left_out.items()]
    notes = [*dataset.notes(), *counts]
    if trained := sum(pool.example.split == "train" for pool in pools):
        notes.append(f"{dataset.key}: {counted(trained, 'example')} of the split train, which the scorer may know")
    for note in notes:
        say(note)
    others = selections_beside(beside, pools)
    report = make_report(pools, selections, beside=others)
    return {"notes": notes, "report": report, "rows": _by_row(dataset, pools, {SCORER: selections, **others})}


def _by_row(dataset: Dataset, pools: Sequence[Pool], chosen: Mapping[str, Sequence[Selection]]) -> dict[str, Any]:
    """The examples of each row, which all templates of a data set share, and what each method gets right of them."""
    label = LabelConfig()
    gains = rewards(pools, open_measure(label.score, label.tokenizer))
    values, _ = method_values(pools, gains, chosen, RougeL(label.tokenizer))
    places: dict[tuple[str, str], int] = {}
    which = []
    for pool in pools:
        task = "" if pool.example.task.startswith(f"{dataset.name}/") else pool.example.task
        which.append(places.setdefault((task, pool.example.id), len(places)))
    right = {name: np.bincount(which, weights=values[name]).tolist() for name in (*BLIND, *chosen)}
    return {"examples": np.bincount(which).tolist(), "right": right}


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
    means: list[dict[str, float]] = []
    draws: list[dict[str, Floats]] = []
    for key, result in results.items():
        examples, right = np.array(result["rows"]["examples"], dtype=np.float64), result["rows"]["right"]
        # A row is resampled with all its templates.
        total, *sampled = resample(np.array([examples, *right.values()]), generator)
        means.append({name: sum(column) / examples.sum() for name, column in right.items()})
        draws.append({name: own / total for name, own in zip(right, sampled, strict=True)})
        datasets[key] = {
            "n_rows": len(examples),
            "n_examples": int(examples.sum()),
            "notes": result["notes"],
            **_compare(means[-1], draws[-1]),
            "templates": {
                task.removeprefix(f"{known_as[key][0]}/"): {
                    "n_examples": part["n_examples"],
                    "accuracy": part["methods"][SCORER],
                }
                | ({"macro_f1": part["classification"]["macro_f1"]} if "classification" in part else {})
                for task, part in result["report"]["tasks"].items()
            },
        }
        name, split = known_as[key]
        # A test file does not name its split.
        known = [figures for (one, part), figures in published.items() if one == name and split in ("", part)]
        if len(known) == 1:
            datasets[key]["known_as"], datasets[key]["published"] = known[0]
    average = {name: float(np.mean([own[name] for own in means])) for name in means[0]}
    drawn = {name: np.mean([own[name] for own in draws], axis=0) for name in average}
    return {
        "metric": "accuracy",
        "datasets": datasets,
        "average": {"n_datasets": len(datasets), **_compare(average, drawn)},
    }


def _compare(means: Mapping[str, float], draws: Mapping[str, Floats]) -> dict[str, Any]:
    """The scorer's accuracy, that of the others, and by how much it is better than each."""
    others = [name for name in means if name != SCORER]
    return {
        "accuracy": interval(means[SCORER], draws[SCORER]),
        **{name: float(means[name]) for name in BLIND},
        "beside": {name: interval(means[name], draws[name]) for name in others if name not in BLIND},
        "differences": {name: interval(means[SCORER] - means[name], draws[SCORER] - draws[name]) for name in others},
    }


def accuracy_tables(report: dict[str, Any]) -> list[Table]:
    """By data set, and by template; figures times 100."""
    parts = report["datasets"]
    models = list(next((part["published"] for part in parts.values() if "published" in part), {}))
    rows = []
    for key, part in [*parts.items(), ("average", report["average"])]:
        row = [part.get("known_as", key), part.get("n_rows", ""), *(f"{100 * part[name]:.1f}" for name in BLIND)]
        row += [f"{100 * value['mean']:.1f}" for value in part["beside"].values()]
        row += [f"{100 * part['accuracy']['mean']:.1f}", f"[{percent_range(part['accuracy'])}]"]
        best, gain = min(part["differences"].items(), key=lambda one: one[1]["mean"])
        row += [f"{100 * gain['mean']:+.1f} [{percent_range(gain, '+')}] {best}"]
        known = part.get("published", {})
        if key == "average" and all("published" in one for one in parts.values()):
            known = {name: float(np.mean([one["published"][name] for one in parts.values()])) for name in models}
        rows.append([*row, *(f"{100 * known[name]:.1f}" if name in known else "" for name in models)])
    header = ["data set", "rows", *BLIND, *report["average"]["beside"], "accuracy", "interval"]
    header += ["than the best other", *models]
    note = "Right of that: as published (arXiv 2311.06720)." if models else ""
    by_template = [
        [
            key,
            name,
            own["n_examples"],
            f"{100 * own['accuracy']['mean']:.1f}",
            f"[{percent_range(own['accuracy'])}]",
            f"{100 * own['macro_f1']['mean']:.1f} [{percent_range(own['macro_f1'])}]" if "macro_f1" in own else "",
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
    for place, other in enumerate(report["average"]["beside"]):
        values = [100 * parts[name]["beside"][other]["mean"] for name in names]
        axis.plot(values, names, "D", color=f"C{place + 1}", label=other, markersize=5)
    axis.set(xlabel="accuracy x 100", xlim=(0, 100))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure

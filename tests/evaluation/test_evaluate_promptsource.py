"""`cappy evaluate promptsource`: accuracies by hand, over templates and over a test file."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from forked import Forked
from torchmetrics.classification import MulticlassF1Score

from cappy_lightning import Cappy
from cappy_lightning.evaluation import promptsource
from cappy_lightning.evaluation.published import published_promptsource

#: Of a data set with two templates: (template, example, instruction, responses, does the scorer get it right).
CASES = [
    ("is it", 0, "Is a teapot a pot?", ("yes", "no", "maybe"), True),
    ("is it", 1, "Is a cup a pot?", ("yes", "no", "maybe"), False),
    ("is it", 2, "Is a jug a pot?", ("yes", "no", "maybe"), True),
    ("it is", 0, "A teapot is a pot, is it not?", ("it is", "it is not"), True),
    ("it is", 1, "A cup is a pot, is it not?", ("it is", "it is not"), True),
    ("it is", 2, "A jug is a pot, is it not?", ("it is", "it is not"), False),
]

TEMPLATES = """
dataset: mail
templates:
  a: !Template
    answer_choices: Praise ||| Complaint
    jinja: "{{mail}} Praise or complaint? ||| {{ answer_choices[label] }}"
    name: short
  b: !Template
    answer_choices: Yes ||| No
    jinja: "Is this praise? {{mail}} ||| {{ answer_choices[label] }}"
    name: in/out
  c: !Template
    answer_choices: null
    jinja: "Answer: {{mail}} ||| Thanks"
    name: open
"""


def write_tests(cappy: Cappy, path: Path) -> Path:
    """A test file of the reference implementation in which the scorer's choices are right where CASES say so."""
    lines = []
    for template, number, instruction, responses, right in CASES:
        picked = cappy.select(instruction, responses).index
        label = picked if right else (picked + 1) % len(responses)
        for place, response in enumerate(responses):
            row = {"dataset_name": "pots", "template_name": template, "example_idx": number}
            lines.append(row | {"instruction": instruction, "response": response, "label": int(place == label)})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def macro_f1(tests: Path, template: str, run: Path) -> float:
    """Of the examples of a test file, by torchmetrics."""
    by_example: dict[int, list[dict[str, Any]]] = {}
    for row in map(json.loads, tests.read_text().splitlines()):
        if row["template_name"] == template:
            by_example.setdefault(row["example_idx"], []).append(row)
    scorer, classes = Cappy.from_pretrained(run / "adapter"), sorted({row["response"] for row in by_example[0]})
    pairs = []
    for rows in by_example.values():
        right = next(row["response"] for row in rows if row["label"])
        selected = scorer.select(rows[0]["instruction"], [row["response"] for row in rows]).response
        pairs.append((classes.index(selected), classes.index(right)))
    metric = MulticlassF1Score(len(classes))
    return float(metric(*torch.tensor(pairs).T))


def report_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "report.json").read_text()))


def test_a_test_file_gives_the_accuracies_computed_by_hand(cappy: Run, lora_run: Path, tmp_path: Path) -> None:
    tests, out = tmp_path / "tests.jsonl", tmp_path / "out"
    write_tests(Cappy.from_pretrained(lora_run / "adapter"), tests)
    done = cappy("evaluate", "promptsource", tests, "--scorer", lora_run / "adapter", "-o", out)
    assert done.returncode == 0, done.stderr
    part = report_of(out)["datasets"]["pots"]
    assert (part["n_rows"], part["n_examples"]) == (3, 6)
    found = {name: (own["n_examples"], own["accuracy"]["mean"]) for name, own in part["templates"].items()}
    assert found == {
        "is it": (3, pytest.approx(2 / 3)),
        "it is": (3, pytest.approx(2 / 3)),
    }
    for name, own in part["templates"].items():
        assert own["accuracy"]["low"] == 0  # of three examples, two of them right, none is right in one of 27 resamples
        assert own["accuracy"]["high"] == 1
        assert own["macro_f1"]["mean"] == pytest.approx(macro_f1(tests, name, lora_run))
    assert part["accuracy"]["mean"] == pytest.approx(4 / 6)
    assert part["random"] == pytest.approx((3 / 3 + 3 / 2) / 6)
    by_example: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for row in map(json.loads, tests.read_text().splitlines()):
        by_example.setdefault((row["template_name"], row["example_idx"]), []).append((row["response"], row["label"]))
    for name, extreme in (("shortest", min), ("longest", max)):  # of equally long ones the first
        right = [extreme(rows, key=lambda pair: len(pair[0]))[1] for rows in by_example.values()]
        assert part[name] == pytest.approx(sum(right) / 6)
    # Rows got 2, 1 and 1 of 2 right: no resample can be below 1/2 or above 1.
    assert 0.5 <= part["accuracy"]["low"] < 4 / 6 < part["accuracy"]["high"] <= 1
    assert report_of(out)["average"]["accuracy"] == part["accuracy"]
    for name in ("random", "shortest", "longest"):
        assert part["differences"][name]["mean"] == pytest.approx(4 / 6 - part[name])
    assert " 66.7 " in done.stdout
    assert "data:image/png" in (out / "report.html").read_text()


def test_a_data_set_has_the_report_of_its_selections_and_other_scorers_stand_beside(
    cappy: Run, lora_run: Path, full_run: Path, tmp_path: Path
) -> None:
    tests, out, other = tmp_path / "tests.jsonl", tmp_path / "out", str(full_run / "model")
    write_tests(Cappy.from_pretrained(other), tests)
    row = {"dataset_name": "pots", "template_name": "is it", "example_idx": 9, "instruction": "Is it?"}
    with open(tests, "a", encoding="utf-8") as stream:  # right whatever is chosen
        stream.write(json.dumps(row | {"response": "yes", "label": 1}) + "\n")
    words = ["evaluate", "promptsource", tests, "--scorer", lora_run / "adapter", "-o", out, "--beside", other]
    done = cappy(*words)
    assert done.returncode == 0, done.stderr
    assert "pots: 1 example with one choice left out" in done.stderr
    part = report_of(out)["datasets"]["pots"]
    assert part["n_examples"] == 6
    assert part["beside"][other]["mean"] == pytest.approx(4 / 6)  # as CASES say of that scorer
    assert part["differences"][other]["mean"] == pytest.approx(part["accuracy"]["mean"] - 4 / 6)
    report = json.loads((out / "datasets" / "pots.json").read_text())["report"]
    assert set(report["tasks"]) == {"pots/is it", "pots/it is"}
    assert {"classification", "recovered", "differences"} <= set(report["tasks"]["pots/it is"])
    assert report["average"]["methods"][other]["mean"] == pytest.approx(4 / 6)
    assert {"calibration", "length", "most_wrong"} <= set(report)
    page = (out / "datasets" / "pots.html").read_text()
    assert "The most wrong selections" in page
    assert "What is taken for what: pots/is it" in page
    done = cappy(*words[:-1], full_run / "adapter_of_nobody", "-o", tmp_path / "new")
    assert (done.returncode, (tmp_path / "new" / "made_by.json").exists()) == (2, False)
    assert "adapter_of_nobody: does not exist" in done.stderr


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Two splits of a data set with three templates, one of them open-ended."""
    (tmp_path / "templates.yaml").write_text(TEMPLATES)
    rows = [{"mail": text, "label": n % 2} for n, text in enumerate(("Lovely!", "Broken.", "Superb.", "Late again."))]
    text = "sources:\n"
    for split, own in (("one", rows), ("two", rows[:3])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
        text += f"  - {{files: [{tmp_path / split}.jsonl], templates: {tmp_path}/templates.yaml, split: {split}}}\n"
    (tmp_path / "sources.yaml").write_text(text)
    return tmp_path / "sources.yaml"


def test_templates_are_classified_and_the_average_is_over_data_sets(
    cappy: Run, lora_run: Path, tmp_path: Path, sources: Path
) -> None:
    out = tmp_path / "out"
    words = ["evaluate", "promptsource", sources, "--scorer", lora_run / "adapter", "-o", out]
    done = cappy(*words, "--json")
    assert done.returncode == 0, done.stderr
    report = report_of(out)
    assert json.loads(done.stdout) == {"directory": str(tmp_path / "out")} | report
    assert list(report["datasets"]) == ["mail one", "mail two"]
    scorer, right = Cappy.from_pretrained(lora_run / "adapter"), []
    for mail, label in (("Lovely!", 0), ("Broken.", 1), ("Superb.", 0), ("Late again.", 1)):
        pair = (f"{mail} Praise or complaint?", ("Praise", "Complaint")), (f"Is this praise? {mail}", ("Yes", "No"))
        right.append([scorer.select(*one).index == label for one in pair])
    one, two = report["datasets"].values()
    assert one["templates"]["short"]["accuracy"]["mean"] == sum(first for first, _ in right) / 4
    assert one["templates"]["in/out"]["accuracy"]["mean"] == sum(second for _, second in right) / 4
    assert two["accuracy"]["mean"] == pytest.approx(sum(map(sum, right[:3])) / 6)
    mean = (one["accuracy"]["mean"] + two["accuracy"]["mean"]) / 2
    assert report["average"]["accuracy"]["mean"] == pytest.approx(mean)
    assert "mail one: 4 examples without choices left out" in done.stderr


def test_what_is_finished_is_not_classified_again(
    cappy: Run, lora_run: Path, tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", "promptsource", sources, "--scorer", lora_run / "adapter", "-o"]
    assert cappy(*words, tmp_path / "whole").returncode == 0
    real, names = promptsource.classify, []

    def second_stops(scorer: Cappy, dataset: promptsource.Dataset, beside: list[str]) -> dict[str, Any]:
        names.append(dataset.key)
        if len(names) == 2:
            raise KeyboardInterrupt
        return real(scorer, dataset, beside)

    monkeypatch.setattr(promptsource, "classify", second_stops)
    assert cappy(*words, tmp_path / "out").returncode == 130
    for file in (sources.with_name("two.jsonl"), sources.with_name("templates.yaml")):
        os.utime(file)  # copied anew, with the same content
    assert [cappy(*words, tmp_path / "out").returncode for _ in range(2)] == [0, 0]
    assert names == ["mail one", "mail two", "mail two"]
    assert report_of(tmp_path / "out") == report_of(tmp_path / "whole")
    done = cappy(*words[:2], sources, "--scorer", "embedded", "-o", tmp_path / "out")
    assert (done.returncode, "holds an evaluation of another source or scorer" in done.stderr) == (2, True)
    with open(sources.with_name("two.jsonl"), "a", encoding="utf-8") as stream:
        stream.write('{"mail": "Thanks a lot!", "label": 0}\n')
    done = cappy(*words, tmp_path / "out")
    assert (done.returncode, "or these have changed since" in done.stderr) == (2, True)
    assert cappy(*words, tmp_path / "again").returncode == 0
    templates = sources.with_name("templates.yaml")
    templates.write_text(templates.read_text().replace("Is this praise?", "Is that praise?"))
    done = cappy(*words, tmp_path / "again")
    assert (done.returncode, "or these have changed since" in done.stderr) == (2, True)
    done = cappy(*words, lora_run)
    assert (done.returncode, "holds other files, expected a new directory" in done.stderr) == (2, True)


def test_killed_and_continued_it_ends_with_the_same_report(
    cappy: Run, lora_run: Path, tmp_path: Path, sources: Path
) -> None:
    rows = [{"mail": f"Order {n} came late.", "label": n % 2} for n in range(300)]
    sources.with_name("two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", "promptsource", sources, "--scorer", lora_run / "adapter", "-o"]
    assert cappy(*words, tmp_path / "whole").returncode == 0
    out, first = tmp_path / "out", tmp_path / "out" / "datasets" / "mail%20one.json"
    process = Forked(tmp_path / "printed", *words, out)
    while not first.exists():
        assert process.returncode is None, process.stderr
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (out / "report.json").exists()
    finished = first.stat().st_mtime_ns
    assert cappy(*words, out).returncode == 0
    assert first.stat().st_mtime_ns == finished
    assert report_of(out) == report_of(tmp_path / "whole")


def test_damaged_files_of_an_evaluation_are_one_line_and_scratch_is_no_other_file(
    cappy: Run, lora_run: Path, tmp_path: Path, sources: Path
) -> None:
    out = tmp_path / "out"
    words = ["evaluate", "promptsource", sources, "--scorer", lora_run / "adapter", "-o", out]
    out.mkdir()
    (out / ".made_by.json.scratch").write_text("{")  # of a kill while the directory was claimed
    assert cappy(*words).returncode == 0
    for file in ("made_by.json", f"datasets/{next((out / 'datasets').glob('*.json')).name}"):
        before = (out / file).read_text()
        (out / file).write_text(before[:5])
        done = cappy(*words)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (
            2,
            f"cappy: {out / file}: is damaged, expected a JSON object; remove it to have it made again",
        )
        (out / file).write_text(before)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"label": 2}, "tests.jsonl:1: expected dataset_name, template_name, example_idx, instruction, response and"),
        ({"response": ""}, "tests.jsonl:1: expected dataset_name"),
        ({"example_idx": None}, "tests.jsonl:1: expected dataset_name, template_name, example_idx"),
        ({"label": 0}, "tests.jsonl: pots, t, example 1: expected one instruction, and the label 1 for one response"),
        ({"instruction": "other"}, "tests.jsonl: pots, t, example 1: expected one instruction"),
    ],
)
def test_a_bad_test_file_is_one_line(
    cappy: Run, lora_run: Path, tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    row = {"dataset_name": "pots", "template_name": "t", "example_idx": 1, "instruction": "i", "response": "a"}
    rows = [row | {"label": 1} | change, row | {"response": "b", "label": 0}]
    path = tmp_path / "tests.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    done = cappy("evaluate", "promptsource", path, "--scorer", lora_run / "adapter", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert problem in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "report.json").exists()


def test_data_sets_without_choices_are_refused(cappy: Run, lora_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "open.jsonl"
    path.write_text(json.dumps({"task": "t", "instruction": "i", "references": ["a"]}) + "\n")
    done = cappy("evaluate", "promptsource", path, "--scorer", lora_run / "adapter", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "open: has no example with choices, expected what can be classified" in done.stderr


def test_tasks_of_a_table_do_not_share_rows_and_training_rows_are_told(
    cappy: Run, lora_run: Path, tmp_path: Path
) -> None:
    row = {"instruction": "Is a cup a pot?", "choices": ["yes", "no"], "label": 1}
    rows = [row | {"task": task, "id": str(n), "split": "train"} for task in ("a", "b") for n in range(3)]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    done = cappy(
        *("evaluate", "promptsource", tmp_path / "table.jsonl", "--scorer", lora_run / "adapter"),
        *("-o", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert report_of(tmp_path / "out")["datasets"]["table"]["n_rows"] == 6
    assert "table: 6 examples of the split train, which the scorer may know" in done.stderr


def test_a_test_file_stands_beside_published_figures_that_are_of_one_split() -> None:
    right = {"random": [0.5, 0.5], "shortest": [1, 1], "longest": [0, 0], "cappy": [1, 0]}
    rows = {"examples": [1, 1], "right": right}
    result = {"notes": [], "report": {"tasks": {}}, "rows": rows}
    names = ("super_glue/cb", "anli")
    report = promptsource.make_accuracy_report(dict.fromkeys(names, result), {name: (name, "") for name in names})
    assert report["datasets"]["super_glue/cb"]["known_as"] == "CB"
    assert "known_as" not in report["datasets"]["anli"]  # three splits have figures


def test_published_accuracies_average_to_the_papers() -> None:
    rows = [values for _, values in published_promptsource().values()]
    assert len(rows) == 11
    for model, mean in (("OPT 30B", 47.6), ("OPT-IML 175B", 56.5), ("T0 11B", 58.2), ("Cappy 0.36B", 56.6)):
        assert 100 * sum(row[model] for row in rows) / 11 == pytest.approx(mean, abs=0.06)

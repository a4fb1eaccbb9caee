"""`cappy evaluate bigbench`: a run a task, and one report."""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import QUICKSTART_POOL, SHORT_RUN, TINY_SCORER, Run
from forked import Forked
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from cappy_lightning.evaluation.published import published_bigbench
from cappy_lightning.scorer.model import resolve_base
from cappy_lightning.sources.bigbench import GENERATION_TASKS, cached_path, fetch

TASKS = ("tense", "operators")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two tasks with the quickstart's pools under other names, with few steps."""
    folder = tmp_path_factory.mktemp("pools")
    rows = [json.loads(line) for line in QUICKSTART_POOL.read_text(encoding="utf-8").splitlines()]
    for number, task in enumerate(TASKS):
        own = [row | {"task": task} for row in rows[number::2]]
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
    recorded = f"data.pool={folder}/${{data.task}}.jsonl"
    return ["evaluate", "bigbench", *SHORT_RUN, *TINY_SCORER, recorded, "select.by=fused"]


@pytest.fixture(scope="module")
def evaluated(cappy: Run, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed evaluation."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    done = cappy(*words, "--tasks", ",".join(TASKS), "-o", out)
    assert done.returncode == 0, done.stderr
    assert "task 2 of 2: operators" in done.stderr
    for shown in (
        "By task",
        "average over 2 tasks",
        "Cappy as published",
        "flan-t5-xxl",
        f"results: {out}/report.json",
    ):
        assert shown in done.stdout
    return out


def test_the_report_is_that_of_the_tasks_beside_the_published_figures(evaluated: Path) -> None:
    report = json.loads((evaluated / "report.json").read_text())
    assert list(report["tasks"]) == list(TASKS)
    for task in TASKS:
        own = json.loads((evaluated / "tasks" / task / "report.json").read_text())["tasks"][task]
        for name, value in own["methods"].items():
            assert report["tasks"][task]["methods"][name]["mean"] == value["mean"]
        assert report["published"][task] == published_bigbench()[task]
    for name in ("cappy", "fused", "mbr"):
        means = [report["tasks"][task]["methods"][name]["mean"] for task in TASKS]
        assert report["average"]["methods"][name]["mean"] == pytest.approx(sum(means) / 2)
    page = (evaluated / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert "61.2" not in page  # auto_categorization's
    assert f"{100 * published_bigbench()['tense']['flan-t5-xxl']:.1f}" in page
    assert (evaluated / "report.png").read_bytes().startswith(b"\x89PNG")


def test_killed_and_continued_it_ends_with_the_same_report(
    cappy: Run, words: list[str], evaluated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [*words, "--tasks", ",".join(TASKS), "-o", str(out)]
    for moment in ("tasks/tense/folds/0/config.yaml", "tasks/operators/config.yaml"):
        process = Forked(tmp_path / moment.replace("/", "-"), *command)
        for _ in range(600):
            if (out / moment).exists():
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"ended with {process.wait(0.1)} before {moment}")
        else:
            raise AssertionError(f"{moment} did not come")
        process.kill()
        process.wait()
    finished = (out / "tasks" / "tense" / "metrics.json").stat().st_mtime_ns
    done = cappy(*command)
    assert done.returncode == 0, done.stderr
    assert (out / "tasks" / "tense" / "metrics.json").stat().st_mtime_ns == finished
    ours, theirs = (json.loads((folder / "report.json").read_text()) for folder in (out, evaluated))
    assert ours == theirs


def test_shards_share_the_tasks_and_the_last_makes_the_report(
    cappy: Run, words: list[str], evaluated: Path, tmp_path: Path
) -> None:
    quick = [word for word in words if not word.startswith("select.by")]
    for shard, left in (("1/2", ["operators"]), ("0/2", ["operators", "tense"])):
        done = cappy(*quick, "--tasks", ",".join(TASKS), "-o", tmp_path / "out", "--shard", shard)
        assert done.returncode == 0, done.stderr
        assert sorted(path.name for path in (tmp_path / "out" / "tasks").iterdir()) == left
        assert (tmp_path / "out" / "report.json").exists() == (len(left) == 2)
    ours, theirs = (json.loads((folder / "report.json").read_text()) for folder in (tmp_path / "out", evaluated))
    assert "fused" not in ours["average"]["methods"]
    assert ours["average"]["methods"]["cappy"]["mean"] == theirs["average"]["methods"]["cappy"]["mean"]


def test_a_task_that_fails_leaves_the_others_and_their_report(
    cappy: Run, words: list[str], evaluated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(evaluated, out)
    (out / "report.json").unlink()
    done = cappy(*words, "--tasks", f"{TASKS[0]},gem,{TASKS[1]}", "-o", out)
    assert done.returncode == 2
    assert "gem.jsonl: cannot be read" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("1 of 3 tasks failed: gem; the others are done")
    ours, theirs = (json.loads((folder / "report.json").read_text()) for folder in (out, evaluated))
    assert "gem.jsonl: cannot be read" in ours.pop("failed")["gem"]
    assert ours == theirs
    assert "failed: gem (" in (out / "report.html").read_text()


def test_references_that_have_changed_since_are_refused(
    cappy: Run, words: list[str], evaluated: Path, tmp_path: Path
) -> None:
    recorded = next(word for word in words if word.startswith("data.pool="))
    folder = Path(recorded.removeprefix("data.pool=")).parent
    file = folder / f"{TASKS[0]}.jsonl"
    before = file.read_text()
    try:
        rows = [json.loads(line) | {"references": ["other"]} for line in before.splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = cappy(*words, "--tasks", ",".join(TASKS), "-o", evaluated)
    finally:
        file.write_text(before)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "instances/train: the data have changed since this run began, expected the same or another run_dir"
    )


@pytest.mark.parametrize("word", [("--scorer", "no/such/model"), ("--beside", "./missing")])
def test_scorers_that_are_not_there_are_refused_before_the_first_task(
    cappy: Run, words: list[str], tmp_path: Path, word: tuple[str, str]
) -> None:
    own = [one for one in words if one not in TINY_SCORER]
    done = cappy(*own, "--tasks", "tense", "-o", tmp_path / "out", *word)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{word[1]}: does not exist, expected a model directory or a hub name" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--tasks", "tense,tense"], "--tasks: names a task twice"),
        ([], "--tasks: is missing, expected the tasks of data.pool"),
        (["--tasks", "tense", "--shard", "2/2"], "--shard: is '2/2', expected I/N"),
        (["--tasks", "tense", "trainer.epoch=3"], "trainer.epoch=3: unknown key"),
        (["--tasks", "tense", "--backbone", "gpt"], "backbone.kind: is 'gpt'"),
        (["--tasks", "te nse"], "--tasks: names 'te nse', expected names of tasks, separated by commas"),
        (["--tasks", ",tense"], "--tasks: names '', expected names of tasks"),
        (["--tasks", "tense,navigate", "data.pool=[]"], "names tasks with references and tasks with choices"),
    ],
)
def test_bad_words_are_one_line(cappy: Run, words: list[str], tmp_path: Path, more: list[str], problem: str) -> None:
    done = cappy(*words, "-o", tmp_path / "out", *more)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert problem in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_recipe_nothing_is_run(cappy: Run, tmp_path: Path) -> None:
    done = cappy("evaluate", "bigbench", "--backbone", "embedded", "--tasks", "tense", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert (
        done.stderr == "cappy: cappy evaluate bigbench: no recipe, expected RECIPE.yaml, such as conf/bigbench.yaml\n"
    )


def test_one_file_can_have_the_pools_of_all_tasks_and_another_scorer_is_a_row(
    cappy: Run, words: list[str], evaluated: Path, lora_run: Path, tmp_path: Path
) -> None:
    folder = Path(next(word for word in words if word.startswith("data.pool=")).removeprefix("data.pool=")).parent
    (tmp_path / "all.jsonl").write_text("".join((folder / f"{task}.jsonl").read_text() for task in TASKS))
    quick = [word for word in words if not word.startswith(("select.by", "data.pool"))]
    other, out = str(lora_run / "adapter"), tmp_path / "o #1: out"  # as YAML this would be a comment, or a mapping
    command = (*quick, f"data.pool={tmp_path}/all.jsonl", "--tasks", ",".join(TASKS), "-o", out, "--beside", other)
    done = cappy(*command)
    assert done.returncode == 0, done.stderr
    ours, theirs = (json.loads((place / "report.json").read_text()) for place in (out, evaluated))
    for task in TASKS:
        assert ours["tasks"][task]["n_examples"] == theirs["tasks"][task]["n_examples"]
        assert ours["tasks"][task]["methods"]["mbr"] == theirs["tasks"][task]["methods"]["mbr"]
    assert 0 < ours["average"]["methods"][other]["mean"] < 1
    assert other in ours["average"]["differences"]
    assert "candidates: recorded (data.pool)" in (out / "report.html").read_text()
    pools = tmp_path / "all.jsonl"
    pools.write_text(pools.read_text().replace('"response": "', '"response": "x'))
    done = cappy(*command)
    assert done.returncode == 2
    assert "tense/instances/train: the data have changed since this run began" in done.stderr


def test_published_figures_are_of_the_papers_tasks() -> None:
    published = published_bigbench()
    assert tuple(sorted(published)) == tuple(sorted(GENERATION_TASKS))
    # the averages of the paper's Table 2 (released reproduction)
    for backbone, mean in (("flan-t5-small", 23.6543), ("flan-t5-xl", 33.2775), ("flan-t5-xxl", 37.1678)):
        assert 100 * sum(row[backbone] for row in published.values()) / 45 == pytest.approx(mean, abs=1e-3)


def test_pool_files_of_the_reference_implementation_give_the_numbers_computed_by_hand(
    cappy: Run, tmp_path: Path
) -> None:
    def row(number: int, references: list[str], beam: str, sampled: list[tuple[str, float, float]]) -> str:
        samples = {
            "beam_4": [{"response": beam, "log_likelihood_sum": -1.0, "log_likelihood_mean": -0.5}],
            "sampling": [
                {"response": text, "log_likelihood_sum": total, "log_likelihood_mean": mean}
                for text, total, mean in sampled
            ],
        }
        head = {"dataset": "tense", "example_idx": number, "instruction": f"Q{number}?", "references": references}
        return json.dumps(head | {"flan_samples": samples}) + "\n"

    # Rouge-L 1, 2/3 (1 of 1 and 1 of 2 tokens) and 0
    one = row(0, ["red apple"], "red apple", [("red", -2.0, -2.0), ("green pear", -3.0, -1.5)])
    # 1/2 to either reference (stems: cats is cat), 1, 1/2
    two = row(1, ["two cats", "a dog"], "a cat", [("a dog", -4.0, -2.0), ("dog house", -2.0, -1.0)])
    (tmp_path / "tense_train.jsonl").write_text(one + two)
    (tmp_path / "tense_validation.jsonl").write_text(one + two)
    recorded = f"data.pool=['{tmp_path}/${{data.task}}_train.jsonl', '{tmp_path}/${{data.task}}_validation.jsonl']"
    out = tmp_path / "out"
    done = cappy("evaluate", "bigbench", *SHORT_RUN, *TINY_SCORER, recorded, "--tasks", "tense", "-o", out)
    assert done.returncode == 0, done.stderr
    methods = json.loads((out / "report.json").read_text())["tasks"]["tense"]["methods"]
    expected = {
        "random": (5 / 9 + 2 / 3) / 2,
        "beam_4": (1 + 1 / 2) / 2,
        "sampling": (1 / 3 + 3 / 4) / 2,
        "self_score_sum": (1 + 1 / 2) / 2,
        "self_score_mean": (1 + 1 / 2) / 2,
        "majority": (1 + 1 / 2) / 2,
        # red apple and red are alike to 2/3, the first wins; a dog is to 1/2 like either other answer
        "mbr": 1,
        "shortest": (2 / 3 + 1 / 2) / 2,
        "longest": (0 + 1 / 2) / 2,
        "oracle": 1,
    }
    chosen = [json.loads(line) for line in (out / "tasks" / "tense" / "selections.jsonl").read_text().splitlines()]
    assert [one["id"] for one in chosen] == ["validation:0", "validation:1"]
    gains = ((1, 2 / 3, 0), (1 / 2, 1, 1 / 2))
    expected["cappy"] = sum(own[one["index"]] for own, one in zip(gains, chosen, strict=True)) / 2
    assert {name: value["mean"] for name, value in methods.items()} == pytest.approx(expected)


def test_the_llm_is_asked_once_for_a_task_and_any_classifier_can_be_a_row(
    cappy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = cached_path("tense").parent
    fetch(["tense"])
    monkeypatch.setenv("CAPPY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / cached.name).symlink_to(cached)
    classifier = tmp_path / "classifier"  # as another library leaves one: nothing says how to read its logit
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    bert = AutoConfig.for_model("bert", **sizes, num_labels=1)
    AutoModelForSequenceClassification.from_config(bert).save_pretrained(classifier)
    AutoTokenizer.from_pretrained(resolve_base("embedded")).save_pretrained(classifier)
    few = ["data.max_train=4", "data.max_validation=4", "trainer.max_steps=2", "trainer.validations=1"]
    asked = [*few, "backbone.decodings={greedy: 1, temperature_0.7: 2}"]
    command = ["evaluate", "bigbench", "conf/bigbench.yaml", *asked, *TINY_SCORER, "--tasks", "tense"]
    reports = []
    for out in (tmp_path / "first", tmp_path / "second"):
        done = cappy(*command, "--beside", classifier, "-o", out)
        assert done.returncode == 0, done.stderr
        assert ("8 examples, 16 requests with" in done.stderr) == (not reports)
        reports.append(json.loads((out / "report.json").read_text()))
    assert reports[0] == reports[1]
    methods = reports[0]["average"]["methods"]
    assert {"greedy", "temperature_0.7", "self_score_mean", "cappy", str(classifier)} < methods.keys()
    assert methods["random"]["mean"] <= methods["oracle"]["mean"]
    assert reports[0]["made_by"]["candidates"]["kind"] == "embedded"

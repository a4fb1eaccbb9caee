"""Runs with select.by=fused, and selecting by what they leave."""

import json
from pathlib import Path

import pytest
from conftest import QUICKSTART_POOL, SHORT_RUN, Run

from cappy_lightning import Cappy, training
from cappy_lightning.crossfit import held_out
from cappy_lightning.files import hashes, remove
from cappy_lightning.records import Example, Pool
from cappy_lightning.sources.jsonl import read_labelled_pools


@pytest.fixture(scope="module")
def fused_run(cappy: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that was stopped when its folds were trained, and again in the middle of their removal."""
    run_dir = tmp_path_factory.mktemp("runs") / "fused"
    words = ["train", *SHORT_RUN, "select.by=fused", f"run_dir={run_dir}"]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def stop_amid(path: Path) -> None:
        remove(path / "0" / "adapter" if path.name == "folds" else path)
        if path.name == "folds":
            raise KeyboardInterrupt

    for name, stopped in (("fuse_folds", stop), ("remove", stop_amid)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, name, stopped)
            assert cappy(*words).returncode == 130
        assert (run_dir / "folds" / "1" / "metrics.json").exists()
    done = cappy(*words)
    assert done.returncode == 0, done.stderr
    assert "fold " not in done.stderr  # what was trained is not trained again
    return run_dir


def test_it_leaves_a_fusion_beside_the_export_and_no_folds(fused_run: Path, lora_run: Path) -> None:
    own = {path.name for path in fused_run.iterdir()} - {path.name for path in lora_run.iterdir()}
    assert own == {"fusion.json"}
    fusion = json.loads((fused_run / "fusion.json").read_text())
    assert (fused_run / "adapter" / "fusion.json").read_bytes() == (fused_run / "fusion.json").read_bytes()
    everything, texts = fusion["combinations"]
    assert set(texts["weights"]) == {"logit", "count", "agreement"} < set(everything["weights"])
    assert everything["examples"] == texts["examples"] == 12


def test_the_scorer_is_the_same_and_stays_its_own_row(fused_run: Path, lora_run: Path) -> None:
    ours, theirs = (json.loads((run / "report.json").read_text()) for run in (fused_run, lora_run))
    methods = ours["average"]["methods"]
    assert methods.keys() - theirs["average"]["methods"].keys() == {"fused"}
    assert methods["cappy"]["mean"] == theirs["average"]["methods"]["cappy"]["mean"]
    standing = ours["average"]["fused"]
    for name, difference in standing["differences"].items():
        assert difference["mean"] == pytest.approx(methods["fused"]["mean"] - methods[name]["mean"])
    assert "cappy" in standing["differences"]
    assert ours["average"]["best_baseline"] not in ("fused", "cappy", "oracle")


def test_the_command_selects_as_the_run_did(cappy: Run, fused_run: Path, tmp_path: Path) -> None:
    chosen = [json.loads(line) for line in (fused_run / "selections.jsonl").read_text().splitlines()]
    rows = {json.loads(line)["id"]: line for line in QUICKSTART_POOL.read_text(encoding="utf-8").splitlines()}
    pool, out = tmp_path / "pool.jsonl", tmp_path / "out.jsonl"
    pool.write_text("".join(rows[one["id"]] + "\n" for one in chosen), encoding="utf-8")
    words = ["select", pool, "--scorer", fused_run / "adapter", "-o", out, "select.by=fused"]
    done = cappy(*words, "--report", tmp_path / "report.json", "--html", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["index"] for one in found] == [one["index"] for one in chosen]
    report, expected = (json.loads((folder / "report.json").read_text()) for folder in (tmp_path, fused_run))
    for name, value in expected["average"]["methods"].items():
        assert report["average"]["methods"][name]["mean"] == pytest.approx(value["mean"]), name
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert "fused is better by" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    texts = [{"task": "t", "instruction": "i", "candidates": [{"response": "a"}, {"response": "b"}]}]
    pool.write_text("".join(json.dumps(row) + "\n" for row in texts))
    out.unlink()
    assert cappy(*words).returncode == 0


def test_python_selects_as_the_command_does(fused_run: Path) -> None:
    chosen = [json.loads(line) for line in (fused_run / "selections.jsonl").read_text().splitlines()]
    pools = {pool.example.id: pool for pool in read_labelled_pools([QUICKSTART_POOL])}
    fused = Cappy.from_pretrained(fused_run / "adapter", by="fused")
    choices = fused.choose(pools[one["id"]] for one in chosen)
    assert [selection.index for selection, _ in choices] == [one["index"] for one in chosen]
    instruction, responses = "Report: the teapot is broken", ["item problem: teapot", "thanks", "Item problem: teapot."]
    ranked = fused.rank(instruction, responses)
    assert ranked[0].response == fused.select(instruction, responses).response
    # The scores are the scorer's own, whatever decides.
    plain = Cappy.from_pretrained(fused_run / "adapter").rank(instruction, responses)
    assert {one.index: one.score for one in ranked} == pytest.approx({one.index: one.score for one in plain})


def test_what_is_exported_anew_keeps_the_fusion(cappy: Run, fused_run: Path, tmp_path: Path) -> None:
    for source in (fused_run, fused_run / "adapter"):
        out = tmp_path / source.name
        done = cappy("export", source, "-o", out, "--as", "model")
        assert done.returncode == 0, done.stderr
        assert (out / "fusion.json").read_bytes() == (fused_run / "fusion.json").read_bytes()
    Cappy.from_pretrained(fused_run / "adapter", by="fused").save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "fusion.json").read_bytes() == (fused_run / "fusion.json").read_bytes()


def test_a_path_may_begin_with_the_home_directory(
    fused_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cappy: Run
) -> None:
    (tmp_path / "mine").symlink_to(fused_run)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cappy.from_pretrained("~/mine/adapter", by="fused").fusion
    done = cappy("export", "~/mine/adapter", "-o", tmp_path / "exported")
    assert (done.returncode, (tmp_path / "exported" / "fusion.json").is_file()) == (0, True), done.stderr
    assert list(hashes(["~/mine/fusion.json"])) == [str(tmp_path / "mine" / "fusion.json")]
    done = cappy("score", "-", "--scorer", "~no_such_user/adapter")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "~no_such_user/adapter: does not exist, expected a model directory" in done.stderr


def test_a_scorer_without_a_fusion_is_refused(cappy: Run, lora_run: Path, tmp_path: Path) -> None:
    done = cappy("select", QUICKSTART_POOL, "--scorer", lora_run / "adapter", "-o", tmp_path / "x", "select.by=fused")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "adapter/fusion.json: is not there: this scorer was trained without select.by=fused" in done.stderr
    assert not (tmp_path / "x").exists()


def test_more_folds_than_examples_are_refused_before_the_training(cappy: Run, tmp_path: Path) -> None:
    words = ["select.by=fused", "select.folds=13", f"run_dir={tmp_path / 'run'}"]
    done = cappy("train", *SHORT_RUN, *words)
    assert done.returncode == 2
    assert "select.folds: is 13, expected at most the number of different training examples, 12" in done.stderr
    assert cappy("train", *SHORT_RUN, *words[::2]).returncode == 0


def test_pools_of_one_row_or_one_instruction_are_in_one_fold() -> None:
    examples = [("1", "a"), ("2", "b"), ("3", "a"), ("1", "A"), ("4", "c"), ("2", "B"), ("5", "d")]
    pools = [Pool(Example("t", identity, text), ()) for identity, text in examples]
    held = [[pool.example.instruction for pool in held_out(pools, fold, 2)] for fold in range(2)]
    assert held == [["a", "a", "A", "c"], ["b", "B", "d"]]
    joined = [("1", "x"), ("2", "y"), ("1", "y"), ("3", "z"), ("2", "x")]
    pools = [Pool(Example("t", identity, text), ()) for identity, text in joined]
    assert [len(held_out(pools, fold, 2)) for fold in range(2)] == [4, 1]


def test_it_needs_pools(cappy: Run, tmp_path: Path) -> None:
    words = ["data.pool=[]", "data.instances=[x.jsonl]", "data.max_train=null", "data.max_validation=null"]
    done = cappy("train", *SHORT_RUN, *words, "select.by=fused", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "select.by: is 'fused', expected scorer beside data.instances" in done.stderr

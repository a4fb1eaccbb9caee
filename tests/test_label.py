"""`cappy label`: shards that are the same whatever happens on the way."""

import contextlib
import importlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICKSTART_POOL, run_cappy
from forked import Forked

from cappy_lightning import label as job
from cappy_lightning.config import Config, LabelConfig
from cappy_lightning.data.reading import read_table
from cappy_lightning.data.shards import MANIFEST, find_directories, read_manifest
from cappy_lightning.errors import InputError
from cappy_lightning.files import part_name
from cappy_lightning.label import label
from cappy_lightning.labeling import weak_labels
from cappy_lightning.labeling.weak_labels import Labeler
from cappy_lightning.records import Instance, Pool
from cappy_lightning.sources.spec import Sources


def rows(directory: Path) -> list[Instance]:
    return [
        Instance(**row)
        for found in find_directories(str(directory))
        for row in read_table([read_manifest(found)]).to_pylist()
    ]


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def many(path: Path, pools: Sequence[Pool], times: int) -> Path:
    with open(path, "w", encoding="utf-8") as stream:
        for n in range(times):
            for pool in pools:
                stream.write(json.dumps(pool.to_row() | {"id": f"{n}-{pool.example.id}"}) + "\n")
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks and shards of the quickstart's pools."""
    for module in (job, weak_labels):
        monkeypatch.setattr(module, "BLOCK", 32)
    monkeypatch.setattr(job, "SHARD_ROWS", 1000)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("split", ["train", "validation"])
def test_instances_are_those_of_the_rules_in_the_order_of_the_pools(
    tmp_path: Path, pools: list[Pool], split: Any
) -> None:
    label(Sources([str(QUICKSTART_POOL)]), Config(), tmp_path / "out", split)
    mine = [pool for pool in pools if pool.example.split == split]
    labeler = Labeler(Config().label, 0)
    expected = list(labeler.training(mine) if split == "train" else labeler.validation(mine))
    found = rows(tmp_path / "out")
    assert [vars(i) | {"score": 0} for i in found] == [vars(i) | {"score": 0} for i in expected]
    assert [i.score for i in found] == pytest.approx([i.score for i in expected], abs=1e-7)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["tasks"] == {"ticket_subject": len(found)}
    assert sum(manifest["origins"].values()) == sum(manifest["score_histogram"]) == manifest["rows"] == len(found)
    assert len(manifest["shards"]) > 2
    assert manifest["made_by"]["sources"]["sources"][0]["files"] == [str(QUICKSTART_POOL)]
    assert sorted(contents(tmp_path / "out")) == [MANIFEST, *(shard["file"] for shard in manifest["shards"])]


@pytest.mark.usefixtures("small")
def test_wherever_it_was_stopped_it_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label(Sources([str(QUICKSTART_POOL)]), Config(), tmp_path / "whole", "train")
    real, shards = job.write_shard, 0

    def stop_now(*arguments: Any) -> dict[str, Any]:
        nonlocal shards
        shards += 1
        if shards % 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(job, "write_shard", stop_now)
    stops = 0
    while not (tmp_path / "out").exists():
        try:
            label(Sources([str(QUICKSTART_POOL)]), Config(), tmp_path / "out", "train")
        except KeyboardInterrupt:
            stops += 1
            (tmp_path / "out.partial" / "shard-00099.parquet").write_text("cut off")
            with open(tmp_path / "out.partial" / job.JOURNAL, "a") as stream:
                stream.write('{"file": "cut o')
    assert stops > 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.parametrize(("kills", "copies"), [(1, 30), pytest.param(20, 200, marks=pytest.mark.soak)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    tmp_path: Path, pools: list[Pool], kills: int, copies: int
) -> None:
    generator = random.Random(kills)
    source = many(tmp_path / "pool.jsonl", pools, copies)
    begun = time.monotonic()
    done = run_cappy("label", source, "-o", tmp_path / "whole")
    seconds = time.monotonic() - begun
    assert done.returncode == 0, done.stderr
    shards = killed = 0
    journal = tmp_path / "out.partial" / job.JOURNAL
    for _ in range(kills):
        process = Forked(tmp_path / "printed", "label", source, "-o", tmp_path / "out")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(generator.uniform(0.02, min(0.8, 3 / kills)) * seconds)
        process.kill()
        process.wait()
        if (tmp_path / "out").exists():  # it was faster
            break
        killed += 1
        now = journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0
        assert now >= shards
        shards = now
    again = run_cappy("label", source, "-o", tmp_path / "out")
    assert again.returncode == 0 or "exists already" in again.stderr, again.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    print(f"{killed} kills, {shards} shards were finished before the last, all bytes equal at the end")


@pytest.mark.usefixtures("small")
def test_a_function_is_asked_once_for_each_candidate_however_often_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_slow_judge.py").write_text(
        "asked = []\n"
        "stop_every = None\n"
        "def judge(instruction, references, response):\n"
        "    if stop_every and len(asked) % stop_every == stop_every - 1:\n"
        "        asked.append(None)\n"
        "        raise KeyboardInterrupt\n"
        "    asked.append((instruction, response))\n"
        "    return len(response) % 10 / 10\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    judge = importlib.import_module("my_slow_judge")
    config = Config()
    config.label.score = "my_slow_judge:judge"
    label(Sources([str(QUICKSTART_POOL)]), config, tmp_path / "whole", "train")
    once = len(judge.asked)
    judge.asked, judge.stop_every, stops = [], 701, 0
    while not (tmp_path / "out").exists():
        try:
            label(Sources([str(QUICKSTART_POOL)]), config, tmp_path / "out", "train")
        except KeyboardInterrupt:
            stops += 1
            for kept in (tmp_path / "out.partial").glob("scores-*"):
                with open(kept, "ab") as file:
                    file.write(b"cut off")
    answered = [call for call in judge.asked if call]
    assert stops > 3
    assert len(answered) == len(set(answered)) == once
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_repeated_pools_are_used_once_and_many_instances_fill_shards_of_the_usual_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "SHARD_ROWS", 100)
    source, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows_ = [
        {
            "task": "t",
            "id": str(n),
            "instruction": f"text {n}",
            "choices": [f"class {c}" for c in range(30)],
            "label": 1,
        }
        for n in range(40)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in [*rows_, *rows_[:7]]))
    real, calls = job.write_shard, 0

    def stop_now_and_then(*arguments: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(job, "write_shard", stop_now_and_then)
    while not out.exists():
        with contextlib.suppress(KeyboardInterrupt):
            label(Sources([str(source)]), Config(), out, "train")
    assert calls > 12
    assert [shard.rows for shard in read_manifest(out).shards] == [100] * 12
    assert [instance.instruction for instance in rows(out)] == [f"text {n}" for n in range(40) for _ in range(30)]
    assert "7 rows repeated and used once\n" in capsys.readouterr().err


def test_parts_hold_every_example_once_and_are_read_as_one(tmp_path: Path, pools: list[Pool]) -> None:
    for index in (2, 0, 1):
        done = run_cappy(
            "label", QUICKSTART_POOL, "-o", tmp_path / "out", "--shard", f"{index}/3", "label.mismatches=0"
        )
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [part_name(i, 3) for i in range(3)]
    found = rows(tmp_path / "out")
    config = Config()
    config.label.mismatches = 0
    expected = Labeler(config.label, 0).training(pool for pool in pools if pool.example.split == "train")
    assert sorted((i.example_id, i.response) for i in found) == sorted((i.example_id, i.response) for i in expected)
    (tmp_path / "out" / part_name(1, 3) / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"part-1-of-3/manifest.json: cannot be read"):
        find_directories(str(tmp_path / "out"))
    shutil.rmtree(tmp_path / "out" / part_name(1, 3))
    with pytest.raises(InputError, match=r"part-1-of-3: is missing or not finished, expected 3 parts"):
        find_directories(str(tmp_path / "out"))


def test_parts_of_pools_are_a_source_and_a_part_may_be_empty(tmp_path: Path, pools: list[Pool]) -> None:
    folder = tmp_path / "pools"
    folder.mkdir()
    for index, own in enumerate((pools[:2], [], pools[2:3])):
        text = "".join(json.dumps(replace(p, example=replace(p.example, split="train")).to_row()) + "\n" for p in own)
        (folder / f"{part_name(index, 3)}.jsonl").write_text(text)
    for index in range(4):
        done = run_cappy("label", folder, "-o", tmp_path / "out", "--shard", f"{index}/4")
        assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "out")
    assert {i.example_id for i in found} == {p.example.id for p in pools[:3]}
    assert read_manifest(tmp_path / "out" / part_name(3, 4), empty=True).rows == 0
    assert run_cappy("inspect", folder).returncode == run_cappy("inspect", tmp_path / "out").returncode == 0


@pytest.mark.usefixtures("small")
def test_stopped_before_the_last_step_nothing_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            label(Sources([str(QUICKSTART_POOL)]), Config(), tmp_path / "out", "train")
    before = contents(tmp_path / "out.partial")
    monkeypatch.setattr(job, "write_shard", stop)
    other = replace(Config(), label=LabelConfig(mismatches=2))
    with pytest.raises(InputError, match=r"out.partial: was begun with other input or settings"):
        label(Sources([str(QUICKSTART_POOL)]), other, tmp_path / "out", "train")
    label(Sources([str(QUICKSTART_POOL)]), Config(), tmp_path / "out", "train")
    assert contents(tmp_path / "out") | {job.JOURNAL: before[job.JOURNAL]} == before


@pytest.mark.usefixtures("small")
def test_other_input_settings_or_processes_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "pool.jsonl", tmp_path / "out"
    lines = QUICKSTART_POOL.read_text(encoding="utf-8").splitlines(keepends=True)
    source.write_text("".join(lines))
    real = job.write_shard

    def second_fails(rows: Any, directory: Path, number: int) -> dict[str, Any]:
        if number:
            raise OSError(28, "No space left on device")
        return real(rows, directory, number)

    monkeypatch.setattr(job, "write_shard", second_fails)
    with pytest.raises(InputError, match=r"out.partial: cannot be written \(No space left on device\); what is there"):
        label(Sources([str(source)]), Config(), out, "train")
    other = Config()
    other.label.mismatches = 2
    with pytest.raises(InputError, match="was begun with other input or settings"):
        label(Sources([str(source)]), other, out, "train")
    source.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(InputError, match="the input has changed since this was begun"):
        label(Sources([str(source)]), Config(), out, "train")
    source.write_text("".join(lines))
    monkeypatch.setattr(job, "write_shard", real)
    label(Sources([str(source)]), Config(), out, "train")
    with pytest.raises(InputError, match="out: exists already, expected a new directory"):
        label(Sources([str(source)]), Config(), out, "train")


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    hold = "import sys, time; from pathlib import Path; from cappy_lightning.files import open_locked\n"
    hold += "lock = open_locked(Path(sys.argv[1]), Path('x'), 'y'); print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", hold, str(tmp_path / ".out.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process is at work on this directory of instances"):
            label(Sources([str(QUICKSTART_POOL)]), Config(), tmp_path / "out", "train")
        process.kill()


@pytest.mark.parametrize(
    ("row", "words", "problem"),
    [
        ({"task": "t", "instruction": "i"}, [], ":1: expected either 'references' or 'choices' with 'label'"),
        ({"task": "t", "instruction": "i", "references": []}, [], ":1: expected either 'references' or 'choices'"),
        (
            {"task": "t", "instruction": "i", "references": ["a"]},
            ["--split", "validation"],
            "there is no instance of the split",
        ),
        ({"task": "t", "instruction": "i", "references": ["a"]}, ["--shard", "3/3"], "--shard: is '3/3', expected I/N"),
        ({"task": "t", "instruction": "i", "references": ["a"]}, ["label.score=bleu"], "label.score: is 'bleu'"),
        ({"task": "t", "instruction": "i", "references": ["a"]}, ["-o", "."], ".: is no path of something new"),
        (
            {
                "task": "t",
                "instruction": "i",
                "references": ["a"],
                "prompt": "\ud800",
                "candidates": [{"response": "b"}],
            },
            [],
            "in.jsonl:1: field 'prompt' is not Unicode text",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_that_looks_done(
    tmp_path: Path, row: Any, words: list[str], problem: str
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(row) + "\n")
    done = run_cappy("label", path, "-o", tmp_path / "out", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert problem in done.stderr
    assert not (tmp_path / "out").exists()

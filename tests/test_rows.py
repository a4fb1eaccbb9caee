"""Scoring and selecting: what is interrupted continues, what is there stays, what a command does not read is said."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import QUICKSTART_POOL, ROOT, Run, start_cappy

from cappy_lightning import Cappy, score
from cappy_lightning.scorer.pretrained import PretrainedScorer
from cappy_lightning.selection import engine

POOLS = [json.loads(line) for line in QUICKSTART_POOL.read_text(encoding="utf-8").splitlines()[:12]]
PAIRS = [
    {"instruction": pool["instruction"], "response": one["response"], "id": f"{pool['id']}-{place}"}
    for pool in POOLS
    for place, one in enumerate(pool["candidates"][:3])
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("command", ["score", "select"])
def test_what_is_interrupted_continues(
    command: str, cappy: Run, lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "ROWS_AT_ONCE", 6)
    monkeypatch.setattr(engine, "POOLS_AT_ONCE", 2)
    source = write(tmp_path / "in.jsonl", PAIRS if command == "score" else POOLS)
    words = (command, source, "--scorer", lora_run / "adapter")
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    reports = [["--report", tmp_path / name] if command == "select" else [] for name in ("one.json", "other.json")]
    assert cappy(*words, "-o", whole, *reports[0]).returncode == 0
    real, asked = PretrainedScorer.logits, []

    def interrupted(self: Any, pairs: Any, task: Any = None) -> Any:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(len(pairs))
        return real(self, pairs, task)

    with monkeypatch.context() as patched:
        patched.setattr(PretrainedScorer, "logits", interrupted)
        done = cappy(*words, "-o", out, *reports[1])
    assert (done.returncode, done.stderr) == (130, "cappy: interrupted; the same command continues\n")
    assert not out.exists()
    partial = tmp_path / "out.jsonl.partial"
    partial.write_text(partial.read_text() + '{"cut o')  # as by a kill
    kept = partial.read_text().count("\n") - 1
    assert kept == (12 if command == "score" else 4)  # the first call is the scorer's own trial
    other = cappy(*words, "-o", out, "--dtype", "bfloat16")
    assert (other.returncode, "was begun with other input or settings" in other.stderr) == (2, True)
    done = cappy(*words, "-o", out, *reports[1])
    assert done.returncode == 0, done.stderr
    assert f"continuing after {kept} rows" in done.stderr
    assert f"results: {out}" in done.stdout
    assert not partial.exists()
    expected, found = ([json.loads(line) for line in path.read_text().splitlines()] for path in (whole, out))
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    for one, wanted in zip(found, expected, strict=True):
        key = "score" if command == "score" else "scores"
        assert one[key] == pytest.approx(wanted[key], abs=1e-6)
    if command == "select":
        one, other_report = (json.loads(arguments[1].read_text()) for arguments in reports)
        assert other_report["average"]["methods"].keys() == one["average"]["methods"].keys()
        assert other_report["average"]["methods"]["oracle"] == one["average"]["methods"]["oracle"]


def test_a_row_that_cannot_be_scored_is_said_before_the_first_is(
    cappy: Run, tmp_path: Path, lora_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "select_by_logits", None)
    for command, rows, bad, problem in (
        ("score", PAIRS, {"instruction": "x"}, "field 'response' is missing"),
        ("score", PAIRS, {**PAIRS[0], "note": "\ud800"}, "holds text that is not Unicode"),
        ("select", POOLS, {**POOLS[0], "candidates": []}, "field 'candidates' must be"),
    ):
        source = write(tmp_path / "in.jsonl", [*rows, bad])
        done = cappy(command, source, "--scorer", lora_run / "adapter", "-o", tmp_path / "out.jsonl")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"in.jsonl:{len(rows) + 1}: {problem}" in done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("score", "PAIRS"), "-o"),
        (("select", "POOLS"), "-o"),
        (("select", "POOLS", "-o", "NEW"), "--report"),
        (("select", "POOLS", "-o", "NEW"), "--html"),
        (("calibrate", "POOLS"), "-o"),
        (("calibrate", "POOLS"), "--report"),
        (("inspect", "POOLS"), "--html"),
    ],
)
def test_no_output_goes_over_what_is_there(words: tuple[str, ...], option: str, cappy: Run, tmp_path: Path) -> None:
    pools = write(tmp_path / "pools.jsonl", POOLS)
    places = {"PAIRS": write(tmp_path / "pairs.jsonl", PAIRS), "POOLS": pools, "NEW": tmp_path / "new"}
    scorer = () if words[0] == "inspect" else ("--scorer", "nowhere/at-all")
    before = pools.read_bytes()
    done = cappy(*(places.get(word, word) for word in words), *scorer, option, pools)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{pools}: exists already, expected a new file" in done.stderr
    assert pools.read_bytes() == before


def test_one_file_for_two_outputs_is_refused(cappy: Run, tmp_path: Path) -> None:
    new = tmp_path / "new"
    done = cappy("select", QUICKSTART_POOL, "--scorer", "x", "-o", new, "--html", new)
    assert (done.returncode, "is named twice" in done.stderr, new.exists()) == (2, True, False)


def test_a_report_that_cannot_be_made_is_an_error_where_it_was_asked_for(
    cappy: Run, lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = [{key: value for key, value in pool.items() if key != "references"} for pool in POOLS]
    out = tmp_path / "out.jsonl"
    with open(write(tmp_path / "in.jsonl", bare), encoding="utf-8") as stream:  # read once, so known at the end
        monkeypatch.setattr(sys, "stdin", stream)
        done = cappy("select", "-", "--scorer", lora_run / "adapter", "-o", out, "--report", tmp_path / "report.json")
    assert (done.returncode, "no pool has references or choices" in done.stderr) == (2, True)
    assert len(out.read_text().splitlines()) == len(bare)  # the selections are kept


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("select", "POOL", "--scorer", "x", "scorer.max_length=512"), "scorer.max_length"),
        (("calibrate", "POOL", "--scorer", "x", "backbone.shots=3"), "backbone.shots"),
        (("generate", "POOL", "-o", "NEW", "answer.stop=0.5"), "answer.stop"),
        (("label", "POOL", "-o", "NEW", "trainer.epochs=1"), "trainer.epochs"),
        (("serve", "--scorer", "x", "label.mismatches=2"), "label.mismatches"),
    ],
)
def test_a_key_that_a_command_does_not_read_is_said(
    words: tuple[str, ...], key: str, cappy: Run, tmp_path: Path
) -> None:
    places = {"POOL": QUICKSTART_POOL, "NEW": tmp_path / "new"}
    done = cappy(*(places.get(word, word) for word in words))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"{key}: is no key of this command, expected" in done.stderr


@pytest.mark.parametrize("command", [("answer", "--instruction", "x"), ("serve",)])
def test_the_number_of_candidates_is_said_once(command: tuple[str, ...], cappy: Run) -> None:
    for words, problem in (
        (("-n", "5", "backbone.decodings.greedy=2"), "-n: stands beside backbone.decodings, expected one of them"),
        (("-n", "0"), "-n: is 0, expected 1 up"),
    ):
        done = cappy(*command, "--scorer", "x", *words)
        assert (done.returncode, done.stdout, problem in done.stderr) == (2, "", True), done.stderr


def test_a_folder_of_parts_is_read_as_one_file(cappy: Run, lora_run: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    write(parts / "part-0-of-2.jsonl", POOLS[:5])
    write(parts / "part-1-of-2.jsonl", POOLS[5:])
    done = cappy("select", parts, "--scorer", lora_run / "adapter")
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [pool["id"] for pool in POOLS]


def test_an_adapter_in_a_folder_with_an_equals_sign(cappy: Run, lora_run: Path, tmp_path: Path) -> None:
    place = tmp_path / "rate=1e-5"
    place.symlink_to(lora_run / "adapter")
    source = write(tmp_path / "in.jsonl", PAIRS[:2])
    done = cappy("score", source, "--scorer", "embedded", "--adapter", place)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2), done.stderr


def test_bfloat16_scores_nearly_the_same(lora_run: Path) -> None:
    pairs = [(row["instruction"], row["response"]) for row in PAIRS]
    exact, rounded = (Cappy.from_pretrained(lora_run / "adapter", dtype=name) for name in ("float32", "bfloat16"))
    difference = np.abs(exact.score(pairs) - rounded.score(pairs))
    assert 0 < difference.max() < 0.03


def test_sigterm_ends_a_command_in_order(lora_run: Path, tmp_path: Path) -> None:
    """A process of its own, on more pairs than it can score before the signal."""
    source, out = write(tmp_path / "in.jsonl", PAIRS * 2000), tmp_path / "out.jsonl"
    words = ["score", str(source), "--scorer", str(lora_run / "adapter"), "-o", str(out)]
    command = [sys.executable, "-m", "cappy_lightning", *words]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "out.jsonl.partial").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        error = process.stderr.read()
    assert (process.returncode, error) == (143, "cappy: interrupted; the same command continues\n")
    assert not out.exists()


def test_nobody_reads_and_a_full_disk() -> None:
    code = "from cappy_lightning.cli import main; import sys; sys.exit(main(['jobs', 'tests', '--json']))"
    command = [sys.executable, "-c", code]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert (done.returncode, done.stderr) == (2, "cappy: output: cannot be written (No space left on device)\n")


def test_the_version_and_the_usage_of_the_command_that_was_meant() -> None:
    done = start_cappy("--version")
    assert (done.returncode, done.stdout.startswith("cappy-lightning ")) == (0, True)
    done = start_cappy("jobs", "--speed")
    assert (done.returncode, done.stderr.startswith("usage: cappy jobs")) == (2, True)
    done = start_cappy("-q", "jobs", "nowhere-at-all")
    assert (done.returncode, done.stderr) == (
        2, "cappy: nowhere-at-all: is no folder, expected one with jobs in it or below\n"
    )  # fmt: skip

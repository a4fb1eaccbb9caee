"""`cappy answer`: instructions in, the best of an LLM's answers out."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICKSTART_POOL, Run

from cappy_lightning import Cappy
from cappy_lightning.answering import stopping
from cappy_lightning.records import Pool
from cappy_lightning.sources.jsonl import read_pools

RECORDED = (
    "backbone.kind=recorded",
    f"backbone.pools=[{QUICKSTART_POOL}]",
    "backbone.decodings={greedy: 1, sampling: 4, temperature_0.7: 4, nucleus_0.9: 4}",
)


@pytest.fixture(scope="module")
def adapter(lora_run: Path) -> Path:
    return lora_run / "adapter"


@pytest.fixture
def questions(pools: list[Pool], tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"instruction": pool.example.instruction}) + "\n" for pool in pools[:60]))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_need_nothing_but_an_instruction(cappy: Run, adapter: Path, questions: Path, pools: list[Pool]) -> None:
    out = questions.with_name("answers.jsonl")
    done = cappy("answer", questions, "-o", out, "--scorer", adapter, *RECORDED)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    assert "60 answered, 0 not sure; 13.0 candidates an instruction, of at most 13" in done.stderr
    scorer = Cappy.from_pretrained(adapter)
    for pool, row in zip(pools, read(out), strict=False):
        responses = [candidate.response for candidate in pool.candidates]
        assert row["instruction"] == pool.example.instruction
        assert [one["response"] for one in row["candidates"]] == responses
        assert row["response"] == scorer.select(row["instruction"], responses).response == responses[row["index"]]
    # What comes out is a pool as well, which can be looked at and selected from again.
    again = cappy("select", out, "--scorer", adapter)
    assert [json.loads(line)["index"] for line in again.stdout.splitlines()] == [row["index"] for row in read(out)]
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "answers.jsonl",
        "answers.made_by.json",
        "questions.jsonl",
    ]


def test_a_stopped_job_continues_with_the_same_answers(
    cappy: Run, adapter: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--scorer", adapter, *RECORDED, "answer.stop=0.3", "answer.abstain=0.2", "answer.step=2"]
    whole, out = questions.with_name("whole.jsonl"), questions.with_name("answers.jsonl")
    assert cappy("answer", questions, "-o", whole, *words).returncode == 0
    rows = read(whole)
    assert len({len(row["candidates"]) for row in rows}) > 2
    assert {row["response"] is None for row in rows} == {row["score"] < 0.2 for row in rows}
    calls = 0
    score = stopping.StoppingBackbone._score

    def interrupted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt
        score(*arguments)

    monkeypatch.setattr(stopping, "WAVE", 8)  # more waves, to be stopped between them
    monkeypatch.setattr(stopping.StoppingBackbone, "_score", interrupted)
    assert cappy("answer", questions, "-o", out, *words).returncode == 130
    assert not out.exists()
    done = cappy("answer", questions, "-o", out, *words)
    assert done.returncode == 0, done.stderr
    assert "answers.jsonl: continuing, 8 of 60 examples are recorded" in done.stderr
    assert out.read_bytes() == whole.read_bytes()
    other = questions.with_name("other.jsonl")
    calls = 0
    assert cappy("answer", questions, "-o", other, *words).returncode == 130
    refused = cappy("answer", questions, "-o", other, *words, "answer.stop=0.4")
    assert refused.returncode == 2
    assert "is a recording of other examples or settings" in refused.stderr


def test_with_references_there_is_a_report(cappy: Run, adapter: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "answers.jsonl", tmp_path / "report.json"
    some = tmp_path / "some.jsonl"
    some.write_text("".join(QUICKSTART_POOL.read_text(encoding="utf-8").splitlines(keepends=True)[:30]))
    done = cappy("answer", some, "-o", out, "--scorer", adapter, *RECORDED, "answer.stop=0.3", "--json", report)
    assert done.returncode == 0, done.stderr
    assert json.loads(report.read_text())["average"]["methods"]["cappy"]["mean"] > 0
    assert all("references" in row for row in read(out))
    assert all(pool.example.references for pool in read_pools(out))


def test_one_instruction_is_answered_on_standard_output(cappy: Run, adapter: Path, pools: list[Pool]) -> None:
    asked = pools[5].example.instruction
    done = cappy("answer", *RECORDED, "--instruction", asked, "--scorer", adapter)
    best = Cappy.from_pretrained(adapter).select(asked, [one.response for one in pools[5].candidates])
    assert (done.returncode, done.stdout) == (0, f"{best.response}\n")
    assert f"{best.score:.3f}  {best.response}" in done.stderr
    unsure = cappy("answer", *RECORDED, "--instruction", asked, "--scorer", adapter, "answer.abstain=1")
    assert (unsure.returncode, unsure.stdout) == (0, "")
    assert "no answer: the best score is below answer.abstain=1.0" in unsure.stderr
    nothing = cappy("answer", *RECORDED, "--instruction", "never heard", "--scorer", adapter)
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "no answer: no recorded pool has this instruction" in nothing.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "cappy answer: expected EXAMPLES -o ANSWERS.jsonl, or --instruction TEXT"),
        (("{questions}",), "cappy answer: expected EXAMPLES -o ANSWERS.jsonl"),
        (("{questions}", "-o", "{questions}"), "questions.jsonl: exists already, expected a new file"),
        (("{questions}", "-o", "{new}", "answer.stop=7"), "answer.stop: is 7.0, expected a score from 0 to 1"),
        (("{questions}", "-o", "{new}", "-n", "0"), "n: is 0, expected at least 1"),
        (("{questions}", "-o", "{new}", "answer.step=0"), "answer.step: is 0, expected at least 1"),
        (("{questions}", "-o", "{new}", "backbone.shots=2"), "backbone.shots: is 2, but only 0 training examples"),
    ],
)
def test_bad_words(cappy: Run, adapter: Path, questions: Path, words: tuple[str, ...], said: str) -> None:
    new = questions.with_name("new.jsonl")
    filled = [word.format(questions=questions, new=new) for word in words]
    done = cappy("answer", *filled, "--scorer", adapter)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not new.exists()

"""`cappy answer`: instructions in, the best of an LLM's answers out."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICKSTART_POOL, Run, rouge_l
from proxy import running_proxy

from cappy_lightning import Cappy
from cappy_lightning.answer import Answered, say_given
from cappy_lightning.answering import stopping
from cappy_lightning.backbones.backbone import Answer
from cappy_lightning.backbones.recorded import RecordedBackbone
from cappy_lightning.config import AnswerConfig, LabelConfig
from cappy_lightning.records import Pool
from cappy_lightning.sources.jsonl import read_labelled_pools

RECORDED = (
    "backbone.kind=recorded",
    f"backbone.pools=[{QUICKSTART_POOL}]",
    "backbone.decodings={greedy: 1, sampling: 4, temperature_0.7: 4, nucleus_0.9: 4}",
)


@pytest.fixture(scope="module")
def adapter(lora_run: Path) -> Path:
    return lora_run / "adapter"


@pytest.fixture(scope="module")
def scorer(adapter: Path) -> Cappy:
    return Cappy.from_pretrained(adapter)


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
    assert (done.returncode, done.stdout) == (0, f"results: {out}\n"), done.stderr
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
    found = re.search(r"answers.jsonl: continuing, (\d+) of 60 examples are recorded", done.stderr)
    assert found
    assert 8 < int(found[1]) < 60  # also of the wave that was interrupted
    for row, expected in zip(read(out), rows, strict=True):  # other pairs shared a forward
        for name in ("score", "scores", "logits"):
            assert row.pop(name) == pytest.approx(expected.pop(name), abs=1e-5)
        assert row == expected
    other = questions.with_name("other.jsonl")
    calls = 0
    assert cappy("answer", questions, "-o", other, *words).returncode == 130
    refused = cappy("answer", questions, "-o", other, *words, "answer.stop=0.4")
    assert refused.returncode == 2
    assert "was begun with other input or settings" in refused.stderr


def test_candidates_are_scored_once_while_others_are_sampled(
    cappy: Run, adapter: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str | tuple[str, str]] = []
    logits, answer = Cappy.logits, RecordedBackbone.answer

    def scoring(self: Cappy, pairs: Any, task: Any = None) -> Any:
        happened.extend(pairs)
        return logits(self, pairs, task)

    def answering(*arguments: Any) -> Iterator[Answer]:
        for one in answer(*arguments):
            happened.append("answered")
            yield one

    monkeypatch.setattr(RecordedBackbone, "answer", answering)
    for number, words in enumerate(((), ("answer.stop=0.3",), ("answer.stop=1", "answer.budget_tokens=7"))):
        out = questions.with_name(f"{number}.jsonl")
        with monkeypatch.context() as patch:
            patch.setattr(Cappy, "logits", scoring)
            happened.clear()
            assert cappy("answer", questions, "-o", out, "--scorer", adapter, *RECORDED, *words).returncode == 0
        scored = [one for one in happened[happened.index("answered") :] if one != "answered"]
        distinct = {(row["instruction"], one["response"]) for row in read(out) for one in row["candidates"]}
        assert len(set(scored)) == len(distinct)
        if words:
            assert len(scored) == len(distinct)
        assert happened[-1] != "answered"
        first = next(place for place, one in enumerate(happened) if place and one != "answered")
        assert "answered" in happened[first:]
        again = cappy("select", out, "--scorer", adapter)
        for line, row in zip(again.stdout.splitlines(), read(out), strict=True):
            selection = json.loads(line)
            assert selection["index"] == row["index"]
            assert selection["logits"] == pytest.approx(row["logits"], abs=1e-5)


def test_the_report_tells_what_the_given_answers_are_worth(
    scorer: Cappy, pools: list[Pool], capsys: pytest.CaptureFixture[str]
) -> None:
    some = pools[:30]
    scores = sorted(scorer.select(p.example.instruction, [c.response for c in p.candidates]).score for p in some)
    answered = Answered(scorer, AnswerConfig(abstain=scores[12]))
    rows = list(answered.rows(iter(some)))
    kept = [(pool, row["response"]) for pool, row in zip(some, rows, strict=True) if row["response"] is not None]
    found = answered.given(LabelConfig())
    assert found is not None
    mean = sum(rouge_l(pool.example.references, response) for pool, response in kept) / len(kept)
    assert found == {
        "abstain": scores[12],
        "n_examples": 30,
        "answered": 18,
        "coverage": 0.6,
        "mean": pytest.approx(mean),
    }
    say_given(found, "Rouge-L")
    assert f"60% are answered; their mean Rouge-L x 100 is {100 * mean:.1f}" in capsys.readouterr().err
    nothing = Answered(scorer, AnswerConfig(abstain=1.0))
    list(nothing.rows(iter(some)))
    assert (nothing.given(LabelConfig()) or {})["mean"] is None
    always = Answered(scorer, AnswerConfig())
    list(always.rows(iter(some)))
    assert always.given(LabelConfig()) is None


def test_with_references_there_is_a_report(cappy: Run, adapter: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "answers.jsonl", tmp_path / "report.json"
    some = tmp_path / "some.jsonl"
    some.write_text("".join(QUICKSTART_POOL.read_text(encoding="utf-8").splitlines(keepends=True)[:30]))
    done = cappy("answer", some, "-o", out, "--scorer", adapter, *RECORDED, "answer.stop=0.3", "--report", report)
    assert done.returncode == 0, done.stderr
    assert json.loads(report.read_text())["average"]["methods"]["cappy"]["mean"] > 0
    assert all("references" in row for row in read(out))
    assert all(pool.example.references for pool in read_labelled_pools([out]))


def test_one_instruction_is_answered_on_standard_output(cappy: Run, adapter: Path, pools: list[Pool]) -> None:
    asked = pools[5].example.instruction
    done = cappy("answer", *RECORDED, "--instruction", asked, "--scorer", adapter)
    best = Cappy.from_pretrained(adapter).select(asked, [one.response for one in pools[5].candidates])
    assert (done.returncode, done.stdout) == (0, f"{best.response}\n")
    assert f"{best.score:.3f}  {best.response}" in done.stderr
    unsure = cappy("answer", *RECORDED, "--instruction", asked, "--scorer", adapter, "answer.abstain=1")
    assert (unsure.returncode, unsure.stdout) == (0, "")
    assert "not sure: the best score is below answer.abstain=1.0" in unsure.stderr
    several = ("--adapter", f"a={adapter}", "--adapter", f"b={adapter}")
    task = cappy("answer", *RECORDED, "--instruction", asked, "--scorer", "embedded", *several, "--task", "b")
    assert (task.returncode, task.stdout) == (0, f"{best.response}\n")
    missing = cappy("answer", *RECORDED, "--instruction", asked, "--scorer", "embedded", *several)
    assert (missing.returncode, missing.stderr.splitlines()[-1]) == (2, "cappy: task: is None, expected one of a, b")
    broken = cappy("answer", *RECORDED, "--instruction", "Gr\udcf6sse", "--scorer", adapter)
    assert (broken.returncode, broken.stderr.splitlines()[-1]) == (2, "cappy: instruction: is not Unicode text")
    blank = cappy("answer", *RECORDED, "--instruction", " ", "--scorer", adapter)
    assert (blank.returncode, blank.stderr.splitlines()[-1]) == (2, "cappy: instruction: is empty, expected a text")
    nothing = cappy("answer", *RECORDED, "--instruction", "never heard", "--scorer", adapter)
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert "gives no answer (no recorded pool has this instruction)" in nothing.stderr


def test_empty_answers_to_one_instruction_are_told(cappy: Run, adapter: Path) -> None:
    def mostly_empty(_: int, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        choices = [{"index": i, "text": "" if i else "yes", "finish_reason": "stop"} for i in range(body["n"])]
        return 200, {"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 5}}

    with running_proxy("", mostly_empty) as (url, _):
        words = ["backbone.kind=openai", f"backbone.url={url}", "backbone.model=m", "-n", "5"]
        done = cappy("answer", "--instruction", "Is it?", "--scorer", adapter, *words)
        assert (done.returncode, done.stdout) == (0, "yes\n")
        assert "left out: 3 empty answers" in done.stderr
        found = cappy("answer", "--instruction", "Is it?", "--scorer", adapter, *words, "--json")
        assert json.loads(found.stdout)["empty"] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "cappy answer: expected EXAMPLES -o ANSWERS.jsonl, or --instruction TEXT"),
        (("{questions}",), "cappy answer: expected EXAMPLES -o ANSWERS.jsonl"),
        (("{questions}", "-o", "{questions}"), "questions.jsonl: exists already, expected a new file"),
        (("{questions}", "-o", "{new}", "answer.stop=7"), "answer.stop: is 7.0, expected a score from 0 to 1"),
        (("{questions}", "-o", "{new}", "-n", "0"), "-n: is 0, expected 1 up"),
        (("{questions}", "-o", "{new}", "-n", "3", "backbone.decodings={{sampling: 4}}"), "-n: stands beside backbone"),
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

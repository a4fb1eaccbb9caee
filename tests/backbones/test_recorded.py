"""Pools that were recorded before, ours and the reference implementation's, as a backbone."""

import json
from pathlib import Path

import pytest
from conftest import run_cappy

from cappy_lightning.backbones.generate import left_out_path, record_pools
from cappy_lightning.config import BackboneConfig
from cappy_lightning.errors import InputError
from cappy_lightning.records import Candidate, Example, Pool
from cappy_lightning.sources.jsonl import read_labelled_pools

NONE = {"greedy": 0, "temperature_0.7": 0, "nucleus_0.9": 0}
EXAMPLES = [Example("t", str(n), f"instruction {n} ", (f"a {n}",), split="train") for n in range(3)]


def sample(text: str) -> dict[str, object]:
    return {"response": text, "log_likelihood_sum": -2.0, "log_likelihood_mean": -0.5}


@pytest.fixture
def reference_file(tmp_path: Path) -> Path:
    """A file as the reference implementation records it."""
    rows = [
        {
            "dataset": "tense",
            "example_idx": n,
            "instruction": f"instruction {n}",
            "references": [f"a {n}", ""],
            "flan_samples": {"beam4": [sample(f"b {n}")], "sampling": [sample("s"), sample(" "), sample(f"a {n}")]},
        }
        for n in range(2)
    ]
    path = tmp_path / "tense_validation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_of_the_reference_implementation_are_pools(reference_file: Path) -> None:
    first, second = read_labelled_pools([reference_file])
    assert first.example == Example("tense", "validation:0", "instruction 0", ("a 0",), split="validation")
    assert first.candidates == tuple(
        Candidate(text, decoding, -2.0, -0.5)
        for text, decoding in (("b 0", "beam4"), ("s", "sampling"), ("a 0", "sampling"))
    )
    assert second.example.id == "validation:1"


def test_recorded_candidates_answer_the_same_instructions(
    reference_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pool.jsonl"
    config = BackboneConfig(
        kind="recorded", pools=[str(reference_file)], decodings=NONE | {"sampling": 1, "beam4": 1, "beam_4": 1}
    )
    record_pools(lambda: EXAMPLES, config, out)
    said = capsys.readouterr().err
    assert "left out: beam_4 (the recorded pools have no such candidates, but beam4, sampling)" in said
    assert read_labelled_pools([out]) == [
        Pool(e, (Candidate("s", "sampling", -2.0, -0.5), Candidate(f"b {n}", "beam4", -2.0, -0.5)))
        for n, e in enumerate(EXAMPLES[:2])
    ]
    (left_out,) = map(json.loads, left_out_path(out).read_text().splitlines())
    assert (left_out["problem"], left_out["example"]["id"]) == ("no recorded pool has this instruction", "2")


def test_pools_that_have_changed_are_other_pools_and_may_be_in_parts(tmp_path: Path) -> None:
    folder, out = tmp_path / "parts", tmp_path / "out.jsonl"
    folder.mkdir()
    for number, example in enumerate(EXAMPLES[:2]):
        row = Pool(example, (Candidate("old", "sampling"),)).to_row()
        (folder / f"part-{number}-of-2.jsonl").write_text(json.dumps(row) + "\n")
    config = BackboneConfig(kind="recorded", pools=[str(folder)], decodings=NONE | {"sampling": 1})
    for _ in range(2):
        record_pools(lambda: EXAMPLES[:2], config, out)
    assert [pool.candidates[0].response for pool in read_labelled_pools([out])] == ["old", "old"]
    part = folder / "part-1-of-2.jsonl"
    part.write_text(part.read_text().replace("old", "new"))
    with pytest.raises(InputError, match="exists already"):
        record_pools(lambda: EXAMPLES[:2], config, out)
    record_pools(lambda: EXAMPLES[:2], config, tmp_path / "anew.jsonl")
    assert [pool.candidates[0].response for pool in read_labelled_pools([tmp_path / "anew.jsonl"])] == ["old", "new"]


def test_a_file_without_any_wanted_decoding_is_refused(reference_file: Path, tmp_path: Path) -> None:
    config = BackboneConfig(kind="recorded", pools=[str(reference_file)], decodings=NONE | {"sampling": 0, "greedy": 1})
    with pytest.raises(InputError, match=r"backbone.decodings: the backbone can do none of them"):
        record_pools(lambda: EXAMPLES, config, tmp_path / "pool.jsonl")


def test_examples_with_empty_answers_only_are_left_out(
    reference_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = map(json.loads, reference_file.read_text().splitlines())
    second["flan_samples"] = {"beam4": [sample("")], "sampling": [sample(" ")]}
    reference_file.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    (pool,) = read_labelled_pools([reference_file])
    assert pool.example.id == "validation:0"
    assert f"{reference_file}: left out without an answer: 1 example" in capsys.readouterr().err


def test_a_bad_row_is_refused_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "t_train.jsonl"
    path.write_text('{"flan_samples": [], "references": []}\n')
    done = run_cappy("label", path, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert f"{path}:1: field 'flan_samples' must be an object of lists" in done.stderr

"""From what a config names to directories of instances: splits, caps, and what is written."""

import json
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cappy_lightning.backbones.survey import fingerprint, settings, survey
from cappy_lightning.config import Config, DataConfig
from cappy_lightning.data.reading import read_table
from cappy_lightning.data.shards import read_manifest, write_instances
from cappy_lightning.errors import InputError
from cappy_lightning.labeling.weak_labels import Labeler
from cappy_lightning.preparation import Prepared, prepare, split_pools
from cappy_lightning.records import Candidate, Example, Instance, Pool, Split, make_id
from cappy_lightning.run_dir import RunDir
from cappy_lightning.sources.jsonl import read_examples


@pytest.fixture(autouse=True)
def _first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def config(**data: Any) -> Config:
    if isinstance(data.get("pool"), str):
        data["pool"] = [data["pool"]]
    return Config(data=DataConfig(**data))


def pools(count: int, split: Split | None = None, start: int = 0) -> list[Pool]:
    return [
        Pool(
            Example("t", str(n), f"instruction {n}", (f"answer {n}", f"never proposed {n}"), split=split),
            tuple(Candidate(text, "sampling") for text in (f"answer {n}", "answer", f"x {n}")),
        )
        for n in range(start, start + count)
    ]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_pools(path: Path, written: Sequence[Pool]) -> str:
    return write(path, [pool.to_row() for pool in written])


def read(directories: Sequence[str]) -> list[Instance]:
    table = read_table([read_manifest(directory) for directory in directories])
    return [Instance(**row) for row in table.to_pylist()]


def examples_of(directories: Sequence[str]) -> set[tuple[str, str]]:
    return {(instance.task, instance.example_id) for instance in read(directories)}


def refusal(made: Config, directory: Path) -> str:
    with pytest.raises(InputError) as error:
        prepare(made, directory)
    assert "\n" not in str(error.value)
    return str(error.value)


def own_rows(count: int, responses: int = 3) -> list[dict[str, Any]]:
    return [
        {"instruction": f"instruction {n}", "response": f"response {k}", "score": k / 4}
        for k in range(responses)
        for n in range(count)
    ]


def test_a_pool_file_becomes_training_and_validation_instances_of_distinct_examples(tmp_path: Path) -> None:
    path = write_pools(tmp_path / "pool.jsonl", pools(40))
    made = config(pool=path, max_train=20)
    made.label.mismatches = 2
    labeler = Labeler(made.label, seed=0)
    found = prepare(made, tmp_path / "run")
    train, validation = split_pools(made, pools(40))
    sides = ((str(tmp_path / "run" / name),) for name in ("train", "validation"))
    assert found == Prepared(*sides, train_pools=tuple(train), validation_pools=tuple(validation))
    assert [vars(i) | {"score": 0} for i in read(found.train)] == [
        vars(i) | {"score": 0} for i in labeler.training(train)
    ]
    assert len(read(found.validation)) == len(list(labeler.validation(validation)))
    assert {i.origin for i in read(found.train)} == {"gold", "sampled", "mismatch"}
    assert {i.origin for i in read(found.validation)} == {"gold", "sampled"}
    assert not any("never proposed" in i.response for i in read(found.validation))
    assert len(examples_of(found.train)) == 20
    assert not examples_of(found.train) & examples_of(found.validation)


def test_what_was_prepared_is_not_prepared_again(tmp_path: Path) -> None:
    made = config(pool=write_pools(tmp_path / "pool.jsonl", pools(40)))
    first = prepare(made, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert prepare(made, tmp_path / "run") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_examples_with_choices_need_no_backbone(tmp_path: Path) -> None:
    rows = [{"task": "t", "instruction": f"i {n}", "choices": ["yes", "no", "so"], "label": n % 3} for n in range(30)]
    found = prepare(config(examples=write(tmp_path / "e.jsonl", rows)), tmp_path / "run")
    instances = read(found.train + found.validation)
    assert {i.origin for i in instances} == {"gold", "wrong_choice"}
    assert (len(instances), sum(i.score for i in instances)) == (90, 30)
    assert all(len(pool.candidates) == 3 for pool in found.validation_pools)


def test_answers_that_were_recorded_once_are_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPPY_CACHE", str(tmp_path / "cache"))
    recorded = [*pools(9, "train"), *pools(3, "validation", start=9)]
    made = config(examples=write(tmp_path / "mine.jsonl", [pool.example.to_row() for pool in recorded]))
    name = f"mine-{fingerprint(survey(read_examples(str(made.data.examples))).digest, settings(made.backbone))}.jsonl"
    (tmp_path / "cache/pools").mkdir(parents=True)
    write_pools(tmp_path / "cache/pools" / name, recorded)
    assert prepare(made, tmp_path / "run").validation_pools == tuple(recorded[9:])


@pytest.mark.parametrize("first", [1, 0])
def test_instances_of_one_example_stay_on_one_side(tmp_path: Path, first: int) -> None:
    rows = own_rows(40)
    named = [{**row, "task": f"u{n % 2}", "example_id": first + n % 30} for n, row in enumerate(rows)]
    source = [write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", named)]
    found = prepare(config(instances=source, validation_fraction=0.5), tmp_path / "run")
    assert found.validation_pools == ()
    assert not examples_of(found.train) & examples_of(found.validation)
    assert len(read(found.train)) + len(read(found.validation)) == 240
    assert min(len(examples_of(found.train)), len(examples_of(found.validation))) > 10
    assert len(examples_of(found.train) | examples_of(found.validation)) == 70


def test_files_of_the_users_own_become_shards_with_origin_given(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(own_rows(5)), tmp_path / "b.parquet")
    write_instances([Instance("i", "r", 0.5, "gold", "t", "1")], tmp_path / "c", {})
    sources = [write(tmp_path / "a.jsonl", own_rows(4)), str(tmp_path / "b.parquet"), str(tmp_path / "c")]
    held_out = [write(tmp_path / "v.jsonl", own_rows(2))]
    found = prepare(config(instances=sources, validation_instances=held_out), tmp_path / "run")
    assert found.train == tuple(str(tmp_path / name) for name in ("run/train/000", "run/train/001", "c"))
    assert found.validation == (str(tmp_path / "run/validation/000"),)
    assert [len(read([directory])) for directory in found.train] == [12, 15, 1]
    assert {i.origin for i in read(found.train[:2] + found.validation)} == {"given"}
    assert [(i.instruction, i.response, i.score) for i in read(found.train[:1])] == [
        tuple(row.values()) for row in own_rows(4)
    ]


def test_the_cells_of_a_csv_file_are_texts_and_a_number_and_what_is_empty_is_absent(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("task,example_id,instruction,response,score\n,,1+1?,2,1\n,7,2+1?,3,0.5\n")
    (source,) = prepare(config(instances=[str(table)], validation_instances=[str(table)]), tmp_path / "run").train
    assert [tuple(vars(one).values()) for one in read([source])] == [
        ("1+1?", "2", 1.0, "given", "default", make_id("1+1?")),
        ("2+1?", "3", 0.5, "given", "default", "7"),
    ]


def test_directories_of_shards_are_split_like_files(tmp_path: Path) -> None:
    instances = [Instance(f"i {n}", "r", 0.5, "mismatch", "t", str(n // 2)) for n in range(40)]
    write_instances(instances, tmp_path / "shards", {}, shard_rows=9)
    found = prepare(config(instances=[str(tmp_path / "shards")]), tmp_path / "run")
    assert sorted(map(instances.index, read(found.train + found.validation))) == list(range(40))
    assert not examples_of(found.train) & examples_of(found.validation)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (
            "a.jsonl",
            '{"instruction": "i", "response": "r", "score": 1}\n{"instruction": "i"}\n',
            ":2: field 'response'",
        ),
        ("a.jsonl", "", ": is empty"),
        ("a.parquet", "no Parquet", ": is no readable Parquet file ("),
        ("a.csv", "i,r,1\nx,y,z\n", ":2: field 'instruction' is missing"),
        ("a.csv", "instruction,response,score\nx,y,0.5\nx,z,much\n", ":3: field 'score' is 'much'"),
        ("a.txt", "i", ": is none of .jsonl, .json, .csv, .parquet"),
        ("a/x", "", ": has no manifest.json, expected a directory of instances"),
        (None, "", ".jsonl: cannot be read (No such file or directory)"),
    ],
)
@pytest.mark.parametrize("validation", [False, True])
def test_a_bad_source_is_refused_by_its_place_and_leaves_nothing(
    tmp_path: Path, name: str | None, text: str, problem: str, validation: bool
) -> None:
    source = tmp_path / (name or "none.jsonl")
    if name:
        source.parent.mkdir(exist_ok=True)
        source.write_text(text)
    source = source.parent if source.name == "x" else source
    good = write(tmp_path / "good.jsonl", own_rows(4))
    data = {"instances": [good], "validation_instances": [str(source)]} if validation else {"instances": [str(source)]}
    place = source.with_suffix("") if problem.startswith(".jsonl") else source
    assert refusal(config(**data), tmp_path / "run").startswith(f"{place}{problem}")
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and "000" not in path.parts[-2]]


def test_instances_of_a_single_example_are_not_split(tmp_path: Path) -> None:
    made = config(instances=[write(tmp_path / "a.jsonl", own_rows(1))])
    assert refusal(made, tmp_path / "run").endswith(": there is no instance to write")


@pytest.mark.parametrize("key", ["pool", "examples"])
def test_a_bad_line_is_refused_by_file_and_line(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "a.jsonl", [*(pool.to_row() for pool in pools(2)), {"task": "t"}])
    assert refusal(config(**{key: path}), tmp_path / "run").startswith(f"{path}:3: field 'instruction' is missing")


def test_other_ranks_wait_for_the_first_even_where_an_earlier_attempt_has_left_something(tmp_path: Path) -> None:
    made, run = config(pool=write_pools(tmp_path / "pool.jsonl", pools(40))), tmp_path / "run"
    made.run_dir = str(run)
    prepare(config(pool=write_pools(tmp_path / "other.jsonl", pools(50))), run / "instances")
    (run / ".lock").touch()
    context = multiprocessing.get_context("fork")  # a new interpreter would spend seconds on imports
    receiver, sender = context.Pipe(duplex=False)

    def second_rank() -> None:
        os.environ["RANK"] = "1"
        RunDir(made).wait()
        sender.send(prepare(made, run / "instances"))

    other = context.Process(target=second_rank, daemon=True)
    other.start()
    assert not receiver.poll(0.3)
    directory = RunDir(made)
    first = prepare(made, run / "instances")
    assert not receiver.poll(0.7)
    directory.commit()
    assert receiver.poll(30)
    assert receiver.recv() == first
    other.join(30)
    assert other.exitcode == 0


def test_data_that_changed_since_the_run_began_are_refused(tmp_path: Path) -> None:
    path, target = tmp_path / "pool.jsonl", tmp_path / "instances"
    settings = config(pool=write_pools(path, pools(20)))
    prepare(settings, target)
    before = read([target / "train", target / "validation"])
    prepare(settings, target)  # the same again
    write_pools(path, pools(21))
    with pytest.raises(InputError, match="the data have changed since this run began"):
        prepare(settings, target)
    assert read([target / "train", target / "validation"]) == before

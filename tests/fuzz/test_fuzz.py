"""Hostile and clumsy input to every command: one line and exit code 2, or it is no matter; never a traceback, a hang, or a
file outside of the output."""

import contextlib
import io
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import QUICKSTART_POOL, ROOT, TINY_SCORER
from corpus import VALUES, WORDS, directories, rows, texts, yamls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cappy_lightning import Cappy, cli
from cappy_lightning.commands import choosing
from cappy_lightning.config import Config
from cappy_lightning.schema import all_keys
from cappy_lightning.scorer.pretrained import PretrainedScorer
from cappy_lightning.sources.config import SourceConfig, SourcesConfig

#: Seconds for a single case.
PATIENCE = 60

Refuse = Callable[..., int]

#: Cases by test, for the docs (`pytest tests/fuzz -s` prints them).
CASES: Counter[str] = Counter()


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"not done in {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def refuse(tmp_path: Path, request: pytest.FixtureRequest) -> Refuse:
    """Runs a command whose input lies in `tmp_path`, and whose output belongs into `tmp_path / "out"`."""
    (tmp_path / "out").mkdir()

    def run(*words: object) -> int:
        before = listing(tmp_path), listing(ROOT / "conf"), sorted(os.listdir(ROOT))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                with no_longer_than(PATIENCE):
                    code = cli.main(list(map(str, words)))
            except SystemExit as error:  # argparse
                code = int(error.code or 0)
        after = listing(tmp_path), listing(ROOT / "conf"), sorted(os.listdir(ROOT))
        inputs = [
            {name: own for name, own in found[0].items() if not name.startswith("out/")} for found in (before, after)
        ]
        assert inputs[0] == inputs[1], f"{words}: files beside the output were touched"
        assert before[1:] == after[1:], f"{words}: the checkout was touched"
        said = err.getvalue()
        assert code in (0, 2), f"{words}: exit code {code}"
        assert "Traceback" not in said
        if code == 2:
            last = said.rstrip("\n").rsplit("\n", 1)[-1]
            assert last.startswith("cappy"), f"{words}: {said[-300:]}"
            assert said.count("\ncappy: ") + said.startswith("cappy: ") <= 1
        CASES[request.function.__name__] += 1
        return code

    return run


@pytest.fixture(autouse=True, scope="module")
def say_counts() -> Iterator[None]:
    yield
    print(f"\n{CASES.total()} cases: " + ", ".join(f"{name} {count}" for name, count in CASES.items()))


@pytest.fixture(scope="module")
def adapter(lora_run: Path) -> Path:
    return lora_run / "adapter"


@pytest.fixture
def loaded(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scorer is loaded once: here it is the other input that is malformed."""
    cappy = Cappy.from_pretrained(adapter)
    monkeypatch.setattr(choosing, "open_cappy", lambda *_: cappy)


POOL = {
    **{"task": "t", "id": "1", "split": "train", "instruction": "What is 2 + 2?", "references": ["4"]},
    "candidates": [{"response": "4", "decoding": "greedy", "log_likelihood_sum": -1.0, "log_likelihood_mean": -0.5}],
}
CHOICES = {"task": "c", "id": "2", "instruction": "Is it?", "choices": ["yes", "no"], "label": 0}
TEST_ROW = {
    "dataset_name": "d",
    "template_name": "t",
    "example_idx": 0,
    "instruction": "i",
    "response": "r",
    "label": 1,
}
RECORDED = ("backbone.kind=recorded", "backbone.shots=0")


def commands(path: Path, out: Path) -> list[tuple[object, ...]]:
    """Every command that reads rows."""
    return [
        ("inspect", path),
        ("label", path, "-o", out / "instances"),
        ("generate", path, "-o", out / "pool.jsonl", *RECORDED, f"backbone.pools=[{path}]"),
        ("answer", path, "-o", out / "answers.jsonl", "--scorer", "x", *RECORDED, f"backbone.pools=[{path}]"),
        ("select", path, "-o", out / "selections.jsonl", "--scorer", "x"),
        ("score", path, "-o", out / "scores.jsonl", "--scorer", "x"),
        ("calibrate", path, "-o", out / "answer.yaml", "--scorer", "x"),
        (
            "train",
            *TINY_SCORER,
            f"data.pool={path}",
            "trainer.max_steps=1",
            f"run_dir={out / 'run'}",
            "trainer.accelerator=gpu",
        ),
    ]


def clean(out: Path) -> None:
    import shutil

    shutil.rmtree(out)
    out.mkdir()


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.usefixtures("loaded")
def test_rows_with_any_value_anywhere(refuse: Refuse, tmp_path: Path, every: int) -> None:
    path, out, codes = tmp_path / "rows.jsonl", tmp_path / "out", Counter[int]()
    for good in (POOL, CHOICES):
        for number, (_, bad) in enumerate(islice(rows(good), 0, None, every)):
            try:
                line = json.dumps(bad)
            except ValueError:
                continue
            path.write_text(line + "\n")
            those = commands(path, out)
            codes[refuse(*those[number % len(those)])] += 1
            clean(out)
    assert min(codes.values()) > 50 / every


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.soak)])
@pytest.mark.usefixtures("loaded")
def test_files_of_rows_that_are_damaged(refuse: Refuse, tmp_path: Path, whole: bool) -> None:
    good, out = "".join(json.dumps({**POOL, "id": str(n)}) + "\n" for n in range(3)).encode(), tmp_path / "out"
    for number, (_, content) in enumerate(texts(good)):
        for suffix in (".jsonl", ".csv", ".parquet", ".json"):
            path = tmp_path / f"rows{suffix}"
            path.write_bytes(content)
            those = commands(path, out)[: None if suffix == ".jsonl" else 2]
            for words in those if whole else [those[number % len(those)]]:
                refuse(*words)
                clean(out)
            path.unlink()


def test_rows_to_the_benchmark(refuse: Refuse, tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cappy = Cappy.from_pretrained(adapter)
    monkeypatch.setattr(PretrainedScorer, "from_pretrained", lambda *_, **__: cappy)
    path, out, codes = tmp_path / "rows.jsonl", tmp_path / "out", Counter[int]()
    for good in (TEST_ROW, CHOICES):
        for _, bad in islice(rows(good), 0, None, 3):  # those that are fine are drawn, which takes a second
            with contextlib.suppress(ValueError):
                path.write_text(json.dumps(bad) + "\n")
                codes[refuse("evaluate", "promptsource", path, "--scorer", "x", "-o", out / "evaluated")] += 1
                clean(out)
    assert codes[2] > 30


def test_files_where_jobs_are_looked_for(refuse: Refuse, tmp_path: Path) -> None:
    row = {"job": "1", "name": "n", "submitted": "2026-01-01", "parts": None, "after": None}
    for _, bad in rows(row):
        with contextlib.suppress(ValueError):
            (tmp_path / "jobs.jsonl").write_text(json.dumps(bad) + "\n")
            refuse("jobs", tmp_path)
    for _, content in texts(json.dumps(row).encode() + b"\n"):
        (tmp_path / "jobs.jsonl").write_bytes(content)
        refuse("jobs", tmp_path)


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.soak)])
def test_words_for_every_key(refuse: Refuse, tmp_path: Path, every: int) -> None:
    base = ("train", "data.pool=nowhere.jsonl", f"run_dir={tmp_path / 'out' / 'run'}")
    for number, key in enumerate(all_keys(Config)):
        for step in (0, 5, 11)[: None if every == 1 else 1]:
            word = WORDS[(number + step) % len(WORDS)]
            if key != "run_dir":
                assert refuse(*base, f"{key}={word}") == 2
    sources = tmp_path / "sources.yaml"
    for number, key in enumerate({**all_keys(SourcesConfig), **all_keys(SourceConfig)}):
        for value in VALUES[number % 3 :: 3 * every]:
            row = {"files": ["nowhere.jsonl"], key: value}
            with contextlib.suppress(ValueError, UnicodeEncodeError):
                sources.write_text(json.dumps({"sources": [row]} if key != "sources" else {key: value}))
                assert refuse("label", sources, "-o", tmp_path / "out" / "instances") == 2


def test_recipes_and_sources_files_that_are_none(refuse: Refuse, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    contents = [text.encode() for _, text in yamls()] + [
        content for _, content in texts(b"data:\n  pool: x\nseed: 1\n")
    ]
    for content in contents:
        path.write_bytes(content)
        for words in (
            ("train", path),
            ("label", path, "-o", tmp_path / "out" / "x"),
            ("memory", path),
            ("submit", "--dry-run", path),
        ):
            refuse(
                *words,
                *(() if words[0] == "label" else (f"run_dir={tmp_path / 'out' / 'run'}", "data.pool=nowhere.jsonl")),
            )


def test_lines_of_words(refuse: Refuse, tmp_path: Path) -> None:
    names = list(cli._COMMANDS)
    for name in names:
        for words in (
            (),
            ("",),
            ("-x",),
            ("--scorer",),
            ("nowhere",),
            ("a=b", "c"),
            ("--", "--"),
            ("\x00",),
            ("🙂",),
            ("-o",),
        ):
            if (name, words) != ("jobs", ()):
                refuse(name, *words)
    for words in ((), ("",), ("trian",), ("--json",), ("train", "--json"), ("evaluate",), ("evaluate", "glue")):
        assert refuse(*words) == 2


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_adapters_and_models_that_are_damaged(
    refuse: Refuse, tmp_path: Path, lora_run: Path, full_run: Path, kind: str, every: int
) -> None:
    good = {"adapter": lora_run, "model": full_run}[kind] / kind
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"instruction": "i", "response": "r"}\n')
    place, codes = tmp_path / "scorer", Counter[int]()
    for number, (_, files) in enumerate(islice(directories(good), 0, None, every)):
        place.mkdir()
        for name, content in files.items():
            (place / name).write_bytes(content)
        if number % 4:
            words: tuple[object, ...] = ("score", pairs, "-o", tmp_path / "out" / "scores.jsonl", "--scorer", place)
        else:
            words = ("export", place, "-o", tmp_path / "out" / "exported", "--as", "model")
        codes[refuse(*words)] += 1
        clean(tmp_path / "out")
        clean(place)
        place.rmdir()
    assert codes[2] > 15


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.soak)])
def test_directories_of_instances_that_are_damaged(refuse: Refuse, tmp_path: Path, lora_run: Path, every: int) -> None:
    good, place, out = lora_run / "instances" / "train", tmp_path / "instances", tmp_path / "out"
    shard = next(good.glob("*.parquet"))
    table = pq.read_table(shard)
    cases = [files for _, files in directories(good)]
    for changed in (
        table.drop_columns(["score"]),
        table.set_column(2, "score", pa.array(["x"] * len(table))),
        table.set_column(2, "score", pa.array([float("nan")] * len(table), pa.float32())),
        table.set_column(2, "score", pa.array([7.0] * len(table), pa.float32())),
        table.set_column(0, "instruction", pa.array([None] * len(table), pa.string())),
        table.set_column(0, "instruction", pa.array([b"\xff"] * len(table), pa.binary())),
        table.slice(0, 0),
        pa.table({"a": [1]}),
    ):
        sink = io.BytesIO()
        pq.write_table(changed, sink)
        files = {path.name: path.read_bytes() for path in good.iterdir() if path.is_file()}
        cases.append({**files, shard.name: sink.getvalue()})
        (tmp_path / "rows.parquet").write_bytes(sink.getvalue())
        refuse("label", tmp_path / "rows.parquet", "-o", out / "x")
        refuse("inspect", tmp_path / "rows.parquet")
        clean(out)
    words = ("train", *TINY_SCORER, "trainer.max_steps=1", "trainer.accelerator=cpu", "trainer.logger=none")
    for files in cases[::every]:
        place.mkdir()
        for name, content in files.items():
            (place / name).write_bytes(content)
        refuse("inspect", place)
        refuse(*words, f"data.instances={place}", f"data.validation_instances={good}", f"run_dir={out / 'run'}")
        clean(out)
        clean(place)
        place.rmdir()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from([*POOL, *CHOICES, "score", "x"]), below, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.usefixtures("loaded")
def test_rows_of_any_shape(refuse: Refuse, tmp_path: Path) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "out"

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.lists(json_values, min_size=1, max_size=3), st.integers(0, 6))
    def check(values: list[Any], which: int) -> None:
        with contextlib.suppress(UnicodeEncodeError):
            path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
            refuse(*commands(path, out)[which])
            clean(out)

    check()


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_bytes_to_the_readers(content: bytes) -> None:
    from cappy_lightning.errors import InputError
    from cappy_lightning.files import parse_line
    from cappy_lightning.sources.jsonl import pool_from_row

    with contextlib.suppress(InputError):
        pool_from_row(parse_line(content, "f:1"), "f:1", labelled=False)
    CASES["test_bytes_to_the_readers"] += 1


def test_the_good_rows_are_good(refuse: Refuse, tmp_path: Path, adapter: Path) -> None:
    """Else all of the above would prove nothing."""
    path = tmp_path / "pool.jsonl"
    lines = "".join(QUICKSTART_POOL.read_text(encoding="utf-8").splitlines(keepends=True)[:6])
    path.write_text(lines)
    for words in commands(path, tmp_path / "out")[:-1]:
        if words[0] == "score":
            path.write_text('{"instruction": "i", "response": "r"}\n')
        if words[0] == "calibrate":  # which wants examples that no scorer was trained on
            path.write_text(lines.replace('"split": "train"', '"split": "validation"'))
        assert refuse(*(adapter if word == "x" else word for word in words)) == 0, words
        path.write_text(lines)

"""The command line: bad input gets one line and exit code 2; commands read files and standard input."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import QUICKSTART_POOL, ROOT, SHORT_RUN, Run, start_cappy

from cappy_lightning.cli import main

PAIR = {"instruction": "Message: my kettle came broken\nSubject:", "response": "damaged item: kettle"}

Refused = Callable[..., None]


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def assert_refused(code: int, out: str, error: str, *expected: str) -> None:
    """Exit code 2, nothing on standard output, and one last line that names place and expectation."""
    assert code == 2, error
    assert out == ""
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert last.startswith("cappy: ")
    for words in expected:
        assert words in last


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Run a command in this process, which saves importing torch each time, and expect a refusal."""
    monkeypatch.chdir(ROOT)

    def run(arguments: Sequence[object], *expected: str) -> None:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert_refused(code, captured.out, captured.err, *expected)

    return run


TRAIN = ("train", *SHORT_RUN)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trainer.epoch=2"], ["unknown key 'trainer.epoch'", "did you mean 'trainer.epochs'"]),
        (["trainer.epochs=soon"], ["trainer.epochs", "soon"]),
        (["scorer=embedded"], ["'scorer' is a section"]),
        (["nowhere.yaml"], ["nowhere.yaml: cannot be read"]),
        (["seed"], ["seed: is neither a .yaml file nor key=value"]),
        (["data.pool=nowhere.jsonl"], ["nowhere.jsonl: cannot be read"]),
        (["data.pool=null"], ["data: expected one source"]),
        (["scorer.base=./nowhere"], ["./nowhere: does not exist"]),
        (["scorer.max_length=1000"], ["scorer.max_length: is 1000, expected at most 512"]),
        (["batch.micro_size=5"], ["batch.global_size: is 16, expected a multiple of 5"]),
        (["finetune.lora_targets=nothing"], ["finetune.lora_targets: names 'nothing'"]),
        (["finetune.lora_targets=[query, vlaue]"], ["finetune.lora_targets: names 'vlaue', expected layers"]),
        (["finetune.lora_targets=[query, word_embeddings]"], ["finetune.lora_targets: names 'word_embeddings'"]),
        (["scorer.name=oracle"], ["scorer.name: is 'oracle'"]),
        (["seed=4294967296"], ["seed: is 4294967296, expected 0 to 4294967295"]),
        (["scorer.tokenizer=embedded"], ["scorer.tokenizer: stands beside finetune.mode=lora"]),
    ],
)
def test_a_bad_config_is_refused_in_one_line(
    refused: Refused, tmp_path: Path, arguments: list[str], expected: list[str]
) -> None:
    refused([*TRAIN, f"run_dir={tmp_path}/run", *arguments], *expected)
    assert not (tmp_path / "run" / "config.yaml").exists()  # the corrected command is not refused as another run


ROW = {"task": "t", "instruction": "i", "references": ["r"], "candidates": [{"response": "c"}]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "pool.jsonl: is empty"),
        (b'{"task": "t"\n', "pool.jsonl:1: not valid JSON"),
        (b"[1]\n", "pool.jsonl:1: found list"),
        (b'{"task": "\xff"}\n', "pool.jsonl:1: byte 11 of the line is not UTF-8"),
        (json.dumps({**ROW, "instruction": None}).encode(), "field 'instruction' is NoneType"),
        (json.dumps({k: v for k, v in ROW.items() if k != "task"}).encode(), "field 'task' is missing"),
        (json.dumps({**ROW, "candidates": [{"response": "  "}]}).encode(), "candidates[0]: field 'response' is empty"),
        (json.dumps({**ROW, "references": [""]}).encode(), "field 'references[0]' is empty"),
        (json.dumps({**ROW, "candidates": []}).encode(), "field 'candidates' must be a non-empty list"),
    ],
)
def test_a_bad_pool_is_refused_with_file_and_line(
    refused: Refused, tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(content)
    refused([*TRAIN, f"data.pool={path}", f"run_dir={tmp_path}/run"], expected)
    assert not (tmp_path / "run" / "instances").exists()


@pytest.mark.parametrize("score", [1.5, -0.1, float("nan"), "high", None])
def test_a_score_outside_its_range_is_refused(refused: Refused, tmp_path: Path, score: object) -> None:
    path = lines(tmp_path / "mine.jsonl", {**PAIR, "score": 0.5}, {**PAIR, "score": score})
    own = ["data.pool=null", "data.max_train=null", "data.max_validation=null", f"data.instances={path}"]
    refused([*TRAIN, *own, f"run_dir={tmp_path}/run"], "mine.jsonl:2: field 'score' is", "a number from 0 to 1")


def test_a_model_folder_without_weights_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    refused(["score", "--scorer", tmp_path], "without weights, expected model.safetensors")


def test_an_output_that_cannot_be_written_is_refused_before_any_work(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused([*TRAIN, f"run_dir={tmp_path}/file/run"], f"{tmp_path}/file/run", "cannot be written")


def test_an_output_that_is_a_directory_is_refused_and_kept(refused: Refused, lora_run: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis").write_text("precious")
    pairs = lines(tmp_path / "pairs.jsonl", PAIR)
    refused(["score", pairs, "--scorer", lora_run / "adapter", "-o", tmp_path / "work"], "work: exists already")
    assert (tmp_path / "work" / "thesis").read_text() == "precious"


def test_score_reads_standard_input_and_keeps_the_rows(lora_run: Path) -> None:
    rows = [{**PAIR, "origin": "web"}, {**PAIR, "response": "thank you: kettle"}]
    given = "".join(json.dumps(row) + "\n" for row in rows)
    done = start_cappy("score", "--scorer", lora_run / "adapter", input=given)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [{k: row[k] for k in row if k not in ("score", "logit")} for row in found] == rows
    assert all(0 <= row["score"] <= 1 for row in found)


def test_a_bad_row_leaves_no_output_file_behind(refused: Refused, lora_run: Path, tmp_path: Path) -> None:
    rows = lines(tmp_path / "pairs.jsonl", PAIR, {"instruction": "x"})
    out = tmp_path / "out.jsonl"
    refused(["score", rows, "--scorer", lora_run / "adapter", "-o", out], "pairs.jsonl:2: field 'response' is missing")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_select_writes_selections_and_reports_where_references_are(cappy: Run, lora_run: Path, tmp_path: Path) -> None:
    head = QUICKSTART_POOL.read_text(encoding="utf-8").splitlines()[:20]
    pool, out = tmp_path / "pool.jsonl", tmp_path / "out.jsonl"
    pool.write_text("\n".join(head), encoding="utf-8")
    done = cappy("select", pool, "-o", out, "--scorer", lora_run / "adapter")
    assert done.returncode == 0, done.stderr
    assert "ticket_subject, 20 examples" in done.stdout
    for line, selection in zip(head, map(json.loads, out.read_text().splitlines()), strict=True):
        candidates = json.loads(line)["candidates"]
        assert selection["response"] == candidates[selection["index"]]["response"]
        assert selection["score"] == max(selection["scores"])
        assert selection["id"] == json.loads(line)["id"]


def test_select_puts_other_scorers_beside(cappy: Run, lora_run: Path, full_run: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in QUICKSTART_POOL.read_text().splitlines()]
    pool = lines(tmp_path / "pool.jsonl", *[row for row in rows if row["split"] == "validation"][:20])
    words, other = ["select", pool, "--scorer", lora_run / "adapter"], str(full_run / "model")
    done = cappy(*words, "-o", tmp_path / "own.jsonl", "--report", tmp_path / "report.json", "--beside", other)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    done = cappy(*words[:-1], other, "-o", tmp_path / "other.jsonl", "--report", tmp_path / "other.json")
    alone = json.loads((tmp_path / "other.json").read_text())
    assert report["average"]["methods"][other] == alone["average"]["methods"]["cappy"]
    difference = report["average"]["differences"][other]["mean"]
    ours, theirs = (one["average"]["methods"]["cappy"]["mean"] for one in (report, alone))
    assert difference == pytest.approx(ours - theirs)


MIXED = [
    {"task": "t", "instruction": "i", "references": ["a"], "candidates": [{"response": "a"}, {"response": "b"}]},
    {"task": "t", "instruction": "j", "choices": ["a", "b"], "label": 0},
]


@pytest.mark.parametrize(
    ("rows", "more", "problem"),
    [
        (MIXED[:1], ("--beside", "./missing"), "./missing: does not exist, expected a model directory or a hub name"),
        (MIXED[:1], ("--beside", "embedded"), "has no trained head of one output"),
        (MIXED[:1], ("--beside", "cappy"), "--beside: names 'cappy', as the scorer is called"),
        (MIXED, ("--report", "{new}"), "some examples have references and some choices, expected one kind"),
        (
            [MIXED[0] | {"candidates": [{"response": "a", "decoding": "mbr"}]}],
            ("--html", "{new}"),
            "a decoding is called 'mbr', which is a baseline's name",
        ),
        (
            [{"task": "t", "instruction": "i", "candidates": [{"response": "a"}]}],
            ("--report", "{new}"),
            "no report: no pool has references or choices",
        ),
    ],
)
def test_what_no_report_can_be_made_of_is_refused_before_anything_is_scored(
    refused: Refused,
    lora_run: Path,
    tmp_path: Path,
    rows: list[dict[str, object]],
    more: tuple[str, ...],
    problem: str,
) -> None:
    out = tmp_path / "selections.jsonl"
    words = [word.format(new=tmp_path / "new") for word in more]
    pool = lines(tmp_path / "pool.jsonl", *rows)
    refused(["select", str(pool), "--scorer", str(lora_run / "adapter"), "-o", str(out), *words], problem)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool.jsonl"]


def test_select_accepts_pools_without_references(cappy: Run, lora_run: Path, tmp_path: Path) -> None:
    row = {"task": "t", "instruction": PAIR["instruction"], "candidates": [{"response": "a"}, {"response": "b"}]}
    done = cappy("select", lines(tmp_path / "pool.jsonl", row), "--scorer", lora_run / "adapter")
    assert done.returncode == 0
    assert json.loads(done.stdout)["response"] in ("a", "b")
    assert "Rouge-L" not in done.stderr


def test_help_lists_every_key_and_comes_without_torch() -> None:
    probe = (
        "import sys; from cappy_lightning.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass\n"
    )
    probe += "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys(), 'imported'"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    from cappy_lightning.config import Config
    from cappy_lightning.schema import all_keys

    for name, field in all_keys(Config).items():
        assert f"  {name}  (" in done.stdout
        assert field.metadata["help"] in done.stdout


def test_train_py_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "train.py", "no.yaml"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert_refused(done.returncode, done.stdout, done.stderr, "no.yaml: cannot be read")


def test_the_shell_completes_commands_keys_and_recipes(tmp_path: Path) -> None:
    def completed(line: str) -> set[str]:
        out = tmp_path / "out"
        environment = {
            **os.environ,
            **{"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"},
            "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
        }
        subprocess.run([sys.executable, "-m", "cappy_lightning"], cwd=ROOT, env=environment, check=False)
        return {word.strip() for word in out.read_text().splitlines()}

    assert {"train", "serve", "answer"} <= completed("cappy ")
    assert completed("cappy train trainer.ep") == {"trainer.epochs="}
    assert completed("cappy train conf/zero2") == {"conf/zero2.yaml", "conf/zero2_offload.yaml"}


def test_quiet_leaves_out_all_but_results(cappy: Run, lora_run: Path, tmp_path: Path) -> None:
    words = ("label", QUICKSTART_POOL, "-o", tmp_path / "instances")
    done = cappy(*words, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'instances'}\n", "")
    again = cappy(*words, "-q")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)  # errors are said
    assert cappy("label", QUICKSTART_POOL, "-o", tmp_path / "other").stderr  # the next one speaks

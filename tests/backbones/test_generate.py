"""Recording from the real embedded LLM, over HTTP, and continuing after a kill."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import run_cappy
from forked import Forked

from cappy_lightning.backbones.backbone import Request
from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.backbones.embedded import embedded_backbone
from cappy_lightning.backbones.generate import made_by_path, record_pools
from cappy_lightning.backbones.prompts import Prompter, draw_shots
from cappy_lightning.cli import main
from cappy_lightning.config import BackboneConfig
from cappy_lightning.errors import InputError
from cappy_lightning.records import Example
from cappy_lightning.sources.jsonl import read_labelled_pools

COLORS = ["red", "green", "blue", "yellow", "black", "white", "orange", "purple", "brown", "grey"]
EXAMPLES = [Example("colors", f"{i}", f"What color is number {i}?", (c,), split="train") for i, c in enumerate(COLORS)]
SETTINGS = BackboneConfig(shots=3, max_tokens=6, decodings={"greedy": 1, "nucleus_0.9": 2})


def test_a_recording_has_every_example_in_order_with_every_decoding_and_likelihoods(tmp_path: Path) -> None:
    out = tmp_path / "pool.jsonl"
    record_pools(lambda: EXAMPLES, SETTINGS, out)
    pools = read_labelled_pools([out])
    assert [pool.example for pool in pools] == EXAMPLES
    for pool in pools:
        decodings = [candidate.decoding for candidate in pool.candidates]
        assert decodings == ["greedy", "nucleus_0.9", "nucleus_0.9"]
        for candidate in pool.candidates:
            assert candidate.log_likelihood_sum is not None
            assert candidate.log_likelihood_mean is not None
            assert candidate.log_likelihood_sum <= candidate.log_likelihood_mean <= 0
    made_by = json.loads(made_by_path(out).read_text())
    assert made_by["prompt_prefixes"] == Prompter(SETTINGS, draw_shots(EXAMPLES, Counter(colors=10), 3, 0)).prefixes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pool.jsonl", "pool.made_by.json"]


def test_greedy_is_the_same_every_time_and_seeds_make_samples_differ() -> None:
    found = []
    for seed in (1, 2):
        request = Request(EXAMPLES[0], "Question: Name an animal.\nAnswer:")
        decodings = [Decoding("greedy", 1, 0.0), Decoding("sampling", 4)]
        with embedded_backbone(BackboneConfig(max_tokens=8, seed=seed)) as backbone:
            (answer,) = backbone.answer(iter([request]), decodings)
        found.append([candidate.response for candidate in answer.candidates])
    one, other = found
    assert one[0] == other[0]
    assert one[1:] != other[1:]
    assert len(set(one[1:])) > 1


@pytest.mark.parametrize(("kills", "count"), [(2, 40), pytest.param(20, 500, marks=pytest.mark.soak)])
def test_killed_at_random_moments_a_recording_ends_with_nothing_lost_or_doubled(
    tmp_path: Path, kills: int, count: int
) -> None:
    generator = random.Random(kills)
    examples, out = tmp_path / "examples.jsonl", tmp_path / "out" / "pool.jsonl"
    partial = out.with_name("pool.jsonl.partial")
    many = [
        replace(e, id=f"{n}-{e.id}", instruction=f"{e.instruction} ({n})")
        for n in range(count // len(EXAMPLES))
        for e in EXAMPLES
    ]
    examples.write_text("".join(json.dumps(e.to_row()) + "\n" for e in many))
    command = ("generate", examples, "-o", out, "backbone.max_tokens=6")
    recorded: list[str] = []
    for _ in range(kills):
        process = Forked(tmp_path / "printed", *command)
        lines = len(recorded)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not partial.exists() or partial.read_text().count("\n") <= lines):
            time.sleep(0.02)
        time.sleep(generator.uniform(0, 2))
        assert process.returncode is None, "it had ended before the kill"
        process.kill()
        process.wait()
        now = partial.read_text().splitlines()
        assert now[: len(recorded)] == recorded  # nothing lost
        recorded = [line for line in now if line.endswith("}")]
        if generator.random() < 0.5:  # as a kill within a write leaves it
            partial.write_text("\n".join(recorded) + '\n{"pool": {"task": "colors", "id": "cut o')
    done = run_cappy(*command)
    assert done.returncode == 0, done.stderr
    assert "continuing, " in done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [e.id for e in many]
    assert [json.loads(line)["pool"] for line in recorded[1:]] == rows[: len(recorded) - 1]
    made_by = json.loads(made_by_path(out).read_text())
    assert sum(len(row["candidates"]) for row in rows) + made_by["empty"] == 13 * len(many)
    assert not partial.exists()
    again = run_cappy(*command)
    assert (again.returncode, "is there already" in again.stderr) == (0, True)
    other = run_cappy(*command, "backbone.seed=7")
    assert (other.returncode, "exists already" in other.stderr) == (2, True)
    print(
        f"{kills} kills, {len(recorded) - 1} of {len(many)} examples recorded before the last, all there once at the end"
    )


def test_a_partial_recording_with_other_settings_is_not_mixed(tmp_path: Path) -> None:
    out = tmp_path / "pool.jsonl"
    (tmp_path / "pool.jsonl.partial").write_text('{"fingerprint": "of something else"}\n{}\n')
    with pytest.raises(InputError, match="was begun with other input or settings"):
        record_pools(lambda: EXAMPLES, SETTINGS, out)


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl.partial").symlink_to("/dev/full")
    with pytest.raises(InputError) as error:
        record_pools(lambda: EXAMPLES, SETTINGS, tmp_path / "pool.jsonl")
    assert str(error.value) == (
        f"{tmp_path}/pool.jsonl.partial: cannot be written (No space left on device);"
        " what was recorded is kept, the same command continues"
    )


def test_a_second_process_does_not_write_into_the_same_recording(tmp_path: Path) -> None:
    hold = "import sys, time; from pathlib import Path; from cappy_lightning.files import open_locked\n"
    hold += "lock = open_locked(Path(sys.argv[1]), Path('x'), 'recording'); print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", hold, str(tmp_path / ".pool.jsonl.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process is at work on this recording"):
            record_pools(lambda: EXAMPLES, SETTINGS, tmp_path / "pool.jsonl")
        process.kill()


def test_more_shots_than_training_examples_are_refused() -> None:
    with pytest.raises(InputError, match=r"backbone.shots: is 11, but only 10 training examples of task colors"):
        draw_shots(EXAMPLES, Counter(colors=10), 11, 0)


def test_shots_are_of_the_task_and_never_the_example_itself() -> None:
    others = [replace(e, task="others", references=("other",)) for e in EXAMPLES]
    mixed = [e for pair in zip(EXAMPLES, others, strict=True) for e in pair]
    shots = draw_shots(mixed, Counter(colors=10, others=10), 3, 0)
    assert {task: {shot.task for shot in own} for task, own in shots.items()} == {
        "colors": {"colors"},
        "others": {"others"},
    }
    prompter = Prompter(SETTINGS, shots)
    shown = shots["colors"][1]
    for example in EXAMPLES:
        prompt = prompter.prompt(example)
        assert prompt.count(example.instruction) == 1
        assert prompt.count("Question: ") == (3 if example in shots["colors"] else 4)
    assert shown.references[0] not in prompter.prompt(shown).split()
    assert prompter.prompt(replace(shown, id="another")) == prompter.prompt(shown)


def test_examples_with_choices_are_pools_already_and_not_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = [Example("kind", str(n), f"kind of {n}?", choices=("a", "b"), label=n % 2) for n in range(6)]
    mixed = [choices[0], *EXAMPLES[:4], choices[1], choices[2], *EXAMPLES[4:], *choices[3:]]
    record_pools(lambda: mixed, SETTINGS, tmp_path / "pool.jsonl")
    assert [pool.example for pool in read_labelled_pools([tmp_path / "pool.jsonl"])] == mixed
    said = capsys.readouterr().err
    assert "10 examples, 20 requests with about " in said
    assert "6 examples with choices, which are the candidates" in said
    alone = BackboneConfig(kind="openai", url="http://127.0.0.1:9")  # nobody is there, and nobody is needed
    record_pools(lambda: choices, alone, tmp_path / "choices.jsonl")
    pools = read_labelled_pools([tmp_path / "choices.jsonl"])
    assert [[c.response for c in pool.candidates] for pool in pools] == [["a", "b"]] * 6


def test_examples_without_a_split_get_one_and_no_validation_example_is_shown_to_the_llm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "examples.jsonl", tmp_path / "pool.jsonl"
    rows = [json.dumps(replace(e, split=None).to_row()) + "\n" for e in EXAMPLES]
    path.write_text("".join([*rows, *rows[:2]]))  # real tables repeat themselves
    words = ["backbone.shots=5", "backbone.max_tokens=2", "data.validation_fraction=0.4"]
    words += ["backbone.decodings={greedy: 1}"]
    assert main(["generate", str(path), "-o", str(out), *words]) == 0
    said = capsys.readouterr().err
    assert "the examples name no split: made one of" in said
    assert f"{path}: 2 rows repeated and used once" in said
    pools = read_labelled_pools([out])
    assert len(pools) == len(EXAMPLES)
    shown = [
        pool
        for pool in pools
        if pool.example.instruction in json.loads(made_by_path(out).read_text())["prompt_prefixes"]["colors"]
    ]
    assert len(shown) == 5
    assert {pool.example.split for pool in shown} == {"train"}
    assert {pool.example.split for pool in pools} == {"train", "validation"}

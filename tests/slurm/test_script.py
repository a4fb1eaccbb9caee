"""Scripts and what is read from the command line for them, without a cluster."""

import json
from pathlib import Path

import pytest
from conftest import Run

from cappy_lightning.errors import InputError
from cappy_lightning.slurm.script import seconds


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("90", 5400),
        ("2:30", 150),
        ("24:00:00", 86400),
        ("1-12", 129600),
        ("2-00:30", 174600),
        ("0-0:0:7", 7),
    ],
)
def test_times_are_read_as_sbatch_reads_them(time: str, expected: int) -> None:
    assert seconds(time) == expected


@pytest.mark.parametrize("time", ["", "soon", "1:2:3:4", "-5", "1.5"])
def test_what_is_no_time_is_refused(time: str) -> None:
    with pytest.raises(InputError):
        seconds(time)


def test_a_dry_run_prints_the_script_and_touches_nothing(cappy: Run, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    (tmp_path / "mine.yaml").write_text("slurm: {partition: gpu, time: 24:00:00, setup: [module load cuda]}\n")
    words = ("conf/quickstart.yaml", "slurm.nodes=2", "slurm.gpus_per_node=4", "batch.micro_size=1", f"run_dir={run}")
    done = cappy("submit", "--cluster", tmp_path / "mine.yaml", *words, "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    asked = ("partition=gpu", "time=24:00:00", "nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "signal=USR1@120")
    assert {f"#SBATCH --{option}" for option in asked} <= set(lines)
    assert "module load cuda" in lines
    assert any(line.startswith("srun ") and line.endswith(f"train '{run}/slurm/config.yaml'") for line in lines)
    assert not run.exists()


def test_no_name_or_folder_is_taken_for_something_else(cappy: Run, tmp_path: Path) -> None:
    out = tmp_path / "a #run of 100%" / "pool.jsonl"
    (tmp_path / "examples.jsonl").write_text('{"task": "t", "instruction": "i", "references": ["r"]}\n')
    done = cappy("submit", "generate", tmp_path / "examples.jsonl", "-o", out, "--dry-run")
    assert done.returncode == 0, done.stderr
    folder = str(out).replace("%", "%%")
    assert f"#SBATCH --output='{folder}.slurm/%j.log'" in done.stdout.splitlines()
    done = cappy("submit", "conf/quickstart.yaml", f"run_dir={tmp_path / 'run'}", r'name="a\ntouch x"', "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].endswith("expected a text without line breaks")


def test_a_name_on_the_hub_can_be_exported(cappy: Run, tmp_path: Path) -> None:
    words = ("-o", tmp_path / "out", "--as", "onnx", "--dry-run")
    assert cappy("submit", "export", "someone/scorer", *words).returncode == 0
    done = cappy("submit", "export", tmp_path / "missing", *words)
    assert (done.returncode, "missing: does not exist" in done.stderr) == (2, True)


def test_without_squeue_nobody_knows_what_a_job_does(
    cappy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"job": "7", "name": "mine", "submitted": "2026-01-01T00:00:00", "after": None, "parts": 4}
    folder = tmp_path / "out.slurm"
    folder.mkdir()
    (folder / "jobs.jsonl").write_text(json.dumps(entry) + "\n")
    monkeypatch.setenv("PATH", "/nowhere")
    (row,) = json.loads(cappy("jobs", tmp_path, "--json").stdout)
    assert (row["state"], row["note"]) == ("unknown", "there is no squeue on this machine to ask")
    ends = [{"job": "7", "task": str(task), "restarts": 0, "code": 0} for task in range(4)]  # of a benchmark's tasks
    (folder / "exits.jsonl").write_text("".join(json.dumps(end) + "\n" for end in ends))
    (row,) = json.loads(cappy("jobs", tmp_path, "--json").stdout)
    assert (row["state"], row["step"], row["total_steps"]) == ("finished", 4, 4)


def test_a_benchmark_with_an_unknown_key_is_not_submitted(cappy: Run, tmp_path: Path) -> None:
    words = ("evaluate", "bigbench", "conf/bigbench.yaml", "trainer.epoch=3", "--tasks", "tense", "slurm.array=0-1")
    done = cappy("submit", *words, "-o", tmp_path / "out", "--dry-run")
    assert (done.returncode, "trainer.epoch=3: unknown key" in done.stderr) == (2, True)


def test_files_of_other_programs_are_no_jobs(cappy: Run, tmp_path: Path) -> None:
    for other in ('{"title": "gardener"}', "[1, 2]", "no JSON"):
        (tmp_path / "jobs.jsonl").write_text(other + "\n")
        done = cappy("jobs", tmp_path, "--json")
        assert (done.returncode, done.stdout.strip()) == (0, "[]")

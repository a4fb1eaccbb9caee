"""What README and docs tell people to type is run, page by page, on small data; what is not says why."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest
from conftest import QUICKSTART_POOL, ROOT, TINY_RUN, run_cappy
from test_readme import PAGES

from cappy_lightning import Cappy
from cappy_lightning.backbones.embedded import embedded_server
from cappy_lightning.data.shards import write_instances
from cappy_lightning.records import Instance

#: Why a command is not run here, by how it begins or what it holds.
NOT_RUN = {
    "make ": "what runs under `train`, `test`, `check` and `docs` are this suite and .ci/run; `soak` takes hours",
    "source ": "of the shell alone",
    "python -m pytest": "is this",
    "docker ": "needs docker; tests/serving/test_container.py reads the file",
    "git clone": "needs the internet",
    "conf/pretrain.yaml conf/smoke.yaml": "two steps of RoBERTa-large: tests/test_recipes.py",
    "gpu.yaml name=": "needs a GPU; the same on a CPU: tests/test_recipes.py",
    "conf/zero2.yaml trainer.devices=8 data.instances": "needs eight GPUs; two processes: tests/strategies",
    "conf/zero3.yaml": "two processes: tests/strategies",
    "btan2/cappy-large": "needs the hub; a local one: tests/hub.py",
    "microsoft/deberta": "needs the hub; the architecture: tests/scorer/test_model.py",
    "xlm-roberta": "needs the hub",
    "answerdotai/ModernBERT": "needs the hub; the architecture: tests/scorer/test_model.py",
    "python benchmarks/": "hours; what they call is tested",
    "evaluate bigbench": "needs BIG-bench's archive and hours; tests/evaluation",
    "pretrain_small": "needs BIG-bench's archive and hours; tests/test_recipes.py",
    "s3://": "needs a bucket; a file system of fsspec: tests/data/test_reading.py",
}

#: What a block of Python begins with among the lines of the shell.
PYTHON = "# python"

#: Examples that the pages take for granted are this many.
FEW = 10

#: What makes a training short, whatever the recipe.
SHORT = ("trainer.max_steps=2", "trainer.validations=1", "batch.global_size=4", "batch.micro_size=4")


#: What stands for something that is only there when the pages are read, or for much work.
INSTEAD = {
    "--precision 0.5": "--precision 0.01",
    "--precision 0.95": "--precision 0.01",
    "max_tokens=100": "max_tokens=20",
    "max_tokens=300": "max_tokens=20",
    "-n 12": "-n 3",
    "n=12": "n=3",
    "-n 8": "-n 3",
    "temperature_0.7: 7": "temperature_0.7: 2",
    '"chat": True': '"chat": True, "max_tokens": 20',
    'messages=[{"role"': 'max_tokens=20, messages=[{"role"',
    '"messages": [{"role"': '"max_tokens": 20, "messages": [{"role"',
}


def typed(page: Path) -> list[str]:
    """What a page gives to type: whole blocks of Python, and of the shell's each line, without comments."""
    found = []
    text = page.read_text(encoding="utf-8")
    for language, block in re.findall(r"^ *```(sh|py|python)\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL):
        if language != "sh":
            found.append(f"{PYTHON}\n{block}")
            continue
        lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in re.sub(r" *\\\n *", " ", block).splitlines()]
        found += [line for line in lines if line]
    return found


def why_not(line: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if start in line), None)


def as_words(line: str) -> list[str]:
    """What a shell makes of a line."""
    command = ["bash", "-c", f'words() {{ printf "%s\\0" "$@"; }}; words {line}']
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


@pytest.fixture(scope="module")
def llm() -> Iterator[str]:
    """The packaged LLM's own server, for what the pages have at localhost:8000 and at OpenAI."""
    with embedded_server() as address:
        yield address


@pytest.fixture
def desk(lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which the reader has what the pages take for granted."""
    for name in ("conf", "train.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("quickstart", "tickets"):
        shutil.copytree(lora_run, tmp_path / "runs" / name)
    rows = [json.loads(line) for line in QUICKSTART_POOL.read_text(encoding="utf-8").splitlines()]
    split = {name: [row for row in rows if row["split"] == name][:FEW] for name in ("train", "validation")}
    pools = split["train"] + split["validation"]
    examples = [{key: row[key] for key in ("task", "instruction", "references")} for row in split["train"]]

    def write(name: str, rows: list[dict[str, object]]) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def write_table(name: str, columns: dict[str, list[str]]) -> None:
        pyarrow.csv.write_csv(pa.table(columns), tmp_path / name)

    write("pool.jsonl", pools)
    write("data/quickstart/pool.jsonl", pools)
    write("data/quickstart/examples.jsonl", examples)
    write("new.jsonl", split["validation"])
    write("examples.jsonl", examples)
    write("questions.jsonl", [{"instruction": row["instruction"]} for row in examples[:4]])
    write("pairs.jsonl", [{"instruction": row["instruction"], "response": "a thing"} for row in examples])
    instructions, references = [row["instruction"] for row in examples], [row["references"][0] for row in examples]
    write_table("tickets.csv", {"instruction": instructions, "references": references})
    mail = rows[: 4 * FEW]  # a fifth is held out, of which thresholds need five
    # Two classes, of which a scorer of two steps is sure to get some right.
    topics = ["delivery" if row["references"][0].startswith("delivery") else "other" for row in mail]
    write_table("mail.csv", {"text": [row["instruction"] for row in mail], "label": topics})
    answers = [row["candidates"] for row in split["train"]]
    table = {f"answer_{number + 1}": [own[number]["response"] for own in answers] for number in range(2)}
    write_table("answered.csv", {"instruction": instructions, "reference": references, **table})
    for name in ("instances", "instances-validation"):
        write_instances([Instance("a", "b", 1.0, "gold", "task", "1")], tmp_path / name, {})
    (tmp_path / "mine.yaml").write_text("slurm:\n  partition: gpu\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CAPPY_API_KEY", "a-key")
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    return tmp_path


class Reader:
    """Types what a page says, line by line."""

    def __init__(self, llm: str) -> None:
        self.llm, self.port = llm, free_port()
        self.service: subprocess.Popen[str] | None = None
        #: What blocks of Python have made, and what they take for granted.
        self.names: dict[str, object] = {
            "instructions": ["Message: Where is my parcel?\nSubject:"] * 2,
            "texts": ["Where is my parcel?"],
            "Cappy": Cappy,
        }

    def type(self, line: str) -> None:
        line = line.replace("localhost:8080", f"localhost:{self.port}")
        line = line.replace("http://localhost:8000", self.llm)
        for there, here in INSTEAD.items():
            line = line.replace(there, here)
        if line.startswith(PYTHON):
            exec(line, self.names)
            return
        command, *words = as_words(line)
        if command == "export":
            return
        if command == "python" and words[0] == "train.py":
            command, words = "cappy", ["train", *words[1:]]
        if command != "cappy":
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            assert "error" not in done.stdout, f"{line}\n{done.stdout}"
            return
        if "backbone.kind=openai" in words and not any(word.startswith("backbone.url=") for word in words):
            words.append(f"backbone.url={self.llm}")
        if words[0] == "serve":
            self.serve(words)
            return
        if words[0] == "submit" and "--dry-run" not in words:
            words.insert(1, "--dry-run")
        if words[0] == "train":
            words += SHORT
        self.forget(words)
        done = run_cappy(*words, folder=Path.cwd())
        assert done.returncode == 0, f"{line}\n{done.stderr}"

    def forget(self, words: list[str]) -> None:
        """Pages show several ways to make the same file or run."""
        made = [Path(words[place + 1]) for place, word in enumerate(words[:-1]) if word == "-o"]
        made += [Path("runs") / word.removeprefix("name=") for word in words if word.startswith("name=")]
        for path in made if words[0] != "submit" else ():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def serve(self, words: list[str]) -> None:
        """Start the service, and wait until it is ready."""
        self.stop()
        words = [*(word for word in words if not word.startswith("serve.port=")), f"serve.port={self.port}"]
        self.service = subprocess.Popen(
            [sys.executable, "-m", "cappy_lightning", *words], stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://localhost:{self.port}/ready"):
                return
            assert self.service.poll() is None, self.service.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def stop(self) -> None:
        """End the service as `docker stop` would."""
        if self.service:
            self.service.send_signal(signal.SIGTERM)
            _, said = self.service.communicate(timeout=60)
            assert self.service.returncode == 0, said
            assert "Traceback" not in said
            self.service = None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize("page", [page for page in PAGES if typed(page)], ids=lambda page: page.stem)
def test_what_a_page_says_can_be_typed(page: Path, desk: Path, llm: str) -> None:
    lines = [line for line in typed(page) if not why_not(line) or "cappy submit" in line]
    if page.name == "distributed.md":  # what a pretraining has left
        data = ("data.instances=instances", "data.validation_instances=instances", "run_dir=runs/pretrain")
        assert run_cappy("train", *TINY_RUN, *data, folder=desk).returncode == 0
        (last,) = Path("runs/pretrain/checkpoints").glob("step-*.ckpt")
        shutil.copy(last, "runs/pretrain/checkpoints/step-5000.ckpt")
    reader = Reader(llm)
    try:
        for line in lines:
            reader.type(line)
    finally:
        reader.stop()


def test_reasons_are_given_only_where_something_is_not_run() -> None:
    lines = [line for page in PAGES for line in typed(page)]
    assert [start for start in NOT_RUN if not any(start in line for line in lines)] == []
    assert sum(not why_not(line) for line in lines) > 40

"""`cappy inspect`: what it counts, and that the page is whole."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICKSTART_POOL, run_cappy

from cappy_lightning.config import Config
from cappy_lightning.data.shards import write_instances
from cappy_lightning.inspection.findings import Drawn, Findings, Table
from cappy_lightning.inspection.instances import inspect_instances
from cappy_lightning.inspection.pools import inspect_pools
from cappy_lightning.records import Candidate, Example, Instance, Origin, Pool


def table(findings: Findings, title: str) -> Table:
    (found,) = (table for table in findings.tables if table.title == title)
    return found


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    kinds: list[tuple[str, Origin, float]] = [
        ("easy", "gold", 1.0), ("easy", "sampled", 0.75), ("easy", "mismatch", 0.0), ("hard", "gold", 1.0),
        ("hard", "sampled", 0.0), ("hard", "sampled", 0.25),
    ]  # fmt: skip
    rows = [Instance("in " * (k + 1), f"out <b>{k}</b>", s, o, t, str(k)) for k, (t, o, s) in enumerate(kinds * 10)]
    write_instances(rows, tmp_path / "instances", {}, shard_rows=25)
    return tmp_path / "instances"


def test_instances_are_counted_by_task_and_origin(directory: Path) -> None:
    config = Config()
    config.scorer.max_length = 32
    findings = inspect_instances([directory], config)
    assert findings.facts[0] == "60 instances of 2 tasks in 1 directory"
    assert table(findings, "By origin").rows == [
        ("gold", "20", "33.3%", "1.000"),
        ("sampled", "30", "50.0%", "0.333"),
        ("mismatch", "10", "16.7%", "0.000"),
    ]
    assert table(findings, "By task").rows == [
        ("easy", "30", "10", "10", "10", "0.583"),
        ("hard", "30", "10", "20", "0", "0.417"),
    ]
    assert table(findings, "Worst tasks").rows == [("hard", "20", "0.125", "50%"), ("easy", "10", "0.750", "0%")]
    scores, tokens = findings.histograms
    assert scores.counts.tolist() == [20, *[0] * 4, 10, *[0] * 9, 10, *[0] * 3, 20]
    assert tokens.counts.sum() == 60
    # [CLS] in x (k+1) [SEP] out < b > k < / b > [SEP]: 3 + (k + 1) + 9, two digits being one word
    assert findings.facts[1].startswith(
        f"{100 * sum(13 + k > 32 for k in range(60)) / 60:.1f}% of the pairs are longer"
    )
    assert len(findings.samples) == 12


def test_pools_are_judged_by_task_and_decoding() -> None:
    config = Config()
    config.label.tokenizer = "unicode"
    pools = [
        Pool(
            Example("t", "1", "i", ("東京",), split="train"), (Candidate("東京", "a", -1.0, -1.0), Candidate("京", "b"))
        ),
        Pool(Example("t", "2", "i", ("x",)), (Candidate("y", "a"), Candidate("y", "b"))),
        Pool.of_example(Example("c", "3", "i", choices=("p", "q"), label=1)),
    ]
    findings = inspect_pools(pools, "mine", config)
    assert findings.facts[0] == "3 examples of 2 tasks with 6 candidates"
    assert [tuple(row) for row in table(findings, "By task").rows] == [
        ("t", "1", "1", "2.0", "75%", f"{(1 + 2 / 3) / 4:.3f}", "0.500"),
        ("c", "0", "1", "2.0", "100%", "0.500", "1.000"),
    ]
    assert table(findings, "By decoding").rows == [
        ("a", "2", "0.500", "50%"), ("b", "2", "0.333", "0%"), ("choice", "2", "0.500", "0%"),
    ]  # fmt: skip
    assert table(findings, "Worst tasks").rows[0] == ("t", "0.500", "50%", "0.083")


def test_examples_without_candidates_can_be_looked_at() -> None:
    findings = inspect_pools([Pool(Example("t", "1", "i", ("x",)), ())], "mine", Config())
    assert findings.facts == ["1 example of 1 task with 0 candidates"]


def test_the_page_is_one_file_with_pictures_and_harmless_texts(directory: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = run_cappy("inspect", directory, "--html", page, "scorer.max_length=32")
    assert done.returncode == 0, done.stderr
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == 2
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    for shown in ("Worst tasks", "60 instances of 2 tasks", "By origin", "would be cut"):
        assert shown in text
        assert shown in done.stdout


def test_from_the_command_line_over_the_quickstart(tmp_path: Path) -> None:
    done = run_cappy("inspect", QUICKSTART_POOL)
    assert done.returncode == 0, done.stderr
    assert "760 examples of 1 task with 9,880 candidates" in done.stdout
    nothing = run_cappy("inspect", tmp_path)
    assert (nothing.returncode, nothing.stderr) == (
        2, f"cappy: {tmp_path}: has no manifest.json, expected a directory of instances\n",
    )  # fmt: skip


def test_rows_are_drawn_with_the_same_chance_wherever_they_stand() -> None:
    counts, firsts = np.zeros(60), [0, 0]
    for seed in range(400):
        drawn = Drawn(6)
        drawn._generator = np.random.default_rng(seed)
        for start in range(0, 60, 7):
            batch = [{"n": n} for n in range(start, min(60, start + 7))]
            drawn.add([batch[place] for place in drawn.offer(len(batch))])
        assert len(drawn.rows) == 6
        for row in drawn.rows:
            counts[row["n"]] += 1
        firsts[drawn.rows[0]["n"] // 30] += 1
    assert abs(counts[:30].sum() - counts[30:].sum()) < 200  # 2,400 draws; over 4 standard deviations
    assert counts.min() > 15
    assert min(firsts) > 140  # also the one that is shown first

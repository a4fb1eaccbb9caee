"""From examples of one's own to an adapter by the command line alone, as docs/weak_labels.md tells it."""

from pathlib import Path

from conftest import QUICKSTART_POOL, SHORT_RUN, Run

from cappy_lightning import Cappy
from cappy_lightning.sources.jsonl import read_labelled_pools


def test_examples_become_a_pool_instances_and_an_adapter(cappy: Run, tmp_path: Path) -> None:
    examples = [pool.example for pool in read_labelled_pools([QUICKSTART_POOL])[:24]]
    table = tmp_path / "tickets.csv"
    lines = ["part,mail,subject"]
    for n, example in enumerate(examples):
        message = example.instruction.replace('"', '""')
        lines.append(f'{"validation" if n % 3 == 0 else "train"},"{message}","{example.references[0]}"')
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sources = tmp_path / "sources.yaml"
    sources.write_text(
        f"sources:\n  - files: [{table}]\n    task: tickets\n"
        "    columns: {instruction: mail, references: subject, split: part}\n"
    )
    pool, train, validation, run = (tmp_path / name for name in ("pool.jsonl", "train", "validation", "run"))
    asked = ["backbone.max_tokens=8", "backbone.shots=2", "backbone.decodings={greedy: 1, sampling: 4, nucleus_0.9: 2}"]
    steps = [
        ("generate", sources, "-o", pool, *asked),
        ("inspect", pool, "--html", tmp_path / "pool.html"),
        ("label", pool, "-o", train),
        ("label", pool, "-o", validation, "--split", "validation"),
        ("inspect", train),
        ("train", SHORT_RUN[0], *SHORT_RUN[3:], "data.pool=null", f"data.instances={train}",
         f"data.validation_instances={validation}", f"run_dir={run}"),
    ]  # fmt: skip
    for words in steps:
        done = cappy(*words)
        assert done.returncode == 0, done.stderr
    assert f"adapter: {run / 'adapter'}" in done.stdout
    scores = Cappy.from_pretrained(run / "adapter").score([(examples[0].instruction, "item problem: teapot")])
    assert 0 < scores[0] < 1

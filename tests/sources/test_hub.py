"""Data sets of the hub, by `datasets` itself from a stand-in of the hub: Parquet files, and a script's converted ones."""

import io
import json
import os
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import start_cappy
from hub import serve_hub

TEMPLATES = """
dataset: {name}
subset: uk
templates:
  1: !Template
    answer_choices: Praise ||| Complaint
    jinja: "{{{{mail}}}} Praise or complaint? ||| {{{{ answer_choices[label] }}}}"
    name: kind
"""


def parquet(first: int) -> bytes:
    rows = {"mail": [f"mail {n}" for n in range(first, first + 10)], "label": [n % 2 for n in range(10)]}
    stream = io.BytesIO()
    pq.write_table(pa.table(rows), stream)
    return stream.getvalue()


def label_from(hub: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Label the sources of `directory / "sources.yaml"` with the data sets of a hub."""
    place = {"HF_ENDPOINT": hub, "HF_HOME": str(directory / "cache"), "HF_HUB_OFFLINE": "0"}
    words = ("label", directory / "sources.yaml", "-o", directory / "instances")
    return start_cappy(*words, env={**os.environ, **place})


@pytest.fixture
def labelled(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """`cappy label` over two data sets of the hub."""
    for name in ("me/mail", "me/script"):
        folder = tmp_path / "templates" / name / "uk"
        folder.mkdir(parents=True)
        (folder / "templates.yaml").write_text(TEMPLATES.format(name=name))
    sources = tmp_path / "sources.yaml"
    sources.write_text(
        f"templates: {tmp_path}/templates\n"
        "sources:\n"
        "  - {dataset: me/mail, subset: uk}\n"
        "  - {dataset: me/script, subset: uk, split: test}\n"
    )
    with serve_hub() as (hub, address):
        card = "---\nconfigs:\n- config_name: uk\n  data_files:\n  - {split: train, path: uk/train-*.parquet}\n---\n"
        hub.files["datasets/me/mail"] = {
            "README.md": card.encode(),
            "uk/train-00000.parquet": parquet(0),
            "uk/train-00001.parquet": parquet(10),
            "de/train-00000.parquet": b"not asked for",
        }
        hub.files["datasets/me/script"] = {"script.py": b"raise SystemExit('was executed')"}
        hub.files["datasets/me/script@refs/convert/parquet"] = {"uk/test/0000.parquet": parquet(20)}
        return label_from(address, tmp_path)


def test_rows_come_from_parquet_files_and_from_those_that_the_hub_has_made_of_a_script(
    labelled: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    assert labelled.returncode == 0, labelled.stderr
    rows = pq.read_table(tmp_path / "instances" / "shard-00000.parquet").to_pylist()
    assert {row["instruction"] for row in rows} == {f"mail {n} Praise or complaint?" for n in range(30)}
    assert {row["task"] for row in rows} == {"me/mail/uk/kind", "me/script/uk/kind"}
    assert [(row["response"], row["score"]) for row in rows[:2]] == [("Praise", 1.0), ("Complaint", 0.0)]
    assert json.loads((tmp_path / "instances" / "manifest.json").read_text())["rows"] == 60


def test_a_data_set_that_the_hub_does_not_have_is_named(tmp_path: Path) -> None:
    sources = tmp_path / "sources.yaml"
    sources.write_text("sources: [{dataset: me/nothing, columns: {instruction: a, references: b}}]\n")
    with serve_hub() as (_, address):
        done = label_from(address, tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("cappy: me/nothing: split 'train' cannot be loaded (")
    assert not (tmp_path / "instances").exists()

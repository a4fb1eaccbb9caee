"""The notebooks run from top to bottom, and hold no outputs."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

#: Of each notebook what its cell `parameters` says here, so that it takes seconds.
SHORT = {
    "finetune_downstream.ipynb": "TRAIN, HELD_OUT, STEPS = 16, 12, 4",
    "classify.ipynb": "PER_CLASS, HELD_OUT, EPOCHS = 4, 15, 1",
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_all_are_known() -> None:
    assert [path.name for path in NOTEBOOKS] == sorted(SHORT)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    notebook = run(path, SHORT[path.name], tmp_path)
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in str(output)]
    assert len(pictures) == 2


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "least", "shown"),
    [
        ("finetune_downstream.ipynb", 10, r"better than a random answer by (\S+)"),
        ("classify.ipynb", 60, r"finetuned on 120 messages: (\d+)% right"),  # 32% are of the most frequent class
    ],
)
def test_whole_it_shows_a_gain(name: str, least: float, shown: str, tmp_path: Path) -> None:
    notebook = run(ROOT / "notebooks" / name, "", tmp_path)
    said = "".join(str(output.get("text", "")) for cell in notebook.cells for output in cell.get("outputs", ()))
    found = re.search(shown, said)
    assert found, said
    print(found[0])
    assert float(found[1]) > least


def run(path: Path, parameters: str, tmp_path: Path) -> Any:
    """The notebook as it is when all its cells have run, with these parameters."""
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    cell.source = f"{cell.source}\n{parameters}\nRUN = Path({str(tmp_path / 'run')!r})"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    return notebook

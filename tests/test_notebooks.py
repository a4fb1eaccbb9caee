"""The notebooks run from top to bottom, and hold no outputs."""

from pathlib import Path

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
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    cell.source = f"{SHORT[path.name]}\nRUN = Path({str(tmp_path / 'run')!r})"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in str(output)]
    assert len(pictures) == 2

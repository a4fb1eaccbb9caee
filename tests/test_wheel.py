"""What is installed without a checkout: the wheel has everything, and its command works anywhere."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, tree = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("tree")
    for name in ("src", "callbacks", "conf"):  # a copy: a build leaves files behind, which the next one would take
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"the wheel cannot be built, perhaps for want of the package index: {done.stderr[-200:]}")
    (file,) = out.glob("*.whl")
    return file


def test_it_has_every_module_recipe_and_template(wheel: Path) -> None:
    expected = {f"cappy_lightning/{path.relative_to(ROOT / 'src' / 'cappy_lightning')}" for path in modules()}
    expected |= {f"cappy_lightning/callbacks/{path.name}" for path in (ROOT / "callbacks").glob("*.py")}
    expected |= {f"cappy_lightning/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info" not in name}
    assert found == expected


def modules() -> list[Path]:
    files = (ROOT / "src" / "cappy_lightning").rglob("*")
    return [path for path in files if path.is_file() and "__pycache__" not in path.parts]


def test_its_command_works_outside_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    work = tmp_path / "work"
    work.mkdir()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
        command = [sys.executable, "-m", "cappy_lightning", *words]
        return subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    where = run("memory", "conf/adapt.yaml", "conf/smoke.yaml", "data.pool=x", "scorer.base=embedded")
    assert where.returncode == 0, where.stderr
    assert run("--help").stdout.startswith("usage: cappy")
    unknown = run("train", "conf/nothing.yaml")
    assert (unknown.returncode, unknown.stderr) == (
        2,
        "cappy: conf/nothing.yaml: cannot be read (No such file or directory)\n",
    )
    assert list(work.iterdir()) == []

"""Every recipe is built and runs under the overlay `smoke`, on a CPU and without a hub."""

import ast
import json
from pathlib import Path

import pytest
from conftest import ROOT, Run
from omegaconf import OmegaConf

from cappy_lightning.config_loading import load_config
from cappy_lightning.sources.bigbench import GENERATION_TASKS

RECIPES = sorted(path.name for path in (ROOT / "conf").glob("*.yaml") if "name" in OmegaConf.load(path))
OVERLAYS = sorted(path.name for path in (ROOT / "conf").glob("*.yaml") if path.name not in RECIPES)
#: What makes RoBERTa-large small where its size is not the point.
GIVEN = {
    "paper_bigbench.yaml": ["scorer.config.num_hidden_layers=2"],
    "adapt.yaml": ["scorer.config.num_hidden_layers=2"],
    "pretrain.yaml": ["scorer.config.num_hidden_layers=2"],
}
#: Values that a recipe leaves to the user; under smoke the overlay has them.
MISSING = {
    "adapt.yaml": ["data.pool=pool.jsonl"],
    "bigbench.yaml": ["data.task=auto_categorization"],
    "classify.yaml": ["data.examples=rows.csv"],
    "paper_bigbench.yaml": ["data.task=auto_categorization"],
    "pretrain.yaml": ["data.instances=[shards]"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_resolves_alone(recipe: str) -> None:
    config = load_config([str(ROOT / "conf" / recipe), *GIVEN.get(recipe, []), *MISSING.get(recipe, [])])
    assert "${" not in config.run_dir


def test_the_small_pretraining_has_60_tasks_of_both_kinds_and_none_that_is_measured_on() -> None:
    sources = OmegaConf.load(ROOT / "conf" / "sources" / "pretrain_small.yaml").sources
    tasks = [source.bigbench for source in sources]
    assert len(set(tasks)) == len(tasks) >= 60
    generation = set(tasks) & set(GENERATION_TASKS)
    assert 0 < len(generation) < len(tasks)
    measured = ast.parse((ROOT / "benchmarks" / "record_pools.py").read_text(encoding="utf-8"))
    (held_out,) = (ast.literal_eval(node.value) for node in measured.body if isinstance(node, ast.Assign))
    assert len(held_out) == 12
    assert not set(tasks) & set(held_out)


def test_every_other_file_is_an_overlay_of_known_keys() -> None:
    assert "smoke.yaml" in OVERLAYS
    for overlay in OVERLAYS:
        load_config([str(ROOT / "conf" / "quickstart.yaml"), str(ROOT / "conf" / overlay)])


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_under_smoke(recipe: str, cappy: Run, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = cappy("train", f"conf/{recipe}", "conf/smoke.yaml", *GIVEN.get(recipe, []), f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["train/steps"] == 2


@pytest.mark.soak
def test_roberta_large_runs_in_its_full_size(cappy: Run, tmp_path: Path) -> None:
    done = cappy("train", "conf/pretrain.yaml", "conf/smoke.yaml", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "355,360,769 parameters" in done.stderr  # with its head; the paper rounds it to 360M

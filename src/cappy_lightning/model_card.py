"""The model card of an export: what it is, what it was made from, how good it is, how to load it."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2
import yaml

from cappy_lightning.checkpoints import STREAM
from cappy_lightning.data.datamodule import SHARDS
from cappy_lightning.run_dir import versions
from cappy_lightning.scorer.model import EMBEDDED, EMBEDDED_HUB_NAME
from cappy_lightning.selection.report import metric_title

#: Sections of the config that say how a scorer was made.
_SECTIONS = ("seed", "scorer", "finetune", "data", "label", "batch", "optimizer", "trainer")


def checkpoint_facts(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a model card that a checkpoint knows."""
    results: dict[str, Any] = checkpoint["callbacks"].get("Results", {})
    return {
        "step": checkpoint["global_step"],
        "data_sha256": checkpoint[STREAM]["order"][SHARDS],
        "metrics": {name: points[-1][1] for name, points in results.get("validations", {}).items()},
    }


def model_card(kind: str, config: dict[str, Any], facts: dict[str, Any]) -> str:
    """The text of an export's README.md.

    Args:
        kind: of the export.
        config: what a checkpoint says about its run.
        facts: `step`, `data_sha256`, `metrics` (name to number), and `report` where there is one.
    """
    base = config["base"]
    name = EMBEDDED_HUB_NAME if base["name"] == EMBEDDED else base["name"]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(files("cappy_lightning").joinpath("model_card.md.j2").read_text("utf-8"))
    report = facts.get("report")
    return template.render(
        kind=kind,
        task=config["data"]["task"] or config["name"],
        hub_base=name if base["revision"] or name == EMBEDDED_HUB_NAME else None,
        base=base,
        config=config,
        metric_title=metric_title(report) if report else None,
        number=lambda value: f"{100 * value:.1f}",
        yaml=yaml.safe_dump({section: config[section] for section in _SECTIONS}, sort_keys=False),
        versions=versions(),
        **{"report": None, **facts},
    )

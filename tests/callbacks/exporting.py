"""A process that changes an adapter and exports it into its place, again and again, until it is killed."""

from pathlib import Path

import torch

from cappy_lightning import Cappy
from cappy_lightning.export import PROBE, export
from cappy_lightning.scorer.adapter import read_settings


def run(words: list[str]) -> int:
    """`words` is the adapter; `ready` is printed before the first export and `written` after each."""
    here = Path(words[0])
    scorer, settings = Cappy.from_pretrained(here).scorer, read_settings(here)
    bias = dict(scorer.model.named_parameters())["base_model.model.classifier.modules_to_save.default.bias"]
    print("ready", flush=True)
    while True:
        with torch.no_grad():
            bias += 0.1
        export(scorer, here, "adapter", settings, {"README.md": "a card"}, Cappy(scorer).score(PROBE), 1e-5)
        print("written", flush=True)

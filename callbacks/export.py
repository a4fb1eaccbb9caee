"""Exports of what a run has learned, each loaded back and compared before it counts as written."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from cappy_lightning.errors import InputError
from cappy_lightning.files import atomic_path
from cappy_lightning.progress import say
from cappy_lightning.scorer.adapter import save_adapter
from cappy_lightning.scorer.cappy import Cappy, Pair, write_model
from cappy_lightning.scorer.model import Scorer

#: Largest difference between a score in training and the same score from the loaded export, in fp32.
TOLERANCE = 1e-5


class _Export(pl.Callback):
    """Writes a directory when the training has reached its last step.

    Args:
        directory: where the export goes; what stood there stays until the new one is verified.
        scorer: what is trained.
        probe: pairs whose scores must not change on the way.
        total_steps: the step after which there is something to export.
    """

    def __init__(self, directory: Path, scorer: Scorer, probe: list[Pair], total_steps: int) -> None:
        self.directory, self.scorer, self.probe, self.total_steps = directory, scorer, probe, total_steps

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write, load back, compare; only then the directory appears.

        Raises:
            InputError: the training has diverged.
        """
        if trainer.is_global_zero and trainer.global_step >= self.total_steps:
            if not np.isfinite(Cappy(self.scorer).score(self.probe)).all():
                raise InputError("optimizer.learning_rate", "the training diverged, its scores are no numbers")
            with atomic_path(self.directory) as scratch:
                scratch.mkdir()
                self.write(scratch)
                verify(self.scorer, Cappy.from_pretrained(scratch, device=str(pl_module.device)), self.probe)
            say(f"exported and verified: {self.directory}")
        trainer.strategy.barrier("export")

    def write(self, directory: Path) -> None:
        """Write the files of the export."""
        raise NotImplementedError


class AdapterExport(_Export):
    """Exports the adapter in PEFT format: LoRA matrices and head, and nothing of the base."""

    def __init__(
        self, directory: Path, scorer: Scorer, probe: list[Pair], total_steps: int, settings: dict[str, Any]
    ) -> None:
        super().__init__(directory, scorer, probe, total_steps)
        self.settings = settings

    def write(self, directory: Path) -> None:
        """PEFT's files, `cappy.json` and a model card."""
        save_adapter(self.scorer, self.settings, directory)
        (directory / "README.md").write_text(_adapter_card(self.settings), encoding="utf-8")


class ModelExport(_Export):
    """Exports the whole finetuned scorer as a plain model directory."""

    def write(self, directory: Path) -> None:
        """The files of a Hugging Face model directory."""
        write_model(self.scorer, directory)


def verify(scorer: Scorer, loaded: Cappy, probe: list[Pair], tolerance: float = TOLERANCE) -> float:
    """Compare the scores of a scorer with those of its loaded export.

    Returns:
        the largest difference.

    Raises:
        RuntimeError: it is above the tolerance: the export does not hold what was trained.
    """
    difference = float(np.abs(Cappy(scorer).score(probe) - loaded.score(probe)).max())
    if not difference <= tolerance:
        raise RuntimeError(
            f"the export scores differ from the trained ones by {difference:.2e}, expected at most {tolerance}"
        )
    return difference


def _adapter_card(settings: dict[str, Any]) -> str:
    task, base = settings["task"], settings["base"]
    return f"""---
library_name: peft
tags: [cappy, text-classification]
---

# Cappy adapter for {task}

LoRA and scoring head on `{base}` (SHA-256 of the encoder's weights: `{settings["base_sha256"]}`).
It scores how correct a response to an instruction is, from 0 to 1.

```python
from cappy_lightning import Cappy

cappy = Cappy.from_pretrained("path/to/this/adapter")
cappy.select("the instruction", ["one response", "another"]).response
```

Made with cappy-lightning {settings["cappy_lightning"]}.
"""

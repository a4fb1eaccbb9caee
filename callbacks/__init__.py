"""Lightning callbacks of a run."""

from cappy_lightning.callbacks.checkpoint import RunCheckpoint, Stopped
from cappy_lightning.callbacks.export import Export
from cappy_lightning.callbacks.progress import StepProgress
from cappy_lightning.callbacks.results import Results

__all__ = ["Export", "Results", "RunCheckpoint", "StepProgress", "Stopped"]

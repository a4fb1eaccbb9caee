"""Lightning callbacks of a run."""

from cappy_lightning.callbacks.checkpoint import RunCheckpoint, Stopped
from cappy_lightning.callbacks.export import AdapterExport, ModelExport
from cappy_lightning.callbacks.progress import StepProgress
from cappy_lightning.callbacks.results import Results

__all__ = ["AdapterExport", "ModelExport", "Results", "RunCheckpoint", "StepProgress", "Stopped"]

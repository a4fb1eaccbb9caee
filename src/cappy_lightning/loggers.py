"""Where the course of a training is written for those who watch it: TensorBoard, a CSV file, or Weights & Biases."""

import importlib.util
import secrets
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from cappy_lightning.config import Config
from cappy_lightning.errors import InputError
from cappy_lightning.files import write_text
from cappy_lightning.run_dir import LOGS

#: The package that a logger needs beyond our own.
NEEDS = {"tensorboard": "tensorboard", "wandb": "wandb"}


def check_logger(config: Config) -> None:
    """Refuse now a logger that could not be opened later.

    Raises:
        InputError: its package is missing.
    """
    package = NEEDS.get(config.trainer.logger)
    if package and importlib.util.find_spec(package) is None:
        raise InputError("trainer.logger", f"{config.trainer.logger} is missing, expected 'pip install {package}'")


def open_logger(config: Config, run: Path, step: int) -> Logger | None:
    """The logger of a run; what it writes to disk goes into `logs` below the run.

    Args:
        config: of the run.
        run: its directory.
        step: at which it begins or continues.
    """
    kind = config.trainer.logger
    if kind == "tensorboard":
        return TensorBoardLogger(run, name="", version=LOGS)
    if kind == "csv":  # a file for each start: this logger would remove the one that is there
        return CSVLogger(run, name="", version=f"{LOGS}/from-step-{step}")
    if kind == "wandb":
        (run / LOGS).mkdir(exist_ok=True)
        project = "cappy-lightning"
        return WandbLogger(name=config.name, save_dir=run / LOGS, project=project, id=_wandb_id(run), resume="allow")
    return None


def close_logger(logger: Logger) -> None:
    """Everything is logged: a later run in this process begins one of its own."""
    logger.finalize("success")
    if isinstance(logger, WandbLogger):
        logger.experiment.finish()


def _wandb_id(run: Path) -> str:
    """The same for every start of a run, so that its curves go on; only the first rank's counts."""
    file = run / LOGS / "wandb_id"
    if not file.exists():
        write_text(file, secrets.token_hex(4))
    return file.read_text(encoding="utf-8")

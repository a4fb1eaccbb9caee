"""The run directory: one run, one config, one live process, and a same command that continues."""

import dataclasses
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from cappy_lightning.config import Config
from cappy_lightning.errors import InputError
from cappy_lightning.files import (
    file_sha256,
    is_scratch,
    make_dir,
    open_locked,
    read_json,
    read_jsonl,
    remove,
    write_json,
    write_text,
)
from cappy_lightning.records import Pool, Selection
from cappy_lightning.scorer.places import expanded

CONFIG, VERSIONS, METRICS, LOCK = "config.yaml", "versions.json", "metrics.json", ".lock"
#: In `VERSIONS`, too: the hash of the weights that the run began with, where they lie in a directory.
_BASE = "base_sha256"
#: What was selected from the validation pools, by `select.by`.
SELECTIONS = "selections.jsonl"
#: The folder of the logger.
LOGS = "logs"
#: The folder for jobs.
SLURM = "slurm"
#: The folder in which the folds of a fusion are trained, each a run of its own; it goes when the fusion is there.
FOLDS = "folds"

#: Keys that change how a run is computed but not what: those of a run may change where it continues.
_FREE = (
    "run_dir",
    "trainer.devices",
    "trainer.nodes",
    "trainer.strategy",
    "trainer.offload",
    "trainer.zero3_persistence",
    "trainer.activation_checkpointing",
    "trainer.compile",
    "trainer.logger",
    "push_to_hub",
    "batch.micro_size",
    "batch.validation_size",
    "data.workers",
    "data.on_error",
)

#: Seconds between looks at whether the first rank is ready.
POLL = 0.5

_RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")

_PACKAGES = (
    "cappy-lightning",
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "peft",
    "deepspeed",
    "torchmetrics",
    "rouge-score",
    "rapidfuzz",
    "numpy",
    "pyarrow",
)


def rank() -> int:
    """0 in the first or only process of a distributed run, above 0 in the others.

    Read from what Lightning, torchrun and SLURM's srun set before any process group exists; of processes
    that Lightning starts itself, those of one node share a number with those of others.
    """
    numbers = {name: int(value) for name, value in os.environ.items() if name in _RANKS and value.isdigit()}
    for name in ("RANK", "SLURM_PROCID"):
        if name in numbers:
            return numbers[name]
    return numbers.get("NODE_RANK", 0) or numbers.get("LOCAL_RANK", 0)


class RunDir:
    """A run directory that belongs to this process until it ends.

    The lock is the operating system's: it goes with the process, however that ends. Other ranks of the
    same run do not lock.

    Args:
        config: the resolved config of the run.

    Raises:
        InputError: it cannot be written, another live process works on it, it holds other files, or the
            run of another config (the message names the differences) or of other weights.
    """

    def __init__(self, config: Config) -> None:
        self.path = Path(config.run_dir)
        self._config = config
        self._lock: IO[str] | None = None
        if rank() == 0:
            make_dir(self.path)
            _refuse_other_files(self.path)
            self._lock = open_locked(self.path / LOCK, self.path, "run directory")
            try:
                _refuse_other_run(config)
            except InputError:
                self._lock.close()
                raise
            if not (self.path / CONFIG).exists():
                remove(self.path / "instances")  # of an attempt that ended before its config was written

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return is_finished(self.path)

    def commit(self) -> None:
        """Write the config, once the data are there: a mistyped path leaves no claim on the directory."""
        if self._lock and not (self.path / CONFIG).exists():
            import torch  # a second; commands that only read runs do without

            base = _base_sha256(self._config)
            # Sums are rounded by how they are divided among threads.
            used = {"threads": str(torch.get_num_threads())} | ({_BASE: base} if base else {})
            write_json(self.path / VERSIONS, versions() | used)
            write_config(self.path / CONFIG, self._config)

    def wait(self) -> None:
        """On ranks above 0: until the first has prepared the data and committed the config.

        Recording answers can take longer than any collective operation would wait.
        """
        while rank() and not (self.path / CONFIG).exists():
            time.sleep(POLL)


def is_finished(run: Path) -> bool:
    """Whether a run's results are there; they are written last."""
    return (run / CONFIG).is_file() and (run / METRICS).is_file()


def job_folder(run: Path) -> Path:
    """Where a run's job notes how far it is: in the run directory, of a fold in that of the run it is for."""
    return (run.parent.parent if run.parent.name == FOLDS else run) / SLURM


def read_selections(run: Path, pools: Sequence[Pool]) -> list[Selection]:
    """What a finished run has selected from its validation pools.

    Raises:
        InputError: the file is not there, or is not of these pools.
    """
    rows = list(read_jsonl(run / SELECTIONS))
    if len(rows) != len(pools):
        raise InputError(run / SELECTIONS, f"has {len(rows)} lines, expected {len(pools)}, one a pool")
    return [Selection.from_row(row, pool, where) for (where, row), pool in zip(rows, pools, strict=True)]


def check_run_dir(config: Config) -> None:
    """Refuse now what a run of this config would refuse later; nothing is written.

    Raises:
        InputError: the directory holds other files, the run of another config, or a finished one.
    """
    path = Path(config.run_dir)
    if path.exists():
        _refuse_other_files(path)
        _refuse_other_run(config)
        if is_finished(path):
            raise InputError(path, "holds a finished run, expected another run_dir")


def write_config(path: Path, config: Config) -> None:
    """A config as YAML that reads back as the same config."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(_escaped(dataclasses.asdict(config)))))


def _refuse_other_files(path: Path) -> None:
    """Without a config only what an attempt leaves that ended before its commit may be there."""
    found = {below.name for below in path.iterdir()}
    ours = {LOCK, "instances", "base", SLURM, VERSIONS} if LOCK in found else {SLURM}
    if CONFIG not in found and (others := sorted(name for name in found - ours if not is_scratch(name))):
        raise InputError(
            path, f"holds other files, such as {others[0]}, expected a new or empty directory, or a run's own"
        )


def _refuse_other_run(config: Config) -> None:
    run_dir = Path(config.run_dir)
    path = run_dir / CONFIG
    if not path.exists():
        return
    try:
        theirs: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception:  # whatever the YAML parser raises
        raise InputError(path, "is no readable YAML, expected the config of the run") from None
    differences = _differences(_flat(theirs), _flat(dataclasses.asdict(config)))
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise InputError(
            run_dir,
            f"holds a run with another config ({'; '.join(differences[:3])}{more}),"
            " expected the same config, or another name (or run_dir)",
        )
    known = read_json(run_dir / VERSIONS).get(_BASE) if (run_dir / VERSIONS).is_file() else None
    if known and (base := _base_sha256(config)) and known != base:
        raise InputError(
            run_dir,
            f"holds a run with other weights of scorer.base={config.scorer.base},"
            " expected the same weights, or another name (or run_dir)",
        )


def _base_sha256(config: Config) -> str:
    """The hash of the weights of a base that lies in a local directory; empty for others."""
    path = Path(expanded(config.scorer.base))
    files = sorted(path.glob("*.safetensors")) if path.is_dir() and not config.scorer.random_weights else []
    return _sha256_of(tuple((file, file.stat().st_mtime_ns) for file in files)) if files else ""


@cache
def _sha256_of(files: tuple[tuple[Path, int], ...]) -> str:
    """Of files and their times: the tasks of a benchmark, and the folds of a run, begin with the same weights."""
    return hashlib.sha256("".join(file_sha256(file) for file, _ in files).encode()).hexdigest()


def _escaped(value: Any) -> Any:
    """Texts as YAML must hold them for OmegaConf not to read `${...}` as a reference."""
    if isinstance(value, dict):
        return {name: _escaped(below) for name, below in value.items()}
    if isinstance(value, list):
        return [_escaped(below) for below in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    return value


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    return {key: value for name, below in tree.items() for key, value in _flat(below, f"{prefix}{name}.").items()}


def _differences(theirs: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """What differs, in words, and matters (a directory may have been moved, and the number of ranks may change)."""
    found = []
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        if name in _FREE or name.startswith("slurm."):
            continue
        if name not in theirs or name not in mine or theirs[name] != mine[name]:
            found.append(f"{name} is {json.dumps(theirs.get(name))} there and {json.dumps(mine.get(name))} here")
    return found


def versions() -> dict[str, str]:
    """Python, platform, and the packages on which results depend."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found

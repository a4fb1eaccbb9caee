"""What can be known to fail is refused before anything is queued."""

import os
from collections.abc import Sequence
from pathlib import Path

from cappy_lightning.config import Config, SlurmConfig
from cappy_lightning.data.locations import is_url
from cappy_lightning.data.shards import find_directories
from cappy_lightning.errors import InputError
from cappy_lightning.progress import say
from cappy_lightning.scorer.places import check_places
from cappy_lightning.slurm.script import seconds
from cappy_lightning.sources.bigbench import cached_path

_CACHED = "expected it there: the nodes have no internet"


def check_settings(settings: SlurmConfig) -> None:
    """Numbers and times of the section `slurm`."""
    for name in ("nodes", "tasks_per_node", "cpus_per_task"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"slurm.{name}", f"is {value}, expected at least 1")
    if settings.gpus_per_node < 0 or settings.save_before < 1:
        raise InputError("slurm", "expected gpus_per_node of 0 or more and save_before of at least 1")
    if settings.time:
        seconds(settings.time)


def _is_made(path: str, made: Sequence[Path]) -> bool:
    whole = Path(path).absolute()
    return any(whole == one or one in whole.parents for one in made)


def expect(source: str, made: Sequence[Path], *, hub: bool = False) -> None:
    """What a command reads must be there, unless it is a URL, a name on the hub, or a command before makes it."""
    if hub and not _is_made(source, made):
        check_places(source)
    elif not is_url(source) and not Path(source).exists() and not _is_made(source, made):
        raise InputError(source, "does not exist, and no command before it makes it")


def check_data(config: Config, made: Sequence[Path]) -> None:
    """The data and the base that a training names must be there, unless a command before makes them."""
    data = config.data
    instances = [*data.instances, *data.validation_instances, *data.test_instances]
    for source in [*instances, *data.pool, *([data.examples] if data.examples else [])]:
        expect(source, made)
    for source in instances:
        if (is_url(source) or Path(source).is_dir()) and not _is_made(source, made):
            find_directories(source)


def check_offline(config: Config, made: Sequence[Path]) -> None:
    """What nodes without internet will want from the hub or from an archive must be in the caches."""
    from huggingface_hub import try_to_load_from_cache

    if config.push_to_hub:
        raise InputError("push_to_hub", "expected none beside slurm.offline: the nodes have no internet")
    if config.data.task and not cached_path(config.data.task).exists():
        raise InputError("data.task", f"'{config.data.task}' is not in the cache, {_CACHED}")
    scorer = config.scorer
    for key, name, file in (
        ("base", scorer.base, "config.json"),
        ("tokenizer", scorer.tokenizer, "tokenizer_config.json"),
    ):
        if name in (None, "embedded") or Path(name).exists() or _is_made(name, made):
            continue
        if not isinstance(try_to_load_from_cache(name, file, revision=scorer.revision), str):
            raise InputError(f"scorer.{key}", f"'{name}' is not in the cache, {_CACHED}")


def warn_of_local(paths: Sequence[str]) -> None:
    """Say which paths only this machine may see."""
    for path in paths:
        whole = os.path.abspath(path)
        if not is_url(path) and whole.startswith(("/tmp/", "/var/tmp/", "/dev/shm/")):
            say(f"warning: {path} is on a disk that other nodes may not see")

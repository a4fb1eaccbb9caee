"""Where scorers and adapters lie; known without torch, so that a slip of the pen is told at once."""

import os
from collections.abc import Mapping
from pathlib import Path

from cappy_lightning.config import ScorerConfig
from cappy_lightning.errors import InputError

#: What trainings and exports call the directories of what they have made.
EXPORTS = ("adapter", "model")


def check_places(scorer: str | Path, adapter: str | Path | Mapping[str, str | Path] | None = None) -> None:
    """Refuse paths that are not there, where they cannot be hub names either.

    Args:
        scorer: NAME or USER/NAME on the hub, or a directory.
        adapter: likewise, or one for each of several tasks.

    Raises:
        InputError: one is not there.
    """
    adapters = adapter.values() if isinstance(adapter, Mapping) else [] if adapter is None else [adapter]
    for place in (scorer, *adapters):
        _check(place)


def check_base(scorer: ScorerConfig) -> None:
    """Refuse a base that is not there, if its weights are to be loaded.

    Raises:
        InputError: it is a path, and not there.
    """
    if not scorer.random_weights:
        _check(scorer.base)


def expanded(place: str | Path) -> str | Path:
    """A path with the home directory in the place of `~`; anything else as it is."""
    return Path(os.path.expanduser(place)) if str(place).startswith("~") else place


def _check(place: str | Path) -> None:
    path = Path(expanded(place))
    hub_name = str(place).count("/") <= 1 and not str(place).startswith((".", "/", "~"))
    if path.exists() or hub_name:
        return
    beside = [str(path.parent / name) for name in EXPORTS if (path.parent / name).is_dir()]
    known = f"; there is {beside[0]}" if beside else ""
    raise InputError(place, f"does not exist, expected a model directory or a hub name{known}")

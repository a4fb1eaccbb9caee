"""What several commands make of their words: configs, sources, scorers, and outputs that may be written."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cappy_lightning.config import Config
from cappy_lightning.config_loading import NO_DATA, load_config
from cappy_lightning.errors import InputError
from cappy_lightning.files import check_new, hashes, open_input, part_name
from cappy_lightning.scorer.places import check_places
from cappy_lightning.sources.config import Shard, SourcesConfig

if TYPE_CHECKING:
    from cappy_lightning.cappy import Cappy
    from cappy_lightning.sources.spec import Sources


def load_sections(words: Sequence[str], *sections: str) -> Config:
    """The config of a command that is not a training: whole recipes, and keys of the sections that it reads.

    Raises:
        InputError: a key of another section, which would change nothing.
    """
    for word in words:
        key, equals, _ = word.partition("=")
        if equals and "/" not in key and key.partition(".")[0] not in sections:
            expected = ", ".join(f"{section}.KEY" for section in sections)
            raise InputError(key, f"is no key of this command, expected {expected} or a YAML file")
    return load_config([*words, *NO_DATA])


def sampled_words(options: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """How many candidates `-n` asks for, as words, where the config does not say which decodings.

    Raises:
        InputError: both say it, or `-n` is no number of candidates.
    """
    from cappy_lightning.answering.stopping import sampling_words

    # Of so many candidates nobody speaks: what differs from it was said.
    probe = [*sampling_words(1_000_000), *NO_DATA]
    named = load_config([*probe, *words]).backbone.decodings != load_config(probe).backbone.decodings
    if options.n is not None and (named or options.n < 1):
        problem = (
            "stands beside backbone.decodings, expected one of them" if named else f"is {options.n}, expected 1 up"
        )
        raise InputError("-n", problem)
    return [] if named else sampling_words(options.n or 8)


def open_sources(
    options: argparse.Namespace, suffix: str, *sections: str, labelled: bool = True
) -> tuple["Sources", Config, Path]:
    """The sources, the config and the output of a command that makes something of examples."""
    shard = Shard.parse(options.shard) if options.shard else Shard()
    out = Path(options.out)
    if not out.name:
        raise InputError(options.out or "-o ''", "is no path of something new")
    if shard.count > 1:
        out = out / f"{part_name(shard.index, shard.count)}{suffix}"
    return *read_words(options.source, options.config, shard, *sections, labelled=labelled), out


def read_words(
    source: str, words: Sequence[str], shard: Shard, *sections: str, labelled: bool = True
) -> tuple["Sources", Config]:
    """The sources and the config of a command line: `key=value` words go where their key belongs."""
    for_sources, rest = split_words(words)
    from cappy_lightning.sources.spec import Sources

    return Sources([source, *for_sources], shard, labelled=labelled), load_sections(rest, *sections)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words for the sources file, and those for the config."""
    own = {field.name for field in fields(SourcesConfig)}
    for_sources = [word for word in words if word.partition("=")[0].partition(".")[0] in own]
    return for_sources, [word for word in words if word not in for_sources]


def check_outputs(*paths: str | None) -> None:
    """Refuse before any work what cannot be written at its end, or would go over something else."""
    named = [path for path in paths if path is not None]
    for path in named:
        check_new(path)
        if path != "-" and named.count(path) > 1:
            raise InputError(path, "is named twice, expected a file of its own for each output")


def check_input(source: str) -> None:
    """Refuse before a scorer is loaded what cannot be read."""
    if not Path(source).is_dir():
        with open_input(source):
            pass


def check_scorer(options: argparse.Namespace) -> None:
    """Refuse a scorer or adapters that are not there, before torch is imported."""
    check_places(options.scorer, _adapters(options.adapter))


def made_by(options: argparse.Namespace) -> dict[str, Any]:
    """By what the interrupted work of a scorer on a file is known."""
    adapters = options.adapter or []
    places = [options.source, options.scorer, *(place for word in adapters for place in (word, word.partition("=")[2]))]
    told = {key: getattr(options, key) for key in ("source", "scorer", "adapter", "activation", "dtype")}
    return told | {"sha256": hashes(place for place in places if place)}


def open_cappy(options: argparse.Namespace, by: str = "scorer") -> "Cappy":
    """The scorer with its adapters, and by what it selects."""
    from cappy_lightning.cappy import Cappy

    adapters = _adapters(options.adapter)
    return Cappy.from_pretrained(
        options.scorer, adapters, by=by, activation=options.activation, dtype=options.dtype or "float32"
    )


def _adapters(words: list[str] | None) -> str | dict[str, str] | None:
    """One adapter for all rows, or several by task."""
    if words and len(words) == 1 and ("=" not in words[0] or Path(words[0]).exists()):
        return words[0]
    named = {task: path for task, equals, path in (word.partition("=") for word in words or ()) if equals}
    if len(named) != len(words or ()):
        raise InputError("--adapter", f"is {' '.join(words or ())}, expected one, or TASK=ADAPTER for each task")
    return named or None

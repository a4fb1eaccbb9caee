"""What comes before the training: from whatever the config names to directories of instances."""

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cappy_lightning.backbones.generate import record_pools
from cappy_lightning.backbones.survey import fingerprint, settings, survey
from cappy_lightning.config import Config
from cappy_lightning.data.locations import is_url
from cappy_lightning.data.reading import iterate
from cappy_lightning.data.shards import MANIFEST, find_directories, read_manifest, write_instances
from cappy_lightning.errors import InputError
from cappy_lightning.files import cache_dir, open_input, to_line
from cappy_lightning.labeling.weak_labels import Labeler, cap_examples, in_validation, with_split
from cappy_lightning.progress import say
from cappy_lightning.records import Example, Instance, Pool
from cappy_lightning.run_dir import rank
from cappy_lightning.selection.baselines import check_kind, check_names
from cappy_lightning.sources.bigbench import bigbench_examples
from cappy_lightning.sources.jsonl import read_labelled_pools
from cappy_lightning.sources.rows import file_rows
from cappy_lightning.sources.spec import Sources


@dataclass(frozen=True)
class Prepared:
    """Directories of instances (paths or URLs), and the pools that those for training and validation are made of."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...] = ()
    train_pools: tuple[Pool, ...] = ()
    validation_pools: tuple[Pool, ...] = ()


def prepare(config: Config, directory: Path) -> Prepared:
    """Bring the data of a config into shards below `directory`, unless they are there already.

    The first rank does the work; the others come here when it is done (`RunDir.wait`).

    Raises:
        InputError: data that cannot be read, or that has no training or no validation example.
    """
    if config.data.instances:
        return _prepare_instances(config, directory)
    train, validation = split_pools(config, list(_pools(config)))
    targets = directory / "train", directory / "validation"
    made_by = {"data": vars(config.data), "label": vars(config.label), "sha256": _hash_of_pools(train + validation)}
    if rank() == 0:
        labeler = Labeler(config.label, config.data.seed)
        _write_once(labeler.training(train), targets[0], made_by)
        _write_once(labeler.validation(validation), targets[1], made_by)
        for warning in labeler.warnings():
            say(warning)
        say(f"{len(train)} training and {len(validation)} validation examples, {_count(targets[0])} training instances")
    return Prepared(
        (str(targets[0]),), (str(targets[1]),), train_pools=tuple(train), validation_pools=tuple(validation)
    )


def split_pools(config: Config, pools: Sequence[Pool]) -> tuple[list[Pool], list[Pool]]:
    """The capped training and validation pools, by their examples' splits or by a split that is made.

    Raises:
        InputError: some examples name a split and some do not, or one side is empty.
    """
    data = config.data
    check_kind(pools, "data")
    check_names(pools, config.scorer.name)
    examples = with_split(lambda: [pool.example for pool in pools], data.validation_fraction, data.seed)
    pools = [replace(pool, example=example) for pool, example in zip(pools, examples(), strict=True)]
    train = [pool for pool in pools if pool.example.split == "train"]
    validation = [pool for pool in pools if pool.example.split == "validation"]
    for name, side in (("training", train), ("validation", validation)):
        if not side:
            raise InputError("data", f"there is no {name} example among {len(pools)}, expected at least one")
    return cap_examples(train, data.max_train, data.seed), cap_examples(validation, data.max_validation, data.seed)


def validation_pools(config: Config) -> list[Pool]:
    """The pools that a finished run of this config was evaluated on, in its order.

    Raises:
        InputError: data that cannot be read or have changed since, or a recording that is gone.
    """
    train, validation = split_pools(config, list(_pools(config, record=False)))
    target = Path(config.run_dir) / "instances" / "train"
    if (target / MANIFEST).is_file():
        _refuse_changed(target, _hash_of_pools(train + validation))
    return validation


def _pools(config: Config, *, record: bool = True) -> Iterable[Pool]:
    """The pools of the config, recorded from the backbone where only examples are given."""
    data = config.data
    if data.pool:
        pools = read_labelled_pools(data.pool)
        return _of_task(data.task, pools, data.pool[0]) if data.task else pools
    if data.task:
        examples = _capped(config, bigbench_examples(data.task))
    else:
        assert data.examples is not None
        examples = _capped(config, _distinct(data.examples))
    if all(example.choices for example in examples):  # the choices are the candidates
        return map(Pool.of_example, examples)
    name, known = data.task or Path(str(data.examples)).stem, settings(config.backbone)
    path = cache_dir() / "pools" / f"{name}-{fingerprint(survey(examples).digest, known)}.jsonl"
    if rank() == 0:
        if path.exists():
            say(f"candidates were recorded before: {path}")
        elif not record:
            raise InputError(path, "is missing, expected the candidates that the finished run was evaluated on")
        else:
            record_pools(lambda: examples, config.backbone, path)
    return read_labelled_pools([path])


def _of_task(task: str, pools: Sequence[Pool], path: str) -> list[Pool]:
    """The pools of one task, of a file that may have several."""
    own = [pool for pool in pools if pool.example.task == task]
    if not own:
        others = ", ".join(sorted({pool.example.task for pool in pools})[:5])
        raise InputError(path, f"has no pool of the task '{task}', expected some (its tasks: {others})")
    return own


def _distinct(source: str) -> list[Example]:
    """All examples of a file or sources file, each once.

    Raises:
        InputError: an id stands twice, with different contents.
    """
    sources = Sources([source])
    examples = list(sources.distinct())
    for note in sources.notes():
        say(note)
    return examples


def _capped(config: Config, examples: list[Example]) -> list[Example]:
    """The examples that will be used, each with its split: no candidate is recorded in vain."""
    train, validation = split_pools(config, [Pool(example, ()) for example in examples])
    return [pool.example for pool in train + validation]


def _prepare_instances(config: Config, directory: Path) -> Prepared:
    """Directories of shards as they are; files of the user's own are turned into shards first."""
    data = config.data
    test = _as_directories(data.test_instances, directory / "test")
    if data.validation_instances:
        train = _as_directories(data.instances, directory / "train")
        return Prepared(train, _as_directories(data.validation_instances, directory / "validation"), test)
    targets = directory / "train", directory / "validation"
    if rank() == 0:
        fraction, seed = data.validation_fraction, data.seed

        def side(validation: bool) -> Iterator[Instance]:
            for instance in _read_all(data.instances):
                if in_validation(instance.example_id, instance.instruction, fraction, seed) == validation:
                    yield instance

        made_by = {"data": vars(data), "sha256": _hash(itertools.chain.from_iterable(map(_content, data.instances)))}
        for target, validation in zip(targets, (False, True), strict=True):
            _write_once(side(validation), target, made_by)
        rows = [_count(target) for target in targets]
        say(
            f"no validation instances are given: made a split by example,"
            f" {rows[0]} rows for training and {rows[1]} for validation"
        )
    return Prepared((str(targets[0]),), (str(targets[1]),), test)


def _as_directories(sources: Sequence[str], directory: Path) -> tuple[str, ...]:
    directories: list[str] = []
    for number, source in enumerate(sources):
        if _holds_shards(source):
            directories += find_directories(source)
            continue
        target = directory / f"{number:03d}"
        if rank() == 0:
            _write_once(_read_one(source), target, {"source": source, "sha256": _hash(_content(source))})
        directories.append(str(target))
    return tuple(directories)


def _read_all(sources: Sequence[str]) -> Iterator[Instance]:
    return itertools.chain.from_iterable(_read_one(source) for source in sources)


def _read_one(source: str) -> Iterator[Instance]:
    if _holds_shards(source):
        for table in iterate([read_manifest(directory) for directory in find_directories(source)]):
            for row in table.to_pylist():
                yield Instance(**row)
    else:
        for where, row in file_rows([source]).read():
            yield Instance.from_row(_typed(row) if source.endswith(".csv") else row, where)


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    """The cells of a CSV file as an instance has them: texts and one number, and what is empty is absent."""
    typed: dict[str, Any] = {name: str(cell) for name, cell in row.items() if cell != ""}
    with contextlib.suppress(ValueError, KeyError):
        typed["score"] = float(typed["score"])
    return typed


def _write_once(instances: Iterable[Instance], target: Path, made_by: dict[str, Any]) -> None:
    """Write shards unless they are there, made from the same data (`made_by["sha256"]`)."""
    if not (target / MANIFEST).is_file():
        write_instances(instances, target, made_by)
    else:
        _refuse_changed(target, made_by["sha256"])


def _refuse_changed(target: Path, sha256: str) -> None:
    if read_manifest(target).made_by.get("sha256") != sha256:
        raise InputError(target, "the data have changed since this run began, expected the same or another run_dir")


def _hash_of_pools(pools: Iterable[Pool]) -> str:
    return _hash(to_line(pool.to_row()).encode() for pool in pools)


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _content(source: str) -> Iterator[bytes]:
    """The bytes of a file; of a directory the hashes of its shards."""
    if _holds_shards(source):
        for directory in find_directories(source):
            yield from (shard.sha256.encode() for shard in read_manifest(directory).shards)
    else:
        with open_input(source) as stream:
            while block := stream.read(1 << 20):
                yield block


def _holds_shards(source: str) -> bool:
    return is_url(source) or Path(source).is_dir()


def _count(target: Path) -> int:
    return read_manifest(target).rows

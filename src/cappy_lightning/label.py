"""The job behind `cappy label`: examples or pools become a directory of instances, shard by shard.

While it is under way the shards lie in `OUT.partial`, beside a journal with one line for each that is
finished, and the scores of the blocks of pools that are not in shards yet. The same call continues there: instances are
put together again from the last finished shard on, and give the same bytes, but no candidate is judged twice.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cappy_lightning.config import Config
from cappy_lightning.data.shards import SHARD_ROWS, read_manifest, write_manifest, write_shard
from cappy_lightning.errors import InputError
from cappy_lightning.files import kept_on_failure, make_dir, open_locked, parse_line, remove, replace, to_line
from cappy_lightning.labeling.measures import KeptScores
from cappy_lightning.labeling.weak_labels import BLOCK, Labeler
from cappy_lightning.progress import Ticker, counted, say
from cappy_lightning.records import Instance, Pool, Split
from cappy_lightning.sources.spec import Sources

JOURNAL = "journal.jsonl"
#: The scores of blocks, each by the number of pools before it, in ten digits.
_SCORES = "scores-*"


def label(sources: Sources, config: Config, out: Path, split: Split) -> None:
    """Label what the sources give, and write the instances to the directory `out`.

    Memory holds a block of pools, a shard of instances, and a hash of every pool: one that is repeated is used once.

    Args:
        sources: examples or pools.
        config: whose sections `label` and `data` (the seed) are used.
        out: the directory; it appears when all is written.
        split: `train`: training instances of all examples but those of the split `validation`;
            `validation`: validation instances of the examples of that split.

    Raises:
        InputError: `out` exists, there is no instance (unless this is one of several parts), input that
            cannot be used, or a partial result of something else.
    """
    make_dir(out.parent)
    lock = out.with_name(f".{out.name}.lock")
    directory = out.with_name(out.name + ".partial")
    with open_locked(lock, out, "directory of instances"):
        if out.exists():
            raise InputError(out, "exists already, expected a new directory")
        made_by = {
            "label": vars(config.label),
            "seed": config.data.seed,
            "split": split,
            "sources": sources.described(),
        }
        _label(sources, config, directory, split, made_by, out)
        with kept_on_failure(directory, "what is there"):
            replace(directory, out)  # with its journal, by which a repeated command would know what it is of
            for left in (out / JOURNAL, *out.glob(_SCORES)):
                left.unlink()
        lock.unlink()
    manifest = read_manifest(out, empty=True)
    say(f"{out}: {counted(manifest.rows, 'instance')} in {counted(len(manifest.shards), 'shard')}")


def _label(sources: Sources, config: Config, directory: Path, split: Split, made_by: dict[str, Any], out: Path) -> None:
    """Write what is missing of the shards of a directory, and then its manifest."""
    labeler, digest, repeated = Labeler(config.label, config.data.seed), hashlib.sha256(), Counter[str]()
    with kept_on_failure(directory, "what is there"):
        directory.mkdir(exist_ok=True)
        shards = _read_journal(directory, made_by)
    pools = _of_split(sources.pools(), split, digest, repeated)
    # The shards end in the block that begins after `consumed` pools, and hold `written` instances of it.
    consumed = written = 0
    if shards:
        consumed, written = shards[-1]["pools"], shards[-1]["instances"]
        for _ in islice(pools, consumed):
            pass
        if digest.hexdigest() != shards[-1]["digest"]:
            raise InputError(directory, "the input has changed since this was begun; delete it or write elsewhere")
        labeler.counts.update(shards[-1]["counts"])
    measure, rows = labeler.measure, list[Instance]()
    scores = sum(len(KeptScores(measure, file)) for file in directory.glob(_SCORES))
    if shards or scores:
        say(f"{out}: continuing, {consumed:,} examples are labelled, {scores:,} scores of the next are there")
    label_block = labeler.training if split == "train" else labeler.validation

    def write(state: dict[str, Any]) -> None:
        with kept_on_failure(directory, "what is there"):
            shards.append(write_shard(rows, directory, len(shards)) | state)
            journal.write(to_line(shards[-1]).encode())
            journal.flush()
            _remove_scores(directory, before=state["pools"])
        rows.clear()

    with Ticker(f"labelling {out.name}", None, consumed) as ticker, open(directory / JOURNAL, "ab") as journal:
        while True:
            start = {"pools": consumed, "digest": digest.hexdigest(), "counts": dict(labeler.counts)}
            labeler.measure = KeptScores(measure, _scores_file(directory, consumed))
            block = list(islice(pools, BLOCK))
            for number, instance in enumerate(label_block(block), start=1):
                if number > written:
                    rows.append(instance)
                    if len(rows) == SHARD_ROWS:
                        write(start | {"instances": number})
            if not block:
                break
            written = 0
            consumed += len(block)
            ticker.advance(len(block))
        if rows:
            write(start | {"instances": 0})
    if not shards and not sources.partial:
        remove(directory)
        raise InputError(out, f"there is no instance of the split {split} to write")
    with kept_on_failure(directory, "what is there"):
        write_manifest(directory, shards, made_by)
    if count := repeated["pools"]:
        say(f"{counted(count, 'row')} repeated and used once")
    for note in (*sources.notes(), *labeler.warnings()):
        say(note)


def _scores_file(directory: Path, pools: int) -> Path:
    return directory / _SCORES.replace("*", f"{pools:010d}")


def _remove_scores(directory: Path, before: int) -> None:
    for file in directory.glob(_SCORES):
        if file < _scores_file(directory, before):
            file.unlink()


def _of_split(pools: Iterator[Pool], split: Split, digest: Any, repeated: Counter[str]) -> Iterator[Pool]:
    """The pools of the split, each once; examples that name none belong to the training.

    All that they hold goes into the digest.
    """
    known: set[int] = set()  # hashes, of which millions fit into memory
    for pool in pools:
        if (pool.example.split == "validation") == (split == "validation"):
            if (content := hash(pool)) in known:
                repeated["pools"] += 1
                continue
            known.add(content)
            digest.update(to_line(pool.to_row()).encode())
            yield pool


def _read_journal(directory: Path, made_by: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of the finished shards; what a kill has left beside them is removed."""
    path, head = directory / JOURNAL, to_line({"made_by": made_by}).encode()
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if not whole:
        path.write_bytes(head)
    elif not whole.startswith(head):
        raise InputError(directory, "was begun with other input or settings; delete it or write elsewhere")
    elif whole != data:  # a line that a kill cut off
        with open(path, "r+b") as stream:
            stream.truncate(len(whole))
    lines = whole.splitlines()[1:]
    shards = [parse_line(line, f"{path}:{number}") for number, line in enumerate(lines, start=2)]
    known = {path.name, *(shard["file"] for shard in shards)}
    for file in directory.iterdir():
        if file.name not in known and not file.match(_SCORES):
            file.unlink()
    if shards:
        _remove_scores(directory, before=shards[-1]["pools"])
    return shards

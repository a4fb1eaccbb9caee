"""From row groups to batches: what a rank reads, in the order of `Order`, step by step."""

import hashlib
import itertools
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cappy_lightning.data.mixture import choose_rows
from cappy_lightning.data.order import Epoch, Order, Piece, lane_share
from cappy_lightning.data.reading import RowGroups
from cappy_lightning.data.shards import SCHEMA
from cappy_lightning.errors import InputError
from cappy_lightning.scorer.encoding import EncodedPair, PairEncoder

#: Encoder inputs and per-pair tensors, [pairs ...]; `real` (pairs of the step over all ranks that are no filling)
#: and `counts` (of this forward) are plain numbers, which need no device.
Batch = dict[str, Any]

_COLUMNS = ("instruction", "response", "score")
_EMPTY = pa.schema([SCHEMA.field(name) for name in _COLUMNS]).empty_table()


@dataclass(frozen=True)
class _Row:
    """An encoded instance with its position in the epoch; `weight` is 0 for filling and for what cannot be read.

    `example` is equal for pairs of one instruction and one lane, where they stand together.
    """

    position: int
    pair: EncodedPair
    score: float
    weight: float
    example: int = 0


class _Lane:
    """The rows of one lane of an epoch, window by window."""

    def __init__(self, epoch: Epoch, lane: int, stream: "TrainingStream", start: int) -> None:
        self._epoch, self._groups, self._together = epoch, stream.groups, stream.together
        self._windows = epoch.windows(lane, start)
        self._table = _EMPTY

    def take(self, count: int) -> pa.Table:
        """The next `count` rows; texts and scores are null in rows that cannot be read and are skipped."""
        parts = [_EMPTY]
        while count:
            if not self._table.num_rows:
                window, passed = next(self._windows)
                pieces = pa.concat_tables(self._read(piece) for piece in window.pieces)
                order = window.order
                if self._together:
                    order = order[_together(pieces["instruction"].take(pa.array(order)))]
                self._table = pieces.take(pa.array(order[passed:]))
            parts.append(self._table.slice(0, count))
            count -= parts[-1].num_rows
            self._table = self._table.slice(parts[-1].num_rows)
        return pa.concat_tables(parts)

    def _read(self, piece: Piece) -> pa.Table:
        counts = self._epoch.kept.counts(piece.group, piece.number)
        whole = not counts or sum(counts.values()) == self._groups.rows[piece.group]
        table = self._groups.read(piece.group, _COLUMNS if whole else (*_COLUMNS, "task"))
        rows = np.arange(piece.start, piece.stop)
        if not whole and not table["task"].null_count:  # of what cannot be read one row is as good as another
            tasks = np.array(table["task"].to_pylist(), dtype=object)
            seed = [self._epoch.order.seed, self._epoch.number, 3, piece.group, piece.number]
            rows = choose_rows(tasks, counts, seed)[rows]
        return table.select(list(_COLUMNS)).take(pa.array(rows))  # a copy, which does not hold the rest


class _Share(IterableDataset[Any]):
    """For each step, the rows of those lanes of a rank that fall to one loader process.

    An error comes as an item: what a loader process raises arrives as a text.
    """

    def __init__(self, stream: "TrainingStream") -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[list[_Row] | InputError]:
        worker = get_worker_info()
        index, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        stream, order = self._stream, self._stream.order
        numbers = range(stream.rank, order.lanes, stream.world)[index::count]
        per_epoch = order.steps(stream.global_size)
        try:
            for number, steps in itertools.groupby(stream.steps, key=lambda step: step // per_epoch):
                epoch, lanes = order.epoch(number), None
                for step in steps:
                    ends = [min(order.rows, (step % per_epoch + i) * stream.global_size) for i in (0, 1)]
                    before, after = ([lane_share(end, lane, order.lanes) for lane in numbers] for end in ends)
                    if lanes is None:
                        lanes = [_Lane(epoch, lane, stream, start) for lane, start in zip(numbers, before, strict=True)]
                    tables = [lane.take(b - a) for lane, a, b in zip(lanes, before, after, strict=True) if b > a]
                    positions = [
                        lane + order.lanes * i
                        for lane, a, b in zip(numbers, before, after, strict=True)
                        for i in range(a, b)
                    ]
                    columns = (pa.concat_tables([_EMPTY, *tables])[name].to_pylist() for name in _COLUMNS)
                    instructions, responses, scores = columns
                    rows = _encode(stream.encoder, positions, instructions, responses, scores)
                    if stream.together:
                        rows = [
                            replace(row, example=example_number(str(row.position % order.lanes), instruction))
                            for row, instruction in zip(rows, instructions, strict=True)
                        ]
                    yield rows
        except InputError as error:
            yield error


class TrainingStream:
    """The micro batches of one rank, from a step on to the last of the training.

    Its rows of a step are sorted by length and cut into micro batches: pairs of like length share a
    forward, and the set behind the step, and so its gradient, stays what it is.

    Args:
        groups: the row groups; those that are skipped become rows of weight 0.
        order: of the instances.
        encoder: how pairs become tokens.
        global_size: pairs per optimizer step over all ranks.
        micro_size: pairs per rank and forward.
        steps: numbers of the steps, counted over all epochs.
        rank: of this process.
        world: number of ranks; divides the lanes, and with `micro_size` the global size.
        workers: loader processes; 0: in this one. Each has a share of the lanes.
        pin: whether the batches are put into pinned memory.
        together: whether the pairs of an instruction come one after the other in their lane, as far as the window
            holds them; each batch then has `example`, equal for pairs of one instruction and one lane.
    """

    def __init__(
        self,
        groups: RowGroups,
        order: Order,
        encoder: PairEncoder,
        *,
        global_size: int,
        micro_size: int,
        steps: range,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        pin: bool = False,
        together: bool = False,
    ) -> None:
        self.groups, self.order, self.encoder, self.steps = groups, order, encoder, steps
        self.global_size, self.micro_size, self.rank, self.world = global_size, micro_size, rank, world
        self.workers, self.pin, self.together = workers, pin, together

    def __iter__(self) -> Iterator[Batch]:
        shares = iter(
            DataLoader(
                _Share(self),
                batch_size=None,
                num_workers=self.workers,
                collate_fn=_unchanged,
                worker_init_fn=prepare_worker,
            )
        )
        per_epoch, own = self.order.steps(self.global_size), self.global_size // self.world
        for step in self.steps:
            rows: list[_Row] = []
            for share in itertools.islice(shares, max(1, self.workers)):  # in turn, from each process one
                if isinstance(share, InputError):
                    raise share
                rows += share
            rows.sort(key=_by_example(rows) if self.together else _by_length)
            if len(rows) < own:
                rows += [_filling(self.encoder)] * (own - len(rows))
            real = min(self.global_size, self.order.rows - step % per_epoch * self.global_size)
            for start in range(0, own, self.micro_size):
                part = rows[start : start + self.micro_size]
                batch = _collate(self.encoder, part) | {"real": real}
                if self.together:
                    batch["example"] = torch.tensor([row.example for row in part])
                yield {name: _pinned(value) for name, value in batch.items()} if self.pin else batch


class EvaluationStream:
    """All instances in order, each on exactly one rank, with the same number of forwards on every rank.

    A rank has a run of neighbours, and reads only their row groups. Each batch also has `example`, equal for the
    pairs of one example.

    Args:
        groups: the row groups; those that are skipped become rows of weight 0.
        encoder: how pairs become tokens.
        size: pairs per rank and forward.
        rank: of this process.
        world: number of ranks.
    """

    def __init__(self, groups: RowGroups, encoder: PairEncoder, size: int, rank: int, world: int) -> None:
        self.groups, self.encoder, self.size = groups, encoder, size
        self.batches = -(-int(groups.rows.sum()) // (size * world))
        self.first = rank * self.batches * size

    def __iter__(self) -> Iterator[Batch]:
        rows = self._rows()
        for _ in range(self.batches):
            found = list(itertools.islice(rows, self.size))
            columns = ([row[name] for row in found] for name in _COLUMNS)
            encoded = _encode(self.encoder, range(len(found)), *columns)
            examples = [example_number(row["task"], row["example_id"]) for row in found]
            missing = self.size - len(encoded)
            batch = _collate(self.encoder, encoded + [_filling(self.encoder)] * missing)
            yield batch | {"example": torch.tensor(examples + [0] * missing)}

    def _rows(self) -> Iterator[dict[str, Any]]:
        ends = np.cumsum(self.groups.rows)
        stop = min(int(ends[-1]), self.first + self.batches * self.size)
        for group in range(int(np.searchsorted(ends, self.first, side="right")), len(self.groups)):
            begin = int(ends[group] - self.groups.rows[group])
            if begin >= stop:
                return
            rows = slice(max(0, self.first - begin), min(int(self.groups.rows[group]), stop - begin))
            table = self.groups.read(group, SCHEMA.names)
            yield from table.slice(rows.start, rows.stop - rows.start).to_pylist()


def _together(instructions: pa.ChunkedArray) -> NDArray[np.int64]:
    """The places of all rows, equal instructions together, in the order in which each comes first."""
    codes = instructions.combine_chunks().dictionary_encode().indices.fill_null(-1)
    return np.argsort(codes.to_numpy(zero_copy_only=False), kind="stable")


def _by_length(row: _Row) -> tuple[int, ...]:
    return -len(row.pair.ids), row.position


def _by_example(rows: Sequence[_Row]) -> Callable[[_Row], tuple[int, ...]]:
    """A key that sorts examples by their longest pair."""
    longest: dict[int, int] = defaultdict(int)
    for row in rows:
        longest[row.example] = max(longest[row.example], len(row.pair.ids))
    return lambda row: (-longest[row.example], row.example, *_by_length(row))


def _encode(
    encoder: PairEncoder,
    positions: Sequence[int],
    instructions: Sequence[str | None],
    responses: Sequence[str | None],
    scores: Sequence[float | None],
) -> list[_Row]:
    """Encode instances; what could not be read (None) is an empty pair of weight 0."""
    pairs = encoder.encode([text or "" for text in instructions], [text or "" for text in responses])
    return [
        _Row(position, pair, score or 0.0, float(score is not None))
        for position, pair, score in zip(positions, pairs, scores, strict=True)
    ]


def _filling(encoder: PairEncoder) -> _Row:
    """The shortest pair there is, with no weight: it keeps the ranks in step at the end of an epoch."""
    return _Row(-1, encoder.encode([""], [""])[0], 0.0, 0.0)


def _collate(encoder: PairEncoder, rows: Sequence[_Row]) -> Batch:
    pairs = [row.pair for row in rows]
    inputs = encoder.batch(pairs)
    real = [row.pair for row in rows if row.weight]
    return {
        **inputs,
        "score": torch.tensor([row.score for row in rows]),
        "weight": torch.tensor([row.weight for row in rows]),
        "counts": {
            "pairs": len(real),
            "tokens": sum(len(pair.ids) for pair in real),
            "slots": inputs["input_ids"].numel(),
            "cut_pairs": sum(pair.cut > 0 for pair in real),
            "cut_tokens": sum(pair.cut for pair in real),
            "skipped": sum(row.position >= 0 and not row.weight for row in rows),
        },
    }


def _pinned(value: Any) -> Any:
    return value.pin_memory() if isinstance(value, torch.Tensor) else value


def example_number(task: str | None, example: str | None) -> int:
    """A number for an example that is the same on every rank: 63 bits of a hash."""
    digest = hashlib.blake2b(f"{task}\0{example}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _unchanged(item: Any) -> Any:
    return item


def prepare_worker(number: int) -> None:
    """Set up a loader process, forked from one that has threads and that decides when to stop."""
    # Ctrl-C and SLURM's signals reach all processes; the main one still finishes its step.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    # The tokenizer's threads did not come along, and waiting for them never ends.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

"""The LightningDataModule: instances from Parquet shards to batches named by the optimizer step."""

import itertools
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cappy_lightning.data.order import FILL, deal, epoch_order, step_rows, steps_per_epoch
from cappy_lightning.data.shards import read_manifest, read_table
from cappy_lightning.scorer.encoding import PairEncoder

Batch = dict[str, Tensor]


class _Instances:
    """A table of instances with what batching needs to know of each row."""

    def __init__(self, directories: Sequence[Path]) -> None:
        table = read_table([read_manifest(directory) for directory in directories])
        self.instruction, self.response = table["instruction"], table["response"]
        self.score = torch.from_numpy(table["score"].to_numpy().copy())
        # Characters stand for tokens where only the order of lengths matters.
        self.lengths = _characters(table["instruction"]) + _characters(table["response"])
        pairs = zip(table["task"].to_pylist(), table["example_id"].to_pylist(), strict=True)
        numbers: dict[tuple[str, str], int] = {}
        self.example = torch.tensor([numbers.setdefault(pair, len(numbers)) for pair in pairs])

    def __len__(self) -> int:
        return len(self.score)

    def pairs(self, most: int | None = None) -> list[tuple[str, str]]:
        """The first `most` (instruction, response), or all of them, in order."""
        columns = (column.slice(0, most).to_pylist() for column in (self.instruction, self.response))
        return list(zip(*columns, strict=True))

    def batch(self, rows: NDArray[np.int64], encoder: PairEncoder) -> Batch:
        """Encode some rows; a row that is `FILL` becomes the first instance with weight 0."""
        real = rows != FILL
        rows = np.where(real, rows, 0)
        take = pa.array(rows)
        pairs = encoder.encode(self.instruction.take(take).to_pylist(), self.response.take(take).to_pylist())
        return {
            **encoder.pad(pairs),
            "score": self.score[rows],
            "weight": torch.from_numpy(real.astype(np.float32)),
            "example": self.example[rows],
            "cut": torch.tensor([pair.cut for pair in pairs]) * torch.from_numpy(real),
        }


def _characters(column: pa.ChunkedArray) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = pc.utf8_length(column).to_numpy().astype(np.int64)
    return lengths


class _TrainingStream(IterableDataset[Batch]):
    """The micro batches of one rank, from step `first` to the last step of the training.

    Each batch also carries `real`: how many of its step's pairs, over all ranks, are not filling.
    """

    def __init__(
        self,
        data: _Instances,
        encoder: PairEncoder,
        sizes: tuple[int, int],
        seed: int,
        steps: range,
        rank: int,
        world: int,
    ) -> None:
        self.data, self.encoder, self.seed, self.steps, self.rank, self.world = data, encoder, seed, steps, rank, world
        self.global_size, self.micro_size = sizes

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        mine = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for rows, real in itertools.islice(self._micro_batches(), mine[0], None, mine[1]):
            yield self.data.batch(rows, self.encoder) | {"real": torch.tensor(real)}

    def _micro_batches(self) -> Iterator[tuple[NDArray[np.int64], int]]:
        per_epoch = steps_per_epoch(len(self.data), self.global_size)
        for epoch, steps in itertools.groupby(self.steps, key=lambda step: step // per_epoch):
            order = epoch_order(len(self.data), self.seed, epoch)
            for step in steps:
                rows = step_rows(order, step % per_epoch, self.global_size)
                for forward in deal(rows, self.data.lengths, self.world, self.micro_size):
                    yield forward[self.rank], int((rows != FILL).sum())


class _ValidationRows(IterableDataset[Batch]):
    """All instances in order, each on exactly one rank, with the same number of forwards on every rank."""

    def __init__(self, data: _Instances, encoder: PairEncoder, size: int, rank: int, world: int) -> None:
        self.data, self.encoder, self.size, self.rank, self.world = data, encoder, size, rank, world

    def __iter__(self) -> Iterator[Batch]:
        count = -(-len(self.data) // (self.size * self.world)) * self.size * self.world
        rows = np.pad(np.arange(len(self.data)), (0, count - len(self.data)), constant_values=FILL)
        for forward in rows.reshape(-1, self.world, self.size):
            yield self.data.batch(forward[self.rank], self.encoder)


class CappyDataModule(pl.LightningDataModule):
    """Weakly labelled pairs from directories of Parquet shards, streamed in batches.

    The rows lie in memory; their order and the batches are made as they are needed.

    Its state is how many optimizer steps' instances were consumed; a resumed training goes on with the
    very next instance.

    Args:
        train: directories with training instances.
        validation: directories with validation instances.
        encoder: how pairs become tokens.
        global_size: pairs per optimizer step over all ranks.
        micro_size: pairs per rank and forward.
        validation_size: pairs per rank and forward in validation.
        seed: of the order.
        workers: loader processes per rank.

    Raises:
        InputError: shards that are missing, damaged or of another schema.
    """

    def __init__(
        self,
        train: Sequence[Path],
        validation: Sequence[Path],
        encoder: PairEncoder,
        *,
        global_size: int,
        micro_size: int,
        validation_size: int,
        seed: int,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.train, self.encoder, self.seed, self.workers = _Instances(train), encoder, seed, workers
        self.validation = _Instances(validation)
        self.global_size, self.micro_size, self.validation_size = global_size, micro_size, validation_size
        self.total_steps = self.steps_per_epoch
        self._first_step = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training instances."""
        return steps_per_epoch(len(self.train), self.global_size)

    def train_dataloader(self) -> DataLoader[Batch]:
        """The micro batches of this rank from the first step that was not consumed yet."""
        trainer = self._trainer()
        stream = _TrainingStream(
            self.train,
            self.encoder,
            (self.global_size, self.micro_size),
            self.seed,
            range(self._first_step, self.total_steps),
            trainer.global_rank,
            trainer.world_size,
        )
        return self._loader(stream)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Every validation instance once, in order."""
        trainer = self._trainer()
        size, rank, world = self.validation_size, trainer.global_rank, trainer.world_size
        return DataLoader(_ValidationRows(self.validation, self.encoder, size, rank, world), batch_size=None)

    def state_dict(self) -> dict[str, Any]:
        """Where the training stands. Checkpoints are taken at step boundaries, so steps say it all."""
        return {"consumed_steps": self._trainer().global_step, "global_size": self.global_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the steps that were consumed."""
        self._first_step = int(state["consumed_steps"])

    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise RuntimeError("the data module has no trainer yet")
        return self.trainer

    def _loader(self, dataset: IterableDataset[Batch]) -> DataLoader[Batch]:
        accelerator = self._trainer().accelerator
        pin = type(accelerator).__name__ == "CUDAAccelerator"
        return DataLoader(
            dataset, batch_size=None, num_workers=self.workers, pin_memory=pin, worker_init_fn=prepare_worker
        )


def prepare_worker(number: int) -> None:
    """Set up a loader process, forked from one that has threads and that decides when to stop."""
    # Ctrl-C and SLURM's signals reach all processes; the main one still finishes its step.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    # The tokenizer's threads did not come along, and waiting for them never ends.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

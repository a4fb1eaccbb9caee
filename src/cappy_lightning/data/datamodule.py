"""The LightningDataModule: instances from Parquet shards to batches named by the optimizer step."""

import hashlib
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl

from cappy_lightning.config import BatchConfig, DataConfig
from cappy_lightning.data.mixture import Mixture
from cappy_lightning.data.order import Order
from cappy_lightning.data.reading import RowGroups
from cappy_lightning.data.shards import Manifest, read_manifest
from cappy_lightning.data.stream import EvaluationStream, TrainingStream
from cappy_lightning.errors import InputError
from cappy_lightning.scorer.encoding import PairEncoder

#: Key of the shards' hash in the state.
SHARDS = "shards (SHA-256)"


class CappyDataModule(pl.LightningDataModule):
    """Weakly labelled pairs, streamed from directories of Parquet shards.

    Memory holds `data.window` row groups, over all ranks, whatever the size of the set. Its state is where in the
    order the training stands; a resumed one goes on with the very next instance, on any number of
    ranks that divides the lanes.

    Args:
        train: paths or URLs of the directories with training instances.
        validation: of those with validation instances.
        test: of those with test instances.
        encoder: how pairs become tokens.
        batch: the `batch` section of the config.
        data: the `data` section: lanes, window, caps, weights, workers and on_error.
        seed: of the order.
        together: whether the pairs of an instruction come one after the other, for a ranking loss.

    Raises:
        InputError: manifests that cannot be read, or caps and weights that match no task.
    """

    def __init__(
        self,
        train: Sequence[str],
        validation: Sequence[str],
        encoder: PairEncoder,
        batch: BatchConfig,
        data: DataConfig,
        *,
        seed: int,
        test: Sequence[str] = (),
        together: bool = False,
    ) -> None:
        super().__init__()
        self.train, self.validation, self.test = (
            [read_manifest(directory) for directory in side] for side in (train, validation, test)
        )
        self.encoder, self.batch, self.data, self.together = encoder, batch, data, together
        self._groups = self._row_groups(self.train)
        tasks = self._groups.tasks() if data.caps or data.weights else {}
        mixture = Mixture(self._groups.rows, tasks, data.caps, data.weights)
        self.order = Order(mixture, seed, data.lanes, data.window)
        #: Optimizer steps of the whole training.
        self.total_steps = self.steps_per_epoch
        self._first_step = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training instances."""
        return self.order.steps(self.batch.global_size)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the hashes of all training shards."""
        digest = hashlib.sha256()
        for manifest in self.train:
            for shard in manifest.shards:
                digest.update(shard.sha256.encode())
        return digest.hexdigest()

    def train_dataloader(self) -> TrainingStream:
        """The micro batches of this rank from the first step that was not consumed yet.

        Raises:
            InputError: the number of ranks does not divide the lanes.
        """
        trainer = self._trainer()
        if self.order.lanes % trainer.world_size:
            raise InputError(
                "data.lanes",
                f"is {self.order.lanes}, expected a multiple of the number of ranks ({trainer.world_size})",
            )
        return TrainingStream(
            self._groups,
            self.order,
            self.encoder,
            global_size=self.batch.global_size,
            micro_size=self.batch.micro_size,
            steps=range(self._first_step, self.total_steps),
            rank=trainer.global_rank,
            world=trainer.world_size,
            workers=self.data.workers,
            pin=type(trainer.accelerator).__name__ == "CUDAAccelerator",
            together=self.together,
        )

    def val_dataloader(self) -> EvaluationStream:
        """Every validation instance once, in order."""
        return self._evaluation(self.validation)

    def test_dataloader(self) -> EvaluationStream:
        """Every test instance once, in order."""
        return self._evaluation(self.test)

    def _evaluation(self, manifests: Sequence[Manifest]) -> EvaluationStream:
        trainer, size = self._trainer(), self.batch.validation_size
        groups = self._row_groups(manifests)
        return EvaluationStream(groups, self.encoder, size, trainer.global_rank, trainer.world_size)

    def _row_groups(self, manifests: Sequence[Manifest]) -> RowGroups:
        return RowGroups(manifests, skip_errors=self.data.on_error == "skip")

    def state_dict(self) -> dict[str, Any]:
        """Where the training stands. Checkpoints are taken at step boundaries, so steps say it all."""
        step = self._trainer().global_step
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        within = min(self.order.rows, step_of_epoch * self.batch.global_size)
        return {
            "step": step,
            "epoch": epoch,
            "step_of_epoch": step_of_epoch,
            "instances": epoch * self.order.rows + within,
            "order": self._described(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the steps that were consumed.

        Raises:
            InputError: the checkpoint belongs to another order of instances.
        """
        for name, value in self._described().items():
            if (theirs := state["order"].get(name)) != value:
                raise InputError(
                    "checkpoint", f"was made with {name} {theirs}, expected {value}: another order of instances"
                )
        self._first_step = int(state["step"])

    def _described(self) -> dict[str, Any]:
        """What the order of the instances is made of."""
        return {
            "data.lanes": self.order.lanes,
            "data.window": self.order.window,
            "data.caps": dict(self.data.caps),
            "data.weights": dict(self.data.weights),
            "seed": self.order.seed,
            "batch.global_size": self.batch.global_size,
            "instructions together": self.together,
            SHARDS: self.fingerprint,
        }

    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise RuntimeError("the data module has no trainer yet")
        return self.trainer

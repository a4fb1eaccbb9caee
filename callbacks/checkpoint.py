"""Checkpoints at optimizer-step boundaries: now and then, at the end, and when a signal asks."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed
from cappy_lightning.callbacks.results import Results
from lightning.pytorch.trainer.states import TrainerFn

from cappy_lightning.checkpoints import checkpoint_name, checkpoint_step
from cappy_lightning.files import disk_errors_named, remove
from cappy_lightning.progress import say
from cappy_lightning.run_dir import job_folder
from cappy_lightning.slurm.restarts import note_told


class Stopped(Exception):
    """The run was asked to stop, and was saved at the end of a step."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.signal = number


class RunCheckpoint(pl.Callback):
    """Keeps the latest checkpoint of a run and that of the best validation round.

    Must be the last callback of the list.

    SIGINT, SIGTERM and SIGUSR1 only set a flag: the step in progress is finished on all ranks, saved, and
    the training ends with `Stopped`. Saving inside a handler can leave one rank in a barrier and another in
    the gradient's all-reduce.

    A checkpoint holds each rank's random state, so that dropout goes on as if nothing had happened. On another number
    of ranks it begins anew, by the seed, the rank and the step.
    Where a validation round follows a step, the checkpoint comes after the round.

    Args:
        directory: where `step-N.ckpt` files go.
        every: optimizer steps between checkpoints.
        total_steps: the last step, which is saved too.
        validate_every: optimizer steps between validation rounds.
        results: which knows the best round.
    """

    def __init__(self, directory: Path, every: int, total_steps: int, validate_every: int, results: Results) -> None:
        self.directory, self.results = directory, results
        self.every, self.total_steps, self.validate_every = every, total_steps, validate_every
        self._asked: signal.Signals | None = None
        self._said = False
        self._previous: dict[signal.Signals, Any] = {}
        self._random_states: list[dict[str, torch.Tensor]] | None = None
        self._begun = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put our handlers in the place of Lightning's, which communicate from inside the handler."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._ask_to_stop)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the handlers back."""
        self.on_train_end(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Right before the first forward: after a resume this rank's random state, else one of its own."""
        if self._begun:
            return
        self._begun = True
        states, self._random_states = self._random_states or [], None
        if len(states) == trainer.world_size:
            state = states[trainer.global_rank]
            torch.set_rng_state(state["cpu"].cpu())
            if "cuda" in state:
                torch.cuda.set_rng_state(state["cuda"].cpu())
        elif trainer.global_rank or trainer.global_step:  # neither other ranks' dropout nor that of earlier steps
            torch.manual_seed(torch.initial_seed() + (trainer.global_rank << 32) + trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step may have ended."""
        if self._asked and not self._said and trainer.is_global_zero:  # not in the handler: it may interrupt a print
            self._said = True
            say(f"{self._asked.name}: stops when this step is finished and saved")
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not self._validation_follows(trainer.global_step):
            self._end_step(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A step has ended with its validation round."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._end_step(trainer)

    def _validation_follows(self, step: int) -> bool:
        return step % self.validate_every == 0

    def _end_step(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        stop = self._any_rank_asked(trainer)
        best = self.results.best_step == step
        if stop == signal.SIGUSR1 and trainer.is_global_zero:
            note_told(job_folder(self.directory.parent))  # before any rank can have ended, for what follows from that
        if stop or best or step % self.every == 0 or step >= self.total_steps:
            self._save(trainer, step)
        if stop:
            raise Stopped(stop)

    def state_dict(self) -> dict[str, Any]:
        """The random state of every rank; called by all of them when a checkpoint is made."""
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        states: list[Any] = [state]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, state)
        return {"random_states": states}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Make Lightning's count of forwards that of this number of ranks and this micro batch.

        It decides by this count where a step ends, and would else take what another number of ranks left behind.
        """
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        shift = checkpoint["global_step"] * trainer.accumulate_grad_batches - progress["current"]["ready"]
        for counts in (progress["total"], progress["current"]):
            counts.update({name: count + shift for name, count in counts.items()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the random states until the first forward."""
        self._random_states = state_dict["random_states"]

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._asked == number == signal.SIGINT:  # Ctrl-C once more: now
            raise KeyboardInterrupt
        self._asked = signal.Signals(number)

    def _any_rank_asked(self, trainer: pl.Trainer) -> signal.Signals | None:
        """The signal that any rank has got, the same answer on all of them."""
        if trainer.world_size == 1:
            return self._asked
        number = torch.tensor(int(self._asked or 0), device=trainer.strategy.root_device)
        highest = int(trainer.strategy.reduce(number, reduce_op="max"))
        return signal.Signals(highest) if highest else None

    def _save(self, trainer: pl.Trainer, step: int) -> None:
        path, partial = self.directory / checkpoint_name(step), self.directory / f"step-{step}.partial"
        if trainer.is_global_zero:
            remove(partial)  # of a kill: shards of more ranks, or a directory in the place of a file
        trainer.strategy.barrier("nothing is in the way")
        with disk_errors_named(partial):
            trainer.save_checkpoint(partial)
        trainer.strategy.barrier("every shard is written")
        if trainer.is_global_zero:
            remove(path)
            partial.rename(path)
            kept = {step, self.results.best_step}
            for other in self.directory.iterdir():
                if checkpoint_step(other) not in kept:
                    remove(other)
        trainer.strategy.barrier("checkpoint")

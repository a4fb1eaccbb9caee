"""Distributed strategies: DDP, and DeepSpeed's ZeRO on GPUs and, by the same code path, on CPUs."""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import Tensor, nn

from cappy_lightning.checkpoints import MOMENTS, OPTIMIZER_NAMES, read_checkpoint
from cappy_lightning.config import BatchConfig, TrainerConfig
from cappy_lightning.errors import InputError

#: Numbers in a buffer of communication.
BUCKET = 50_000_000


def make_strategy(trainer: TrainerConfig, batch: BatchConfig) -> Strategy | str:
    """The Lightning strategy that a config names; `auto` is DDP where there is more than one process.

    Raises:
        InputError: DeepSpeed is asked for, but not installed.
    """
    if trainer.strategy.startswith("zero"):
        if importlib.util.find_spec("deepspeed") is None:
            raise InputError("trainer.strategy", f"is {trainer.strategy}, expected 'pip install deepspeed' first")
        return ZeroStrategy(int(trainer.strategy[-1]), trainer.offload, trainer.zero3_persistence, batch.micro_size)
    if trainer.strategy == "ddp" or trainer.devices * trainer.nodes > 1:
        # Gradients live in the buckets that are reduced, not beside them.
        return DDPStrategy(gradient_as_bucket_view=True)
    return "auto"


class WholeCheckpoints(TorchCheckpointIO):
    """For DDP and single processes: reads checkpoints of ZeRO, too."""

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See `read_checkpoint`."""
        return read_checkpoint(Path(path))


class ZeroPrecision(DeepSpeedPrecision):
    """Lightning's own, which leaves batches as they are: scores of instances stay fp32, the rest are whole numbers."""

    def convert_input(self, data: Any) -> Any:
        """As it is."""
        return data


class ZeroStrategy(DeepSpeedStrategy):
    """ZeRO by DeepSpeed (Rajbhandari et al., arXiv 1910.02054), on CPUs, too.

    Its checkpoints are directories with a shard a rank. One that was made by another number of ranks, another
    stage or another strategy is put together first, and each rank takes its part.

    Args:
        stage: what is partitioned over the ranks: 1 optimizer states, 2 gradients too, 3 parameters too.
        offload: keep optimizer states, at stage 3 parameters too, in the host's memory.
        persistence: at stage 3, parameters of at most so many numbers stay whole on every rank.
        micro_size: pairs per forward. DeepSpeed reports it, and Lightning would look for it where a stream has
            none (Lightning-AI/pytorch-lightning#19460).
    """

    def __init__(self, stage: int, offload: bool, persistence: int, micro_size: int) -> None:
        super().__init__(
            stage=stage,
            offload_optimizer=offload,
            offload_parameters=offload and stage == 3,
            logging_batch_size_per_gpu=micro_size,
            exclude_frozen_parameters=True,
            # 100 MB of bf16; Lightning's 200,000,000 would take more than the gradients of RoBERTa-large.
            reduce_bucket_size=BUCKET,
            allgather_bucket_size=BUCKET,
        )
        self.stage, self.offload = stage, offload
        assert isinstance(self.config, dict)
        self.config["zero_optimization"]["stage3_param_persistence_threshold"] = persistence
        self._whole: dict[str, Any] | None = None

    def setup_environment(self) -> None:
        """Lightning's own, without its refusal of CPUs."""
        # DeepSpeed itself calls what torch 2.13 deprecates, with every step.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        with contextlib.redirect_stdout(io.StringIO()):  # it says what it has compiled where our results go
            DDPStrategy.setup_environment(self)

    @property
    def parallel_devices(self) -> list[torch.device] | None:
        """The devices of this node; DeepSpeed wants an index on each, which CPUs do not have."""
        devices = super().parallel_devices
        return devices and [torch.device(d.type, i if d.index is None else d.index) for i, d in enumerate(devices)]

    @parallel_devices.setter
    def parallel_devices(self, devices: list[torch.device] | None) -> None:
        self._parallel_devices = devices

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Without DeepSpeed's division by the accumulated forwards: Lightning has divided already.

        Divided twice, gradients are too small to be clipped where they should be, and Adam hides it.
        """
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint as a whole, of which each rank takes its part below."""
        return read_checkpoint(Path(checkpoint_path))

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning is to call `load_optimizer_state_dict`."""
        return True

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Put the trained weights into DeepSpeed's fp32 partitions and, rounded, into the model."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        for name, parameter in self._trained().items():
            value = checkpoint["state_dict"][name].to(self.root_device)
            if self.stage < 3:
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_local_fp32_param(parameter, self._own_part(value))
                with GatheredParameters([parameter], modifier_rank=0):
                    if self.is_global_zero:
                        parameter.data.copy_(value)
        if self.stage < 3:
            self.deepspeed_engine.optimizer.update_lp_params()

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Put AdamW's step and moments into DeepSpeed's partitions of them."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        zero = self.deepspeed_engine.optimizer
        (saved,) = checkpoint["optimizer_states"]
        step = saved["state"][0]["step"]
        flats = zero.single_partition_of_fp32_groups if self.stage < 3 else zero.fp32_partitioned_groups_flat
        for flat in flats:
            zeros = {kind: torch.zeros_like(flat.data) for kind in MOMENTS}
            own = int(step) if self.offload else step.to(flat.device, copy=True)
            zero.optimizer.state[flat] = {"step": own, **zeros}
        if self.stage < 3:  # what DeepSpeed does after the first step; until then moments cannot be set
            zero._lazy_init_hp_params_optimizer_state()
        trained = self._trained()
        names = [name for group in checkpoint[OPTIMIZER_NAMES] for name in group]
        for index, name in enumerate(names):
            for kind in MOMENTS:
                value = saved["state"][index][kind].to(self.root_device)
                if self.stage < 3:
                    safe_set_full_optimizer_state(trained[name], value, kind)
                else:
                    safe_set_local_optimizer_state(trained[name], self._own_part(value), kind)
        for group, theirs in zip(zero.optimizer.param_groups, saved["param_groups"], strict=True):
            group["lr"] = theirs["lr"]

    def _trained(self) -> dict[str, nn.Parameter]:
        assert self.lightning_module is not None
        return {name: p for name, p in self.lightning_module.named_parameters() if p.requires_grad}

    def _own_part(self, value: Tensor) -> Tensor:
        """This rank's slice of a parameter at stage 3: equal slices, the last one filled up with zeros."""
        size = -(-value.numel() // self.world_size)
        filled = torch.nn.functional.pad(value.flatten(), (0, size * self.world_size - value.numel()))
        return filled[size * self.global_rank : size * (self.global_rank + 1)]


def trained_weights(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Tensor]:
    """fp32 copies on the CPU of all trained parameters by name, on the first rank; nothing on the others.

    To be called by all ranks: ZeRO has the fp32 weights in parts.
    """
    zero = isinstance(trainer.strategy, ZeroStrategy)
    if zero:
        from deepspeed.utils import safe_get_full_fp32_param
    found = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            whole = safe_get_full_fp32_param(parameter) if zero else parameter.detach()
            if trainer.is_global_zero:
                found[name] = whole.to("cpu", torch.float32, copy=True)
    return found

"""Training checkpoints: finding them, and reading them whole, whatever strategy has made them."""

import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cappy_lightning.errors import InputError, first_line

#: The folder of a run that holds them.
CHECKPOINTS = "checkpoints"

_NAME = re.compile(r"step-(\d+)\.ckpt")
#: The folder of the shards in a checkpoint of ZeRO, and the files of one rank in it.
ZERO_TAG = "checkpoint"
_OPTIMIZER_SHARD = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_MODEL_SHARDS = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")  # stages 1 and 2, and 3

#: What Adam keeps for each parameter, besides the step.
MOMENTS = ("exp_avg", "exp_avg_sq")

#: What Lightning and we put into a checkpoint; the rest of DeepSpeed's file is DeepSpeed's own.
_OURS = ("epoch", "global_step", "pytorch-lightning_version", "loops", "callbacks", "lr_schedulers")

#: Key of the optimizer's parameters by name, in the order of its groups: torch itself numbers them.
OPTIMIZER_NAMES = "optimizer_names"
#: Key of the run's config, so that a checkpoint can be exported wherever it lies.
CONFIG = "config"
#: Key of the streaming state.
STREAM = "CappyDataModule"


def checkpoint_name(step: int) -> str:
    """The name of the checkpoint after an optimizer step."""
    return f"step-{step}.ckpt"


def checkpoint_step(path: Path) -> int | None:
    """The optimizer step that a name of a checkpoint says, or None."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def latest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint with the highest step in a directory, or None."""
    found = [(step, path) for path in directory.glob("*") if (step := checkpoint_step(path)) is not None]
    return max(found)[1] if found else None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint in Lightning's own form: one state dict, and AdamW's state by parameter.

    Shards of ZeRO are put together on the CPU, without DeepSpeed's engine and whatever the number of ranks:
    weights and moments in fp32, each parameter in its own shape.

    Raises:
        InputError: no checkpoint, a damaged one, or one with shards missing.
    """
    try:
        if path.is_dir():
            return _read_zero(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise InputError(path, "does not exist, expected a checkpoint") from None
    except InputError:
        raise
    except Exception as error:  # whatever unpickling raises
        raise InputError(path, f"cannot be read ({first_line(error)}), expected a checkpoint") from None


def _read_zero(path: Path) -> dict[str, Any]:
    files = _optimizer_shards(path)
    model_files = [path / ZERO_TAG / name for name in _MODEL_SHARDS if (path / ZERO_TAG / name).is_file()]
    if not files or not model_files:
        raise InputError(path, "is no checkpoint, expected a file, or a directory with the shards of ZeRO")
    with _deepspeed_classes():
        model = torch.load(model_files[0], map_location="cpu", mmap=True, weights_only=True)
        shards = [torch.load(file, map_location="cpu", mmap=True, weights_only=True) for file in files]
    shards = [shard["optimizer_state_dict"] for shard in shards]
    ranks = shards[0]["partition_count"]
    if (ranks := max(ranks) if isinstance(ranks, list) else ranks) != len(shards):
        raise InputError(path, f"has the shards of {len(shards)} ranks, expected {ranks}")
    shapes = {name: shape for group in model["param_shapes"] for name, shape in group.items()}
    pieces = _pieces_of_stage_3 if shards[0]["zero_stage"] == 3 else _pieces
    found = {kind: _join(pieces(shards, kind, model["param_shapes"]), shapes) for kind in ("", *MOMENTS)}
    buffers = {name: model["module"][name].float() for name in model["buffer_names"] if name in model["module"]}
    state = _optimizer_state(shards[0])
    step = torch.tensor(float(state["state"][0]["step"]))
    names = model[OPTIMIZER_NAMES]
    ends = list(accumulate(map(len, names)))
    groups = [
        {**group, "params": list(range(end - len(group_names), end))}
        for group, group_names, end in zip(state["param_groups"], names, ends, strict=True)
    ]
    moments = {
        index: {"step": step.clone()} | {kind: found[kind][name] for kind in MOMENTS}
        for index, name in enumerate(name for group in names for name in group)
    }
    return {key: model[key] for key in (*_OURS, OPTIMIZER_NAMES, CONFIG, STREAM) if key in model} | {
        "state_dict": found[""] | buffers,
        "optimizer_states": [{"state": moments, "param_groups": groups}],
    }


def _pieces(shards: list[Any], kind: str, groups: list[dict[str, torch.Size]]) -> Iterator[tuple[str, Tensor]]:
    """Stages 1 and 2: a rank holds one slice of each group's parameters laid end to end, and says where each lies."""
    for shard in shards:
        states = _optimizer_state(shard)["state"]
        for number, slices in enumerate(shard["param_slice_mappings"]):
            flat = states[number][kind] if kind else shard["single_partition_of_fp32_groups"][number]
            for name, where in slices.items():
                yield name, flat[where.start : where.start + where.numel]


def _pieces_of_stage_3(
    shards: list[Any], kind: str, groups: list[dict[str, torch.Size]]
) -> Iterator[tuple[str, Tensor]]:
    """Stage 3: a rank holds an equal slice of every parameter, the last one filled up."""
    for shard in shards:
        states = _optimizer_state(shard)["state"]
        for number, shapes in enumerate(groups):
            flat, start = states[number][kind] if kind else shard["fp32_flat_groups"][number], 0
            for name, shape in shapes.items():
                size = -(-shape.numel() // len(shards))
                yield name, flat[start : start + size]
                start += size


def _join(pieces: Iterator[tuple[str, Tensor]], shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {name: [] for name in shapes}
    for name, piece in pieces:
        parts[name].append(piece)
    return {name: torch.cat(parts[name])[: shape.numel()].view(shape).float() for name, shape in shapes.items()}


def _optimizer_state(shard: dict[str, Any]) -> dict[str, Any]:
    """The state dict of torch's optimizer, under the name that the stage gives it."""
    return dict(shard.get("base_optimizer_state") or shard["optimizer_state_dict"])


def _optimizer_shards(path: Path) -> list[Path]:
    found = [
        (int(match[1]), file)
        for file in (path / ZERO_TAG).glob("*")
        if (match := _OPTIMIZER_SHARD.fullmatch(file.name))
    ]
    return [file for _, file in sorted(found)]


def _deepspeed_classes() -> Any:
    """The few classes of DeepSpeed in its checkpoints; anything else is refused, as in other checkpoints."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address])

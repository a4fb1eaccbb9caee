"""How much memory a training needs on each device: counted on the model itself, without its weights."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from peft import get_peft_model
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from transformers import AutoModelForSequenceClassification
from transformers.initialization import no_init_weights

from cappy_lightning.config import Config
from cappy_lightning.progress import console
from cappy_lightning.scorer.adapter import check_targets, lora_config, quiet_peft
from cappy_lightning.scorer.forward import skip_other_tokens
from cappy_lightning.scorer.model import base_config, check_positions, named_failures
from cappy_lightning.strategies import BUCKET

#: Numbers that ZeRO-3 may hold gathered at a time (DeepSpeed's own default for stage3_max_live_parameters).
MAX_LIVE = 1_000_000_000


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device, but for `host`, and the numbers behind them.

    Attributes:
        parameters: of the whole model.
        trained: of these, what is trained.
        ranks: over how many ZeRO divides.
        weights: parameters as the forward reads them; with ZeRO-3 this rank's share.
        gathered: with ZeRO-3, the other ranks' shares of the parameters in use, at most.
        gradients: of the trained parameters; with ZeRO those of this rank's share in fp32, too, when it steps.
        optimizer: AdamW's two moments; with ZeRO this rank's share of them and of fp32 weights.
        communication: buffers in which ZeRO reduces gradients.
        activations: what one forward of `batch.micro_size` pairs of `scorer.max_length` tokens keeps for the backward.
        host: what offloading puts into the host's memory for this rank.
    """

    parameters: int
    trained: int
    ranks: int
    weights: int
    gathered: int
    gradients: int
    optimizer: int
    communication: int
    activations: int
    host: int

    @property
    def total(self) -> int:
        """All on the device: nothing is smaller while another thing is larger. The runtime's own is not in it."""
        return self.weights + self.gathered + self.gradients + self.optimizer + self.communication + self.activations


def estimate(config: Config) -> Estimate:
    """The memory that a run by this config needs.

    States by the ZeRO paper (Rajbhandari et al., arXiv 1910.02054, section 3); activations counted in a forward on
    tensors without data.

    Raises:
        InputError: the base's config cannot be found or read, or makes no sense.
    """
    trainer = config.trainer
    zero = int(trainer.strategy[-1]) if trainer.strategy.startswith("zero") else 0
    ranks = trainer.devices * trainer.nodes
    half = trainer.precision == "bf16-mixed"
    size = 2 if zero and half else 4
    model = _model(config, torch.bfloat16 if zero and half else torch.float32)
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    activations = _activations(model, config, autocast=half and not zero)
    total, trained = sum(n for n, _ in counts), sum(n for n, grad in counts if grad)
    weights, gradients, optimizer, gathered, communication = size * total, size * trained, 8 * trained, 0, 0
    if zero:
        optimizer = 12 * trained // ranks
        communication = 2 * size * min(BUCKET, trained)
    if zero >= 2:
        gradients //= ranks
    if zero:
        gradients += 4 * trained // ranks
    if zero == 3:
        whole = sum(n for n, _ in counts if n <= trainer.zero3_persistence)
        weights = size * (whole + (total - whole) // ranks)
        gathered = size * (min(MAX_LIVE, total - whole) * (ranks - 1) // ranks)
    host = 0
    if trainer.offload:
        host, optimizer = optimizer, 0
        if zero == 3:
            host, weights, gathered = host + weights, 0, gathered + weights
    return Estimate(total, trained, ranks, weights, gathered, gradients, optimizer, communication, activations, host)


def print_estimate(found: Estimate, as_json: bool) -> None:
    """Print an estimate as a table, or as one JSON object in bytes."""
    if as_json:
        print(json.dumps(asdict(found) | {"total": found.total}))
        return
    table = Table(title=f"{found.parameters:,} parameters, {found.trained:,} of them trained, {found.ranks} ranks")
    table.add_column("on each device")
    table.add_column("MiB", justify="right")
    for name in ("weights", "gathered", "gradients", "optimizer", "communication", "activations", "total"):
        table.add_row(name, f"{getattr(found, name) / 2**20:,.0f}", end_section=name == "activations")
    if found.host:
        table.add_row("in the host's memory", f"{found.host / 2**20:,.0f}")
    console().print(table)


def _model(config: Config, dtype: torch.dtype) -> torch.nn.Module:
    hf_config = base_config(replace(config.scorer, random_weights=True))
    # The fused attention of GPUs keeps no dropout mask; that of CPUs, which counts here, would.
    hf_config.attention_probs_dropout_prob = hf_config.attention_dropout = 0.0
    check_positions(config.scorer.max_length, hf_config, config.scorer.base)
    with torch.device("meta"), no_init_weights(), quiet_peft():
        with named_failures("scorer.config" if config.scorer.config else config.scorer.base):
            model: torch.nn.Module = AutoModelForSequenceClassification.from_config(hf_config, dtype=dtype)
        skip_other_tokens(model)
        if config.finetune.mode != "full":
            check_targets(model, config.finetune)
            adapter = lora_config(hf_config, config.finetune, config.scorer.base)
            model = get_peft_model(model, adapter, autocast_adapter_dtype=False)  # DeepSpeed casts all alike
    return model.train()


def _activations(model: torch.nn.Module, config: Config, autocast: bool) -> int:
    """Bytes of what autograd keeps of a forward; with activation checkpointing, the layers' inputs and one layer."""
    own: set[int] = set()
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (number := tensor.untyped_storage()._cdata) not in own:
            kept[number] = tensor  # held, so that no other one gets the same number
        return tensor

    pairs, tokens = config.batch.micro_size, config.scorer.max_length
    with (
        FakeTensorMode(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        weights = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        }
        own |= {tensor.untyped_storage()._cdata for tensor in weights.values()}
        functional_call(model, weights, kwargs={"input_ids": torch.zeros(pairs, tokens, dtype=torch.long)})
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    if config.trainer.activation_checkpointing:
        shape: Any = model.config
        layers = int(shape.num_hidden_layers)
        inputs = layers * pairs * tokens * int(shape.hidden_size) * next(model.parameters()).element_size()
        return inputs + total // layers
    return total

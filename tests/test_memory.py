"""Estimates of memory: against what a real forward keeps, and in their parts."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import TINY_RUN, Run

from cappy_lightning.config import Config
from cappy_lightning.config_loading import load_config
from cappy_lightning.memory import estimate
from cappy_lightning.scorer.adapter import add_adapter
from cappy_lightning.scorer.model import build_scorer


def config(*words: str) -> Config:
    return load_config([*TINY_RUN, "data.pool=x.jsonl", "scorer.dropout=0", "batch.global_size=64", *words])


@pytest.mark.parametrize("mode", ["full", "lora", "layers", "head"])
def test_activations_are_what_a_real_forward_keeps(mode: str) -> None:
    made = config(f"finetune.mode={mode}", "batch.micro_size=16")
    scorer = build_scorer(made.scorer)
    if mode != "full":
        add_adapter(scorer, made.finetune)
    own = {p.untyped_storage().data_ptr() for p in [*scorer.model.parameters(), *scorer.model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = scorer.model(input_ids=torch.zeros(16, 32, dtype=torch.long))
    found = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    assert output.logits.requires_grad
    # Constants such as positions count as what is kept where they are in no buffer.
    assert estimate(made).activations == pytest.approx(found, rel=0.02)


def test_the_parts_follow_from_the_numbers_of_parameters() -> None:
    made = config("trainer.devices=4", "batch.micro_size=16")
    alone = estimate(made)
    total = alone.parameters
    assert (alone.trained, alone.ranks) == (total, 4)
    assert (alone.weights, alone.gradients, alone.optimizer) == (4 * total, 4 * total, 8 * total)
    half = replace(made.trainer, strategy="zero2", precision="bf16-mixed")
    zero2 = estimate(replace(made, trainer=half))
    assert (zero2.weights, zero2.optimizer) == (2 * total, 12 * total // 4)
    assert zero2.gradients == 2 * total // 4 + 4 * total // 4
    assert zero2.activations < alone.activations
    zero3 = estimate(replace(made, trainer=replace(half, strategy="zero3", zero3_persistence=0)))
    assert zero3.weights == 2 * (total // 4)
    offload = estimate(replace(made, trainer=replace(half, strategy="zero3", zero3_persistence=0, offload=True)))
    assert offload.host == zero3.weights + zero3.optimizer
    assert offload.total < zero3.total
    less = estimate(replace(made, trainer=replace(half, activation_checkpointing=True)))
    assert less.activations < zero2.activations


def test_memory_is_printed_for_every_architecture_without_weights(cappy: Run) -> None:
    done = cappy("memory", "conf/pretrain.yaml", "conf/zero2.yaml", "trainer.devices=8", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["parameters"] == 355_360_769
    assert found["total"] == sum(
        found[name] for name in ("weights", "gathered", "gradients", "optimizer", "communication", "activations")
    )
    for name in ("bert", "deberta", "deberta-v2", "modernbert", "xlm-roberta"):
        words = [
            *TINY_RUN,
            "data.pool=x.jsonl",
            f"scorer.config.model_type={name}",
            "scorer.config.num_hidden_layers=2",
            "scorer.config.pad_token_id=0",
        ]
        done = cappy("memory", *words, "scorer.config.max_position_embeddings=66")
        assert done.returncode == 0, done.stderr
        assert "activations" in done.stdout
    done = cappy("memory", *TINY_RUN, "data.pool=x.jsonl", "scorer.config.num_attention_heads=3")
    assert done.returncode == 2
    assert done.stderr.startswith("cappy: scorer.config: cannot be loaded (The hidden size (32) is not a multiple")


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("scorer.max_length=1024", "scorer.max_length: is 1024, expected at most 512"),
        ("finetune.lora_targets=[vlaue]", "finetune.lora_targets: names 'vlaue', expected layers of the encoder"),
    ],
)
def test_what_a_training_refuses_has_no_estimate(cappy: Run, word: str, problem: str) -> None:
    done = cappy("memory", "conf/quickstart.yaml", word)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert problem in done.stderr

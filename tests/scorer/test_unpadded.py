"""Packed batches give the logits and gradients of padded ones."""

import random

import pytest
import torch
from small_models import ARCHITECTURES, settings

from cappy_lightning.config import FinetuneConfig
from cappy_lightning.scorer.adapter import add_adapter
from cappy_lightning.scorer.encoding import EncodedPair
from cappy_lightning.scorer.model import Scorer, build_scorer
from cappy_lightning.scorer.unpadded import can_unpad, unpad

GENERATOR = random.Random(0)
PAIRS = [("what is this " * GENERATOR.randint(0, 40), "an answer " * GENERATOR.randint(0, 9)) for _ in range(23)]
UNPADDED = ["bert", "roberta", "xlm-roberta"]


def made(model_type: str, mode: str = "full") -> tuple[Scorer, list[EncodedPair]]:
    torch.manual_seed(0)
    scorer = build_scorer(settings(model_type, dropout=0.0))
    if mode == "lora":
        add_adapter(scorer, FinetuneConfig(mode="lora"))
        for name, parameter in scorer.model.named_parameters():
            if "lora_B" in name:  # begins at 0, so that nothing would be seen of it
                torch.nn.init.normal_(parameter, std=0.1)
    scorer.model.train()
    return scorer, scorer.encoder.encode(*map(list, zip(*PAIRS, strict=True)))


def gradients(scorer: Scorer, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    scorer.model.zero_grad()
    (logits * torch.linspace(-1, 1, len(PAIRS))).sum().backward()
    return {name: p.grad.clone() for name, p in scorer.model.named_parameters() if p.grad is not None}


def test_architectures_with_attention_of_their_own_are_padded() -> None:
    known = {name: build_scorer(settings(name)).config for name in ARCHITECTURES}
    assert [name for name in known if can_unpad(known[name], training=False)] == ["roberta", "xlm-roberta", "bert"]
    assert not any(can_unpad(config, training=True) for config in known.values())  # dropout, 0.1


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("model_type", UNPADDED)
def test_packed_batches_give_the_logits_and_gradients_of_padded_ones(model_type: str, mode: str) -> None:
    scorer, pairs = made(model_type, mode)
    padded = scorer.logits(scorer.encoder.batch(pairs))
    expected = gradients(scorer, padded)
    assert can_unpad(scorer.config, training=True)
    unpad(scorer.model, scorer.encoder)
    batch = scorer.encoder.batch(pairs)
    assert batch["input_ids"].shape == (1, sum(len(pair.ids) for pair in pairs))
    packed = scorer.logits(batch)
    found = gradients(scorer, packed)
    assert packed.shape == padded.shape
    assert torch.allclose(packed, padded, atol=1e-5)
    assert found.keys() == expected.keys()
    largest = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    assert largest <= 1e-4 * max(float(gradient.abs().max()) for gradient in expected.values())


@pytest.mark.parametrize("model_type", UNPADDED)
def test_padded_batches_are_computed_as_before(model_type: str) -> None:
    scorer, pairs = made(model_type)
    before = scorer.model(**scorer.encoder.pad(pairs)).logits
    unpad(scorer.model, scorer.encoder)
    assert torch.equal(scorer.model(**scorer.encoder.pad(pairs)).logits, before)


def test_a_pair_sees_nothing_of_the_others() -> None:
    scorer, pairs = made("roberta")
    unpad(scorer.model, scorer.encoder)
    alone, beside = (scorer.logits(scorer.encoder.batch(some))[0] for some in (pairs[3:4], pairs[3:9]))
    assert torch.allclose(alone, beside, atol=1e-6)


def test_packed_batches_in_bf16_stay_near_those_in_fp32() -> None:
    scorer, pairs = made("bert")
    unpad(scorer.model, scorer.encoder)
    batch = scorer.encoder.batch(pairs)
    expected = scorer.logits(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scorer.logits(batch)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=2e-2)

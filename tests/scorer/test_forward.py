"""What is left out of the forward changes neither logits nor gradients: padding, and tokens that the head does not read."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, settings
from transformers import AutoModelForSequenceClassification

from cappy_lightning import Cappy
from cappy_lightning.config import FinetuneConfig
from cappy_lightning.scorer.adapter import add_adapter
from cappy_lightning.scorer.encoding import EncodedPair
from cappy_lightning.scorer.forward import can_unpad, plain_attention, unpad
from cappy_lightning.scorer.model import Scorer, build_scorer

GENERATOR = random.Random(0)
PAIRS = [("what is this " * GENERATOR.randint(0, 40), "an answer " * GENERATOR.randint(0, 9)) for _ in range(23)]
UNPADDED = ["bert", "roberta", "xlm-roberta"]


def made(model_type: str, mode: str = "full") -> tuple[Scorer, list[EncodedPair]]:
    torch.manual_seed(0)
    scorer = build_scorer(settings(model_type, dropout=0.0))
    for parameter in scorer.model.parameters():  # as they begin all pairs have nearly the same logit
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    if mode != "full":
        add_adapter(scorer, FinetuneConfig(mode=mode, layers=1))
        for name, parameter in scorer.model.named_parameters():
            if "lora_B" in name:  # begins at 0, so that nothing would be seen of it
                torch.nn.init.normal_(parameter, std=0.1)
    scorer.model.train()
    return scorer, scorer.encoder.encode(*map(list, zip(*PAIRS, strict=True)))


def gradients(model: torch.nn.Module, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (logits * torch.linspace(-1, 1, len(PAIRS))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_architectures_with_attention_of_their_own_are_padded() -> None:
    known = {name: build_scorer(settings(name)).config for name in ARCHITECTURES}
    assert [name for name in known if can_unpad(known[name], training=False)] == ["roberta", "xlm-roberta", "bert"]
    assert not any(can_unpad(config, training=True) for config in known.values())  # dropout, 0.1


@pytest.mark.parametrize("model_type", UNPADDED)
def test_the_last_layer_goes_on_with_first_tokens_alone(model_type: str, tmp_path: Path) -> None:
    scorer, pairs = made(model_type)
    Cappy(scorer).save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).train()
    assert not plain.base_model.encoder.layer[-1].attention.output._forward_pre_hooks
    inputs = scorer.encoder.pad(pairs)
    seen: list[tuple[int, ...]] = []
    last = scorer.model.base_model.encoder.layer[-1]
    last.intermediate.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    logits, expected = scorer.logits(inputs), plain(**inputs).logits.squeeze(-1)
    assert seen == [(len(PAIRS), 1, 32)]
    assert torch.allclose(logits, expected, atol=1e-5)
    mine, theirs = (gradients(model, own) for model, own in ((scorer.model, logits), (plain, expected)))
    assert mine.keys() == theirs.keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-4 * largest) for name in theirs)
    unpad(scorer.model, scorer.encoder)
    assert torch.allclose(scorer.logits(scorer.encoder.batch(pairs)), expected, atol=1e-5)
    assert seen[1:] == [(1, len(PAIRS), 32)]
    assert torch.allclose(scorer.model(**inputs).logits.squeeze(-1), expected, atol=1e-5)  # padded again


@pytest.mark.parametrize("mode", ["full", "lora", "layers"])
@pytest.mark.parametrize("model_type", UNPADDED)
def test_packed_batches_give_the_logits_and_gradients_of_padded_ones(model_type: str, mode: str) -> None:
    scorer, pairs = made(model_type, mode)
    padded = scorer.logits(scorer.encoder.batch(pairs))
    expected = gradients(scorer.model, padded)
    assert can_unpad(scorer.config, training=True)
    unpad(scorer.model, scorer.encoder)
    batch = scorer.encoder.batch(pairs)
    assert batch["input_ids"].shape == (1, sum(len(pair.ids) for pair in pairs))
    packed = scorer.logits(batch)
    found = gradients(scorer.model, packed)
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
    assert torch.allclose(found, expected, atol=6e-2)


@pytest.mark.parametrize("packed", [True, False])
def test_the_head_is_exact_where_the_encoder_computes_in_bf16(packed: bool) -> None:
    scorer, pairs = made("roberta")
    if packed:
        unpad(scorer.model, scorer.encoder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scorer.logits(scorer.encoder.batch(pairs))
    assert (found != found.bfloat16()).float().mean() > 0.8


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_head_of_a_scorer_in_bf16_is_exact(model_type: str, tmp_path: Path) -> None:
    scorer, _ = made(model_type)
    Cappy(scorer).save_pretrained(tmp_path)
    exact, half = Cappy.from_pretrained(tmp_path), Cappy.from_pretrained(tmp_path, dtype="bfloat16")
    found = torch.from_numpy(half.logits(PAIRS))
    assert (found != found.bfloat16()).float().mean() > 0.8
    assert np.corrcoef(exact.logits(PAIRS), found)[0, 1] > 0.98


@pytest.mark.parametrize("mode", ["full", "lora", "layers"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_plain_attention_changes_no_score_and_no_export(model_type: str, mode: str, tmp_path: Path) -> None:
    scorer, _ = made(model_type, mode)
    cappy = Cappy(scorer)
    before = cappy.logits(PAIRS)
    cappy.save_pretrained(tmp_path / "before")
    plain_attention(scorer.model)
    layers = [module for module in scorer.model.modules() if hasattr(module, "scaling")]
    assert {layer.config._attn_implementation for layer in layers if hasattr(layer, "config")} <= {"eager"}
    assert np.allclose(cappy.logits(PAIRS), before, atol=1e-5)
    cappy.save_pretrained(tmp_path / "after")
    assert (tmp_path / "after" / "config.json").read_bytes() == (tmp_path / "before" / "config.json").read_bytes()

"""Linear layers by oneDNN: the same numbers, also after the weights have changed."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import settings
from torch import nn

from cappy_lightning import Cappy
from cappy_lightning.scorer.model import build_scorer
from cappy_lightning.scorer.prepacked import PrepackedLinear, prepack

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="this CPU has no AVX-512, where it would be faster"
)
PAIRS = [("what is this " * number, "an answer") for number in range(1, 9)]


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(48, 96)
    prepack(layer)
    assert type(layer) is PrepackedLinear
    return layer


def by_both(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(1, 7, 48)
    with torch.inference_mode():
        return layer(inputs), nn.functional.linear(inputs, layer.weight, layer.bias)


def test_changed_weights_are_packed_anew(layer: nn.Linear) -> None:
    torch.testing.assert_close(*by_both(layer))
    layer.load_state_dict({name: tensor + 1 for name, tensor in layer.state_dict().items()})
    torch.testing.assert_close(*by_both(layer))
    layer.weight.data = torch.randn(96, 48)
    torch.testing.assert_close(*by_both(layer))


def test_copies_and_other_precisions_compute_too(layer: nn.Linear) -> None:
    by_both(layer)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.zero_()
    for one in (layer, other):
        torch.testing.assert_close(*by_both(one))
    layer.to(torch.bfloat16)
    with torch.inference_mode():
        assert layer(torch.randn(3, 48, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_it_learns_as_before(layer: nn.Linear) -> None:
    by_both(layer)
    layer(torch.ones(1, 48)).sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, torch.ones(96, 48))


def test_a_loaded_scorer_has_them_and_saves_as_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    built = Cappy(build_scorer(settings("roberta")))
    built.save_pretrained(tmp_path / "first")
    loaded = Cappy.from_pretrained(tmp_path / "first", device="cpu")
    assert any(type(module) is PrepackedLinear for module in loaded.scorer.model.modules())
    assert np.allclose(loaded.logits(PAIRS), built.logits(PAIRS), atol=1e-5)
    loaded.save_pretrained(tmp_path / "second")
    saved = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert saved[0] == saved[1]

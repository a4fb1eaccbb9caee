"""Linear layers that score faster on a CPU: by oneDNN, with the weights in its own layout."""

from typing import Any

import torch
from torch import Tensor, nn


def prepack(model: nn.Module) -> None:
    """Let the linear layers of a model compute by oneDNN under `torch.inference_mode`.

    On CPUs with AVX-512 a linear layer in fp32 then needs a sixth less time than by MKL, which torch calls otherwise;
    on others as much, so that nothing is changed there (docs/results.md). The results differ by rounding. The weights
    are held twice, and oneDNN keeps what it compiles for each number of tokens: in a service that is asked for pairs of
    all sizes, another 300 MiB after some thousand requests.

    Args:
        model: in fp32 on a CPU; of transformers, or the PEFT model around one.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = PrepackedLinear  # the same parameters under the same names


class PrepackedLinear(nn.Linear):
    """A linear layer that keeps a second copy of its weights for inference, made anew when they have changed."""

    _packed: tuple[Any, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear` does."""
        weight = self.weight
        if not torch.is_inference_mode_enabled() or not weight.dtype == input.dtype == torch.float32 or input.is_cuda:
            return super().forward(input)
        state = weight.data_ptr(), weight._version
        if self._packed is None or self._packed[0] != state:
            self._packed = state, torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        # What torch's own compiler makes of a linear layer on a CPU.
        found: Tensor = torch.ops.mkldnn._linear_pointwise(input, self._packed[1], self.bias, "none", [], "")
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Copies pack for themselves: tensors in oneDNN's layout cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}

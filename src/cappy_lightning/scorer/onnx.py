"""Scorers as ONNX graphs: written by torch's exporter, run by ONNX Runtime."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from cappy_lightning.errors import InputError
from cappy_lightning.scorer.encoding import PairEncoder
from cappy_lightning.scorer.model import Scorer
from cappy_lightning.scorer.saving import merged_model, write_tokenizer

GRAPH = "model.onnx"


class _Graph(nn.Module):
    """A model as a graph: inputs by position, logits out."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits, [pairs]."""
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits.squeeze(-1)


def write_onnx(scorer: Scorer, directory: Path) -> None:
    """Write `model.onnx` (token ids and masks of any number of pairs to logits, [pairs]), config and tokenizer.

    Raises:
        InputError: the packages that write and run ONNX are not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise InputError("onnx", f"needs the package {package}, expected 'pip install onnx onnxscript onnxruntime'")
    model = merged_model(scorer).to("cpu").eval()
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # plain matrix products, which every runtime has
    example = scorer.encoder.pad(scorer.encoder.encode(["a question"] * 2, ["an answer", "another one"]))
    names = list(example)
    sizes = {0: torch.export.Dim("pairs"), 1: torch.export.Dim("tokens")}
    with _quiet(), torch.inference_mode():
        torch.onnx.export(
            _Graph(model, names),
            tuple(example.values()),
            str(directory / GRAPH),
            input_names=names,
            output_names=["logits"],
            dynamic_shapes={"inputs": tuple(sizes for _ in names)},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model.set_attn_implementation(attention)
    model.config.save_pretrained(directory)
    write_tokenizer(scorer, directory)


class OnnxScorer:
    """A scorer from a directory that `write_onnx` has made, on ONNX Runtime's CPU provider.

    Args:
        directory: holds the graph, config and tokenizer.
    """

    def __init__(self, directory: Path) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(str(directory / GRAPH), providers=["CPUExecutionProvider"])
        self._names = [entry.name for entry in self._session.get_inputs()]
        self._settings = AutoConfig.from_pretrained(directory).cappy
        self._encoder = PairEncoder(
            AutoTokenizer.from_pretrained(directory),
            self._settings["max_length"],
            self._settings["truncate_instruction"],
            use_segments="token_type_ids" in self._names,
        )

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """How correct each response is, from 0 to 1, [pairs]."""
        found = []
        for start in range(0, len(pairs), 8):
            instructions, responses = zip(*pairs[start : start + 8], strict=True)
            inputs = self._encoder.pad(self._encoder.encode(instructions, responses))
            (logits,) = self._session.run(None, {name: inputs[name].numpy() for name in self._names})
            found.append(torch.from_numpy(logits))
        logits = torch.cat(found)
        scores = logits.sigmoid() if self._settings["activation"] == "sigmoid" else logits.clamp(0, 1)
        return np.asarray(scores.numpy(), dtype=np.float32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's steps and the warnings about its own code are of no use to the user."""
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield

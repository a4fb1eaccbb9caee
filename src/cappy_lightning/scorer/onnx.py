"""Scorers as ONNX graphs: written by torch's exporter, run by ONNX Runtime."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer
from transformers.modeling_outputs import SequenceClassifierOutput

from cappy_lightning.errors import InputError
from cappy_lightning.scorer.encoding import PairEncoder
from cappy_lightning.scorer.model import Activation, Scorer, check_positions, checked_settings, named_failures
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


def write_onnx(scorer: Scorer, directory: Path, *, int8: bool = False) -> None:
    """Write `model.onnx` (token ids and masks of any number of pairs to logits, [pairs]), config and tokenizer.

    Args:
        scorer: with the weights of a model, not with a graph.
        directory: is there.
        int8: round the weights of matrix products to 8 bits.

    Raises:
        InputError: the packages that write and run ONNX are not installed.
    """
    _need("onnx", "onnxscript", "onnxruntime")
    model = merged_model(scorer).to("cpu").eval()
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # plain matrix products, which every runtime has
    example = scorer.encoder.pad(scorer.encoder.encode(["a question"] * 2, ["an answer", "another one"]))
    names = list(example)
    sizes = {0: torch.export.Dim("pairs"), 1: torch.export.Dim("tokens")}
    with _quiet(), torch.no_grad():
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
    if int8:
        with _quiet():
            _quantize(directory / GRAPH)
    model.set_attn_implementation(attention)
    model.config.save_pretrained(directory)
    write_tokenizer(scorer, directory)


class OnnxModel(nn.Module):
    """A graph in the place of a model: the same inputs, the same logits; nothing of it can be trained.

    Args:
        graph: the file.
        config: the Hugging Face config of the model that it was made of.
    """

    def __init__(self, graph: Path, config: Any) -> None:
        super().__init__()
        import onnxruntime

        self.config = config
        self._session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        self._names = [entry.name for entry in self._session.get_inputs()]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of what it takes."""
        return tuple(self._names)

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """Logits, [pairs, 1]."""
        (logits,) = self._session.run(None, {name: inputs[name].numpy() for name in self._names})
        return SequenceClassifierOutput(logits=torch.from_numpy(logits)[:, None])


def is_onnx(path: str | Path) -> bool:
    """Whether a path is a directory with a graph, and without weights for torch."""
    return (Path(path) / GRAPH).is_file() and not any(Path(path).glob("*.safetensors"))


def read_onnx(directory: Path, activation: str | None, max_length: int | None) -> Scorer:
    """The scorer of a directory that `write_onnx` has made, on ONNX Runtime's CPU provider.

    Args:
        directory: holds the graph, config and tokenizer.
        activation: None: as stored.
        max_length: most tokens of a pair; None: as stored.

    Raises:
        InputError: a file of it cannot be read, or ONNX Runtime is not installed.
    """
    _need("onnxruntime")
    with named_failures(str(directory)):
        config = AutoConfig.from_pretrained(directory)
        settings = checked_settings(config, str(directory))
        if not {"activation", "max_length", "truncate_instruction"} <= set(settings):
            raise ValueError("its config.json does not say how pairs are encoded")
        model = OnnxModel(directory / GRAPH, config)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        length, side = settings["max_length"] if max_length is None else max_length, settings["truncate_instruction"]
        check_positions(length, config, str(directory))
        encoder = PairEncoder(tokenizer, length, side, use_segments="token_type_ids" in model.inputs)
        read_as: Activation = "sigmoid" if (activation or settings["activation"]) == "sigmoid" else "identity"
    return Scorer(model, tokenizer, encoder, read_as, str(directory), None)


def _need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError("onnx", f"needs the package {package}, expected 'pip install onnx onnxscript onnxruntime'")


def _quantize(graph: Path) -> None:
    """Replace a graph by one whose matrix products have weights of 8 bits, with a scale for each of their columns.

    What is multiplied with them is rounded to 8 bits as it comes, with one scale for a whole batch.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole, rounded = graph.with_name("whole.onnx"), graph.with_name("rounded.onnx")
    model = onnx.load(str(graph))
    model.graph.ClearField("value_info")  # of the exporter; the quantizer infers shapes that contradict it
    onnx.save(model, str(whole))
    quantize_dynamic(str(whole), str(rounded), weight_type=QuantType.QInt8, per_channel=True)
    rounded.replace(graph)
    whole.unlink()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's steps and the warnings about its own code are of no use to the user."""
    for name in ("onnxscript", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("root").setLevel(logging.ERROR)  # where the quantizer recommends a step that changes nothing here
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield

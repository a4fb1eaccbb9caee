"""A scorer that is loaded to be used: pairs in, logits and scores out."""

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from cappy_lightning.config import ScorerConfig
from cappy_lightning.errors import InputError, first_line
from cappy_lightning.files import atomic_path
from cappy_lightning.scorer.adapter import find_adapter, load_adapter, read_settings
from cappy_lightning.scorer.architectures import head_names
from cappy_lightning.scorer.forward import can_unpad, has_kernels, keep_exact, unpad
from cappy_lightning.scorer.inference import Inference, Pair
from cappy_lightning.scorer.model import Activation, Scorer, build_scorer, named_failures, stored_settings
from cappy_lightning.scorer.onnx import OnnxModel, is_onnx, read_onnx
from cappy_lightning.scorer.places import check_places, expanded
from cappy_lightning.scorer.saving import write_model

Task = str | Sequence[str | None] | None
Floats = NDArray[np.float32]

#: In what weights can be held while they score.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PretrainedScorer:
    """A saved scorer, an adapter on its base, or several adapters by task, ready for inference.

    Several threads may use it; they take turns.

    Attributes:
        scorer: encoder and head.
        tasks: the names of the adapters, where there are several by task.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._inference, self._lock = Inference(scorer), threading.Lock()
        self.tasks: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        adapter: str | Path | Mapping[str, str | Path] | None = None,
        *,
        revision: str | None = None,
        activation: str | None = None,
        max_length: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
    ) -> Self:
        """Load a scorer for inference.

        Args:
            path: a saved scorer, an adapter (its base is then found by its name) or a base for `adapter`, each a
                directory or a hub name; or the directory of an export for ONNX Runtime.
            adapter: an adapter, or one for each of several tasks; directories or hub names.
            revision: of a hub name.
            activation: `sigmoid` or `identity`, for checkpoints that do not say it.
            max_length: most tokens of a pair; by default as stored, else 256.
            device: a torch device; by default a GPU where there is one.
            dtype: of the weights: `float32`, or `bfloat16`, which is faster on GPUs and on recent CPUs, less exact.

        Raises:
            InputError: something that cannot be found, read or trusted; a checkpoint without a head.
        """
        if dtype not in DTYPES:
            raise InputError("dtype", f"is {dtype!r}, expected one of {', '.join(DTYPES)}")
        if activation not in (None, *get_args(Activation)):
            raise InputError("activation", f"is {activation!r}, expected one of {', '.join(get_args(Activation))}")
        check_places(path, adapter)
        path = expanded(path)
        if revision is not None and Path(path).exists():
            raise InputError("revision", f"is {revision}, but {path} is a directory, expected a hub name")
        if max_length is not None and not isinstance(max_length, int):
            raise InputError("max_length", f"is {max_length!r}, expected a whole number")
        if isinstance(adapter, Mapping) and not adapter:
            raise InputError("adapter", "is empty, expected an adapter for each task")
        if adapter is None and is_onnx(path):
            for name, value, only in (("device", device, "cpu"), ("dtype", dtype, "float32")):
                if value not in (None, only):
                    raise InputError(name, f"is {value} for the ONNX graph of {path}, expected {only}")
            loaded = cls(read_onnx(Path(path), activation, max_length))
            loaded._try(str(path))
            return loaded
        own = find_adapter(path, revision) if adapter is None else None
        if own:
            adapter, revision = own, None
        several = isinstance(adapter, Mapping)
        named = adapter if isinstance(adapter, Mapping) else {} if adapter is None else {"default": adapter}
        places = {str(name): expanded(place) for name, place in named.items()}
        adapters = {name: find_adapter(place) or Path(place) for name, place in places.items()}
        stored = [read_settings(directory) for directory in adapters.values()] or [stored_settings(str(path), revision)]
        keys = ("activation", "max_length", "truncate_instruction")
        settings = {key: stored[0][key] for key in keys if key in stored[0]}
        for directory, other in zip(adapters.values(), stored, strict=False):
            if any(other.get(key) != stored[0].get(key) for key in (*keys, "base_sha256")):
                raise InputError(directory, "has another base or encoding than the first adapter, expected the same")
        if activation is not None:
            settings["activation"] = activation
        if max_length is not None:
            settings["max_length"] = max_length
        revision = revision or (stored[0].get("revision") if adapters else None)
        config = ScorerConfig(base=stored[0]["base"] if own else str(path), revision=revision, **settings)
        scorer = build_scorer(config, new_head=bool(adapters))
        for number, (directory, own_settings) in enumerate(zip(adapters.values(), stored, strict=False)):
            load_adapter(scorer, directory, own_settings, _adapter_name(number) if several else "default")
        scorer.model.eval().requires_grad_(False)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            scorer.model.to(device, DTYPES[dtype])
        except (RuntimeError, AssertionError) as error:  # no such device, none of it here, or too little memory
            raise InputError("device", f"{device} cannot be used ({first_line(error)})") from None
        if dtype == "bfloat16":
            for name, module in scorer.model.named_modules():
                if name.rpartition(".")[2] in head_names(scorer.config.model_type):
                    keep_exact(module)
            if scorer.device.type == "cuda" and has_kernels() and can_unpad(scorer.config, training=False):
                unpad(scorer.model, scorer.encoder)
        loaded = cls(scorer)  # how many tokens a forward has goes by the device
        loaded._try(str(path))
        loaded.tasks = tuple(adapters) if several else ()
        return loaded

    def _try(self, path: str) -> None:
        """Compute something: a config may promise what no forward can do."""
        with named_failures(path):
            if not np.isfinite(self.logits([("Does it work?", "yes")])).all():
                raise ValueError("its logits are no finite numbers")

    def logits(self, pairs: Iterable[Pair], task: Task = None) -> Floats:
        """Raw outputs of the head, [pairs]. What ranks: scores may be equal where logits are not.

        Args:
            pairs: (instruction, response) each.
            task: where adapters for several tasks were loaded, the task of all pairs, or one for each.

        Raises:
            InputError: what is no pair of texts, a task without an adapter, or not as many tasks as pairs.
        """
        checked = [checked_pair(pair, f"pairs[{place}]") for place, pair in enumerate(pairs)]
        with self._lock:
            return self._by_task(checked, task) if self.tasks else self._logits(checked)

    def _by_task(self, pairs: Sequence[Pair], task: Task) -> Floats:
        tasks = [task] * len(pairs) if task is None or isinstance(task, str) else list(task)
        if len(tasks) != len(pairs):
            raise InputError("task", f"has {len(tasks)} names, expected one for each of the {len(pairs)} pairs")
        by_task: dict[str, list[int]] = {name: [] for name in self.tasks}
        for index, name in enumerate(tasks):
            if name not in by_task:
                raise InputError("task", f"is {name!r}, expected one of {', '.join(self.tasks)}")
            by_task[name].append(index)
        values = np.empty(len(pairs), dtype=np.float32)
        assert isinstance(self.scorer.model, PeftModel)
        for number, indices in enumerate(by_task.values()):
            if indices:
                self.scorer.model.set_adapter(_adapter_name(number))
                values[indices] = self._logits([pairs[index] for index in indices])
        return values

    def _logits(self, pairs: Sequence[Pair]) -> Floats:
        """Of one adapter, or of none."""
        return np.fromiter(self._inference.logits(pairs), np.float32, len(pairs))

    def to_scores(self, logits: Floats) -> Floats:
        """The scores in [0, 1] that belong to logits."""
        scores: Floats = self.scorer.scores(torch.from_numpy(logits)).numpy()
        return scores

    def score(self, pairs: Iterable[Pair], task: Task = None) -> Floats:
        """How correct each response is, from 0 to 1, [pairs]; equal pairs are computed once.

        Args:
            pairs: (instruction, response) each.
            task: where adapters for several tasks were loaded, the task of all pairs, or one for each.

        Raises:
            InputError: see `logits`.
        """
        return self.to_scores(self.logits(pairs, task))

    def save_pretrained(self, directory: str | Path) -> None:
        """Save a plain model directory, adapters merged, that other libraries load as it is.

        `AutoModelForSequenceClassification` gives its logits, sentence-transformers' `CrossEncoder` its scores (of a
        linear regressor the logits, which may lie outside [0, 1]). The directory appears when all is written.

        Raises:
            InputError: a directory with other things than a saved scorer is in the way, or this is an ONNX graph, has
                adapters for several tasks, or was loaded with rounded weights.
        """
        if self.tasks:
            raise InputError(self.scorer.base, f"has adapters for {', '.join(self.tasks)}, expected one to be merged")
        if isinstance(self.scorer.model, OnnxModel):
            raise InputError(self.scorer.base, "is an ONNX graph, expected a scorer with weights")
        if any(parameter.dtype == torch.bfloat16 for parameter in self.scorer.model.parameters()):
            raise InputError(self.scorer.base, "was loaded as bfloat16, expected float32 to be saved")
        path = Path(directory)
        if path.is_dir() and any(path.iterdir()) and not _is_scorer(path):
            raise InputError(path, "holds other files, expected a new or empty directory, or a saved scorer")
        with atomic_path(path) as scratch:
            self._write(scratch)

    def _write(self, directory: Path) -> None:
        write_model(self.scorer, directory)


def checked_pair(pair: Any, where: str) -> Pair:
    """A pair of texts as a tuple.

    Raises:
        InputError: it is none.
    """
    try:
        if isinstance(pair, str):  # two letters are no pair
            raise TypeError
        instruction, response = pair
    except (TypeError, ValueError):
        raise InputError(where, f"is {str(pair)[:40]!r}, expected an instruction and a response") from None
    return checked_text(instruction, where), checked_text(response, where)


def checked_text(text: Any, where: str) -> str:
    """A text that a tokenizer takes.

    Raises:
        InputError: it is none.
    """
    if not isinstance(text, str):
        raise InputError(where, f"{str(text)[:40]} is {type(text).__name__}, expected a text")
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, as Python reads bytes on a command line that are no UTF-8
        raise InputError(where, "is not Unicode text") from None
    return text


def _adapter_name(number: int) -> str:
    """PEFT's name for one of several adapters: those of tasks can be names of modules, or hold what no name may."""
    return f"adapter_of_task_{number}"


def _is_scorer(directory: Path) -> bool:
    try:
        return "cappy" in json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False

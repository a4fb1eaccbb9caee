"""The public API: load a scorer, score pairs, rank and select responses."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from cappy_lightning.config import ScorerConfig
from cappy_lightning.errors import InputError
from cappy_lightning.files import atomic_path
from cappy_lightning.instructions import fill_template
from cappy_lightning.records import Ranked, Selection
from cappy_lightning.scorer.adapter import find_adapter, load_adapter, read_settings
from cappy_lightning.scorer.inference import Inference, Pair
from cappy_lightning.scorer.model import Scorer, build_scorer, stored_settings
from cappy_lightning.scorer.saving import write_model

Task = str | Sequence[str | None] | None
Floats = NDArray[np.float32]


class Cappy:
    """A scorer of (instruction, response) pairs.

    >>> cappy = Cappy.from_pretrained("runs/quickstart/adapter")      # doctest: +SKIP
    >>> cappy.score([("2+2?", "4"), ("2+2?", "a fish")])              # doctest: +SKIP
    array([0.93, 0.04], dtype=float32)
    >>> cappy.select("2+2?", ["a fish", "4"]).response                # doctest: +SKIP
    '4'
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._inference = Inference(scorer)
        self._tasks: tuple[str, ...] = ()

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
    ) -> "Cappy":
        """Load a scorer for inference, in fp32.

        Args:
            path: a saved scorer, an adapter (its base is then found by its name), or a base for `adapter`;
                a directory or a hub name.
            adapter: an adapter, or one for each of several tasks; directories or hub names.
            revision: of a hub name.
            activation: `sigmoid` or `identity`, for checkpoints that do not say it.
            max_length: most tokens of a pair; by default as stored, else 256.
            device: a torch device; by default a GPU where there is one.

        Raises:
            InputError: something that cannot be found, read or trusted; a checkpoint without a head.
        """
        own = find_adapter(path, revision) if adapter is None else None
        if own:
            adapter, revision = own, None
        named = adapter if isinstance(adapter, Mapping) else {} if adapter is None else {"default": adapter}
        adapters = {str(name): find_adapter(place) or Path(place) for name, place in named.items()}
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
        for (name, directory), own_settings in zip(adapters.items(), stored, strict=False):
            load_adapter(scorer, directory, own_settings, name)
        scorer.model.eval().requires_grad_(False)
        scorer.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        cappy = cls(scorer)  # how many tokens a forward has goes by the device
        cappy._tasks = tuple(adapters) if isinstance(adapter, Mapping) else ()
        return cappy

    def logits(self, pairs: Sequence[Pair], task: Task = None) -> Floats:
        """Raw outputs of the head, [pairs]. What ranks: scores may be equal where logits are not.

        Args:
            pairs: (instruction, response) each.
            task: where adapters for several tasks were loaded, the task of all pairs, or one for each.

        Raises:
            InputError: a task without an adapter.
        """
        if not self._tasks:
            return self._logits(pairs)
        tasks = [task] * len(pairs) if task is None or isinstance(task, str) else list(task)
        by_task: dict[str, list[int]] = {name: [] for name in self._tasks}
        for index, name in enumerate(tasks):
            if name not in by_task:
                raise InputError("task", f"is {name!r}, expected one of {', '.join(self._tasks)}")
            by_task[name].append(index)
        values = np.empty(len(pairs), dtype=np.float32)
        assert isinstance(self.scorer.model, PeftModel)
        for name, indices in by_task.items():
            if indices:
                self.scorer.model.set_adapter(name)
                values[indices] = self._logits([pairs[index] for index in indices])
        return values

    def _logits(self, pairs: Sequence[Pair]) -> Floats:
        """Of one adapter, or of none."""
        return np.fromiter(self._inference.logits(pairs), np.float32, len(pairs))

    def to_scores(self, logits: Floats) -> Floats:
        """The scores in [0, 1] that belong to logits."""
        scores: Floats = self.scorer.scores(torch.from_numpy(logits)).numpy()
        return scores

    def score(self, pairs: Sequence[Pair], task: Task = None) -> Floats:
        """How correct each response is, from 0 to 1, [pairs]; equal pairs are computed once.

        Args:
            pairs: (instruction, response) each.
            task: where adapters for several tasks were loaded, the task of all pairs, or one for each.
        """
        return self.to_scores(self.logits(pairs, task))

    def select(self, instruction: str, responses: Sequence[str], task: str | None = None) -> Selection:
        """The best response with the scores of all; of equal ones the first.

        Raises:
            InputError: no responses.
        """
        if not responses:
            raise InputError("responses", "are empty, expected at least one")
        logits = self.logits([(instruction, response) for response in responses], task)
        return Selection.best(logits.tolist(), self.to_scores(logits).tolist(), responses)

    def classify(
        self, texts: Sequence[str], choices: Sequence[str], template: str = "{text}", task: str | None = None
    ) -> list[Selection]:
        """The best of the same choices for every text, without any LLM; of equal ones the first.

        Args:
            texts: what is to be classified.
            choices: the classes, as responses in plain words.
            template: how an instruction shows a text: `{text}` stands for it, `{choices}` for the choices; the one that
                a finetuned scorer was trained with (`template` of a sources file).
            task: where adapters for several tasks were loaded.

        Raises:
            InputError: no choices, one text instead of a list, or a template without `{text}`.
        """
        for name, value in (("texts", texts), ("choices", choices)):
            if isinstance(value, str):
                raise InputError(name, "are one text, expected a list of texts")
        if not choices:
            raise InputError("choices", "are empty, expected at least one")
        instructions = [fill_template(template, text, choices) for text in texts]
        pairs = [(instruction, choice) for instruction in instructions for choice in choices]
        logits = self.logits(pairs, task).reshape(-1, len(choices))
        scores = self.to_scores(logits)
        return [
            Selection.best(own, shown, choices) for own, shown in zip(logits.tolist(), scores.tolist(), strict=True)
        ]

    def rank(self, instruction: str, responses: Sequence[str], task: str | None = None) -> list[Ranked]:
        """All responses, the best first; ties keep their order.

        Raises:
            InputError: no responses.
        """
        if not responses:
            raise InputError("responses", "are empty, expected at least one")
        logits = self.logits([(instruction, response) for response in responses], task)
        scores = self.to_scores(logits).tolist()
        order = sorted(range(len(responses)), key=lambda i: -logits[i])
        return [Ranked(i, responses[i], scores[i]) for i in order]

    def save_pretrained(self, directory: str | Path) -> None:
        """Save a plain model directory, adapters merged, that other libraries load as it is.

        `AutoModelForSequenceClassification` gives its logits, sentence-transformers' `CrossEncoder` its
        scores. The directory appears when all is written.

        Raises:
            InputError: a directory with other things than a saved scorer is in the way.
        """
        path = Path(directory)
        if path.is_dir() and any(path.iterdir()) and not _is_scorer(path):
            raise InputError(path, "holds other files, expected a new or empty directory, or a saved scorer")
        with atomic_path(path) as scratch:
            write_model(self.scorer, scratch)


def _is_scorer(directory: Path) -> bool:
    try:
        return "cappy" in json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False

"""The public API: load a scorer, score pairs, rank and select responses."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from cappy_lightning.errors import InputError
from cappy_lightning.instructions import fill_template
from cappy_lightning.records import Candidate, Example, Pool, Ranked, Selection
from cappy_lightning.scorer.pretrained import PretrainedScorer
from cappy_lightning.selection.engine import select_by_logits
from cappy_lightning.selection.fusion import FILE, Fusion, find_fusion


class Cappy(PretrainedScorer):
    """A scorer of (instruction, response) pairs.

    >>> cappy = Cappy.from_pretrained("runs/quickstart/adapter")      # doctest: +SKIP
    >>> cappy.score([("2+2?", "4"), ("2+2?", "a fish")])              # doctest: +SKIP
    array([0.93, 0.04], dtype=float32)
    >>> cappy.select("2+2?", ["a fish", "4"]).response                # doctest: +SKIP
    '4'

    Attributes:
        fusion: by what `select` and `rank` go beside the scorer's logit, if by anything.
    """

    fusion: Fusion | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        adapter: str | Path | Mapping[str, str | Path] | None = None,
        *,
        by: str = "scorer",
        revision: str | None = None,
        activation: str | None = None,
        max_length: int | None = None,
        device: str | None = None,
    ) -> Self:
        """Load a scorer for inference, in fp32.

        Args:
            path: a saved scorer, an adapter, or a base for `adapter`; a directory or a hub name.
            adapter: an adapter, or one for each of several tasks; directories or hub names.
            by: `scorer`, or `fused`: responses are selected by the fusion that lies beside the adapter (or beside
                `path`), as a training with `select.by=fused` leaves it.
            revision: of a hub name.
            activation: `sigmoid` or `identity`, for checkpoints that do not say it.
            max_length: most tokens of a pair; by default as stored, else 256.
            device: a torch device; by default a GPU where there is one.

        Raises:
            InputError: something that cannot be found, read or trusted; a checkpoint without a head.
        """
        loaded = super().from_pretrained(
            path, adapter, revision=revision, activation=activation, max_length=max_length, device=device
        )
        if by == "fused":
            if isinstance(adapter, Mapping):
                raise InputError("select.by", "is fused beside several adapters, expected one")
            place = str(adapter or path)
            loaded.fusion = Fusion.read(find_fusion(place) or Path(place) / FILE)
        elif by != "scorer":
            raise InputError("by", f"is {by!r}, expected scorer or fused")
        return loaded

    def select(self, instruction: str, responses: Sequence[str], task: str | None = None) -> Selection:
        """The best response with the scores of all; of equal ones the first.

        Raises:
            InputError: no responses.
        """
        return replace(self.choose(_pool(instruction, responses, task))[0], task=task, id=None)

    def rank(self, instruction: str, responses: Sequence[str], task: str | None = None) -> list[Ranked]:
        """All responses, the best first; ties keep their order.

        Raises:
            InputError: no responses.
        """
        selection, values = self.choose(_pool(instruction, responses, task))
        order = sorted(range(len(responses)), key=lambda i: -values[i])
        return [Ranked(i, responses[i], selection.scores[i]) for i in order]

    def choose(self, pool: Pool, logits: Sequence[float] | None = None) -> tuple[Selection, Sequence[float]]:
        """The selection among a pool's candidates, and the values that decided: its logits, or the fusion's.

        Args:
            pool: with its candidates.
            logits: of these, where they are known already.
        """
        if logits is None:
            pairs = [(pool.example.instruction, candidate.response) for candidate in pool.candidates]
            logits = self.logits(pairs, pool.example.task or None).tolist()
        selection = select_by_logits(self, pool, logits)
        if self.fusion is None:
            return selection, logits
        return self.fusion.choose(pool, selection)

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


def _pool(instruction: str, responses: Sequence[str], task: str | None) -> Pool:
    if not responses:
        raise InputError("responses", "are empty, expected at least one")
    candidates = tuple(Candidate(response, "given") for response in responses)
    return Pool(Example(task or "", "", instruction), candidates)

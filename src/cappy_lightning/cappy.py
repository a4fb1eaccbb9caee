"""The public API: load a scorer, score pairs, rank and select responses, let an LLM answer."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, tee
from pathlib import Path
from typing import Any, Self

from cappy_lightning.answering.ahead import Ahead
from cappy_lightning.answering.scoring import answered, fill_logits, known_logits
from cappy_lightning.answering.stopping import abstains, sampling_words, until_sure
from cappy_lightning.backbones.backbone import Answer, Request
from cappy_lightning.backbones.generate import asked_decodings, open_backbone, possible_decodings
from cappy_lightning.backbones.prompts import Prompter
from cappy_lightning.config import AnswerConfig, Config
from cappy_lightning.config_loading import NO_DATA, load_config, word
from cappy_lightning.errors import InputError
from cappy_lightning.instructions import fill_template
from cappy_lightning.records import BestAnswer, Candidate, Example, Pool, Ranked, Selection, make_id
from cappy_lightning.scorer.inference import Pair
from cappy_lightning.scorer.pretrained import PretrainedScorer, checked_pair, checked_text
from cappy_lightning.selection.engine import select_by_logits, select_from_pools
from cappy_lightning.selection.fusion import FILE, Fusion, find_fusion

#: Instructions whose candidates are scored together while those of the next ones are sampled.
ANSWERS_AT_ONCE = 16


class Cappy(PretrainedScorer):
    """A scorer of (instruction, response) pairs.

    >>> cappy = Cappy.from_pretrained("runs/quickstart/adapter")      # doctest: +SKIP
    >>> cappy.score([("2+2?", "4"), ("2+2?", "a fish")])              # doctest: +SKIP
    array([0.93, 0.04], dtype=float32)
    >>> cappy.select("2+2?", ["a fish", "4"]).response                # doctest: +SKIP
    '4'

    Attributes:
        fusion: by what answers are selected and ranked beside the scorer's logit, if by anything; not by `classify`.
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
        dtype: str = "float32",
    ) -> Self:
        """Load a scorer for inference.

        Args:
            path: a saved scorer, an adapter or a base for `adapter`, a directory or a hub name; or the directory of an
                export for ONNX Runtime.
            adapter: an adapter, or one for each of several tasks; directories or hub names.
            by: `scorer`, or `fused`: responses are selected by the fusion that lies beside the adapter (or beside
                `path`), as a training with `select.by=fused` leaves it.
            revision: of a hub name.
            activation: `sigmoid` or `identity`, for checkpoints that do not say it.
            max_length: most tokens of a pair; by default as stored, else 256.
            device: a torch device; by default a GPU where there is one.
            dtype: of the weights: `float32`, or `bfloat16`, which is faster on GPUs and on recent CPUs, less exact.

        Raises:
            InputError: something that cannot be found, read or trusted; a checkpoint without a head.
        """
        loaded = super().from_pretrained(
            path, adapter, revision=revision, activation=activation, max_length=max_length, device=device, dtype=dtype
        )
        if by == "fused":
            if isinstance(adapter, Mapping):
                raise InputError("select.by", "is fused beside several adapters, expected one")
            place = path if adapter is None else adapter
            found = find_fusion(place, revision if adapter is None else None)
            loaded.fusion = Fusion.read(found or Path(place) / FILE)
        elif by != "scorer":
            raise InputError("by", f"is {by!r}, expected scorer or fused")
        return loaded

    def _write(self, directory: Path) -> None:
        super()._write(directory)
        if self.fusion:
            self.fusion.write(directory / FILE)

    def select(self, instruction: str, responses: Iterable[str], task: str | None = None) -> Selection:
        """The best response with the scores of all; of equal ones the first.

        Raises:
            InputError: no responses, or what is no text.
        """
        ((selection, _),) = self.choose([_pool(instruction, responses, task)])
        return replace(selection, task=task, id=None)

    def rank(self, instruction: str, responses: Iterable[str], task: str | None = None) -> list[Ranked]:
        """All responses, the best first; ties keep their order.

        Raises:
            InputError: no responses, or what is no text.
        """
        pool = _pool(instruction, responses, task)
        ((selection, values),) = self.choose([pool])
        return _ranked([candidate.response for candidate in pool.candidates], selection, values)

    def choose(self, pools: Iterable[Pool]) -> Iterator[tuple[Selection, Sequence[float]]]:
        """The selection of every pool, in order, and the values that decided: the logits, or the fusion's.

        Args:
            pools: with their candidates; with adapters for several tasks, each pool's task says which.
        """
        pools, again = tee(pools)
        for pool, selection in zip(again, select_from_pools(self, pools), strict=True):
            yield self.final(pool, selection)

    def final(self, pool: Pool, selection: Selection) -> tuple[Selection, Sequence[float]]:
        """What becomes of the scorer's own selection, and the values that decide: its logits, or the fusion's."""
        return self.fusion.choose(pool, selection) if self.fusion else (selection, selection.logits)

    def answer(
        self,
        instruction: str,
        backbone: str | Mapping[str, Any] = "embedded",
        n: int = 8,
        *,
        shots: Sequence[Pair] = (),
        stop: float | None = None,
        budget_tokens: int | None = None,
        step: int = AnswerConfig.step,
        abstain: float | None = None,
        task: str | None = None,
    ) -> BestAnswer:
        """The best of an LLM's answers to an instruction; the arguments are those of `answers`."""
        limits = {"stop": stop, "budget_tokens": budget_tokens, "step": step, "abstain": abstain}
        (best,) = self._answers([instruction], _answer_config(backbone, n, limits), shots, task)
        return best

    def answers(
        self,
        instructions: Iterable[str],
        backbone: str | Mapping[str, Any] = "embedded",
        n: int = 8,
        *,
        shots: Sequence[Pair] = (),
        stop: float | None = None,
        budget_tokens: int | None = None,
        step: int = AnswerConfig.step,
        abstain: float | None = None,
        task: str | None = None,
    ) -> Iterator[BestAnswer]:
        """The best of an LLM's answers to each instruction, in order: sampled, scored and selected.

        The LLM goes on sampling for the next instructions while the first ones are scored. It is started with the
        first answer, and stopped after the last.

        Args:
            instructions: any number; few are held at a time.
            backbone: the LLM, as the keys of the section `backbone` of a config, for instance
                `{"kind": "openai", "url": "https://...", "model": "NAME", "chat": True}`, or the kind alone. A key is
                taken from `$OPENAI_API_KEY`.
            n: candidates for each instruction: a greedy one, and others of temperature 0.7; `backbone["decodings"]`
                can change the number of each.
            shots: (instruction, response) pairs that the LLM is shown before each instruction.
            stop: the score of a candidate with which no more are sampled.
            budget_tokens: of an instruction, prompts and answers, with which no more are sampled.
            step: candidates that are asked for at a time, where there is a `stop` or a `budget_tokens`.
            abstain: the score below which there is no answer.
            task: where adapters for several tasks were loaded.

        Raises:
            InputError: settings that cannot be used; or the LLM fails.
        """
        if isinstance(instructions, str):
            raise InputError("instructions", "is one text, expected several (answer() is for one)")
        limits = {"stop": stop, "budget_tokens": budget_tokens, "step": step, "abstain": abstain}
        return self._answers(instructions, _answer_config(backbone, n, limits), shots, task)

    def _answers(
        self, instructions: Iterable[str], config: Config, shots: Sequence[Pair], task: str | None
    ) -> Iterator[BestAnswer]:
        if self.tasks and task not in self.tasks:
            raise InputError("task", f"is {task!r}, expected one of {', '.join(self.tasks)}")
        pairs = [checked_pair(pair, f"shots[{place}]") for place, pair in enumerate(shots)]
        shown = [Example(task or "", "", asked, (response,)) for asked, response in pairs]
        prompter = Prompter(config.backbone, {task or "": shown})
        examples = (_example(task or "", text) for text in instructions)
        requests = (Request(example, prompter.prompt(example)) for example in examples)
        asked = asked_decodings(config.backbone)
        with contextlib.ExitStack() as stack:
            # The LLM is closed before the thread that works ahead, which may be waiting for it, is.
            ahead: Ahead[tuple[Example, Answer]] = stack.enter_context(Ahead(4 * ANSWERS_AT_ONCE))
            llm = until_sure(stack.enter_context(open_backbone(config.backbone)), self, config.answer)
            answers = ahead.read(answered(llm, requests, possible_decodings(llm, asked)))
            while chunk := list(islice(answers, ANSWERS_AT_ONCE)):
                yield from self._best_of(chunk, config.answer)

    def _best_of(self, chunk: Sequence[tuple[Example, Answer]], config: AnswerConfig) -> Iterator[BestAnswer]:
        pools = [Pool(example, answer.candidates) for example, answer in chunk]
        found = fill_logits(self, pools, [known_logits(answer) for _, answer in chunk])
        for pool, logits, (_, answer) in zip(pools, found, chunk, strict=True):
            counts = answer.input_tokens, answer.output_tokens, answer.empty
            if answer.candidates:
                selection, values = self.final(pool, select_by_logits(self, pool, logits))
                candidates = tuple(_ranked([one.response for one in answer.candidates], selection, values))
                response = None if abstains(selection.score, config) else selection.response
                yield BestAnswer(response, selection.score, candidates, *counts)
            else:
                yield BestAnswer(None, None, (), *counts, answer.problem)

    def classify(
        self, texts: Iterable[str], choices: Iterable[str], template: str = "{text}", task: str | None = None
    ) -> list[Selection]:
        """The best of the same choices for every text, by the scorer without any LLM; of equal ones the first.

        Args:
            texts: what is to be classified.
            choices: the classes, as responses in plain words.
            template: how an instruction shows a text: `{text}` stands for it, `{choices}` for the choices; the one that
                a finetuned scorer was trained with (`template` of a sources file).
            task: where adapters for several tasks were loaded.

        Raises:
            InputError: no choices, one text instead of a list, what is no text, or a template without `{text}`.
        """
        texts, choices = _texts(texts, "texts"), _texts(choices, "choices")
        if not choices:
            raise InputError("choices", "are empty, expected at least one")
        instructions = [fill_template(template, text, choices) for text in texts]
        pairs = [(instruction, choice) for instruction in instructions for choice in choices]
        logits = self.logits(pairs, task).reshape(-1, len(choices))
        scores = self.to_scores(logits)
        found = (Selection.best(*own, choices) for own in zip(logits.tolist(), scores.tolist(), strict=True))
        return [replace(selection, task=task) for selection in found]


def _answer_config(backbone: str | Mapping[str, Any], n: int, limits: Mapping[str, float | None]) -> Config:
    given: dict[str, Any] = {"kind": backbone} if isinstance(backbone, str) else dict(backbone)
    words = [word(f"backbone.{name}", value) for name, value in given.items()]
    words += [word(f"answer.{name}", value) for name, value in limits.items()]
    return load_config([*sampling_words(n), *words, *NO_DATA])


def _example(task: str, instruction: str) -> Example:
    if not checked_text(instruction, "instruction").strip():
        raise InputError("instruction", "is empty, expected a text")
    return Example(task, make_id(instruction), instruction)


def _texts(given: Iterable[str], name: str) -> list[str]:
    if isinstance(given, str):
        raise InputError(name, "are one text, expected a list of texts")
    return [checked_text(text, f"{name}[{place}]") for place, text in enumerate(given)]


def _pool(instruction: str, responses: Iterable[str], task: str | None) -> Pool:
    candidates = tuple(Candidate(response, "given") for response in _texts(responses, "responses"))
    if not candidates:
        raise InputError("responses", "are empty, expected at least one")
    return Pool(Example(task or "", "", instruction), candidates)


def _ranked(responses: Sequence[str], selection: Selection, values: Sequence[float]) -> list[Ranked]:
    order = sorted(range(len(responses)), key=lambda i: -values[i])
    return [Ranked(i, responses[i], selection.scores[i]) for i in order]

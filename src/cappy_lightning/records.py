"""The records that flow between the steps, each with the one place that checks its JSON form.

`from_row` takes a decoded JSON object and `where` (for instance `pool.jsonl:12`), and raises
`InputError` naming that place; `to_row` gives the object back.
"""

import hashlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cappy_lightning.errors import InputError
from cappy_lightning.matching import matching_choice

Origin = Literal["gold", "wrong_choice", "mismatch", "sampled", "given"]
#: Strongest first: of two instances with the same pair the one with the earlier origin stays.
ORIGINS: tuple[Origin, ...] = ("gold", "given", "sampled", "wrong_choice", "mismatch")

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

_MADE = "sha256:"


def make_id(content: str) -> str:
    """The id of an example that comes without one: `sha256:` and 16 hexadecimal digits of the hash of its content."""
    return _MADE + hashlib.sha256(content.encode()).hexdigest()[:16]


def is_made_id(identity: str) -> bool:
    """Whether an id is one of `make_id`."""
    return identity.startswith(_MADE)


def _text(row: dict[str, Any], key: str, where: object) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        found = "is missing" if key not in row else f"is {type(value).__name__}"
        raise InputError(where, f"field '{key}' {found}, expected a text")
    if not value.strip():
        raise InputError(where, f"field '{key}' is empty, expected a text")
    return _unicode(value, key, where)


def _unicode(value: str, key: str, where: object) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape
        raise InputError(where, f"field '{key}' is not Unicode text") from None
    return value


def _texts(row: dict[str, Any], key: str, where: object) -> tuple[str, ...]:
    values = row[key]
    if not isinstance(values, list) or not values:
        raise InputError(where, f"field '{key}' must be a non-empty list of texts")
    return tuple(_text({f"{key}[{i}]": value}, f"{key}[{i}]", where) for i, value in enumerate(values))


def _number(row: dict[str, Any], key: str, where: object) -> float | None:
    return None if row.get(key) is None else _finite(row[key], key, where)


def _finite(value: Any, key: str, where: object) -> float:
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(where, f"field '{key}' is {str(value)[:40]}, expected a finite number")
    return number


def _score(row: dict[str, Any], where: object) -> float:
    score = row.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise InputError(where, f"field 'score' is {score!r}, expected a number from 0 to 1")
    return float(score)


def pair_from_row(row: dict[str, Any], where: object) -> tuple[str, str]:
    """The (instruction, response) of a JSON object, whatever else it holds."""
    return _text(row, "instruction", where), _text(row, "response", where)


def check_task(task: object, tasks: Collection[str], where: object) -> None:
    """Refuse a row whose task has no adapter, where there is one for each of several tasks."""
    if tasks and task not in tasks:
        raise InputError(where, f"field 'task' is {task!r}, expected one of {', '.join(tasks)}")


@dataclass(frozen=True)
class Example:
    """An instruction with what is known of its right answer.

    Either `references` (one or more ground-truth responses) or `choices` with the index `label` of the
    right one is given, never both.
    """

    task: str
    id: str
    instruction: str
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    label: int | None = None
    split: Split | None = None

    @classmethod
    def from_row(cls, row: dict[str, Any], where: object) -> "Example":
        """Check and convert one JSON object."""
        task, instruction = _text(row, "task", where), _text(row, "instruction", where)
        references: tuple[str, ...] = ()
        choices: tuple[str, ...] = ()
        label = row.get("label")
        if ("references" in row) == ("choices" in row):
            raise InputError(where, "expected either 'references' or 'choices' with 'label'")
        if "references" in row:
            references, label = _texts(row, "references", where), None
        else:
            choices = _texts(row, "choices", where)
            if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(choices):
                raise InputError(
                    where, f"field 'label' is {label!r}, expected an index into the {len(choices)} choices"
                )
        split = row.get("split")
        if split is not None and split not in SPLITS:
            raise InputError(where, f"field 'split' is {split!r}, expected 'train' or 'validation'")
        if row.get("id") is not None:
            identity = _unicode(str(row["id"]), "id", where)
        else:  # made from the content, so that it is the same wherever the example turns up
            content = json.dumps([task, instruction, references, choices, label], ensure_ascii=False)
            identity = make_id(content)
        return cls(task, identity, instruction, references, choices, label, split)

    @property
    def right_choice(self) -> str:
        """The text of the choice that `label` says, of an example with choices."""
        return self.choices[self.label or 0]

    def choice_of(self, response: str) -> str | None:
        """The choice that a response stands for; see `matching_choice`."""
        return matching_choice(response, self.choices)

    def to_row(self) -> dict[str, Any]:
        """The JSON object of the examples contract."""
        row: dict[str, Any] = {"task": self.task, "id": self.id}
        if self.split:
            row["split"] = self.split
        row["instruction"] = self.instruction
        if self.references:
            row["references"] = list(self.references)
        elif self.choices:
            row |= {"choices": list(self.choices), "label": self.label}
        return row


@dataclass(frozen=True)
class Candidate:
    """A response proposed for an example.

    `log_likelihood_sum` is the natural log-probability of the response's tokens under the LLM that made
    it (with the end of the answer where the LLM reports it), `log_likelihood_mean` the same per token;
    both are absent where the LLM gives none. `score`, in [0, 1], is the user's own judgement, if any.
    """

    response: str
    decoding: str
    log_likelihood_sum: float | None = None
    log_likelihood_mean: float | None = None
    score: float | None = None

    @classmethod
    def from_row(cls, row: Any, where: object) -> "Candidate":
        """Check and convert one element of a pool's `candidates`."""
        if not isinstance(row, dict):
            raise InputError(where, f"a candidate is {type(row).__name__}, expected an object with 'response'")
        return cls(
            _text(row, "response", where),
            _text(row, "decoding", where) if "decoding" in row else "given",
            _number(row, "log_likelihood_sum", where),
            _number(row, "log_likelihood_mean", where),
            None if row.get("score") is None else _score(row, where),
        )

    def to_row(self) -> dict[str, Any]:
        """The JSON object, without what is absent."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Pool:
    """An example with its candidates, and the prompt that the LLM was sent, where known.

    `example` may be without references and choices when the pool is only to be selected from.
    """

    example: Example
    candidates: tuple[Candidate, ...]
    prompt: str | None = None

    @classmethod
    def of_example(cls, example: Example) -> "Pool":
        """An example before any LLM has answered it: its choices are its candidates, if it has any."""
        return cls(example, tuple(Candidate(choice, "choice") for choice in example.choices))

    @classmethod
    def from_row(cls, row: dict[str, Any], where: object, *, labelled: bool = True, answered: bool = True) -> "Pool":
        """Check and convert one JSON object.

        The candidates of an example with choices are its choices, when none are given.

        Args:
            row: the object.
            where: its place, for messages.
            labelled: refuse a pool without references and choices.
            answered: refuse a pool without candidates.
        """
        if not labelled and "references" not in row and "choices" not in row:
            example = Example.from_row({**row, "references": ["-"]}, where)
            example = Example(example.task, example.id, example.instruction, split=example.split)
        else:
            example = Example.from_row(row, where)
        if "candidates" not in row and (example.choices or not answered):
            return cls.of_example(example)
        candidates = row.get("candidates")
        if not isinstance(candidates, list) or not candidates:
            raise InputError(
                where,
                "field 'candidates' must be a non-empty list of {\"response\": ...}; `cappy generate` records them",
            )
        prompt = row.get("prompt")
        return cls(
            example,
            tuple(Candidate.from_row(c, f"{where}: candidates[{i}]") for i, c in enumerate(candidates)),
            _unicode(prompt, "prompt", where) if isinstance(prompt, str) else None,
        )

    def to_row(self) -> dict[str, Any]:
        """The JSON object of the pools contract."""
        prompt = {"prompt": self.prompt} if self.prompt is not None else {}
        return {**self.example.to_row(), **prompt, "candidates": [c.to_row() for c in self.candidates]}


@dataclass(frozen=True)
class Instance:
    """A weakly labelled pair: what the scorer is trained on. `score` is in [0, 1]."""

    instruction: str
    response: str
    score: float
    origin: Origin
    task: str
    example_id: str

    @classmethod
    def from_row(cls, row: dict[str, Any], where: object) -> "Instance":
        """Check and convert one JSON object with the user's own score.

        `task` and `example_id` may be absent: then the task is `default`, and pairs with the same
        instruction belong to the same example.
        """
        instruction, response = _text(row, "instruction", where), _text(row, "response", where)
        score = _score(row, where)
        origin = row.get("origin", "given")
        if origin not in ORIGINS:
            raise InputError(where, f"field 'origin' is {origin!r}, expected one of {', '.join(ORIGINS)}")
        task, example_id = row.get("task"), row.get("example_id")
        if example_id is None:
            example_id = make_id(instruction)
        task = _unicode("default" if task is None else str(task), "task", where)
        example_id = _unicode(str(example_id), "example_id", where)
        return cls(instruction, response, score, origin, task, example_id)


@dataclass(frozen=True)
class Ranked:
    """A response at its place in a ranking; `index` is its place among the responses given."""

    index: int
    response: str
    score: float


@dataclass(frozen=True)
class BestAnswer:
    """The best of what an LLM answered to an instruction.

    Attributes:
        response: None where the LLM gave no answer, or none that is good enough.
        score: of the best candidate, whether it was good enough or not; None where there is none.
        candidates: all, the best first.
        input_tokens: of the prompts, where known.
        output_tokens: of the answers, where known.
        empty: how many of the answers were empty, and are no candidates.
        problem: why there is no candidate.
    """

    response: str | None
    score: float | None
    candidates: tuple[Ranked, ...] = field(repr=False)
    input_tokens: int = 0
    output_tokens: int = 0
    empty: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class Selection:
    """The choice among an example's candidates, with the scores and logits of all behind it."""

    index: int
    response: str
    score: float
    scores: tuple[float, ...] = field(repr=False)
    logits: tuple[float, ...] = field(repr=False)
    task: str | None = None
    id: str | None = None

    @classmethod
    def best(
        cls, logits: Sequence[float], scores: Sequence[float], responses: Sequence[str], example: Example | None = None
    ) -> "Selection":
        """The response with the highest logit; of equal ones the first.

        Logits decide, because scores saturate (sigmoid) or are clamped (identity).
        """
        index = max(range(len(responses)), key=lambda i: (logits[i], -i))
        task, identity = (example.task, example.id) if example else (None, None)
        return cls(index, responses[index], scores[index], tuple(scores), tuple(logits), task, identity)

    def by_scorer(self, pool: Pool) -> "Selection":
        """What the scorer alone selects from the pool that this one is of."""
        responses = [candidate.response for candidate in pool.candidates]
        return Selection.best(self.logits, self.scores, responses, pool.example)

    def other(self, index: int, response: str) -> "Selection":
        """The same scores with another choice."""
        return replace(self, index=index, response=response, score=self.scores[index])

    @classmethod
    def from_row(cls, row: dict[str, Any], pool: Pool, where: object) -> "Selection":
        """Check and convert one JSON object against the pool that it was made of."""
        index, count = row.get("index"), len(pool.candidates)
        if (row.get("task"), row.get("id")) != (pool.example.task, pool.example.id):
            raise InputError(where, f"is of example {row.get('id')!r}, expected {pool.example.id!r} as in the pools")
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise InputError(where, f"field 'index' is {index!r}, expected one of the {count} candidates")
        numbers = []
        for key in ("scores", "logits"):
            values = row.get(key)
            if not isinstance(values, list) or len(values) != count:
                raise InputError(where, f"field '{key}' must be a list of {count} numbers, one for each candidate")
            numbers.append(tuple(_finite(value, key, where) for value in values))
        scores, logits = numbers
        response = pool.candidates[index].response
        if row.get("response") != response:
            raise InputError(where, f"field 'response' is not candidate {index} of its pool, expected the same pools")
        return cls(index, response, scores[index], scores, logits, pool.example.task, pool.example.id)

    def to_row(self) -> dict[str, Any]:
        """The JSON object of the selections contract."""
        return {
            "task": self.task,
            "id": self.id,
            "index": self.index,
            "response": self.response,
            "score": self.score,
            "scores": list(self.scores),
            "logits": list(self.logits),
        }

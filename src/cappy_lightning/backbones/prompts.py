"""What a backbone is sent: the instruction in a template, after examples of the training split."""

import random
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from cappy_lightning.config import BackboneConfig
from cappy_lightning.errors import InputError
from cappy_lightning.records import Example

#: A text to be continued, or the turns of a chat as the OpenAI API has them.
Prompt = str | list[dict[str, str]]

#: Where the config names none.
PLAIN_TEMPLATE, PLAIN_STOP = "Question: {instruction}\nAnswer:", "\n"


class Prompter:
    """Makes prompts: plain texts, or with `backbone.chat` the turns of a chat.

    A plain prompt is the template filled for each shot, followed by its first reference and an empty line,
    then the template filled for the example. In a chat the shots are earlier turns.

    Args:
        config: the section `backbone`.
        shots: the examples that are shown, the same for every prompt, so that servers can reuse its beginning.
    """

    def __init__(self, config: BackboneConfig, shots: Sequence[Example]) -> None:
        self._chat = config.chat
        self._template = config.template or ("{instruction}" if config.chat else PLAIN_TEMPLATE)
        self.prefix: Prompt
        if self._chat:
            self.prefix = [turn for shot in shots for turn in (self._user(shot), _assistant(shot))]
        else:
            self.prefix = "".join(f"{self._fill(shot)} {shot.references[0]}\n\n" for shot in shots)

    def prompt(self, example: Example) -> Prompt:
        """The prompt that asks for a response to the example."""
        if isinstance(self.prefix, str):
            return self.prefix + self._fill(example)
        return [*self.prefix, self._user(example)]

    def _fill(self, example: Example) -> str:
        return self._template.replace("{instruction}", example.instruction)

    def _user(self, example: Example) -> dict[str, str]:
        return {"role": "user", "content": self._fill(example)}


def _assistant(shot: Example) -> dict[str, str]:
    return {"role": "assistant", "content": shot.references[0]}


def stops(config: BackboneConfig) -> list[str]:
    """The texts at which an answer ends: `backbone.stop`, else the end of the line in plain prompts."""
    stop = config.stop if config.stop is not None or config.chat else PLAIN_STOP
    return [stop] if stop else []


def prompt_length(prompt: Prompt) -> int:
    """Characters of a prompt."""
    return len(prompt) if isinstance(prompt, str) else sum(len(turn["content"]) for turn in prompt)


def eligible(example: Example) -> bool:
    """Whether an example may be shown to the LLM: it is not held out, and has a reference."""
    return example.split != "validation" and bool(example.references)


def draw_shots(examples: Iterable[Example], known: int, count: int, seed: int) -> list[Example]:
    """`count` of the eligible examples, drawn by the seed.

    Args:
        examples: the examples once more from the start.
        known: how many of them are eligible.
        count: how many to draw.
        seed: of the draw.

    Raises:
        InputError: fewer than `count` are eligible.
    """
    if known < count:
        raise InputError("backbone.shots", f"is {count}, but only {known} training examples have a reference")
    if not count:
        return []
    places = random.Random(seed).sample(range(known), count)
    last = max(places)
    shown: dict[int, Any] = {}
    for place, example in enumerate(islice(filter(eligible, examples), last + 1)):
        if place in places:
            shown[place] = example
    return [shown[place] for place in places]

"""What a backbone is sent: the instruction in a template, after examples of the training split."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

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
    then the template filled for the example. In a chat the shots are earlier turns. An example that is a
    shot itself, or has the same instruction, is asked without that one.

    Args:
        config: the section `backbone`.
        shots: by task the examples that are shown, the same for every prompt of the task, so that servers can
            reuse its beginning.
    """

    def __init__(self, config: BackboneConfig, shots: Mapping[str, Sequence[Example]]) -> None:
        self._chat, self._shots = config.chat, shots
        self._template = resolved_template(config)
        #: What the prompts of each task begin with.
        self.prefixes: dict[str, Prompt] = {task: self._prefix(own) for task, own in shots.items()}

    def _prefix(self, shots: Sequence[Example]) -> Prompt:
        if self._chat:
            return [turn for shot in shots for turn in (self._user(shot), _assistant(shot))]
        return "".join(f"{self._fill(shot)} {shot.references[0]}\n\n" for shot in shots)

    def prompt(self, example: Example) -> Prompt:
        """The prompt that asks for a response to the example."""
        shots = self._shots.get(example.task, ())
        others = [shot for shot in shots if shot.id != example.id and shot.instruction != example.instruction]
        prefix = self.prefixes[example.task] if shots and len(others) == len(shots) else self._prefix(others)
        return prefix + self._fill(example) if isinstance(prefix, str) else [*prefix, self._user(example)]

    def _fill(self, example: Example) -> str:
        return self._template.replace("{instruction}", example.instruction)

    def _user(self, example: Example) -> dict[str, str]:
        return {"role": "user", "content": self._fill(example)}


def _assistant(shot: Example) -> dict[str, str]:
    return {"role": "assistant", "content": shot.references[0]}


def resolved_template(config: BackboneConfig) -> str:
    """How an instruction is shown: `backbone.template`, or what it is where that is null."""
    return config.template or ("{instruction}" if config.chat else PLAIN_TEMPLATE)


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


def draw_shots(examples: Iterable[Example], known: Counter[str], count: int, seed: int) -> dict[str, list[Example]]:
    """`count` of the eligible examples of each task, drawn by the seed.

    Args:
        examples: the examples once more from the start.
        known: by task, how many of them are eligible.
        count: how many to draw of each task.
        seed: of the draw.

    Raises:
        InputError: fewer than `count` of a task are eligible.
    """
    for task, number in known.items():
        if number < count:
            raise InputError(
                "backbone.shots", f"is {count}, but only {number} training examples of task {task} have a reference"
            )
    places = {task: random.Random(seed).sample(range(number), count) for task, number in known.items()}
    missing = count * len(known)
    shown: dict[str, dict[int, Example]] = defaultdict(dict)
    seen: Counter[str] = Counter()
    for example in filter(eligible, examples):
        if not missing:
            break
        if seen[example.task] in places[example.task]:
            shown[example.task][seen[example.task]] = example
            missing -= 1
        seen[example.task] += 1
    return {task: [shown[task][place] for place in order] for task, order in places.items()}

"""What is to be recorded: the examples, counted in one pass, and the settings that decide their answers."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cappy_lightning.backbones.embedded import MODEL_NAME
from cappy_lightning.backbones.prompts import eligible, resolved_template, stops
from cappy_lightning.config import BackboneConfig
from cappy_lightning.files import hashes, to_line
from cappy_lightning.records import Example

#: The keys that say how to reach the backbone and not what it is asked: they may differ when a recording goes on.
_REACHING = (
    *("url", "concurrency", "timeout", "retries", "device"),
    *("input_price", "output_price", "budget_tokens", "budget_usd"),
)
#: Keys that only a model in this process heeds.
_TRANSFORMERS = ("revision", "min_tokens", "batch_size", "max_prompt_tokens")


@dataclass
class Survey:
    """What one pass over the examples tells.

    Attributes:
        count: how many there are.
        asked: by task, how many the backbone is asked: those without choices.
        eligible: by task, how many may be shown in prompts.
        characters: of the instructions of those that are asked.
        digest: a hash of all examples.
    """

    count: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    eligible: Counter[str] = field(default_factory=Counter)
    characters: int = 0
    digest: str = ""


def survey(examples: Iterable[Example]) -> Survey:
    """Pass over the examples once."""
    found, digest = Survey(), hashlib.sha256()
    for example in examples:
        found.count += 1
        if not example.choices:
            found.asked[example.task] += 1
            found.eligible[example.task] += eligible(example)
            found.characters += len(example.instruction)
        digest.update(to_line(example.to_row()).encode())
    found.digest = digest.hexdigest()
    return found


def settings(config: BackboneConfig) -> dict[str, Any]:
    """What of a config decides the answers, as it was resolved."""
    apart = _REACHING if config.kind == "transformers" else (*_REACHING, *_TRANSFORMERS)
    known = {name: value for name, value in vars(config).items() if name not in apart}
    model = MODEL_NAME if config.kind == "embedded" else config.model
    resolved: dict[str, Any] = {"template": resolved_template(config), "stop": stops(config)}
    if config.kind == "recorded":
        resolved["pools_sha256"] = list(hashes(config.pools).values())
    if config.kind == "openai" and not config.model:  # then the address is all that tells one LLM from another
        resolved["endpoint"] = config.url or os.environ.get("OPENAI_BASE_URL")
    return known | {"decodings": dict(config.decodings), "model": model} | resolved


def fingerprint(digest: str, told: dict[str, Any]) -> str:
    """A hash of all that decides what a recording holds: the examples (their `Survey.digest`) and the `settings`."""
    return hashlib.sha256(json.dumps([told, digest], sort_keys=True).encode()).hexdigest()[:16]

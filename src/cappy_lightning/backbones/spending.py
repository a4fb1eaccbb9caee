"""Tokens and dollars: what a recording will need at most, what it has used, and whether a budget is spent."""

from collections.abc import Sequence

from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.backbones.prompts import Prompter, prompt_length
from cappy_lightning.backbones.recording import Recording
from cappy_lightning.backbones.survey import Survey
from cappy_lightning.config import BackboneConfig
from cappy_lightning.progress import counted, say

#: Characters of a token, about, for estimates.
_TOKEN = 4


def say_estimate(
    known: Survey, recording: Recording, prompter: Prompter, decodings: Sequence[Decoding], config: BackboneConfig
) -> None:
    """Say what is about to be asked for, before anything is sent."""
    share = 1 - (recording.count - recording.passed) / known.asked.total()
    left = round(share * known.asked.total())
    shown = sum(prompt_length(prompter.prefixes.get(task, "")) * count for task, count in known.asked.items())
    per_request = (shown + known.characters) * share / _TOKEN
    few, many = len(decodings), sum(decoding.n for decoding in decodings)
    answers = many * left * config.max_tokens
    text = (
        f"{counted(left, 'example')}, {counted(few * left, 'request')} with about"
        f" {short_number(round(few * per_request))} tokens of prompts and at most {short_number(answers)} of answers"
    )
    if config.kind == "openai" and many > few:
        text += (
            f" (where an endpoint gives one answer at a time, {many * left:,} requests with"
            f" {short_number(round(many * per_request))})"
        )
    dollars = _dollars(round(many * per_request), answers, config)
    say(text + (f", at most about ${dollars:.2f}" if dollars is not None else ""))


def spent_budget(recording: Recording, config: BackboneConfig) -> str | None:
    """The key of the budget that is spent, if one is."""
    tokens = recording.input_tokens + recording.output_tokens
    if config.budget_tokens is not None and tokens >= config.budget_tokens:
        return "backbone.budget_tokens"
    dollars = _dollars(recording.input_tokens, recording.output_tokens, config)
    if config.budget_usd is not None and dollars is not None and dollars >= config.budget_usd:
        return "backbone.budget_usd"
    return None


def _dollars(input_tokens: int, output_tokens: int, config: BackboneConfig) -> float | None:
    if config.input_price is None or config.output_price is None:
        return None
    return (input_tokens * config.input_price + output_tokens * config.output_price) / 1e6


def usage(recording: Recording, config: BackboneConfig) -> str:
    """What has been used so far, in words."""
    dollars = _dollars(recording.input_tokens, recording.output_tokens, config)
    return f"{short_number(recording.input_tokens)}+{short_number(recording.output_tokens)} tokens" + (
        f", ${dollars:.2f}" if dollars is not None else ""
    )


def short_number(number: int) -> str:
    """A number of tokens as it is shown: 43,494 or 1.2M."""
    return f"{number:,}" if number < 100_000 else f"{number / 1e6:,.1f}M"

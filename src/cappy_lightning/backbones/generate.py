"""Examples and a backbone make pools: recorded once, in the order of the examples, and resumable.

While a recording is under way it lies in `OUT.partial`: a line that says what is recorded, then one line an
example, written as its answers come. The same call continues after it. When all is there it becomes `OUT`.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cappy_lightning.backbones.backbone import Answer, Backbone, Request
from cappy_lightning.backbones.decoding import Decoding, parse_decoding
from cappy_lightning.backbones.embedded import MODEL_NAME, embedded_backbone
from cappy_lightning.backbones.openai_api import OpenAIBackbone
from cappy_lightning.backbones.prompts import Prompter, draw_shots, eligible, prompt_length
from cappy_lightning.backbones.recorded import RecordedBackbone
from cappy_lightning.config import BackboneConfig
from cappy_lightning.errors import InputError
from cappy_lightning.files import atomic_path, make_dir, open_locked, parse_line, to_line, write_json
from cappy_lightning.progress import Ticker, say
from cappy_lightning.records import Example, Pool

#: The keys that say how to reach the backbone and not what it is asked: they may differ when a recording goes on.
_REACHING = (
    *("concurrency", "timeout", "retries", "device"),
    *("input_price", "output_price", "budget_tokens", "budget_usd"),
)
#: Keys that only a model in this process heeds.
_TRANSFORMERS = ("revision", "min_tokens", "batch_size", "max_prompt_tokens")
#: A recording whose first answers are all failures ends instead of leaving out everything.
_PATIENCE = 8
#: Characters of a token, about, for estimates.
_TOKEN = 4


@contextlib.contextmanager
def open_backbone(config: BackboneConfig) -> Iterator[Backbone]:
    """The backbone of a config, started and stopped with the context.

    Raises:
        InputError: it cannot be started or reached.
    """
    if config.kind == "embedded":
        with embedded_backbone(config) as embedded:
            yield embedded
    elif config.kind == "openai":
        with OpenAIBackbone(config) as api:
            yield api
    elif config.kind == "recorded":
        yield RecordedBackbone(config.pools)
    else:
        from cappy_lightning.backbones.transformers_model import TransformersBackbone

        yield TransformersBackbone(config)


@dataclass
class Survey:
    """What one pass over the examples tells: how many, how many may be shots, their length and a hash of them."""

    count: int = 0
    eligible: int = 0
    characters: int = 0
    digest: str = ""


def survey(examples: Iterable[Example]) -> Survey:
    """Pass over the examples once."""
    found, digest = Survey(), hashlib.sha256()
    for example in examples:
        found.count += 1
        found.eligible += eligible(example)
        found.characters += len(example.instruction)
        digest.update(to_line(example.to_row()).encode())
    found.digest = digest.hexdigest()
    return found


def settings(config: BackboneConfig) -> dict[str, Any]:
    """What of a config decides the answers."""
    apart = _REACHING if config.kind == "transformers" else (*_REACHING, *_TRANSFORMERS)
    known = {name: value for name, value in vars(config).items() if name not in apart}
    return known | {"decodings": dict(config.decodings), "model": config.model or _default_model(config)}


def _default_model(config: BackboneConfig) -> str | None:
    return MODEL_NAME if config.kind == "embedded" else None


def fingerprint(digest: str, config: BackboneConfig) -> str:
    """A hash of all that decides what a recording holds: the examples (their `Survey.digest`) and the settings."""
    return hashlib.sha256(json.dumps([settings(config), digest], sort_keys=True).encode()).hexdigest()[:16]


def made_by_path(pool: Path) -> Path:
    """The file beside a recorded pool that says how it was made."""
    return pool.with_name(pool.stem + ".made_by.json")


def left_out_path(pool: Path) -> Path:
    """The file beside a recorded pool that has the examples without an answer, each with the reason."""
    return pool.with_name(pool.stem + ".left_out.jsonl")


def record_pools(examples: Callable[[], Iterable[Example]], config: BackboneConfig, out: Path) -> None:
    """Let the backbone answer every example, and write the pools to `out` in the order of the examples.

    Memory holds the requests under way, however many examples there are. Seeds depend on the example
    alone. Beside `out`, a small JSON says how it was made, with the shots, which stand there once instead
    of in every pool.

    Args:
        examples: gives the examples from the start, the same ones each time.
        config: the section `backbone`.
        out: the pool file; it appears when all examples are there.

    Raises:
        InputError: there is no example, a partial recording of something else is in the way, the
            backbone fails, or a budget is spent.
    """
    asked = [parse_decoding(name, n) for name, n in config.decodings.items() if n]
    known = survey(examples())
    if not known.count:
        raise InputError(out, "there is no example to record")
    prompter = Prompter(config, draw_shots(examples(), known.eligible, config.shots, config.seed))
    made_by = {"fingerprint": fingerprint(known.digest, config), **settings(config), "prompt_prefix": prompter.prefix}
    make_dir(out.parent)
    lock = out.with_name(f".{out.name}.lock")
    with open_locked(lock, out, "recording"):
        journal = _Journal(out.with_name(out.name + ".partial"), made_by)
        if journal.count:
            say(f"{out}: continuing, {journal.count} of {known.count} examples are recorded")
        if journal.count < known.count:
            if config.kind != "recorded":
                _estimate(known, journal.count, prompter, asked, config)
            with open_backbone(config) as backbone:
                decodings = _decodings(backbone, asked)
                _record(backbone, examples, known.count, prompter, decodings, config, journal)
        with _writing(out):
            _publish(journal, out, made_by)
    lock.unlink()


def _decodings(backbone: Backbone, asked: Sequence[Decoding]) -> list[Decoding]:
    reasons = {decoding.name: backbone.refuses(decoding) for decoding in asked}
    for name, reason in reasons.items():
        if reason:
            say(f"left out: {name} ({reason})")
    left = [decoding for decoding in asked if not reasons[decoding.name]]
    if not left:
        raise InputError("backbone.decodings", "the backbone can do none of them, expected at least one")
    return left


def _estimate(
    known: Survey, done: int, prompter: Prompter, decodings: Sequence[Decoding], config: BackboneConfig
) -> None:
    """Say what is about to be asked for, before the first request is sent."""
    left = known.count - done
    shown = prompt_length(prompter.prefix) * left + known.characters * left // known.count
    prompt_tokens = shown * len(decodings) // _TOKEN
    answer_tokens = sum(decoding.n for decoding in decodings) * left * config.max_tokens
    cost = _cost(prompt_tokens, answer_tokens, config)
    say(
        f"{left} examples, {left * len(decodings)} requests: about {_count(prompt_tokens)} tokens of prompts and at"
        f" most {_count(answer_tokens)} of answers" + (f", at most about ${cost:.2f}" if cost is not None else "")
    )


def _record(
    backbone: Backbone,
    examples: Callable[[], Iterable[Example]],
    count: int,
    prompter: Prompter,
    decodings: Sequence[Decoding],
    config: BackboneConfig,
    journal: "_Journal",
) -> None:
    done = journal.count
    # What answers in groups gets the same groups as without the interruption.
    start = done - done % backbone.group
    asked, spent = [], False

    def requests() -> Iterator[Request]:
        nonlocal spent
        for example in islice(examples(), start, None):
            if spent := _spent(journal, config):
                return
            asked.append(example)
            yield Request(example, prompter.prompt(example))

    with Ticker("recording", count, done) as ticker:
        for place, answer in enumerate(backbone.answer(requests(), decodings), start=start):
            example = asked.pop(0)
            if place < done:
                continue
            journal.write(example, answer)
            if answer.problem and journal.count == journal.left_out == _PATIENCE:
                raise InputError("backbone", f"the first {_PATIENCE} examples have no answer ({answer.problem})")
            ticker.advance(info=_usage(journal, config))
    if spent:
        raise InputError(
            "backbone.budget_usd" if config.budget_usd is not None else "backbone.budget_tokens",
            f"is spent, {journal.count} of {count} examples are recorded; with more the same command continues",
        )


def _publish(journal: "_Journal", out: Path, made_by: dict[str, Any]) -> None:
    """The finished recording as the pool file and what lies beside it."""
    with atomic_path(out) as scratch, open(scratch, "w", encoding="utf-8") as final:
        candidates = pools = 0
        for row in journal.rows():
            if "pool" in row:
                final.write(to_line(row["pool"]))
                candidates += len(row["pool"]["candidates"])
                pools += 1
        if not pools:
            raise InputError(out, "no example has an answer")
        if journal.left_out:
            with atomic_path(left_out_path(out)) as other, open(other, "w", encoding="utf-8") as stream:
                stream.writelines(to_line(row) for row in journal.rows() if "problem" in row)
            say(f"{journal.left_out} examples have no answer and are left out, see {left_out_path(out)}")
        tokens = {"input_tokens": journal.input_tokens, "output_tokens": journal.output_tokens}
        counts = {"examples": pools, "candidates": candidates, "empty": journal.empty, **tokens}
        write_json(made_by_path(out), made_by | counts)
    journal.remove()
    if journal.empty:
        say(f"{journal.empty} empty answers are left out")
    if journal.output_tokens:
        say(f"used {_count(journal.input_tokens)} tokens of prompts and {_count(journal.output_tokens)} of answers")


class _Journal:
    """`OUT.partial`: what has been recorded so far, an example a line, after a line of settings."""

    def __init__(self, path: Path, made_by: dict[str, Any]) -> None:
        self._path = path
        self.count = self.left_out = self.input_tokens = self.output_tokens = self.empty = 0
        head = to_line(made_by).encode()
        if path.exists() and path.stat().st_size:
            self._continue(head)
        else:
            with _writing(path), open(path, "wb") as stream:
                stream.write(head)
        self._stream = open(path, "ab")

    def _continue(self, head: bytes) -> None:
        """Count what is there; a line that a kill cut off is removed."""
        end = 0
        with open(self._path, "rb") as lines:
            for number, line in enumerate(lines):
                if not line.endswith(b"\n"):
                    break
                if number == 0 and line != head:
                    raise InputError(
                        self._path,
                        "is a recording of other examples or settings; finish it, delete it or write elsewhere",
                    )
                if number:
                    self._add(parse_line(line, f"{self._path}:{number + 1}"))
                end += len(line)
        with open(self._path, "r+b") as stream:
            stream.truncate(end)
            if not end:
                stream.write(head)

    def _add(self, row: dict[str, Any]) -> None:
        self.count += 1
        self.left_out += "problem" in row
        self.input_tokens += row["tokens"][0]
        self.output_tokens += row["tokens"][1]
        self.empty += row.get("empty", 0)

    def write(self, example: Example, answer: Answer) -> None:
        """Add the answer of the next example."""
        tokens = [answer.input_tokens, answer.output_tokens]
        row: dict[str, Any] = {"pool": Pool(example, answer.candidates).to_row(), "tokens": tokens}
        if answer.empty:
            row["empty"] = answer.empty
        if answer.problem:
            row = {"example": example.to_row(), "problem": answer.problem, "tokens": tokens}
        with _writing(self._path):
            self._stream.write(to_line(row).encode())
            self._stream.flush()
        self._add(row)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Everything recorded, in order."""
        with open(self._path, "rb") as lines:
            for line in islice(lines, 1, None):
                yield json.loads(line)

    def remove(self) -> None:
        """The recording is finished: its file goes."""
        self._stream.close()
        self._path.unlink()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a full disk
        raise InputError(
            path, f"cannot be written ({error.strerror}); what was recorded is kept, the same command continues"
        ) from None


def _spent(journal: _Journal, config: BackboneConfig) -> bool:
    cost = _cost(journal.input_tokens, journal.output_tokens, config)
    tokens = journal.input_tokens + journal.output_tokens
    return (config.budget_tokens is not None and tokens >= config.budget_tokens) or (
        config.budget_usd is not None and cost is not None and cost >= config.budget_usd
    )


def _cost(input_tokens: int, output_tokens: int, config: BackboneConfig) -> float | None:
    if config.input_price is None or config.output_price is None:
        return None
    return (input_tokens * config.input_price + output_tokens * config.output_price) / 1e6


def _usage(journal: _Journal, config: BackboneConfig) -> str:
    cost = _cost(journal.input_tokens, journal.output_tokens, config)
    return f"{_count(journal.input_tokens)}+{_count(journal.output_tokens)} tokens" + (
        f", ${cost:.2f}" if cost is not None else ""
    )


def _count(number: int) -> str:
    return f"{number:,}" if number < 100_000 else f"{number / 1e6:,.1f}M"

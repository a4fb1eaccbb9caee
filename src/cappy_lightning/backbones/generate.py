"""Examples and a backbone make pools: recorded once, in the order of the examples, and resumable.

While a recording is under way it lies in `OUT.partial`: a line that says what is recorded, then one line an
example, written as its answers come. The same call continues after it. When all is there it becomes `OUT`.
"""

import contextlib
import hashlib
import json
import urllib.parse
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from cappy_lightning.backbones.backbone import Answer, Backbone, Request
from cappy_lightning.backbones.decoding import Decoding, parse_decoding
from cappy_lightning.backbones.embedded import MODEL_NAME, embedded_backbone
from cappy_lightning.backbones.openai_api import OpenAIBackbone
from cappy_lightning.backbones.prompts import Prompter, draw_shots, eligible, prompt_length, resolved_template, stops
from cappy_lightning.backbones.recorded import RecordedBackbone
from cappy_lightning.config import BackboneConfig
from cappy_lightning.errors import InputError
from cappy_lightning.files import atomic_path, kept_on_failure, make_dir, open_locked, parse_line, to_line, write_json
from cappy_lightning.progress import Ticker, say
from cappy_lightning.records import Example, Pool

#: The keys that say how to reach the backbone and not what it is asked: they may differ when a recording goes on.
_REACHING = (
    *("url", "concurrency", "timeout", "retries", "device"),
    *("input_price", "output_price", "budget_tokens", "budget_usd"),
)
#: Keys that only a model in this process heeds.
_TRANSFORMERS = ("revision", "min_tokens", "batch_size", "max_prompt_tokens")
#: So many examples one after the other that the backbone cannot serve are no matter of single examples any more.
_PATIENCE = 8
#: What a failure to write leaves.
_KEPT = "what was recorded"
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
    resolved = {"template": resolved_template(config), "stop": stops(config)}
    return known | {"decodings": dict(config.decodings), "model": model} | resolved


def fingerprint(digest: str, config: BackboneConfig) -> str:
    """A hash of all that decides what a recording holds: the examples (their `Survey.digest`) and the settings."""
    return hashlib.sha256(json.dumps([settings(config), digest], sort_keys=True).encode()).hexdigest()[:16]


def made_by_path(pool: Path) -> Path:
    """The file beside a recorded pool that says how it was made."""
    return pool.with_name(pool.stem + ".made_by.json")


def left_out_path(pool: Path) -> Path:
    """The file beside a recorded pool that has the examples without an answer, each with the reason."""
    return pool.with_name(pool.stem + ".left_out.jsonl")


def record_pools(
    examples: Callable[[], Iterable[Example]], config: BackboneConfig, out: Path, *, part: bool = False
) -> None:
    """Let the backbone answer every example, and write the pools to `out` in the order of the examples.

    Examples with choices are pools of these already, and are not asked. Memory holds the requests under
    way, however many examples there are. Seeds depend on the example alone. Beside `out`, a small JSON says how
    it was made, with what the prompts of each task begin with, which stands there once instead of in every pool.

    Args:
        examples: gives the examples from the start, the same ones each time.
        config: the section `backbone`.
        out: the pool file; it appears when all examples are there.
        part: this is one of several parts, which may be without any example.

    Raises:
        InputError: `out` exists, there is no example, a partial recording of something else is in the way,
            the backbone fails, or a budget is spent.
    """
    asked = _asked_decodings(config)
    make_dir(out.parent)
    lock = out.with_name(f".{out.name}.lock")
    with open_locked(lock, out, "recording"):
        if out.exists():
            raise InputError(out, "exists already, expected a new file")
        known = survey(examples())
        if not known.count and not part:
            raise InputError(out, "there is no example to record")
        shots = config.shots if config.kind != "recorded" else 0
        prompter = Prompter(config, draw_shots(examples(), known.eligible, shots, config.seed))
        made_by = {
            "fingerprint": fingerprint(known.digest, config),
            **settings(config),
            "prompt_prefixes": prompter.prefixes,
        }
        journal = _Journal(out.with_name(out.name + ".partial"), made_by)
        if journal.count:
            say(f"{out}: continuing, {journal.count} of {known.count} examples are recorded")
        if journal.count < known.count:
            recorder = _Recorder(examples, known, prompter, config, journal)
            if not known.asked:
                recorder.run(None, ())
            else:
                if config.kind != "recorded":
                    _estimate(known, journal, prompter, asked, config)
                with open_backbone(config) as backbone:
                    recorder.run(backbone, _possible(backbone, asked))
        with kept_on_failure(out, _KEPT):
            _publish(journal, out, made_by, config)
        lock.unlink()


def _asked_decodings(config: BackboneConfig) -> list[Decoding]:
    counts = {name: n for name, n in config.decodings.items() if n}
    if config.kind == "recorded":  # under whatever name it was recorded
        return [Decoding(name, n) for name, n in counts.items()]
    return [parse_decoding(name, n) for name, n in counts.items()]


def _possible(backbone: Backbone, asked: Sequence[Decoding]) -> list[Decoding]:
    reasons = {decoding.name: backbone.refuses(decoding) for decoding in asked}
    for name, reason in reasons.items():
        if reason:
            say(f"left out: {name} ({reason})")
    left = [decoding for decoding in asked if not reasons[decoding.name]]
    if not left:
        raise InputError("backbone.decodings", "the backbone can do none of them, expected at least one")
    return left


def _estimate(
    known: Survey, journal: "_Journal", prompter: Prompter, decodings: Sequence[Decoding], config: BackboneConfig
) -> None:
    """Say what is about to be asked for, before anything is sent."""
    share = 1 - (journal.count - journal.passed) / known.asked.total()
    left = round(share * known.asked.total())
    shown = sum(prompt_length(prompter.prefixes.get(task, "")) * count for task, count in known.asked.items())
    per_request = (shown + known.characters) * share / _TOKEN
    few, many = len(decodings), sum(decoding.n for decoding in decodings)
    answers = many * left * config.max_tokens
    text = (
        f"{left} examples, {few * left:,} requests with about {_count(round(few * per_request))} tokens of prompts"
        f" and at most {_count(answers)} of answers"
    )
    if config.kind == "openai" and many > few:
        text += (
            f" (where an endpoint gives one answer at a time, {many * left:,} requests with"
            f" {_count(round(many * per_request))})"
        )
    cost = _cost(round(many * per_request), answers, config)
    say(text + (f", at most about ${cost:.2f}" if cost is not None else ""))


class _Recorder:
    """Takes the examples one by one to the backbone, and their answers to the journal."""

    def __init__(
        self,
        examples: Callable[[], Iterable[Example]],
        known: Survey,
        prompter: Prompter,
        config: BackboneConfig,
        journal: "_Journal",
    ) -> None:
        self._examples, self._known, self._prompter = examples, known, prompter
        self._config, self._journal = config, journal
        #: Examples on their way, in order, each with its place.
        self._queue: deque[tuple[int, Example]] = deque()
        #: Refusals one after the other, not yet in the journal.
        self._refused: list[tuple[Example, Answer]] = []
        self._spent: str | None = None

    def run(self, backbone: Backbone | None, decodings: Sequence[Decoding]) -> None:
        """Record all that is missing; without a backbone, where every example has choices.

        Raises:
            InputError: a budget is spent, or the backbone refuses one example after the other.
        """
        done, total = self._journal.count, self._known.count
        requests = self._requests(backbone.group if backbone else 1)
        with Ticker("recording", total, done) as ticker:
            for answer in backbone.answer(requests, decodings) if backbone else ():
                place, example = self._queue.popleft()
                if place >= done:
                    self._take(example, answer)
                self._pass_choices()
                ticker.advance(self._journal.count - ticker.done, info=_usage(self._journal, self._config))
            for _ in requests:  # without a backbone: nobody is asked
                pass
            self._pass_choices()
        if self._spent:
            raise InputError(
                self._spent,
                f"is spent, {self._journal.count} of {total} examples are recorded; with more, the same command"
                " continues",
            )
        if self._refused and not self._journal.answered:
            raise InputError("backbone", f"no example has an answer ({self._refused[0][1].problem})")
        self._keep_refused()

    def _requests(self, group: int) -> Iterator[Request]:
        # What answers in groups gets the same groups as without an interruption.
        done = self._journal.count
        answered = done - self._journal.passed
        start, asked = answered - answered % group, 0
        for place, example in enumerate(self._examples()):
            if example.choices:
                if place >= done:
                    self._queue.append((place, example))
                    self._pass_choices()
                continue
            asked += 1
            if asked <= start:
                continue
            if spent := _spent(self._journal, self._config):
                self._spent = spent
                return
            self._queue.append((place, example))
            yield Request(example, self._prompter.prompt(example))

    def _pass_choices(self) -> None:
        """Record the examples with choices that wait for no answer before them."""
        while self._queue and self._queue[0][1].choices:
            _, example = self._queue.popleft()
            self._keep_refused()
            self._journal.write(example, Answer(Pool.of_example(example).candidates))

    def _take(self, example: Example, answer: Answer) -> None:
        if not answer.problem:
            self._keep_refused()
            self._journal.write(example, answer)
            return
        self._refused.append((example, answer))
        if self._config.kind == "recorded":  # lacking pools are no failure
            if self._journal.answered:
                self._keep_refused()
        elif len(self._refused) == _PATIENCE:
            raise InputError("backbone", f"{_PATIENCE} examples one after the other have no answer ({answer.problem})")

    def _keep_refused(self) -> None:
        for example, answer in self._refused:
            self._journal.write(example, answer)
        self._refused = []


def _publish(journal: "_Journal", out: Path, made_by: dict[str, Any], config: BackboneConfig) -> None:
    """The finished recording as the pool file and what lies beside it."""
    with atomic_path(out) as scratch, open(scratch, "w", encoding="utf-8") as final:
        candidates = 0
        for row in journal.rows():
            if "pool" in row:
                final.write(to_line(row["pool"]))
                candidates += len(row["pool"]["candidates"])
        if journal.left_out:
            with atomic_path(left_out_path(out)) as other, open(other, "w", encoding="utf-8") as stream:
                stream.writelines(to_line(row) for row in journal.rows() if "problem" in row)
            say(f"{journal.left_out} examples have no answer and are left out, see {left_out_path(out)}")
        facts: dict[str, Any] = {
            "examples": journal.count - journal.left_out,
            "candidates": candidates,
            "empty": journal.empty,
            "input_tokens": journal.input_tokens,
            "output_tokens": journal.output_tokens,
        }
        if config.url:
            facts["url"] = _without_secrets(config.url)
        write_json(made_by_path(out), made_by | facts)
    journal.remove()
    if journal.passed:
        say(f"{journal.passed} examples have choices, which are their candidates")
    if journal.empty:
        say(f"{journal.empty} empty answers are left out")
    if journal.output_tokens:
        say(f"used {_count(journal.input_tokens)} tokens of prompts and {_count(journal.output_tokens)} of answers")


def _without_secrets(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class _Journal:
    """`OUT.partial`: what has been recorded so far, an example a line, after a line of settings."""

    def __init__(self, path: Path, made_by: dict[str, Any]) -> None:
        self._path = path
        self.count = self.left_out = self.passed = self.empty = 0
        self.input_tokens = self.output_tokens = 0
        head = to_line(made_by).encode()
        if path.exists() and path.stat().st_size:
            self._continue(head)
        else:
            with kept_on_failure(path, _KEPT), open(path, "wb") as stream:
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
        self.passed += "choices" in row.get("pool", ())
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
        with kept_on_failure(self._path, _KEPT):
            self._stream.write(to_line(row).encode())
            self._stream.flush()
        self._add(row)

    @property
    def answered(self) -> int:
        """How many examples the backbone has answered."""
        return self.count - self.left_out - self.passed

    def rows(self) -> Iterator[dict[str, Any]]:
        """Everything recorded, in order."""
        with open(self._path, "rb") as lines:
            for line in islice(lines, 1, None):
                yield json.loads(line)

    def remove(self) -> None:
        """The recording is finished: its file goes."""
        self._stream.close()
        self._path.unlink()


def _spent(journal: _Journal, config: BackboneConfig) -> str | None:
    """The key of the budget that is spent, if one is."""
    tokens = journal.input_tokens + journal.output_tokens
    if config.budget_tokens is not None and tokens >= config.budget_tokens:
        return "backbone.budget_tokens"
    cost = _cost(journal.input_tokens, journal.output_tokens, config)
    if config.budget_usd is not None and cost is not None and cost >= config.budget_usd:
        return "backbone.budget_usd"
    return None


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

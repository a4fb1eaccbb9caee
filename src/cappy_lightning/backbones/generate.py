"""Examples and a backbone make pools: recorded once, in the order of the examples, and resumable.

While a recording is under way it lies in `OUT.partial`: a line that says what is recorded, then one line an
example, written as its answers come. The same call continues after it. When all is there it becomes `OUT`.
"""

import contextlib
import json
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cappy_lightning.backbones.backbone import Answer, Backbone, Request
from cappy_lightning.backbones.decoding import Decoding, parse_decoding
from cappy_lightning.backbones.embedded import embedded_backbone
from cappy_lightning.backbones.openai_api import OpenAIBackbone
from cappy_lightning.backbones.prompts import Prompter, draw_shots
from cappy_lightning.backbones.recorded import RecordedBackbone
from cappy_lightning.backbones.recording import KEPT, Recording
from cappy_lightning.backbones.spending import say_estimate, short_number, spent_budget, usage
from cappy_lightning.backbones.survey import Survey, fingerprint, settings, survey
from cappy_lightning.config import BackboneConfig
from cappy_lightning.errors import InputError
from cappy_lightning.files import atomic_path, kept_on_failure, make_dir, open_locked, to_line, write_json
from cappy_lightning.progress import Ticker, counted, say
from cappy_lightning.records import Example, Pool

#: So many examples one after the other that the backbone cannot serve are no matter of single examples any more.
_PATIENCE = 8


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


def made_by_path(pool: Path) -> Path:
    """The file beside a recorded pool that says how it was made."""
    return pool.with_name(pool.stem + ".made_by.json")


def left_out_path(pool: Path) -> Path:
    """The file beside a recorded pool that has the examples without an answer, each with the reason."""
    return pool.with_name(pool.stem + ".left_out.jsonl")


def record_pools(
    examples: Callable[[], Iterable[Example]],
    config: BackboneConfig,
    out: Path,
    *,
    part: bool = False,
    around: Callable[[Backbone], Backbone] = lambda backbone: backbone,
    rows: Callable[[Iterator[Pool]], Iterator[dict[str, Any]]] = lambda pools: map(Pool.to_row, pools),
    made_also_by: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Let the backbone answer every example, and write the pools to `out` in the order of the examples.

    Examples with choices are pools of these already, and are not asked. Memory holds the requests under
    way, however many examples there are. Seeds depend on the example alone, those of a model in this process on
    the group that it answers together. Beside `out`, a small JSON says how
    it was made, with what the prompts of each task begin with, which stands there once instead of in every pool.

    Args:
        examples: gives the examples from the start, the same ones each time.
        config: the section `backbone`.
        out: the pool file; it appears when all examples are there.
        part: this is one of several parts, which may be without any example.
        around: what stands between the examples and the backbone.
        rows: what is written of the pools, when all are there.
        made_also_by: settings of these two; a recording with others is not continued.

    Raises:
        InputError: `out` exists and is of something else, there is no example, a partial recording of something else
            is in the way, the backbone fails, or a budget is spent.
    """
    asked = asked_decodings(config)
    make_dir(out.parent)
    lock = out.with_name(f".{out.name}.lock")
    with open_locked(lock, out, "recording"):
        known = survey(examples())
        if not known.count and not part:
            raise InputError(out, "there is no example to record")
        shots = config.shots if config.kind != "recorded" else 0
        prompter = Prompter(config, draw_shots(examples(), known.eligible, shots, config.seed))
        told = settings(config)
        made_by = {
            "fingerprint": fingerprint(known.digest, told),
            **told,
            "prompt_prefixes": prompter.prefixes,
            **made_also_by,
        }
        if out.exists():
            if not _made_so(out, made_by):
                raise InputError(out, "exists already, expected a new file")
            say(f"{out}: is there already, of these examples and settings")
            lock.unlink()
            return
        recording = Recording(out.with_name(out.name + ".partial"), made_by)
        if recording.count:
            say(f"{out}: continuing, {recording.count} of {known.count} examples are recorded")
        if recording.count < known.count:
            recorder = _Recorder(examples, known, prompter, config, recording)
            if not known.asked:
                recorder.run(None, ())
            else:
                if config.kind != "recorded":
                    say_estimate(known, recording, prompter, asked, config)
                with open_backbone(config) as backbone:
                    recorder.run(around(backbone), possible_decodings(backbone, asked))
        with kept_on_failure(out, KEPT):
            _publish(recording, out, made_by, config, rows)
        lock.unlink()


def _made_so(out: Path, made_by: dict[str, Any]) -> bool:
    """Whether a finished recording is of these settings."""
    try:
        told = json.loads(made_by_path(out).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    wanted = json.loads(to_line(made_by))
    return isinstance(told, dict) and {key: told.get(key) for key in wanted} == wanted


def asked_decodings(config: BackboneConfig) -> list[Decoding]:
    """The decodings that a config names.

    Raises:
        InputError: an unknown one.
    """
    counts = {name: n for name, n in config.decodings.items() if n}
    if config.kind == "recorded":  # under whatever name it was recorded
        return [Decoding(name, n) for name, n in counts.items()]
    return [parse_decoding(name, n) for name, n in counts.items()]


def possible_decodings(backbone: Backbone, asked: Sequence[Decoding]) -> list[Decoding]:
    """Those of the asked decodings that a backbone can do; what is left out is said.

    Raises:
        InputError: there is none.
    """
    reasons = {decoding.name: backbone.refuses(decoding) for decoding in asked}
    for name, reason in reasons.items():
        if reason:
            say(f"left out: {name} ({reason})")
    left = [decoding for decoding in asked if not reasons[decoding.name]]
    if not left:
        raise InputError("backbone.decodings", "the backbone can do none of them, expected at least one")
    return left


class _Recorder:
    """Takes the examples one by one to the backbone, and their answers to the recording."""

    def __init__(
        self,
        examples: Callable[[], Iterable[Example]],
        known: Survey,
        prompter: Prompter,
        config: BackboneConfig,
        recording: Recording,
    ) -> None:
        self._examples, self._known, self._prompter = examples, known, prompter
        self._config, self._recording = config, recording
        #: Examples on their way, in order, each with its place.
        self._queue: deque[tuple[int, Example]] = deque()
        #: Refusals one after the other, with the examples with choices between them; not yet in the recording.
        self._held: list[tuple[Example, Answer]] = []
        self._refused = 0
        self._spent: str | None = None

    def run(self, backbone: Backbone | None, decodings: Sequence[Decoding]) -> None:
        """Record all that is missing; without a backbone, where every example has choices.

        Raises:
            InputError: a budget is spent, or the backbone refuses one example after the other.
        """
        done, total = self._recording.count, self._known.count
        requests = self._requests(backbone.group if backbone else 1)
        # Examples with choices take no time.
        with Ticker("recording", self._known.asked.total(), done - self._recording.passed) as ticker:
            for answer in backbone.answer(requests, decodings) if backbone else ():
                place, example = self._queue.popleft()
                if place >= done:
                    self._take(example, answer)
                    if self._refused == _PATIENCE and self._config.kind != "recorded":  # there no failure of an LLM
                        assert backbone is not None
                        if not self._still_answers(backbone, decodings):
                            problem = f"{_PATIENCE} examples one after the other have no answer ({answer.problem})"
                            raise InputError("backbone", problem)
                        self._write_held()
                self._pass_choices()
                asked = self._recording.count - self._recording.passed
                ticker.advance(asked - ticker.done, info=usage(self._recording, self._config))
            for _ in requests:  # without a backbone: nobody is asked
                pass
            self._pass_choices()
        if self._spent:
            raise InputError(
                self._spent,
                f"is spent, {self._recording.count} of {total} examples are recorded; with more, the same command"
                " continues",
            )
        if self._refused and not self._recording.answered:
            raise InputError("backbone", f"no example has an answer ({self._held[0][1].problem})")
        self._write_held()

    def _requests(self, group: int) -> Iterator[Request]:
        # What answers in groups gets the same groups as without an interruption.
        done = self._recording.count
        answered = done - self._recording.passed
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
            if key := spent_budget(self._recording, self._config):
                self._spent = key
                return
            self._queue.append((place, example))
            yield Request(example, self._prompter.prompt(example))

    def _pass_choices(self) -> None:
        """Record the examples with choices that wait for no answer before them."""
        while self._queue and self._queue[0][1].choices:
            _, example = self._queue.popleft()
            self._held.append((example, Answer(Pool.of_example(example).candidates)))
            if not self._refused:
                self._write_held()

    def _take(self, example: Example, answer: Answer) -> None:
        self._held.append((example, answer))
        self._refused += bool(answer.problem)
        if not answer.problem or (self._config.kind == "recorded" and self._recording.answered):
            self._write_held()

    def _still_answers(self, backbone: Backbone, decodings: Sequence[Decoding]) -> bool:
        """Whether the LLM answers what it has answered before: then it is the examples that have no answer."""
        for row in self._recording.rows():
            if "choices" not in row.get("pool", {"choices": ()}):
                example = Pool.from_row(row["pool"], "the recording", labelled=False).example
                (answer,) = backbone.answer(iter([Request(example, self._prompter.prompt(example))]), decodings)
                return not answer.problem
        return False

    def _write_held(self) -> None:
        for example, answer in self._held:
            self._recording.write(example, answer)
        self._held, self._refused = [], 0


def _publish(
    recording: Recording,
    out: Path,
    made_by: dict[str, Any],
    config: BackboneConfig,
    rows: Callable[[Iterator[Pool]], Iterator[dict[str, Any]]],
) -> None:
    """The finished recording as the pool file and what lies beside it."""
    candidates = 0

    def pools() -> Iterator[Pool]:
        nonlocal candidates
        for row in recording.rows():
            if "pool" in row:
                candidates += len(row["pool"]["candidates"])
                yield Pool.from_row(row["pool"], out, labelled=False)

    with atomic_path(out) as scratch, open(scratch, "w", encoding="utf-8") as final:
        final.writelines(map(to_line, rows(pools())))
        if recording.left_out:
            with atomic_path(left_out_path(out)) as other, open(other, "w", encoding="utf-8") as stream:
                stream.writelines(to_line(row) for row in recording.rows() if "problem" in row)
            say(f"left out without an answer: {counted(recording.left_out, 'example')}, see {left_out_path(out)}")
        facts: dict[str, Any] = {
            "examples": recording.count - recording.left_out,
            "candidates": candidates,
            "empty": recording.empty,
            "input_tokens": recording.input_tokens,
            "output_tokens": recording.output_tokens,
        }
        if config.url:
            facts["url"] = _without_secrets(config.url)
        write_json(made_by_path(out), made_by | facts)
    recording.remove()
    if recording.passed:
        say(f"{counted(recording.passed, 'example')} with choices, which are the candidates")
    if recording.empty:
        say(f"left out: {counted(recording.empty, 'empty answer')}")
    if recording.output_tokens:
        say(
            f"used {short_number(recording.input_tokens)} tokens of prompts"
            f" and {short_number(recording.output_tokens)} of answers"
        )


def _without_secrets(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

"""Examples and a backbone make pools: recorded once, one example after the other, and resumable."""

import contextlib
import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from cappy_lightning.backbones.completions import CompletionsBackbone
from cappy_lightning.backbones.decoding import Decoding, parse_decoding
from cappy_lightning.backbones.embedded import MODEL_NAME, embedded_backbone
from cappy_lightning.config import BackboneConfig
from cappy_lightning.errors import InputError
from cappy_lightning.files import atomic_path, make_dir, open_locked, to_line, write_json
from cappy_lightning.progress import Ticker, say
from cappy_lightning.records import Example, Pool

#: Examples that are sent side by side: enough to keep the embedded LLM's slots busy.
IN_FLIGHT = 4


def few_shot_prefix(template: str, shots: Sequence[Example]) -> str:
    """The beginning of every prompt: the template filled for each shot, followed by its first reference.

    >>> few_shot_prefix("Q: {instruction}\\nA:", [Example("sums", "1", "1+1?", ("2",))])
    'Q: 1+1?\\nA: 2\\n\\n'
    """
    return "".join(f"{template.replace('{instruction}', s.instruction)} {s.references[0]}\n\n" for s in shots)


def draw_shots(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """`count` training examples (split `train` or none), the same for every prompt.

    One set of shots for the whole task lets every server reuse the prompt's beginning.

    Raises:
        InputError: fewer than `count` training examples with a reference.
    """
    eligible = [e for e in examples if e.split != "validation" and e.references]
    if len(eligible) < count:
        raise InputError("backbone.shots", f"is {count}, but only {len(eligible)} training examples have a reference")
    return random.Random(seed).sample(eligible, count)


@contextlib.contextmanager
def open_backbone(config: BackboneConfig) -> Iterator[CompletionsBackbone]:
    """The client of `backbone.url`, or of the embedded LLM where there is none."""
    if config.url is None:
        with embedded_backbone() as client:
            yield client
    else:
        with contextlib.closing(CompletionsBackbone(config.url, config.model)) as client:
            yield client


def fingerprint(examples: Sequence[Example], config: BackboneConfig) -> str:
    """A hash of all that decides what a recording holds: the examples and how they are answered."""
    content = json.dumps([_settings(config), [e.to_row() for e in examples]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _settings(config: BackboneConfig) -> dict[str, Any]:
    return {
        **vars(config),
        "decodings": dict(config.decodings),
        "model": config.model or (None if config.url else MODEL_NAME),
    }


def made_by_path(pool: Path) -> Path:
    """The file beside a recorded pool that says how it was made."""
    return pool.with_name(pool.stem + ".made_by.json")


def record_pools(examples: Sequence[Example], config: BackboneConfig, out: Path) -> None:
    """Let the backbone answer every example, and write the pools to `out` in the order of the examples.

    Finished examples are kept in `OUT.partial` as they come, so that the same call continues after an
    interruption; `out` appears when all are there. Seeds depend on the example alone. Beside `out` a
    small JSON says how it was made: the settings, and the few-shot prefix of every prompt, which stands
    there once instead of in every pool.

    Raises:
        InputError: a partial recording with other settings is in the way, or the backbone fails.
    """
    decodings = [parse_decoding(name, n) for name, n in config.decodings.items() if n]
    prefix = few_shot_prefix(config.template, draw_shots(examples, config.shots, config.seed))
    made = {"fingerprint": fingerprint(examples, config)}
    make_dir(out.parent)
    partial = out.with_name(out.name + ".partial")
    lock = out.with_name(f".{out.name}.lock")
    with open_locked(lock, out, "recording"), open(partial, "a", encoding="utf-8") as stream:
        done = _read_partial(partial, made)
        missing = [e for e in examples if (e.task, e.id) not in done]
        if done and missing:
            say(f"{out}: continuing, {len(done)} of {len(examples)} examples are recorded")
        if not partial.stat().st_size:
            stream.write(to_line(made))
            stream.flush()
        if missing:
            with open_backbone(config) as backbone, Ticker(f"recording {out.name}", len(examples), len(done)) as ticker:
                for pool in _answer_all(backbone, missing, prefix, decodings, config):
                    stream.write(to_line(pool.to_row()))
                    stream.flush()
                    done[pool.example.task, pool.example.id] = pool
                    ticker.advance()
        dropped = sum(d.n for d in decodings) * len(examples) - sum(len(p.candidates) for p in done.values())
        if dropped:
            say(f"{out}: {dropped} empty answers were left out")
        write_json(made_by_path(out), {**made, **_settings(config), "prompt_prefix": prefix})
        with atomic_path(out) as scratch, open(scratch, "w", encoding="utf-8") as final:
            final.writelines(to_line(done[e.task, e.id].to_row()) for e in examples)
        partial.unlink()
    lock.unlink()


def _answer_all(
    backbone: CompletionsBackbone,
    examples: Sequence[Example],
    prefix: str,
    decodings: Sequence[Decoding],
    config: BackboneConfig,
) -> Iterator[Pool]:
    """Pools in the order in which they get ready, with a bounded number of examples under way."""

    def answer(example: Example) -> Pool:
        prompt = prefix + config.template.replace("{instruction}", example.instruction)
        candidates = [
            candidate
            for decoding in decodings
            for candidate in backbone.sample(
                prompt,
                decoding,
                max_tokens=config.max_tokens,
                stop=config.stop,
                seed=random.Random(f"{config.seed} {example.id} {decoding.name}").randrange(2**31),
            )
        ]
        if not candidates:
            raise InputError(f"example {example.id}", "the LLM gave only empty answers, expected at least one")
        return Pool(example, tuple(candidates))

    executor = ThreadPoolExecutor(IN_FLIGHT)
    running: set[Future[Pool]] = set()
    try:
        for example in examples:
            running.add(executor.submit(answer, example))
            if len(running) >= 2 * IN_FLIGHT:
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
        while running:
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ready)
    finally:
        executor.shutdown(cancel_futures=True)


def _read_partial(partial: Path, made: dict[str, str]) -> dict[tuple[str, str], Pool]:
    """The pools of an interrupted recording by example id; a line cut off by a kill is removed."""
    done: dict[tuple[str, str], Pool] = {}
    data = partial.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.decode("utf-8").split("\n")[:-1]  # not splitlines, which also cuts at U+2028 inside a text
    if lines and json.loads(lines[0]) != made:
        raise InputError(
            partial, "is a recording of other examples or settings; finish it, delete it or write elsewhere"
        )
    for number, line in enumerate(lines[1:], start=2):
        pool = Pool.from_row(json.loads(line), f"{partial}:{number}")
        done[pool.example.task, pool.example.id] = pool
    if whole != data:
        with open(partial, "r+b") as stream:
            stream.truncate(len(whole))
    return done

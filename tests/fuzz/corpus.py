"""Malformed input, made from good input by a few ways of going wrong; the same every time."""

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: What a user, a program or a broken disk may put where a value belongs.
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1e308,
    float("nan"),
    float("inf"),
    10**30,
    "",
    " ",
    "\x00",
    "\ud800",
    "\U0001f600",
    "a" * 10_000,
    "../../../etc/passwd",
    "${oc.env:HOME}",
    "${nothing}",
    "{{ 1 }}",
    [],
    [[]],
    [None],
    {},
    {"a": {"b": []}},
)

#: Words for a key on the command line.
WORDS = (
    "",
    "null",
    "[]",
    "{}",
    "-1",
    "nan",
    "1e999",
    "'",
    "[",
    "{a: 1}",
    "${x}",
    "\x00",
    "true",
    "🙂",
    "1,2",
    "!!python/object:os.system x",
)


def rows(good: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key of a row, also of the objects in its lists, missing or with each of the values."""
    for path in _paths(good):
        yield f"without {path}", _changed(good, path, _MISSING)
        for number, value in enumerate(VALUES):
            yield f"{path} = value {number}", _changed(good, path, value)


_MISSING = object()


def _paths(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, below in items:
        yield (*prefix, key)
        yield from _paths(below, (*prefix, key))


def _changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    copy = json.loads(json.dumps(value))
    place = copy
    for key in path[:-1]:
        place = place[key]
    if new is _MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = new
    return copy


def texts(good: bytes) -> Iterator[tuple[str, bytes]]:
    """A text file that is cut, spliced, doubled, of another encoding, or of something else altogether."""
    generator = random.Random(0)
    yield "empty", b""
    yield "white", b" \n\t\n"
    yield "a zero", b"\x00"
    yield "zeros", b"\x00" * 4096
    yield "UTF-16", good.decode().encode("utf-16")
    yield "Latin-1", '{"instruction": "Größe"}'.encode("latin-1")
    yield "with a mark", b"\xef\xbb\xbf" + good
    yield "one line", good.replace(b"\n", b" ")
    yield "carriage returns", good.replace(b"\n", b"\r")
    yield "twice", good + good
    yield "an array", b"[" + good.rstrip().replace(b"\n", b",") + b"]"
    yield "deep", b"[" * 100_000
    yield "deep objects", b'{"a":' * 50_000
    yield "a number", b"7\n"
    yield "a text", b'"text"\n'
    yield "null", b"null\n"
    yield "a comma more", good.replace(b"}", b",}", 1)
    yield "single quotes", good.replace(b'"', b"'")
    yield "a huge number", b'{"instruction": 1' + b"0" * 5000 + b"}\n"
    yield "a PNG", b"\x89PNG\r\n\x1a\n" + bytes(generator.randrange(256) for _ in range(500))
    yield "a pickle", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
    for number in range(8):
        end = generator.randrange(1, len(good))
        yield f"cut {number}", good[:end]
        place = generator.randrange(len(good))
        yield (
            f"flipped {number}",
            good[:place] + bytes([good[place] ^ (1 << generator.randrange(8))]) + good[place + 1 :],
        )
        start = generator.randrange(len(good))
        yield f"spliced {number}", good[:start] + good[end:]


def yamls() -> Iterator[tuple[str, str]]:
    """Recipes and sources files that are none."""
    parts = (
        *("", "# nothing\n", "7\n", "- a\n- b\n", "a: [\n", "a: b: c\n", "\ta: 1\n", "a: 1\na: 2\n", "? [1]\n: 2\n"),
        *("&a [*a]\n", "a: &a {b: *a}\n", "data: 7\n", "data: {pool: {}}\n", "data: [1]\n", "seed: [1]\n", "seed: x\n"),
        *(
            "seed: 1e999\n",
            "trainer: null\n",
            "scorer: {base: ''}\n",
            "run_dir: ''\n",
            "run_dir: [a]\n",
            "name: null\n",
        ),
        *(
            "!!python/object/apply:os.system ['true']\n",
            "%YAML 9.9\n---\na: 1\n",
            "---\na: 1\n---\nb: 2\n",
            "a: !x 1\n",
        ),
        *("seed: ${seed}\n", "seed: ${data.nothing}\n", "name: ${oc.env:NOTHING_LIKE_IT}\n", "name: '${'\n", "1: 2\n"),
        *("sources: 7\n", "sources: []\n", "sources: [7]\n", "sources: [{}]\n", "sources: [{files: 7}]\n"),
        *("sources: [{files: [nowhere.csv]}]\n", "sources: [{files: ['']}]\n", "sources: [{bigbench: no_such}]\n"),
        *("sources: [{files: [x.jsonl], columns: 7}]\n", "sources: [{files: [x.jsonl], template: 7}]\n"),
        *("sources: [{files: [x.jsonl], choices: 7}]\n", "sources: [{files: [x.jsonl], score_range: [1]}]\n"),
    )
    yield from ((f"YAML {number}", part) for number, part in enumerate(parts))


def directories(good: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A directory of files of which one is missing, empty, cut, garbage, or a JSON of another kind."""
    files = {path.name: path.read_bytes() for path in sorted(good.iterdir()) if path.is_file()}
    for name, content in files.items():
        rest = {other: own for other, own in files.items() if other != name}
        yield f"without {name}", rest
        for how, changed in (
            ("empty", b""),
            ("cut", content[: len(content) // 2]),
            ("garbage", bytes(random.Random(name).randrange(256) for _ in range(200))),
            ("null", b"null"),
            ("list", b"[]"),
            ("object", b"{}"),
        ):
            yield f"{name} {how}", {**rest, name: changed}
        if name.endswith(".json"):
            found = json.loads(content)
            keys = found if isinstance(found, dict) else {}
            for key, value in itertools.product(keys, (None, -1, "x", [], {})):
                yield f"{name} {key} = {value!r}", {**rest, name: json.dumps({**keys, key: value}).encode()}

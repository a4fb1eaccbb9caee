"""How good a response is, given references: the score of sampled responses and the metric of reports."""

import hashlib
import importlib
import itertools
import os
import struct
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from cappy_lightning.errors import InputError
from cappy_lightning.files import kept_on_failure
from cappy_lightning.labeling.rouge import Item, RougeL, blocks
from cappy_lightning.labeling.tokens import Encoder
from cappy_lightning.matching import normalize


class Measure(Protocol):
    """Scores responses against references, each from 0 to 1."""

    #: As reports show it.
    name: str

    def scores(self, items: Sequence[Item]) -> list[float]:
        """The score of every item, in the order given."""


class _ExactMatch:
    name = "exact_match"

    def scores(self, items: Sequence[Item]) -> list[float]:
        return [float(normalize(one) in map(normalize, references)) for _, references, one in items]


class _TokenF1:
    """F1 of the bags of tokens (Rajpurkar et al. 2016, https://aclanthology.org/D16-1264), best over references."""

    name = "token_f1"

    def __init__(self, tokenizer: str) -> None:
        self._encoder = Encoder(tokenizer)

    def scores(self, items: Sequence[Item]) -> list[float]:
        found: list[float] = []
        for part in blocks(items):
            self._encoder.renew()
            found += [max(self._f1(reference, one) for reference in references) for _, references, one in part]
        return found

    def _f1(self, reference: str, response: str) -> float:
        ours, theirs = Counter(self._encoder.encode(response)), Counter(self._encoder.encode(reference))
        common = (ours & theirs).total()
        return 2 * common / (ours.total() + theirs.total()) if common else 0.0


class Function:
    """A function of the user's: (instruction, references, response) -> a number from 0 to 1."""

    def __init__(self, name: str, function: Callable[[str, list[str], str], float]) -> None:
        self.name, self._function = name, function

    def scores(self, items: Sequence[Item]) -> list[float]:
        """What the function says of each.

        Raises:
            InputError: it fails, or says no number from 0 to 1.
        """
        return [self._score(*item) for item in items]

    def _score(self, instruction: str, references: Sequence[str], response: str) -> float:
        try:
            score = float(self._function(instruction, list(references), response))
        except Exception as error:
            problem = f"failed with {type(error).__name__}: {error}"
        else:
            if 0 <= score <= 1:
                return score
            problem = f"gave {score}, expected a number from 0 to 1"
        raise InputError(f"label.score={self.name}", f"{problem}, for the response {response[:80]!r}")


class KeptScores:
    """A measure whose scores are in a file as soon as they are there.

    What the file holds of an earlier call, as after a kill, is not asked again. A `Function` is asked for one
    score at a time, because it may ask an LLM or a person; other measures for some at a time.

    Args:
        measure: whose scores are kept.
        path: of the file, 24 bytes a score.
    """

    _RECORD = struct.Struct("<16sd")  # the item's hash, its score
    _TOGETHER = 256  # few enough to be soon done again, enough to be fast

    def __init__(self, measure: Measure, path: Path) -> None:
        self.name, self._measure, self._path = measure.name, measure, path
        self._together = 1 if isinstance(measure, Function) else self._TOGETHER
        held = path.read_bytes() if path.exists() else b""
        self._whole = len(held) // self._RECORD.size * self._RECORD.size
        self._known: dict[bytes, float] = dict(self._RECORD.iter_unpack(held[: self._whole]))

    def __len__(self) -> int:
        return len(self._known)

    def scores(self, items: Sequence[Item]) -> list[float]:
        """The score of every item, in the order given.

        Raises:
            InputError: the file cannot be written, or what the measure raises.
        """
        keys = [hashlib.md5(repr(item).encode(), usedforsecurity=False).digest() for item in items]
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in self._known}
        unknown = list(missing)
        for start in range(0, len(unknown), self._together):
            self._ask({key: missing[key] for key in unknown[start : start + self._together]})
        return [self._known[key] for key in keys]

    def _ask(self, items: dict[bytes, Item]) -> None:
        found = dict(zip(items, self._measure.scores(list(items.values())), strict=True))
        records = b"".join(itertools.starmap(self._RECORD.pack, found.items()))
        with kept_on_failure(self._path, "what is there"), open(self._path, "ab") as file:
            file.truncate(self._whole)  # a score that was cut off
            file.write(records)
        self._whole += len(records)
        self._known |= found


def open_measure(score: str, tokenizer: str) -> Measure:
    """The measure with a name: `rouge_l`, `exact_match`, `token_f1`, or a function `package.module:function`.

    Raises:
        InputError: there is none of this name.
    """
    if score == "rouge_l":
        return RougeL(tokenizer)
    if score == "exact_match":
        return _ExactMatch()
    if score == "token_f1":
        return _TokenF1(tokenizer)
    module, colon, name = score.partition(":")
    if not colon:
        raise InputError(
            "label.score", f"is '{score}', expected rouge_l, exact_match, token_f1 or package.module:function"
        )
    if os.getcwd() not in sys.path:  # where `python -m` looks, and the console command does not
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever the user's module does when it is imported
        raise InputError("label.score", f"'{score}' cannot be imported ({type(error).__name__}: {error})") from None
    if not callable(function):
        raise InputError("label.score", f"'{score}' is no function")
    return Function(score, function)

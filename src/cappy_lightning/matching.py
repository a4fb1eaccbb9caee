"""When two texts count as the same answer."""

import re
import string
from collections.abc import Iterable

#: ASCII punctuation, but no point and no minus sign of a number.
_PUNCTUATION = re.compile(rf"(?![.-]\.?\d)[{re.escape(string.punctuation)}]")


def normalize(text: str) -> str:
    """Lower case, without extra white space and ASCII punctuation: when two answers count as the same.

    Points and minus signs before a digit stay: 3.5 is not 35, and 5 not -5.
    """
    return " ".join(_PUNCTUATION.sub("", text.lower()).split()) or text.strip()


def matching_choice(response: str, choices: Iterable[str]) -> str | None:
    """The choice that a response stands for: the one that is equal to it but for as little as possible.

    That is nothing, else case and white space, else also punctuation at the ends, else all of `normalize`. None where
    none is equal, or several are.
    """
    for form in (str, _folded, _trimmed, normalize):
        own = form(response)
        if found := {choice for choice in choices if form(choice) == own}:
            return found.pop() if len(found) == 1 else None
    return None


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _trimmed(text: str) -> str:
    """Without the punctuation that a sentence puts around an answer."""
    return _folded(text).strip(" .,;:!?\"'`*()[]")

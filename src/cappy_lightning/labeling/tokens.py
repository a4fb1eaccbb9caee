"""The tokens that responses are compared by: the paper's, and one for every script.

The paper's are `rouge-score`'s with stemmer: lower case, runs of the letters a-z and digits, Porter stems
of words of more than three letters. Texts in scripts other than Latin have none of them.

Those for every script are runs of letters and digits of the compatibility-composed, case-folded text
(NFKC), with the same stems for words of a-z. Scripts that are written without spaces between words (Chinese
characters, kana, Thai, Lao, Khmer, Burmese) give one token a character with its marks, as the BLEU and Rouge
figures for such languages are commonly taken: no dictionary is needed, and none can be out of date.
"""

import re
import unicodedata
from collections.abc import Callable

import regex
from nltk.stem.porter import PorterStemmer

#: By name, what splits a text into words.
Words = Callable[[str], list[str]]

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_MARKS = r"[\p{M}\u200c\u200d]*"
_PAPER = re.compile("[a-z0-9]+")
_UNICODE = regex.compile(
    rf"[[{_UNSPACED}]&&[\p{{L}}\p{{N}}]]{_MARKS}ー*{_MARKS}|(?:[[\p{{L}}\p{{N}}]--[{_UNSPACED}]]{_MARKS})+", regex.V1
)
#: Most distinct stems that are kept; beyond it a new block of texts starts with none.
_MOST_STEMS = 50_000


def _paper_words(text: str) -> list[str]:
    return _PAPER.findall(text.lower())


def _unicode_words(text: str) -> list[str]:
    return list(_UNICODE.findall(unicodedata.normalize("NFKC", text).casefold()))


TOKENIZERS: dict[str, Words] = {"paper": _paper_words, "unicode": _unicode_words}


class _Characters(dict[str, str]):
    """From word to the character that stands for its stem, made when first asked for."""

    def __init__(self) -> None:
        self._stem = PorterStemmer().stem
        self._by_stem: dict[str, str] = {}

    def __missing__(self, word: str) -> str:
        stem = self._stem(word) if len(word) > 3 and _PAPER.fullmatch(word) else word
        character = self._by_stem.setdefault(stem, chr(1 + len(self._by_stem)))
        self[word] = character
        return character

    @property
    def stems(self) -> int:
        """How many different stems were met."""
        return len(self._by_stem)


class Encoder:
    """Texts as strings of one character a token, so that tokens are compared at the speed of characters.

    Args:
        tokenizer: `paper` or `unicode`.
    """

    def __init__(self, tokenizer: str) -> None:
        self._words = TOKENIZERS[tokenizer]
        self._characters = _Characters()

    def renew(self) -> None:
        """Forget the vocabulary once it is large; what was encoded before cannot be compared with what follows."""
        if self._characters.stems > _MOST_STEMS:
            self._characters = _Characters()

    def encode(self, text: str) -> str:
        """The tokens of a text, each a character; equal characters are equal tokens."""
        return "".join(map(self._characters.__getitem__, self._words(text)))

"""How candidates are decoded, by name."""

import re
from dataclasses import dataclass

from cappy_lightning.errors import InputError


@dataclass(frozen=True)
class Decoding:
    """Sampling settings of an OpenAI-compatible completion; `n` candidates are drawn with them.

    `top_k=0` and `top_p=1` leave the distribution whole.
    """

    name: str
    n: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def parse_decoding(name: str, n: int) -> Decoding:
    """The decoding with a name: `greedy`, `sampling`, `temperature_T`, `top_k_K` or `nucleus_P`.

    Raises:
        InputError: an unknown name, a number outside its range, or `n` below 1.
    """
    where = f"backbone.decodings.{name}"
    if n < 1:
        raise InputError(where, f"is {n}, expected a number of candidates of at least 1")
    if name == "sampling":
        return Decoding(name, n)
    if name == "greedy":
        if n != 1:
            raise InputError(where, f"is {n}, expected 1 (greedy decoding has one answer)")
        return Decoding(name, 1, temperature=0.0)
    match = re.fullmatch(r"(temperature|top_k|nucleus)_([0-9]{1,6}(?:\.[0-9]{1,6})?)", name)
    value = float(match[2]) if match else 0.0
    if match and match[1] == "temperature" and value > 0:
        return Decoding(name, n, temperature=value)
    if match and match[1] == "top_k" and value >= 1 and value.is_integer():
        return Decoding(name, n, top_k=int(value))
    if match and match[1] == "nucleus" and 0 < value <= 1:
        return Decoding(name, n, top_p=value)
    raise InputError(where, "unknown decoding, expected greedy, sampling, temperature_T, top_k_K or nucleus_P")

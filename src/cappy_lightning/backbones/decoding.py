"""How candidates are decoded, by name."""

import re
from dataclasses import dataclass

from cappy_lightning.errors import InputError


@dataclass(frozen=True)
class Decoding:
    """Settings of decoding; `n` candidates are drawn with them.

    `beams` above 1 is beam search, which gives its `n` best; `temperature=0` is greedy. `top_k=0` and
    `top_p=1` leave the distribution whole. `skip` candidates of it were asked for before; these are the next ones.
    """

    name: str
    n: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    beams: int = 1
    skip: int = 0

    def seed_text(self, seed: int, example_id: str) -> str:
        """What the seed of an example's candidates is made of; a model in this process has one for each group."""
        later = f" {self.skip}" if self.skip else ""
        return f"{seed} {example_id} {self.name}{later}"


def parse_decoding(name: str, n: int) -> Decoding:
    """The decoding with a name: `greedy`, `beam_K`, `sampling`, `temperature_T`, `top_k_K` or `nucleus_P`.

    The paper's are `beam_4`, `sampling`, `temperature_0.9`, `top_k_40` and `nucleus_0.95`.

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
    match = re.fullmatch(r"(temperature|top_k|nucleus|beam)_([0-9]{1,6}(?:\.[0-9]{1,6})?)", name)
    kind, value = (match[1], float(match[2])) if match else ("", 0.0)
    if kind == "temperature" and value > 0:
        return Decoding(name, n, temperature=value)
    if kind == "top_k" and value >= 1 and value.is_integer():
        return Decoding(name, n, top_k=int(value))
    if kind == "nucleus" and 0 < value <= 1:
        return Decoding(name, n, top_p=value)
    if kind == "beam" and value >= 2 and value.is_integer():
        if n > value:
            raise InputError(where, f"is {n}, expected at most {value:.0f} (the beams)")
        return Decoding(name, n, beams=int(value))
    raise InputError(where, "unknown decoding, expected greedy, beam_K, sampling, temperature_T, top_k_K or nucleus_P")

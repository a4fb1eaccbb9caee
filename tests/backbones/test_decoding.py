"""How candidates are decoded, by name."""

import pytest

from cappy_lightning.backbones.decoding import Decoding, parse_decoding
from cappy_lightning.config import BackboneConfig
from cappy_lightning.errors import InputError

BAD = [
    "", "Greedy", "beam", "beam_1", "beam_2.5", "temperature", "temperature_", "temperature_0", "temperature_0.0",
    "temperature_-1", "temperature_1e3", "temperature_nan", "temperature_.7", "temperature_7.", "top_k_0",
    "top_k_2.5", "top_k_-3", "nucleus_0", "nucleus_1.1", "nucleus_90", "nucleus_0.9 ", "top_p_0.9", "sampling\n",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "n", "expected"),
    [
        ("greedy", 1, Decoding("greedy", 1, temperature=0.0)),
        ("sampling", 4, Decoding("sampling", 4, temperature=1.0, top_p=1.0, top_k=0)),
        ("temperature_0.7", 3, Decoding("temperature_0.7", 3, temperature=0.7)),
        ("temperature_2", 1, Decoding("temperature_2", 1, temperature=2.0)),
        ("top_k_40", 2, Decoding("top_k_40", 2, top_k=40)),
        ("top_k_1", 2, Decoding("top_k_1", 2, top_k=1)),
        ("nucleus_0.9", 5, Decoding("nucleus_0.9", 5, top_p=0.9)),
        ("nucleus_1", 5, Decoding("nucleus_1", 5, top_p=1.0)),
        ("beam_4", 1, Decoding("beam_4", 1, beams=4)),
        ("beam_2", 2, Decoding("beam_2", 2, beams=2)),
    ],
)
def test_a_name_says_the_settings_and_leaves_the_others_alone(name: str, n: int, expected: Decoding) -> None:
    assert parse_decoding(name, n) == expected


@pytest.mark.parametrize(
    ("name", "n", "problem"),
    [
        ("sampling", 0, "is 0, expected a number of candidates of at least 1"),
        ("greedy", -1, "is -1, expected a number of candidates of at least 1"),
        ("beam_4", 5, "is 5, expected at most 4 (the beams)"),
        ("greedy", 2, "is 2, expected 1 (greedy decoding has one answer)"),
        *(
            (name, 1, "unknown decoding, expected greedy, beam_K, sampling, temperature_T, top_k_K or nucleus_P")
            for name in BAD
        ),
    ],
)
def test_a_bad_decoding_is_refused_by_its_key(name: str, n: int, problem: str) -> None:
    with pytest.raises(InputError) as error:
        parse_decoding(name, n)
    assert str(error.value) == f"{' '.join(f'backbone.decodings.{name}:'.split())} {problem}"


def test_no_setting_is_infinite() -> None:
    with pytest.raises(InputError):
        parse_decoding("temperature_" + "9" * 400, 1)


def test_the_decodings_of_the_schema_are_decodings() -> None:
    for name, n in BackboneConfig().decodings.items():
        assert parse_decoding(name, n).n == n

"""Instances made by hand, as shards, and the one line with which they are refused."""

from collections.abc import Callable
from typing import Any

import pytest

from cappy_lightning.errors import InputError
from cappy_lightning.records import ORIGINS, Instance

INSTANCES = [
    Instance(f"instruction {n}\nü😀", f"response {n}", n / 16, ORIGINS[n % 5], f"task {n % 3}", f"example {n // 2}")
    for n in range(17)
]


def refusal(read: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as error:
        read()
    assert "\n" not in str(error.value)
    return str(error.value)

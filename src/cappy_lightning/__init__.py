"""Cappy: a small scorer that picks the best answer of an LLM.

`Cappy` is loaded when it is first used, so that importing the package is light.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from cappy_lightning.errors import InputError

if TYPE_CHECKING:
    from cappy_lightning.cappy import Cappy

__version__ = version("cappy-lightning")
__all__ = ["Cappy", "InputError", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Cappy":
        return import_module("cappy_lightning.cappy").Cappy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

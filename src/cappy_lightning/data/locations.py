"""Where shards lie: local paths, and the URLs of any fsspec file system (s3://, gs://, https:// ...)."""

import contextlib
from collections.abc import Iterator
from typing import Any

import fsspec

from cappy_lightning.errors import InputError


def is_url(location: str) -> bool:
    """Whether it is a URL, not a local path."""
    return "://" in location


def join(location: str, name: str) -> str:
    """The location of an entry of a directory."""
    return f"{location.rstrip('/')}/{name}"


def open_location(location: str) -> tuple[Any, str]:
    """The fsspec file system of a location, and the path in it. To be called in the process that uses it."""
    files, path = fsspec.core.url_to_fs(location)
    return files, path


@contextlib.contextmanager
def readable(location: str) -> Iterator[None]:
    """For reading: whatever a file system raises becomes one line.

    Raises:
        InputError: it cannot be read.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each file system has its own
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(location, f"cannot be read ({reason}), expected a directory of instances") from None

"""A run whose files may have a megabyte, which is less than a checkpoint has, as on a disk that is full."""

import resource

from cappy_lightning.cli import main


def run(words: list[str]) -> int:
    """The exit code."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    return main(words)

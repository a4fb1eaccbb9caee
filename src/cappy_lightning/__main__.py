"""`python -m cappy_lightning`: the same as the command `cappy`."""

from cappy_lightning.cli import entry

entry()

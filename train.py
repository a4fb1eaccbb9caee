"""Train by a recipe: `python train.py RECIPE.yaml [OVERLAY.yaml ...] [key=value ...]`."""

import sys

from cappy_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

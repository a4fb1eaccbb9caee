"""Cross-fitting: logits of training examples from scorers that have not seen them, and the fusion fitted on those."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cappy_lightning.config import Config, SelectConfig
from cappy_lightning.labeling.measures import open_measure
from cappy_lightning.progress import say
from cappy_lightning.records import Pool
from cappy_lightning.run_dir import FOLDS, rank, read_selections
from cappy_lightning.selection.baselines import rewards
from cappy_lightning.selection.fusion import Fusion, fit_fusion
from cappy_lightning.sources.jsonl import write_pools


def fold_configs(config: Config, pools: Sequence[Pool]) -> list[Config]:
    """The config of every fold: the same training, validated on the part of the pools that it does not see.

    Args:
        config: of the run.
        pools: its training pools; the first rank writes them down for the folds.
    """
    folder, count = Path(config.run_dir) / FOLDS, config.select.folds
    # As many passes over the data as the run itself makes.
    steps = config.trainer.max_steps and max(1, round(config.trainer.max_steps * (count - 1) / count))
    configs = []
    for fold in range(count):
        file = folder / f"pools-{fold}.jsonl"
        if rank() == 0:
            write_pools(file, _with_split(pools, fold, count))
        data = replace(config.data, pool=[str(file)], task=None, examples=None, max_train=None, max_validation=None)
        trainer = replace(config.trainer, max_steps=steps, validations=1, logger="none")
        run = {"run_dir": str(folder / str(fold)), "push_to_hub": None, "select": SelectConfig()}
        configs.append(replace(config, data=data, trainer=trainer, **run))  # type: ignore[arg-type]
    return configs


def held_out(pools: Sequence[Pool], fold: int, count: int) -> list[Pool]:
    """The pools that the training of a fold does not see."""
    return [pool for pool in _with_split(pools, fold, count) if pool.example.split == "validation"]


def groups(pools: Sequence[Pool]) -> list[int]:
    """The group of each pool, numbered in the order of the first of each: those of a group are in one fold.

    Pools of one row, by several templates, or with the same instruction: a scorer would know the references of an
    example that counts as unseen. There can be as many folds as groups.
    """
    joined: list[int] = []  # each group's own number, or that of one that it was found to be a part of
    known: dict[tuple[str, str], int] = {}
    found: list[int] = []

    def whole(group: int) -> int:
        while joined[group] != group:
            group = joined[group]
        return group

    for pool in pools:
        keys = ("id", pool.example.id), ("instruction", pool.example.instruction)
        own = sorted({whole(known[key]) for key in keys if key in known})
        if not own:
            own = [len(joined)]
            joined.append(own[0])
        for other in own[1:]:
            joined[other] = own[0]
        known |= dict.fromkeys(keys, own[0])
        found.append(own[0])
    numbers: dict[int, int] = {}
    return [numbers.setdefault(whole(group), len(numbers)) for group in found]


def _with_split(pools: Sequence[Pool], fold: int, count: int) -> list[Pool]:
    return [
        replace(pool, example=replace(pool.example, split="validation" if group % count == fold else "train"))
        for pool, group in zip(pools, groups(pools), strict=True)
    ]


def fuse_folds(config: Config, pools: Sequence[Pool]) -> Fusion:
    """Fit the fusion on the training pools, by what the scorers of the folds made of those that they had not seen."""
    folder, count = Path(config.run_dir) / FOLDS, config.select.folds
    say(f"fitting the fusion on {len(pools)} training examples")
    held: list[Pool] = []
    logits: list[Sequence[float]] = []
    for fold in range(count):
        own = held_out(pools, fold, count)
        held += own
        logits += [selection.logits for selection in read_selections(folder / str(fold), own)]
    gains = rewards(held, open_measure(config.label.score, config.label.tokenizer))
    fusion = fit_fusion(held, logits, gains, config.label.tokenizer)
    for combination in fusion.combinations:
        say(f"fusion of {', '.join(combination.weights)}: near to {combination.nearest}")
    return fusion

"""Published figures, to stand beside one's own."""

import csv
from pathlib import Path


def published_bigbench() -> dict[str, dict[str, float]]:
    """Cappy's mean Rouge-L, in [0, 1], by task and by the backbone that proposed the candidates.

    From github.com/tanyuqian/cappy (Apache-2.0), the 45 generation tasks of the paper's Table 2.
    """
    return {
        row.pop("task"): {name: float(value) for name, value in row.items()} for row in _rows("published_bigbench.csv")
    }


def published_promptsource() -> dict[tuple[str, str], tuple[str, dict[str, float]]]:
    """Zero-shot accuracy, in [0, 1], on T0's 11 held-out tasks.

    From the paper's Table 1 (https://arxiv.org/abs/2311.06720).

    Returns:
        by data set (as PromptSource names it) and split, the paper's name of the task and the accuracies by model.
    """
    return {
        (row.pop("dataset"), row.pop("split")): (
            row.pop("name"),
            {name: float(value) / 100 for name, value in row.items()},
        )
        for row in _rows("published_promptsource.csv")
    }


def _rows(name: str) -> list[dict[str, str]]:
    with open(Path(__file__).with_name(name), encoding="utf-8") as stream:
        return list(csv.DictReader(line for line in stream if not line.startswith("#")))

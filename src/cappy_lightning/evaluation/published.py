"""Published figures, to stand beside one's own."""

import csv
from pathlib import Path

_BIGBENCH = Path(__file__).with_name("published_bigbench.csv")


def published_bigbench() -> dict[str, dict[str, float]]:
    """Cappy's mean Rouge-L, in [0, 1], by task and by the backbone that proposed the candidates.

    From github.com/tanyuqian/cappy (Apache-2.0), the 45 generation tasks of the paper's Table 2.
    """
    with open(_BIGBENCH, encoding="utf-8") as stream:
        rows = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    return {row.pop("task"): {name: float(value) for name, value in row.items()} for row in rows}

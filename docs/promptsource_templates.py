"""Load every PromptSource template, and render those of some data sets over their rows.

    python docs/promptsource_templates.py promptsource/templates [DATASET=ROWS.jsonl ...]

The folder is that of a clone of bigscience-workshop/promptsource. Prints counts, and each file, template or row that
cannot be used, with the reason.
"""

import sys
import time
from collections import Counter
from pathlib import Path

from cappy_lightning.errors import InputError
from cappy_lightning.files import read_jsonl
from cappy_lightning.sources.promptsource import PromptSourceExamples, Renderer, find_template_files, read_templates


def load(folder: Path) -> None:
    """Read every file, and parse every template."""
    counts: Counter[str] = Counter()
    for path in find_template_files(folder):
        counts["files"] += 1
        try:
            templates = read_templates(path)
        except InputError as error:
            counts["failed"] += 1
            print(error)
            continue
        for template in templates:
            counts["templates"] += 1
            try:
                Renderer(template, seed=0)
            except InputError as error:
                counts["failed"] += 1
                print(error)
    print(f"{counts['files']:,} files, {counts['templates']:,} templates, {counts['failed']} failures")


def render(folder: Path, dataset: str, rows: str) -> None:
    """Every template of a data set over every row."""
    given = [row for _, row in read_jsonl(rows)]
    examples = PromptSourceExamples(read_templates(folder / dataset / "templates.yaml"), given[0].keys(), seed=0)
    start = time.perf_counter()
    made = sum(1 for number, row in enumerate(given) for _ in examples.of(number, row, None, examples.templates))
    rate = made / (time.perf_counter() - start)
    kept = len(examples.templates)
    of = f"{kept} of {kept + len(examples.left_out)} templates over {len(given):,} rows"
    print(f"{dataset}: {of}: {made:,} texts, {rate:,.0f} a second")
    for note in examples.notes():
        print(f"  {note}")


def main() -> None:
    """See the module."""
    folder = Path(sys.argv[1])
    load(folder)
    for word in sys.argv[2:]:
        dataset, _, rows = word.partition("=")
        render(folder, dataset, rows)


if __name__ == "__main__":
    main()

"""Write docs/bigbench_tasks.md: what every JSON task of the BIG-bench archive holds.

    python docs/bigbench_tasks.py

One pass over the archive (358 MB, fetched by pip where it is not in the cache); some minutes.
"""

from collections import Counter
from pathlib import Path

from cappy_lightning.sources.bigbench import GENERATION_TASKS, archive_examples


def main() -> None:
    """Count the examples of every task by split and kind."""
    rows: list[tuple[str, str, Counter[str]]] = []
    for task, examples in archive_examples():
        counts: Counter[str] = Counter()
        for example in examples:
            if example is None:
                counts["left out"] += 1
            else:
                counts[str(example.split)] += 1
                counts["choices" if example.choices else "references"] += 1
        kind = "generation" if not counts["choices"] else "both" if counts["references"] else "multiple choice"
        rows.append((task, kind, counts))
        print(f"{len(rows):4} {task}", flush=True)
    paper = [row for row in rows if row[0] in GENERATION_TASKS]
    lines = [
        "# BIG-bench tasks",
        "",
        "The JSON tasks of the source archive `bigbench` 1.0.0 as `cappy` reads them, in the standard split, by",
        f"`python docs/bigbench_tasks.py`. {len(rows)} tasks,"
        f" {sum(c['train'] + c['validation'] for _, _, c in rows):,} examples;",
        f"{len(paper)} of them are generation tasks of the paper (marked; its 45th, `tellmewhy`, is on the hub only).",
        "Left out are examples without text, or without a wrong choice.",
        "",
        "| task | kind | training | validation | left out |",
        "|---|---|---|---|---|",
    ]
    for task, kind, counts in sorted(rows):
        name = f"**{task}**" if task in GENERATION_TASKS else task
        numbers = (f"{counts[key]:,}" for key in ("train", "validation", "left out"))
        lines.append(f"| {name} | {kind} | {' | '.join(numbers)} |")
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

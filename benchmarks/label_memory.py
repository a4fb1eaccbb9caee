"""`cappy label` over pools of growing size: time, pairs a second and the peak of memory.

    python benchmarks/label_memory.py [--pairs 100000 1000000] [--pool POOL.jsonl]

The pools are those of a recorded file again and again under new ids, with a word of their own in every
instruction, reference and response, so that nothing can be served from a cache.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUICKSTART = Path(__file__).parent.parent / "data" / "quickstart" / "pool.jsonl"
PEAK_MEMORY = Path(__file__).with_name("peak_memory.py")


def write_pools(source: Path, path: Path, pairs: int) -> int:
    """Write pools with about so many candidates, and give how many there are."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    written = copy = 0
    with open(path, "w", encoding="utf-8") as stream:
        while written < pairs:
            for row in rows:
                own = {
                    "id": f"{copy}-{row['id']}",
                    "split": "train",
                    "instruction": f"{row['instruction']} {copy}",
                    "references": [f"{reference} {row['id']}x{copy}" for reference in row["references"]],
                    "candidates": [c | {"response": f"{c['response']} {copy}"} for c in row["candidates"]],
                }
                stream.write(json.dumps(row | own, ensure_ascii=False) + "\n")
                written += len(row["candidates"])
                if written >= pairs:
                    break
            copy += 1
    return written


def main() -> None:
    """Label pools of each size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--pool", type=Path, default=QUICKSTART)
    options = parser.parse_args()
    print(f"{'candidates':>12} {'instances':>12} {'seconds':>8} {'instances/s':>12} {'peak MiB':>9}")
    for pairs in options.pairs:
        with tempfile.TemporaryDirectory() as scratch:
            written = write_pools(options.pool, Path(scratch, "pool.jsonl"), pairs)
            command = [sys.executable, PEAK_MEMORY, "label", f"{scratch}/pool.jsonl", "-o", f"{scratch}/out"]
            begun = time.perf_counter()
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds = time.perf_counter() - begun
            rows = json.loads(Path(scratch, "out", "manifest.json").read_text())["rows"]
        peak = int(done.stdout.split()[-1])
        print(f"{written:12,} {rows:12,} {seconds:8.1f} {rows / seconds:12,.0f} {peak:9,}")


if __name__ == "__main__":
    main()

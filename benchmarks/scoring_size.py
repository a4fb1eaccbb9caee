"""`cappy score` over files of growing size: seconds, pairs a second and the peak of memory.

    python benchmarks/scoring_size.py runs/quickstart/adapter [--pairs 1000 10000 100000]

The pairs are instructions of the quickstart beside recorded responses, no pair twice. Each size in a process of its
own, from a file to a file. What a process takes before its first pair is told by a file of one pair.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import machine

from cappy_lightning.sources.jsonl import read_labelled_pools

QUICKSTART = Path(__file__).parent.parent / "data" / "quickstart" / "pool.jsonl"
PEAK_MEMORY = Path(__file__).with_name("peak_memory.py")


def main() -> None:
    """Score files of each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scorer")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    options = parser.parse_args()
    pools = read_labelled_pools([QUICKSTART])
    instructions = sorted({pool.example.instruction for pool in pools})
    responses = sorted({one.response for pool in pools for one in pool.candidates})
    places = random.Random(0).sample(range(len(instructions) * len(responses)), max(options.pairs))
    print(f"{', '.join(machine().values())}\n")
    print("| pairs | seconds | after the start, pairs/s | peak MiB |\n|---|---|---|---|")
    start = 0.0
    for count in [1, *options.pairs]:
        with tempfile.TemporaryDirectory() as scratch:
            with Path(scratch, "pairs.jsonl").open("w", encoding="utf-8") as file:
                for place in places[:count]:
                    i, j = divmod(place, len(responses))
                    file.write(json.dumps({"instruction": instructions[i], "response": responses[j]}) + "\n")
            words = ["score", f"{scratch}/pairs.jsonl", "--scorer", options.scorer, "-o", f"{scratch}/scores.jsonl"]
            begin = time.perf_counter()
            done = subprocess.run([sys.executable, PEAK_MEMORY, *words], capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - begin
        if done.returncode:
            sys.exit(done.stderr)
        start = start or seconds
        rate = f"{count / (seconds - start):.0f}" if count > 1 else ""
        print(f"| {count:,} | {seconds:.1f} | {rate} | {done.stdout.split()[-1]} |", flush=True)


if __name__ == "__main__":
    main()

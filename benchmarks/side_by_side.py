"""What the benchmarks share: contestants measured in turn, a table of medians and ratios, the machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cappy_lightning.files import write_json
from cappy_lightning.progress import say


def measure(contestants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every contestant and repeat; all take turns, so that a slow minute of the machine meets them all."""
    for run in contestants.values():  # once without a clock: caches, threads, compiled kernels
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(repeats):
        for name, run in contestants.items():
            begin = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begin)
        say(f"repeat {number + 1} of {repeats}")
    return seconds


def machine() -> dict[str, str]:
    """The processor, the cores that may be used, the GPU, and versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def show(title: str, seconds: Mapping[str, list[float]], pairs: int, out: Path | None, **facts: Any) -> None:
    """Print the medians as Markdown, each with how many times as long as the first it takes, and write them as JSON."""
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    first = next(iter(medians))
    told = f"median of {len(seconds[first])} repeats in turn; {', '.join(machine().values())}"
    print(f"\n{title}: {pairs:,} pairs, {told}\n")
    print(f"| | seconds | pairs/s | {first} is |\n|---|---|---|---|")
    for name, value in medians.items():
        ratio = "" if name == first else f"{value / medians[first]:.2f} x as fast"
        print(f"| {name} | {value:.2f} | {pairs / value:,.0f} | {ratio} |")
    for name, value in facts.items():
        if not isinstance(value, dict):
            print(f"{name.replace('_', ' ')}: {value}")
    if out:
        write_json(out, {"title": title, "pairs": pairs, "machine": machine(), "seconds": dict(seconds), **facts})

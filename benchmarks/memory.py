"""Memory of RoBERTa-large by strategy: estimates for 1, 8 and 64 GPUs, and, where there is a GPU, runs on one.

    python benchmarks/memory.py

The estimates are those of `cappy memory`. A run is `conf/pretrain.yaml` with random weights and a few steps; what it
has needed at most is torch's own count of what was allocated.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from cappy_lightning.config_loading import load_config
from cappy_lightning.memory import estimate

OVERLAYS = ("ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
#: 16 pairs of 512 tokens per GPU.
RECIPE = ["conf/pretrain.yaml", "conf/gpu.yaml", "batch.micro_size=16", "batch.global_size=1024"]
#: A run needs data and weights: pairs as long as can be, and a start that needs no hub.
REAL = ["scorer.random_weights=true", "scorer.tokenizer=embedded", "trainer.max_steps=3", "trainer.validations=1"]
GIB = 2**30


def estimates() -> None:
    """A table of GiB on each GPU without activations, by number of GPUs, and of the activations."""
    print("| | 1 GPU | 8 GPUs | 64 GPUs | activations |\n|---|---|---|---|---|")
    for overlay in OVERLAYS:
        cells = []
        for gpus in (1, 8, 64):
            ranks = [f"trainer.devices={min(gpus, 8)}", f"trainer.nodes={max(1, gpus // 8)}"]
            found = estimate(load_config([*RECIPE, f"conf/{overlay}.yaml", "data.pool=x", *ranks]))
            host = f" (host {found.host / GIB:.1f})" if found.host else ""
            cells.append(f"{(found.total - found.activations) / GIB:.1f}{host}")
        print(f"| {overlay} | {' | '.join(cells)} | {found.activations / GIB:.1f} |")


def runs(folder: Path) -> None:
    """A table of estimate and run on one GPU."""
    pairs = [
        {"instruction": f"question {i} " + "and so on " * 300, "response": "an answer", "score": i % 10 / 9}
        for i in range(128)
    ]
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    print(f"\n{torch.cuda.get_device_name()}\n\n| | estimate, GiB | allocated at most, GiB |\n|---|---|---|")
    for overlay in OVERLAYS:
        words = [*RECIPE, f"conf/{overlay}.yaml", *REAL, f"data.instances={data}", "batch.global_size=32"]
        run_dir = folder / overlay
        command = [sys.executable, "train.py", *words, f"run_dir={run_dir}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        peak = json.loads((run_dir / "metrics.json").read_text())["train/peak_memory_bytes"]
        print(f"| {overlay} | {estimate(load_config(words)).total / GIB:.1f} | {peak / GIB:.1f} |", flush=True)


if __name__ == "__main__":
    estimates()
    if torch.cuda.is_available():
        with tempfile.TemporaryDirectory() as name:
            runs(Path(name))

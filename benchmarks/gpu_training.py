"""Training steps of RoBERTa-large in bf16 on a GPU: without padding, padded to the longest of a batch, and full rows.

    python benchmarks/gpu_training.py [POOL.jsonl ...] [--micro 32] [--repeats 5] [--out results.json]

Random weights. A measurement is one optimizer step of eight accumulated batches: training instances of the pools in
random order, the same ones without padding and padded, which lie on the GPU already. Full rows are 512 tokens each;
their rate of arithmetic is held against that of a bf16 matrix product in the same run. Arithmetic is counted as in
PaLM (Chowdhery et al., 2022, appendix B): 6 operations for each weight that is no embedding and each token, and
12 * layers * width * length for the attention of each token. Without a GPU a small model takes small steps, which
shows that the script works, and nothing else.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import machine, measure, show
from torch.nn import functional

from cappy_lightning.config import LabelConfig, ScorerConfig
from cappy_lightning.config_loading import load_config
from cappy_lightning.files import write_json
from cappy_lightning.labeling.weak_labels import Labeler
from cappy_lightning.records import Instance
from cappy_lightning.scorer.forward import unpad
from cappy_lightning.scorer.model import Scorer, build_scorer
from cappy_lightning.sources.jsonl import read_labelled_pools

QUICKSTART = Path(__file__).parent.parent / "data" / "quickstart" / "pool.jsonl"
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
ACCUMULATED, LENGTH = 8, 512
Batch = tuple[dict[str, Any], torch.Tensor]


def scorer_of(*, packed: bool) -> Scorer:
    """RoBERTa-large, or something small where there is no GPU, on the device."""
    large = dict(load_config(["conf/pretrain.yaml", "data.instances=[-]"]).scorer.config or {})
    small = {} if GPU else {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    torch.manual_seed(0)
    scorer = build_scorer(
        ScorerConfig(
            **{"base": "roberta-large", "random_weights": True, "tokenizer": "embedded"},
            **{"config": {**large, **small}, "dropout": 0.0, "max_length": LENGTH},
        )
    )
    scorer.model.to(DEVICE).train()
    if packed:
        unpad(scorer.model, scorer.encoder)
    return scorer


def batches(scorer: Scorer, instances: Sequence[Instance], micro: int) -> list[Batch]:
    """Batches on the device, each with its scores."""
    found = []
    for start in range(0, len(instances), micro):
        own = instances[start : start + micro]
        pairs = scorer.encoder.encode([one.instruction for one in own], [one.response for one in own])
        inputs = scorer.encoder.batch(pairs)
        on_device = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
        found.append((on_device, torch.tensor([one.score for one in own], device=DEVICE)))
    return found


def step(scorer: Scorer, optimizer: torch.optim.Optimizer, own: Sequence[Batch]) -> None:
    """One optimizer step, as the module takes it: the head's output and the loss in fp32, all else in bf16."""
    for inputs, scores in own:
        with torch.autocast(DEVICE, torch.bfloat16):
            logits = scorer.logits(inputs)
        (functional.mse_loss(logits.sigmoid(), scores) / len(own)).backward()
    optimizer.step()
    optimizer.zero_grad()


def stepping(instances: Sequence[Instance], micro: int, *, packed: bool) -> tuple[Callable[[], None], Scorer]:
    """A contestant, and its scorer."""
    scorer = scorer_of(packed=packed)
    optimizer = torch.optim.AdamW(scorer.model.parameters(), 2e-5, fused=True)
    return partial(step, scorer, optimizer, batches(scorer, instances, micro)), scorer


def operations(scorer: Scorer, rows: int) -> float:
    """Of a step with so many rows of 512 tokens."""
    config = scorer.config
    weights = sum(p.numel() for name, p in scorer.model.named_parameters() if "embeddings" not in name)
    attention = 12 * config.num_hidden_layers * config.hidden_size * LENGTH
    return rows * LENGTH * (6.0 * weights + attention)


def main() -> None:
    """Both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="*", type=Path, default=[QUICKSTART])
    parser.add_argument("--micro", type=int, default=32 if GPU else 4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    instances = list(Labeler(LabelConfig(), 0).training(read_labelled_pools(options.pools)))
    order = np.random.default_rng(0).permutation(len(instances))
    some = [instances[i] for i in order[: ACCUMULATED * options.micro]]
    unpadded, scorer = stepping(some, options.micro, packed=True)
    padded, _ = stepping(some, options.micro, packed=False)
    pairs = scorer.encoder.encode([one.instruction for one in some], [one.response for one in some])
    lengths = np.array([len(pair.ids) for pair in pairs])
    quantiles = ", ".join(f"{value:.0f}" for value in np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1]))
    seconds = measure({"without padding": unpadded, "padded": padded}, options.repeats)
    show("Training", seconds, len(some), None, tokens_of_a_pair_by_quartiles=quantiles)
    del unpadded, padded, scorer

    rows = [replace(some[0], instruction="and so on " * LENGTH)] * len(some)
    full, scorer = stepping(rows, options.micro, packed=True)
    size, products = (8192, 50) if GPU else (256, 1)
    left, right = torch.randn(2, size, size, device=DEVICE, dtype=torch.bfloat16)

    def multiply() -> None:
        for _ in range(products):
            torch.mm(left, right)

    times = measure({"full rows": full, "matrix products": multiply}, options.repeats)
    done = {"full rows": operations(scorer, len(rows)), "matrix products": 2.0 * products * size**3}
    rates = {name: done[name] / statistics.median(own) / 1e12 for name, own in times.items()}
    print(f"\nPairs of {LENGTH} tokens: {len(rows) / statistics.median(times['full rows']):,.1f} a second,")
    share = rates["full rows"] / rates["matrix products"]
    print(f"{rates['full rows']:.3g} TFLOP/s, {share:.0%} of the {rates['matrix products']:.3g} of a matrix product")
    if options.out:
        facts = {"machine": machine(), "seconds": seconds | times, "lengths": lengths.tolist(), "tflops": rates}
        write_json(options.out, facts)


if __name__ == "__main__":
    main()

"""Training steps of RoBERTa-large in bf16 on a GPU: without padding, padded to the longest of a batch, and full rows.

    python benchmarks/gpu_training.py [--micro 128] [--repeats 5] [--out results.json]

Random weights and tokens. A measurement is one optimizer step of eight accumulated batches, the same ones without
padding and padded, which lie on the GPU already. Their lengths are drawn from those of the 18,003 instances of the
small pretraining (conf/sources/pretrain_small.yaml), of which `LENGTHS` has the percentiles. Full rows are 512 tokens
each; their rate of arithmetic is held against that of a bf16 matrix product in the same run. Arithmetic is counted as
in PaLM (Chowdhery et al., 2022, appendix B): 6 operations for each weight that is no embedding and each token that it
is computed for (what comes after the last attention only for the first token of a pair), and
12 * layers * width * length for the attention of each token. Without a GPU a small model takes small steps, which
shows that the script works, and nothing else.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import machine, measure, show
from torch.nn import functional

from cappy_lightning.config import ScorerConfig
from cappy_lightning.config_loading import load_config
from cappy_lightning.files import write_json
from cappy_lightning.scorer.architectures import head_names, in_head
from cappy_lightning.scorer.encoding import EncodedPair
from cappy_lightning.scorer.forward import unpad
from cappy_lightning.scorer.model import Scorer, build_scorer

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
ACCUMULATED, LENGTH = 8, 512
#: Tokens of a pair, of the packaged encoder's tokenizer, at every hundredth of the instances: 82 on average.
LENGTHS = (
    *(8, 13, 19, 22, 23, 26, 29, 31, 32, 33, 34, 35, 36, 36, 37, 38, 39, 39, 40, 41, 41, 42, 43, 43, 44, 44),
    *(45, 46, 46, 47, 48, 49, 50, 51, 52, 53, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 62, 64, 65, 66, 66, 67),
    *(68, 69, 71, 72, 73, 75, 76, 77, 78, 78, 79, 80, 81, 82, 83, 85, 86, 88, 90, 92, 94, 96, 98, 100, 102),
    *(104, 106, 108, 110, 112, 115, 118, 121, 125, 128, 131, 134, 137, 141, 146, 150, 158, 164, 173, 190, 222),
    *(301, 400, 512),
)
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


def batches(scorer: Scorer, lengths: Sequence[int], micro: int) -> list[Batch]:
    """Batches of pairs of these lengths on the device, each with its scores."""
    generator, found = np.random.default_rng(0), []
    for start in range(0, len(lengths), micro):
        own = lengths[start : start + micro]
        pairs = [EncodedPair(generator.integers(1000, 30_000, length).tolist(), length, 0) for length in own]
        inputs = scorer.encoder.batch(pairs)
        on_device = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
        found.append((on_device, torch.tensor(generator.random(len(own)), dtype=torch.float32, device=DEVICE)))
    return found


def step(scorer: Scorer, optimizer: torch.optim.Optimizer, own: Sequence[Batch]) -> None:
    """One optimizer step, as the module takes it: the head's output and the loss in fp32, all else in bf16."""
    for inputs, scores in own:
        with torch.autocast(DEVICE, torch.bfloat16):
            logits = scorer.logits(inputs)
        (functional.mse_loss(logits.sigmoid(), scores) / len(own)).backward()
    optimizer.step()
    optimizer.zero_grad()


def stepping(lengths: Sequence[int], micro: int, *, packed: bool) -> tuple[Callable[[], None], Scorer]:
    """A contestant, and its scorer."""
    scorer = scorer_of(packed=packed)
    optimizer = torch.optim.AdamW(scorer.model.parameters(), 2e-5, fused=True)
    return partial(step, scorer, optimizer, batches(scorer, lengths, micro)), scorer


def operations(scorer: Scorer, rows: int) -> float:
    """Of a step with so many rows of 512 tokens."""
    config = scorer.config
    last, heads = f"layer.{config.num_hidden_layers - 1}.", head_names(config.model_type)
    of_token = of_row = 0
    for name, parameter in scorer.model.named_parameters():
        if in_head(name, heads) or (last in name and "attention.self" not in name):
            of_row += parameter.numel()
        elif "embeddings" not in name:
            of_token += parameter.numel()
    attention = 12 * config.num_hidden_layers * config.hidden_size * LENGTH
    return rows * (LENGTH * (6.0 * of_token + attention) + 6.0 * of_row)


def main() -> None:
    """Both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro", type=int, default=128 if GPU else 4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lengths = np.random.default_rng(0).choice(LENGTHS, ACCUMULATED * options.micro)
    unpadded, scorer = stepping(lengths.tolist(), options.micro, packed=True)
    padded, _ = stepping(lengths.tolist(), options.micro, packed=False)
    quantiles = ", ".join(f"{value:.0f}" for value in np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1]))
    seconds = measure({"without padding": unpadded, "padded": padded}, options.repeats)
    show("Training", seconds, len(lengths), None, tokens_of_a_pair_by_quartiles=quantiles)
    del unpadded, padded, scorer

    rows = [LENGTH] * len(lengths)
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

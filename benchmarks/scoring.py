"""Scoring a recorded pool beside sentence-transformers' CrossEncoder and beside padding to 512 tokens.

    python benchmarks/scoring.py [POOL.jsonl ...] [--out results.json]

The same weights in the same precision: on a CPU the embedded encoder with a new head, on a GPU RoBERTa-large's
architecture with random weights. All pairs of the pools are scored, equal ones as they come. Padding to 512 tokens is
what the reference implementation does; it gets every so-manieth pair, and its time is multiplied.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from side_by_side import measure, show

from cappy_lightning import Cappy
from cappy_lightning.config import ScorerConfig
from cappy_lightning.config_loading import load_config
from cappy_lightning.scorer.model import build_scorer
from cappy_lightning.sources.jsonl import read_labelled_pools

QUICKSTART = Path(__file__).parent.parent / "data" / "quickstart" / "pool.jsonl"
Scores = NDArray[np.float32]
Pairs = list[tuple[str, str]]


def padded(cappy: Cappy, pairs: Pairs, length: int = 512, size: int = 32) -> Scores:
    """Scores of pairs in the order in which they come, all padded to one length."""
    encoder, device = cappy.scorer.encoder, next(cappy.scorer.model.parameters()).device
    found = []
    with torch.inference_mode():
        for start in range(0, len(pairs), size):
            inputs = encoder.pad(encoder.encode(*zip(*pairs[start : start + size], strict=True)))
            for name, tensor in inputs.items():
                value = encoder.pad_id if name == "input_ids" else 0
                inputs[name] = torch.nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=value).to(device)
            found.append(cappy.scorer.scores(cappy.scorer.logits(inputs)).cpu())
    return torch.cat(found).numpy()


def main() -> None:
    """Measure all of them in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="*", type=Path, default=[QUICKSTART])
    parser.add_argument("--pairs", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--every", type=int, default=25, help="which pairs are padded to 512 tokens: every so-manieth")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pools = read_labelled_pools(options.pools)
    pairs = [(pool.example.instruction, one.response) for pool in pools for one in pool.candidates][: options.pairs]
    config = ScorerConfig(base="embedded", max_length=512)
    if torch.cuda.is_available():
        large = load_config(["conf/adapt.yaml", "data.pool=-"]).scorer
        config = ScorerConfig(
            base="roberta-large", random_weights=True, config=large.config, tokenizer="embedded", max_length=512
        )
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        Cappy(build_scorer(config)).save_pretrained(folder)
        cappy, peer = Cappy.from_pretrained(folder), CrossEncoder(folder)
    some = pairs[:: options.every]
    contestants: dict[str, Callable[[], Scores]] = {
        "cappy-lightning": lambda: cappy.score(pairs),
        "CrossEncoder.predict": lambda: np.asarray(peer.predict(pairs, show_progress_bar=False)),
        "padded to 512 tokens": lambda: padded(cappy, some),
    }
    difference = float(np.abs(contestants["cappy-lightning"]() - contestants["CrossEncoder.predict"]()).max())
    seconds = measure(contestants, options.repeats)
    seconds["padded to 512 tokens"] = [own * len(pairs) / len(some) for own in seconds["padded to 512 tokens"]]
    facts = {"distinct_pairs": len(set(pairs)), "largest_difference_of_scores": difference}
    show("Scoring", seconds, len(pairs), options.out, **facts)


if __name__ == "__main__":
    main()

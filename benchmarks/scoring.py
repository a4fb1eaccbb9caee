"""Scoring a recorded pool beside sentence-transformers' CrossEncoder and beside padding to 512 tokens.

    python benchmarks/scoring.py [POOL.jsonl ...] [--scorer DIRECTORY] [--out results.json]

The same weights for all, in fp32 where nothing else is said: on a CPU the embedded encoder with a new head, on a GPU
RoBERTa-large's architecture with random weights, in bf16 for CrossEncoder, too. All pairs of the pools are scored,
equal ones as they come. Padding to 512 tokens is what the reference implementation does; it gets every so-manieth
pair, and its time is multiplied. What is less exact is told with how far its scores are from those in fp32, and how
often it selects another candidate.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from side_by_side import measure, show
from transformers import AutoModelForSequenceClassification

from cappy_lightning import Cappy
from cappy_lightning.config import ScorerConfig
from cappy_lightning.config_loading import load_config
from cappy_lightning.export import export_any
from cappy_lightning.progress import say
from cappy_lightning.records import Pool
from cappy_lightning.scorer.encoding import PairEncoder
from cappy_lightning.scorer.model import build_scorer
from cappy_lightning.sources.jsonl import read_labelled_pools

QUICKSTART = Path(__file__).parent.parent / "data" / "quickstart" / "pool.jsonl"
Scores = NDArray[np.float32]
Pairs = list[tuple[str, str]]


def padded(model: Any, encoder: PairEncoder, pairs: Pairs, length: int = 512, size: int = 32) -> Scores:
    """Scores of pairs in the order in which they come, all padded to one length, by transformers' model as it is."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(pairs), size):
            inputs = encoder.pad(encoder.encode(*zip(*pairs[start : start + size], strict=True)))
            for name, tensor in inputs.items():
                value = encoder.pad_id if name == "input_ids" else 0
                inputs[name] = torch.nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=value).to(
                    model.device
                )
            found.append(model(**inputs).logits.squeeze(-1).float().sigmoid().cpu())
    return torch.cat(found).numpy()


def less_exact(scores: Scores, exact: Scores, pools: list[Pool]) -> dict[str, float]:
    """How far scores are from the exact ones, and the share of pools in which another response is selected."""
    starts = np.cumsum([0, *(len(pool.candidates) for pool in pools)])
    parts = [slice(a, b) for a, b in pairwise(starts) if b <= len(exact)]
    responses = [[one.response for one in pool.candidates] for pool in pools]
    other = [
        texts[scores[part].argmax()] != texts[exact[part].argmax()]
        for texts, part in zip(responses, parts, strict=False)
    ]
    difference = np.abs(scores - exact)
    return {"mean": float(difference.mean()), "largest": float(difference.max()), "other": float(np.mean(other))}


def main() -> None:
    """Measure all of them in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="*", type=Path, default=[QUICKSTART])
    parser.add_argument("--pairs", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--every", type=int, default=25, help="which pairs are padded to 512 tokens: every so-manieth")
    parser.add_argument("--scorer", help="a trained one, for differences that mean something; default: a new head")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pools = read_labelled_pools(options.pools)
    pairs = [(pool.example.instruction, one.response) for pool in pools for one in pool.candidates][: options.pairs]
    gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        whole = f"{folder}/whole"
        cappy_of(options.scorer).save_pretrained(whole)
        dtype = torch.bfloat16 if gpu else torch.float32
        peer = CrossEncoder(whole, model_kwargs={"torch_dtype": dtype})
        plain: Any = AutoModelForSequenceClassification.from_pretrained(whole, dtype=dtype).eval()
        plain.to("cuda" if gpu else "cpu")
        scorers = {"cappy-lightning": Cappy.from_pretrained(whole, dtype="bfloat16" if gpu else "float32")}
        if not gpu:
            scorers["cappy-lightning, bf16"] = Cappy.from_pretrained(whole, dtype="bfloat16")
            for kind in ("onnx", "onnx-int8"):
                say(export_any(whole, Path(folder, kind), kind))
                scorers[f"cappy-lightning, {kind}"] = Cappy.from_pretrained(Path(folder, kind))
        some, encoder = pairs[:: options.every], scorers["cappy-lightning"].scorer.encoder
        contestants: dict[str, Callable[[], Scores]] = {
            name: partial(cappy.score, pairs) for name, cappy in scorers.items()
        } | {
            "CrossEncoder.predict": lambda: np.asarray(peer.predict(pairs, show_progress_bar=False)),
            "padded to 512 tokens": lambda: padded(plain, encoder, some),
        }
        exact = Cappy.from_pretrained(whole).score(pairs)
        seconds = measure(contestants, options.repeats)
        whole_contestants = [name for name in contestants if name != "padded to 512 tokens"]
        differences = {name: less_exact(contestants[name](), exact, pools) for name in whole_contestants}
    seconds["padded to 512 tokens"] = [own * len(pairs) / len(some) for own in seconds["padded to 512 tokens"]]
    show("Scoring", seconds, len(pairs), options.out, distinct_pairs=len(set(pairs)), differences=differences)
    print("\n| | scores differ by (mean) | at most | another response is selected in |\n|---|---|---|---|")
    for name, own in differences.items():
        print(f"| {name} | {own['mean']:.1g} | {own['largest']:.1g} | {own['other']:.1%} of pools |")


def cappy_of(scorer: str | None) -> Cappy:
    """A trained scorer, or one with a new head."""
    if scorer:
        return Cappy.from_pretrained(scorer, device="cpu")
    config = ScorerConfig(base="embedded", max_length=512)
    if torch.cuda.is_available():
        large = load_config(["conf/adapt.yaml", "data.pool=-"]).scorer
        config = ScorerConfig(
            base="roberta-large", random_weights=True, config=large.config, tokenizer="embedded", max_length=512
        )
    torch.manual_seed(0)
    return Cappy(build_scorer(config))


if __name__ == "__main__":
    main()

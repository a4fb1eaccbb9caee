"""From shards to token batches: rows a second beside other loaders, time to the first batch, and the peak of memory.

    python benchmarks/streaming.py [--rows 10000 1000000 10000000] [--batches 600]

The rows are the quickstart's pairs, each with a number of its own. All loaders tokenize with the same tokenizer in
batches of 32 at most 256 tokens long, in one process: ours; `datasets` streaming the same Parquet files with
a shuffle buffer of 10,000 and the tokenizer as collate function; and the default loader of sentence-transformers'
CrossEncoderTrainer, which shuffles a memory-mapped set and tokenizes in the loss. Each measurement is a process of its
own. Memory is what the process holds at most beyond what it holds after its imports.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

SHARD_ROWS = 100_000
BATCH = 32
POOL = Path(__file__).parent.parent / "data" / "quickstart" / "pool.jsonl"


def make_shards(directory: Path, rows: int) -> None:
    """Shards of so many rows; all whole shards are one and the same, which no loader knows."""
    from cappy_lightning.data.shards import GROUP_ROWS, write_manifest, write_shard
    from cappy_lightning.records import Instance

    pools = [json.loads(line) for line in POOL.read_text(encoding="utf-8").splitlines()]
    texts = [(pool["instruction"], c["response"], pool["id"]) for pool in pools for c in pool["candidates"]]
    directory.mkdir()
    instances = [
        Instance(f"{i} {n}", r, n / SHARD_ROWS, "given", f"task {20 * n // SHARD_ROWS}", e)
        for n, (i, r, e) in ((n, texts[n % len(texts)]) for n in range(min(rows, SHARD_ROWS)))
    ]
    shard = write_shard(instances, directory, 0, GROUP_ROWS)
    shards = [shard]
    for number in range(1, rows // SHARD_ROWS):
        shutil.copyfile(directory / shard["file"], directory / f"shard-{number:05d}.parquet")
        shards.append(shard | {"file": f"shard-{number:05d}.parquet"})
    write_manifest(directory, shards, {})


def ours(directory: Path) -> Iterator[Any]:
    """`CappyDataModule`'s stream."""
    from cappy_lightning.data.mixture import Mixture
    from cappy_lightning.data.order import Order
    from cappy_lightning.data.reading import RowGroups
    from cappy_lightning.data.shards import read_manifest
    from cappy_lightning.data.stream import TrainingStream
    from cappy_lightning.scorer.encoding import PairEncoder

    encoder = PairEncoder(_tokenizer(), 256, "left", True)
    yield None  # the tokenizer is there
    groups = RowGroups([read_manifest(directory)])
    order = Order(Mixture(groups.rows, {}), 0, 64, 256)
    yield from TrainingStream(
        groups, order, encoder, global_size=BATCH, micro_size=BATCH, steps=range(order.steps(BATCH))
    )


def _tokenizer() -> Any:
    from cappy_lightning.config import ScorerConfig
    from cappy_lightning.scorer.model import load_tokenizer

    return load_tokenizer(ScorerConfig())


def datasets(directory: Path) -> Iterator[Any]:
    """`datasets`, streaming with a shuffle buffer."""
    from datasets import load_dataset
    from torch.utils.data import DataLoader

    tokenizer = _tokenizer()

    def collate(rows: list[dict[str, Any]]) -> Any:
        texts = [[row[name] for row in rows] for name in ("instruction", "response")]
        return tokenizer(*texts, padding=True, truncation="only_first", max_length=256, return_tensors="pt")

    yield None
    files = sorted(str(path) for path in directory.glob("*.parquet"))
    rows = load_dataset("parquet", data_files=files, split="train", streaming=True)
    yield from DataLoader(rows.shuffle(seed=0, buffer_size=10_000), batch_size=BATCH, collate_fn=collate)


def sentence_transformers(directory: Path) -> Iterator[Any]:
    """sentence-transformers' CrossEncoderTrainer."""
    from datasets import load_dataset
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import MSELoss

    from cappy_lightning.scorer.model import resolve_base

    model = CrossEncoder(str(resolve_base("embedded")), num_labels=1, max_length=256, device="cpu")
    yield None
    files = sorted(str(path) for path in directory.glob("*.parquet"))
    cache = str(directory / "cache")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    rows = rows.select_columns(["instruction", "response", "score"])
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(directory / "out"), per_device_train_batch_size=BATCH, report_to=[], use_cpu=True
    )
    trainer = CrossEncoderTrainer(model, arguments, train_dataset=rows, loss=MSELoss(model))
    for batch in trainer.get_train_dataloader():
        yield model.preprocess(list(zip(batch["instruction"], batch["response"], strict=True)))


LOADERS = {"cappy-lightning": ours, "datasets": datasets, "sentence-transformers": sentence_transformers}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measure(name: str, directory: Path, batches: int, results: Any) -> None:
    stream = LOADERS[name](directory)
    next(stream)
    before, begun = _peak(), time.perf_counter()
    next(stream)
    first = time.perf_counter() - begun
    count = _consume(stream, batches)
    results.put((first, count * BATCH / (time.perf_counter() - begun - first), _peak() - before))


def _consume(stream: Iterable[Any], most: int) -> int:
    return sum(1 for _ in islice(stream, most))


def main() -> None:
    """Measure every loader at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000, 10_000_000])
    parser.add_argument("--batches", type=int, default=600)
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, default=list(LOADERS))
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print("| rows | loader | rows/s | ours is | first batch (s) | memory (MiB) |\n|---|---|---|---|---|---|")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as scratch:
            make_shards(Path(scratch, "shards"), rows)
            mine = 0.0
            for name in options.loaders:
                results = context.Queue()
                process = context.Process(
                    target=_measure,
                    args=(name, Path(scratch, "shards"), min(options.batches, rows // BATCH - 2), results),
                )
                process.start()
                process.join()
                if process.exitcode:
                    sys.exit(f"{name}: ended with {process.exitcode}")
                first, rate, memory = results.get()
                mine = mine or rate
                ratio = "" if name == options.loaders[0] else f"{mine / rate:.2f} x as fast"
                print(f"| {rows:,} | {name} | {rate:,.0f} | {ratio} | {first:.2f} | {memory:,.0f} |", flush=True)


if __name__ == "__main__":
    main()

"""Training the embedded encoder beside transformers' Trainer and sentence-transformers' CrossEncoderTrainer.

    python benchmarks/training.py [POOL.jsonl ...] [--bf16] [--out results.json]

Real instances of recorded pools; every weight is trained, for the same number of steps of 32 pairs x 16 accumulated
forwards, with the same loss, learning rate and schedule and from the same weights, each contestant with its own
defaults for all else: order, padding, data loading. Only the training itself is timed. The loss is that of 1,000 pairs
that nobody was trained on. Without pools: the quickstart's. With --bf16 ours runs in that precision too: for GPUs, and
CPUs that have `avx512_bf16` or AMX.
"""

import argparse
import contextlib
import csv
import io
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import MSELoss
from side_by_side import machine
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from cappy_lightning import Cappy
from cappy_lightning.config import LabelConfig, ScorerConfig
from cappy_lightning.config_loading import load_config
from cappy_lightning.data.shards import write_instances
from cappy_lightning.files import write_json
from cappy_lightning.labeling.weak_labels import Labeler
from cappy_lightning.progress import say
from cappy_lightning.records import Instance
from cappy_lightning.scorer.model import begin_at_mean, build_scorer
from cappy_lightning.sources.jsonl import read_labelled_pools
from cappy_lightning.training import finish

QUICKSTART = Path(__file__).parent.parent / "data" / "quickstart" / "pool.jsonl"
MICRO, ACCUMULATED, RATE, HELD = 32, 16, 1e-4, 1000
BASE = ScorerConfig(dropout=0.0)
#: What both other trainers are told beyond their defaults.
TOLD = {
    "per_device_train_batch_size": MICRO,
    "gradient_accumulation_steps": ACCUMULATED,
    "learning_rate": RATE,
    "warmup_steps": 0,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": not torch.cuda.is_available(),
}


class SquaredErrorTrainer(Trainer):
    """Trainer with our loss."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
        """The mean squared error of the sigmoid."""
        scores = inputs.pop("score")
        return torch.nn.functional.mse_loss(model(**inputs).logits.squeeze(-1).sigmoid(), scores)


def save_start(train: list[Instance], folder: Path, seed: int) -> Path:
    """The encoder with a new head that begins at the mean score, so that nobody has to find that first, as a model."""
    torch.manual_seed(seed)
    scorer = build_scorer(BASE)
    begin_at_mean(scorer, sum(one.score for one in train) / len(train))
    path = folder / f"start-{seed}"
    Cappy(scorer).save_pretrained(path)
    return path


def ours(train: list[Instance], steps: int, start: Path, seed: int, precision: str = "32-true") -> tuple[float, Cappy]:
    """Pairs a second, and the scorer."""
    folder = start.parent
    if not (folder / "instances").exists():
        write_instances(train, folder / "instances", {})
        write_instances(train[:32], folder / "few", {})
    data = (f"data.instances={folder / 'instances'}", f"data.validation_instances={folder / 'few'}", "data.lanes=1")
    batch = (f"batch.global_size={MICRO * ACCUMULATED}", f"batch.micro_size={MICRO}")
    rest = (
        f"scorer.base={start}",
        "scorer.dropout=0",
        f"optimizer.learning_rate={RATE}",
        "optimizer.warmup=0",
        "finetune.mode=full",
    )
    run = Path(tempfile.mkdtemp(dir=folder))
    trainer = (f"trainer.max_steps={steps}", "trainer.validations=1", "trainer.gradient_clip=1", "trainer.logger=csv")
    own = (f"trainer.precision={precision}", f"seed={seed}", f"run_dir={run}")
    finish(load_config([*data, *batch, *rest, *trainer, *own]))
    (logged,) = run.rglob("metrics.csv")
    with logged.open(encoding="utf-8", newline="") as file:
        rates = [value for row in csv.DictReader(file) if (value := row["train/pairs_per_second"])]
    return float(rates[-1]), Cappy.from_pretrained(run / "model")


def transformers(train: list[Instance], steps: int, start: Path, seed: int) -> tuple[float, Cappy]:
    """The same of transformers' Trainer with its default collator."""
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = AutoModelForSequenceClassification.from_pretrained(start)
    texts = ([one.instruction for one in train], [one.response for one in train])
    encoded = tokenizer(*texts, truncation="longest_first", max_length=256, padding=False)
    rows = Dataset.from_dict({**encoded, "score": [one.score for one in train]})
    arguments = TrainingArguments(
        output_dir=str(start.parent), max_steps=steps, remove_unused_columns=False, seed=seed, **TOLD
    )
    trainer = SquaredErrorTrainer(model, arguments, DataCollatorWithPadding(tokenizer), rows)
    found = trainer.train().metrics
    return steps * MICRO * ACCUMULATED / found["train_runtime"], trained(start, model)


def sentence_transformers(train: list[Instance], steps: int, start: Path, seed: int) -> tuple[float, Cappy]:
    """The same of sentence-transformers' trainer."""
    model = CrossEncoder(str(start), max_length=256)
    columns = {name: [getattr(one, name) for one in train] for name in ("instruction", "response", "score")}
    arguments = CrossEncoderTrainingArguments(output_dir=str(start.parent), max_steps=steps, seed=seed, **TOLD)
    loss = MSELoss(model, activation_fn=torch.nn.Sigmoid())
    found = CrossEncoderTrainer(model, arguments, train_dataset=Dataset.from_dict(columns), loss=loss).train().metrics
    return steps * MICRO * ACCUMULATED / found["train_runtime"], trained(start, model.model)


def trained(start: Path, model: Any) -> Cappy:
    """A scorer with the weights of a model that another library has trained."""
    cappy = Cappy.from_pretrained(start)
    cappy.scorer.model.load_state_dict(model.state_dict())
    return cappy


HALF = "cappy-lightning, bf16-mixed"
CONTESTANTS: dict[str, Callable[[list[Instance], int, Path, int], tuple[float, Cappy]]] = {
    "cappy-lightning": ours,
    HALF: partial(ours, precision="bf16-mixed"),
    "transformers Trainer": transformers,
    "CrossEncoderTrainer": sentence_transformers,
}


def main() -> None:
    """All contestants in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="*", type=Path, default=[QUICKSTART])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    contestants = {name: run for name, run in CONTESTANTS.items() if options.bf16 or name != HALF}
    instances = list(Labeler(LabelConfig(), 0).training(read_labelled_pools(options.pools)))
    order = np.random.default_rng(0).permutation(len(instances))
    train, held = ([instances[i] for i in part] for part in (order[HELD:], order[:HELD]))
    targets = np.array([one.score for one in held])
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    losses: dict[str, list[float]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.repeats):
            start = save_start(train, Path(folder), number)
            for name, contestant in contestants.items():
                torch.manual_seed(number)
                with contextlib.redirect_stdout(io.StringIO()):
                    rate, cappy = contestant(train, options.steps, start, number)
                scores = cappy.score([(one.instruction, one.response) for one in held])
                rates[name].append(rate)
                losses[name].append(float(((scores - targets) ** 2).mean()))
            say(f"repeat {number + 1} of {options.repeats}")
    medians = {name: statistics.median(own) for name, own in rates.items()}
    rivals = [name for name in contestants if not name.startswith("cappy")]
    encoder = build_scorer(BASE).encoder
    lengths = [len(pair.ids) for pair in encoder.encode([i.instruction for i in held], [i.response for i in held])]
    told = f"{np.mean(lengths):.0f} tokens a pair on average, {max(lengths)} at most"
    print(f"\nTraining: {told}; {', '.join(machine().values())}\n")
    print(f"| | pairs/s | {''.join(f'as fast as {name} | ' for name in rivals)}loss on held-out pairs |")
    print(f"|---|---|{'---|' * len(rivals)}---|")
    for name, rate in medians.items():
        ratios = "".join(f"{'' if name in rivals else f'{rate / medians[rival]:.2f} x'} | " for rival in rivals)
        print(f"| {name} | {rate:.1f} | {ratios}{np.mean(losses[name]):.4f} ± {np.std(losses[name]):.4f} |")
    if options.out:
        write_json(options.out, {"machine": machine(), "pairs_per_second": rates, "held_out_losses": losses})


if __name__ == "__main__":
    main()

"""What a run leaves for people: metrics.json, report.json, the learning curve and the plots."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from cappy_lightning.files import write_json
from cappy_lightning.page import write_picture
from cappy_lightning.run_dir import METRICS
from cappy_lightning.scorer.module import CappyModule
from cappy_lightning.selection.analysis import calibration_bins
from cappy_lightning.selection.baselines import FUSED
from cappy_lightning.selection.charts import calibration, confusion_charts, methods_chart

REPORT = "report.json"

#: The metric, lower being better, by which one validation round is better than another.
BEST_BY = "validation/mse"

Floats = NDArray[np.float64]


class Results(pl.Callback):
    """Follows the training, in checkpoints too, and writes what it has seen.

    Args:
        run_dir: where the files go.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        #: (step, training loss) and, by metric, (step, value); kept in checkpoints.
        self.losses: list[tuple[int, float]] = []
        self.validations: dict[str, list[tuple[int, float]]] = {}
        #: Of the training pairs of all ranks: the sums of the batches' counts.
        self.counts: Counter[str] = Counter()
        #: Metrics of the test instances, named `test/...`.
        self.tests: dict[str, float] = {}
        #: Of this rank and step so far.
        self._loss: Tensor | float = 0.0
        self._own = Counter[str]()
        self._rate = 0.0
        self._last_validation: tuple[Tensor, Tensor] | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate of the step, the head's, before the schedule goes on."""
        self._rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss of every step, which Lightning hands over in shares, one for each forward and rank."""
        self._loss = self._loss + outputs["loss"].detach().double()  # read with the step: a GPU is not waited for
        self._own.update(batch["counts"])
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            own = torch.tensor([0.0, *self._own.values()], device=trainer.strategy.root_device)
            own[0] = self._loss
            loss, *counts = trainer.strategy.reduce(own, reduce_op="sum").tolist()
            self.losses.append((trainer.global_step, loss / trainer.world_size))
            pl_module.log_dict({"train/loss": loss / trainer.world_size, "train/learning_rate": self._rate})
            self.counts.update({name: round(count) for name, count in zip(self._own, counts, strict=True)})
            self._loss, self._own = 0.0, Counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the metrics of a validation round, and the pairs behind them."""
        assert isinstance(pl_module, CappyModule)
        assert pl_module.last_validation is not None
        values = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("validation/")}
        self.add_validation(trainer.global_step, values, *pl_module.last_validation)

    def add_validation(self, step: int, values: dict[str, float], scores: Tensor, targets: Tensor) -> None:
        """Note a validation round: its metrics, named `validation/...`, and scores and true scores, [pairs]."""
        self._last_validation = scores, targets
        for name, value in values.items():
            self.validations.setdefault(name, []).append((step, value))

    @property
    def metrics(self) -> dict[str, float]:
        """Those of the last validation round."""
        return {name: points[-1][1] for name, points in self.validations.items()}

    @property
    def best_step(self) -> int | None:
        """The step of the validation round with the lowest MSE so far; of equal ones the first."""
        rounds = self.validations.get(BEST_BY)
        return min(rounds, key=lambda point: point[1])[0] if rounds else None

    def state_dict(self) -> dict[str, Any]:
        """The curve so far."""
        return {"losses": self.losses, "validations": self.validations, "counts": dict(self.counts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the curve."""
        self.losses = [tuple(point) for point in state_dict["losses"]]
        self.validations = {name: [tuple(p) for p in points] for name, points in state_dict["validations"].items()}
        self.counts = Counter(state_dict["counts"])

    def write(self, report: dict[str, Any] | None, facts: dict[str, float]) -> None:
        """Write the plots, the report and `metrics.json`.

        A run counts as finished when `metrics.json` is there, so it comes last.

        Args:
            report: the selection report, None where there are no pools.
            facts: numbers to put into `metrics.json` beside the metrics.
        """
        metrics = self.metrics | self.tests | facts
        if self.best_step is not None:
            metrics |= {"best/step": self.best_step, "best/mse": min(value for _, value in self.validations[BEST_BY])}
        if self.losses:
            metrics |= {"train/loss": self.losses[-1][1], "train/steps": self.losses[-1][0]}
            write_picture(learning_curve(self.losses, self.validations), self.run_dir / "learning_curve.png")
        if seen := self.counts["pairs"]:
            metrics["train/cut_pairs_share"] = self.counts["cut_pairs"] / seen
            metrics["train/cut_tokens_mean"] = self.counts["cut_tokens"] / seen
            metrics["train/padding_share"] = 1 - self.counts["tokens"] / self.counts["slots"]
            metrics["train/skipped_instances"] = self.counts["skipped"]
        if self._last_validation is not None:
            scores, targets = (values.double().numpy() for values in self._last_validation)
            write_picture(
                calibration(calibration_bins(scores, targets), scores, targets), self.run_dir / "calibration.png"
            )
        if report is not None:
            write_json(self.run_dir / REPORT, report)
            write_picture(methods_chart(report), self.run_dir / "report.png")
            if len(report["tasks"]) == 1:
                for figure in confusion_charts(report).values():
                    write_picture(figure, self.run_dir / "confusion.png")
            metrics |= flatten(report)
        write_json(self.run_dir / METRICS, {name: v for name, v in metrics.items() if math.isfinite(v)})


def flatten(report: dict[str, Any]) -> dict[str, float]:
    """The means of a report's average as flat metrics."""
    average, metric = report["average"], report["metric"]
    flat = {f"{metric}/{name}": value["mean"] for name, value in average["methods"].items()}
    if "macro_f1" in average:
        flat["macro_f1"] = average["macro_f1"]["mean"]
    for prefix, part in (("", average), (f"{FUSED}/", average.get(FUSED, {}))):
        flat |= {f"{prefix}{share}": part[share]["mean"] for share in ("recovered", "headroom") if share in part}
    return flat


def learning_curve(losses: list[tuple[int, float]], validations: dict[str, list[tuple[int, float]]]) -> Figure:
    """Training loss (each step and smoothed) with validation MSE, and beside it the ranking metrics."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, values = np.array(losses).T
    width = max(1, len(values) // 25)
    smooth = np.convolve(values, np.ones(width) / width, mode="valid")
    left.plot(steps, values, color="0.8", linewidth=0.8, label="training, each step")
    left.plot(steps[width - 1 :], smooth, color="tab:blue", label=f"training, mean of {width} steps")
    for name, axis in (("mse", left), ("spearman", right), ("best_first", right)):
        points = validations.get(f"validation/{name}")
        if points:
            axis.plot(*zip(*points, strict=True), "o-", label={"mse": "validation"}.get(name, name))
    left.set(xlabel="optimizer step", ylabel="MSE", title="Loss", ylim=(0, None))
    right.set(xlabel="optimizer step", title="Validation ranking")
    for axis in (left, right):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    return figure

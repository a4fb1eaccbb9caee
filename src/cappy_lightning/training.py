"""The job behind `train.py`: prepare, train, export, evaluate, print."""

import dataclasses
import gc
import json
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators.cpu import CPUAccelerator
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer import Trainer

from cappy_lightning.callbacks import Export, Results, RunCheckpoint, StepProgress, Stopped
from cappy_lightning.callbacks.results import REPORT
from cappy_lightning.checkpoints import CHECKPOINTS, checkpoint_step, latest_checkpoint
from cappy_lightning.config import Config
from cappy_lightning.crossfit import fold_configs, fuse_folds, groups
from cappy_lightning.data.datamodule import CappyDataModule
from cappy_lightning.data.reading import read_table, verify
from cappy_lightning.data.shards import read_manifest
from cappy_lightning.data.stream import example_number
from cappy_lightning.errors import InputError
from cappy_lightning.export import CARD, check_hub_token, exact_products, push
from cappy_lightning.files import read_json, remove, to_line, write_json, write_text
from cappy_lightning.loggers import check_logger, close_logger, open_logger
from cappy_lightning.model_card import model_card
from cappy_lightning.preparation import Prepared, prepare
from cappy_lightning.progress import console, say, show_places
from cappy_lightning.records import Pool
from cappy_lightning.run_dir import FOLDS, METRICS, SELECTIONS, RunDir, job_folder, rank
from cappy_lightning.scorer.adapter import add_adapter
from cappy_lightning.scorer.architectures import head_names
from cappy_lightning.scorer.forward import can_unpad, encoder_of, has_kernels, plain_attention, unpad
from cappy_lightning.scorer.metrics import validation_metrics
from cappy_lightning.scorer.model import (
    Scorer,
    begin_at_mean,
    build_scorer,
    checkpoint_activations,
    weights_hash,
)
from cappy_lightning.scorer.module import CappyModule
from cappy_lightning.scorer.places import check_base
from cappy_lightning.scorer.pretrained import PretrainedScorer
from cappy_lightning.selection.engine import select_by_logits
from cappy_lightning.selection.fusion import FILE as FUSION
from cappy_lightning.selection.fusion import Fusion
from cappy_lightning.selection.report import make_report, print_report
from cappy_lightning.slurm.restarts import note_start
from cappy_lightning.strategies import WholeCheckpoints, ZeroPrecision, make_strategy

#: In a run directory: where its export was uploaded, by repository.
UPLOADED = "uploaded.json"


def train(config: Config, as_json: bool = False) -> int:
    """Run a config to its end, or from where it stopped, and print the results.

    Returns:
        the exit code: 0, or 128 + the signal that ended the run early (130, 143).

    Raises:
        InputError: something that the user gave cannot be used.
    """
    code = finish(config)
    if not code and rank() == 0:
        show_results(Path(config.run_dir), as_json)
    return code


def finish(config: Config) -> int:
    """Run a config to its end, or from where it stopped; `train` without the results printed."""
    run = RunDir(config)
    if config.push_to_hub:
        check_hub_token()
    try:
        stopped_by = 0 if run.finished else _fit(config, run)
    except torch.OutOfMemoryError:
        raise InputError(
            "batch.micro_size",
            f"is {config.batch.micro_size}, for which the memory of the GPU does not suffice,"
            " expected less, or trainer.activation_checkpointing=true",
        ) from None
    if stopped_by:
        if rank() == 0:
            say(f"stopped and saved in {run.path}; the same command continues")
        return 128 + stopped_by
    if config.push_to_hub and rank() == 0:
        _upload(run.path, config.push_to_hub)
    return 0


def _upload(run: Path, repository: str) -> None:
    """Upload what a finished run has exported, once: the command that is repeated after a failure tries it again."""
    note = run / UPLOADED
    known = read_json(note) if note.exists() else {}
    if repository not in known:
        known[repository] = push(run / ("adapter" if (run / "adapter").is_dir() else "model"), repository)
        write_json(note, known)
    say(f"uploaded: {known[repository]}")


def _fit(config: Config, run: RunDir) -> int:
    gc.collect()  # trainers and models refer to each other: what the run of a fold or of a task before this has left
    _quiet_lightning()
    check_logger(config)
    check_base(config.scorer)  # before an LLM is asked
    run.wait()
    data = prepare(config, run.path / "instances")
    if config.select.by == "fused" and (most := len(set(groups(data.train_pools)))) < config.select.folds:
        raise InputError(
            "select.folds",
            f"is {config.select.folds}, expected at most the number of different training examples, {most}",
        )
    if rank() == 0:
        manifests = [read_manifest(directory) for directory in (*data.train, *data.validation, *data.test)]
        verify(manifests, skip_errors=config.data.on_error == "skip")
    pl.seed_everything(config.seed, workers=True, verbose=False)
    scorer, told = _build(config, run.path, data.train)
    datamodule = CappyDataModule(
        data.train,
        data.validation,
        scorer.encoder,
        config.batch,
        config.data,
        seed=config.seed,
        test=data.test,
        together=config.optimizer.ranking > 0,
    )
    steps = config.trainer.max_steps or max(1, round(config.trainer.epochs * datamodule.steps_per_epoch))
    datamodule.total_steps = steps
    results = Results(run.path)
    export = Export(run.path, told, steps, results)
    trainer = _fit_trainer(config, run.path, steps, results, export)
    on_cpu, half = isinstance(trainer.accelerator, CPUAccelerator), config.trainer.precision == "bf16-mixed"
    if can_unpad(scorer.config, training=True) and (on_cpu or (half and has_kernels())) and not config.trainer.compile:
        unpad(scorer.model, scorer.encoder)
    elif on_cpu and half:
        plain_attention(scorer.model)
    elif half and rank() == 0 and can_unpad(scorer.config, training=False):
        say("batches are padded: without attention dropout (scorer.dropout=0) and trainer.compile they need not be")
    run.commit()
    latest = latest_checkpoint(run.path / CHECKPOINTS)
    step = (checkpoint_step(latest) if latest else None) or 0
    trainer.logger = open_logger(config, run.path, step)
    if rank() == 0:
        if step < steps or config.select.by == "scorer":  # else its folds are where the job goes on
            note_start(job_folder(run.path), run.path.name, step)
        if latest:
            say(f"continuing from {latest}")
    module = CappyModule(scorer, config.optimizer, steps, told)
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=latest, weights_only=True)
        if not data.validation_pools:
            _evaluate_instances(config, export.last, datamodule, results, "cpu" if on_cpu else None)
        if config.select.by == "fused" and (stopped_by := _fuse(config, run.path, data.train_pools)):
            return stopped_by
    except Stopped as stopped:
        return int(stopped.signal)
    except SystemExit:  # what Lightning makes of Ctrl-C outside the training loop
        raise KeyboardInterrupt from None
    if trainer.is_global_zero:
        report = None
        if data.validation_pools:
            with exact_products():
                exported = PretrainedScorer.from_pretrained(export.last, device="cpu" if on_cpu else None)
                report = _evaluate_pools(config, exported, export.last, data, datamodule, results)
        if results.best_step == steps:  # the last is the best
            remove(export.best)
        write_text(export.last / CARD, model_card(export.kind, told, export.facts(trainer) | {"report": report}))
        results.write(report, _facts(told))
        if trainer.logger:  # the last round is not the trainer's
            trainer.logger.log_metrics(results.metrics | results.tests, steps)
            close_logger(trainer.logger)
    return 0


def _fuse(config: Config, run: Path, pools: Sequence[Pool]) -> int:
    """Train the folds, each a run of its own, and write what is fitted on them; 0, or what stopped one."""
    if not (run / FUSION).exists():  # the folds go after it is written, so a kill costs nothing
        for number, fold in enumerate(fold_configs(config, pools), start=1):
            own = RunDir(fold)
            if not own.finished:
                say(f"fold {number} of {config.select.folds}")
                if stopped_by := _fit(fold, own):
                    return stopped_by
        if rank() == 0:
            fuse_folds(config, pools).write(run / FUSION)
    if rank() == 0:
        remove(run / FOLDS)
    return 0


def _mean_score(directories: Sequence[str]) -> float:
    """The mean score of instances, as exactly as the histograms of their manifests tell."""
    counts = np.sum([read_manifest(directory).score_histogram for directory in directories], axis=0)
    return float(counts @ np.linspace(0, 1, len(counts)) / counts.sum())


def _build(config: Config, run: Path, directories: Sequence[str]) -> tuple[Scorer, dict[str, Any]]:
    """The scorer with what is trained of it, and what checkpoints and the model card say about the run.

    Args:
        config: of the run.
        run: its directory.
        directories: of the instances that it is trained on.
    """
    scorer = build_scorer(config.scorer)
    if scorer.new_head:
        begin_at_mean(scorer, _mean_score(directories))
    base = {"name": scorer.base, "revision": scorer.revision}
    told = dataclasses.asdict(config) | {"base": base, "activation": scorer.activation}
    told["parameters"] = sum(p.numel() for p in scorer.model.parameters())
    if config.finetune.mode == "full":
        base["sha256"] = weights_hash(scorer.model, head_names(scorer.config.model_type))
    else:
        if config.scorer.random_weights:  # an adapter names its base, and nobody else has this one
            scorer.base = str(run / "base")
            told["scorer"] |= {"base": scorer.base, "random_weights": False, "config": {}, "tokenizer": None}
            if rank() == 0:
                PretrainedScorer(scorer).save_pretrained(scorer.base)
        base["sha256"] = add_adapter(scorer, config.finetune)["base_sha256"]
    if config.trainer.activation_checkpointing:
        checkpoint_activations(scorer)
    if config.trainer.compile:
        encoder_of(scorer.model).compile(dynamic=True)
    scorer.model.train()  # a loaded model is in evaluation mode, without dropout, and Lightning leaves that as it is
    told["parameters_trained"] = sum(p.numel() for p in scorer.model.parameters() if p.requires_grad)
    if rank() == 0:
        counts = f"{told['parameters']:,} parameters, {told['parameters_trained']:,} of them trained"
        say(f"{config.scorer.base}: {counts} ({config.finetune.mode})")
    return scorer, told


def _facts(told: dict[str, Any]) -> dict[str, float]:
    """Numbers of a run that are no metrics."""
    facts: dict[str, float] = {"parameters": told["parameters"], "parameters_trained": told["parameters_trained"]}
    if torch.cuda.is_available():
        facts["train/peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    return facts


def _fit_trainer(config: Config, run: Path, steps: int, results: Results, export: Export) -> Trainer:
    validate_every = steps_between_rounds(steps, config.trainer.validations)
    accumulate = config.batch.global_size // (config.batch.micro_size * _ranks(config))
    zero, precision = config.trainer.strategy.startswith("zero"), cast(Any, config.trainer.precision)
    checkpoint = RunCheckpoint(run / CHECKPOINTS, config.trainer.checkpoint_every, steps, validate_every, results)
    return _trainer(
        config,
        make_strategy(config.trainer, config.batch),
        [StepProgress(steps, run, results), results, export, checkpoint],
        plugins=[ZeroPrecision(precision)] if zero else [WholeCheckpoints()],
        precision=None if zero else precision,
        max_epochs=1,  # one Lightning epoch is the whole training: the stream knows the real ones
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=config.trainer.gradient_clip,
        log_every_n_steps=1,
        val_check_interval=validate_every * accumulate,
        check_val_every_n_epoch=None,
        # ZeRO-3 gathers parameters for a validation round and divides them again: no tensors of inference, then.
        inference_mode=config.trainer.strategy != "zero3",
    )


def steps_between_rounds(steps: int, validations: int) -> int:
    """Steps from one validation round to the next; none is at the last step, whose round comes after the export."""
    every = steps // validations + 1
    while steps % every == 0:
        every += 1
    return every


def _ranks(config: Config) -> int:
    return config.trainer.devices * config.trainer.nodes


def _trainer(
    config: Config, strategy: Strategy | str, callbacks: list[pl.Callback], plugins: Sequence[Any] = (), **options: Any
) -> Trainer:
    if SLURMEnvironment.detect():  # Lightning's own handler requeues from within the signal, and can hang
        plugins = [*plugins, SLURMEnvironment(auto_requeue=False)]
    try:
        return Trainer(
            accelerator=config.trainer.accelerator,
            devices=config.trainer.devices,
            num_nodes=config.trainer.nodes,
            strategy=strategy,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
            plugins=list(plugins),
            **options,
        )
    except MisconfigurationException as error:
        raise InputError("trainer", str(error)) from None


def _evaluate_instances(
    config: Config, directory: Path, datamodule: CappyDataModule, results: Results, device: str | None
) -> None:
    """The last validation round and the test, on all ranks, of the exported scorer.

    On a CPU as a user would load it; on GPUs, for which these sets are large, in the training's precision.
    """
    scorer = PretrainedScorer.from_pretrained(directory, device=device).scorer
    if datamodule.encoder.packed_from is not None:
        unpad(scorer.model, scorer.encoder)
    module = CappyModule(scorer, config.optimizer, datamodule.total_steps)
    precision = "32-true" if device == "cpu" else config.trainer.precision
    trainer = _trainer(config, "ddp" if _ranks(config) > 1 else "auto", [], precision=precision)
    (values,) = trainer.validate(module, datamodule=datamodule, verbose=False)
    assert module.last_validation is not None
    results.add_validation(datamodule.total_steps, dict(values), *module.last_validation)
    if datamodule.test:
        (tests,) = trainer.test(module, datamodule=datamodule, verbose=False)
        results.tests = dict(tests)


def _evaluate_pools(
    config: Config,
    exported: PretrainedScorer,
    directory: Path,
    data: Prepared,
    datamodule: CappyDataModule,
    results: Results,
) -> dict[str, Any]:
    """The last validation round and the report on the pools, by the exported scorer as a user would load it."""
    validation = read_table(datamodule.validation)
    pairs = list(zip(validation["instruction"].to_pylist(), validation["response"].to_pylist(), strict=True))
    targets = torch.from_numpy(validation["score"].to_numpy().copy())
    examples = zip(validation["task"].to_pylist(), validation["example_id"].to_pylist(), strict=True)
    numbers = torch.tensor([example_number(task, example) for task, example in examples])
    say(f"evaluating the exported scorer on {len(pairs)} pairs")
    logits = exported.logits(pairs)
    tensors = torch.from_numpy(logits), torch.from_numpy(exported.to_scores(logits)), targets
    metrics = validation_metrics(*tensors, numbers)
    values = {f"validation/{name}": value for name, value in metrics.items()}
    results.add_validation(datamodule.total_steps, values, *tensors[1:])
    known = dict(zip(pairs, logits.tolist(), strict=True))
    pools, fused = data.validation_pools, None
    selections = [
        select_by_logits(exported, pool, [known[pool.example.instruction, c.response] for c in pool.candidates])
        for pool in pools
    ]
    if config.select.by == "fused":
        fusion = Fusion.read(results.run_dir / FUSION)
        fusion.write(directory / FUSION)
        fused = list(fusion.select(pools, selections))
    write_text(results.run_dir / SELECTIONS, "".join(to_line(one.to_row()) for one in fused or selections))
    return make_report(pools, selections, config.scorer.name, config.label, fused=fused)


def show_results(run: Path, as_json: bool) -> None:
    """Print the results of a finished run, and where they lie."""
    metrics = read_json(run / METRICS)
    if as_json:
        print(json.dumps({"run_dir": str(run), "metrics": metrics}))
        return
    screen = console()
    if (run / REPORT).exists():
        print_report(read_json(run / REPORT), screen)
    names = ("mse", "mae", "pearson", "spearman", "best_first")
    shown = [f"{name} {metrics[f'validation/{name}']:.4f}" for name in names if f"validation/{name}" in metrics]
    if shown:
        screen.print(f"validation instances: {', '.join(shown)}")
    show_places(run)
    for name in ("adapter", "model"):
        if (run / name).is_dir():
            size = sum(file.stat().st_size for file in (run / name).iterdir()) / 1e6
            screen.print(f"{name}: {run / name} ({size:.1f} MB)", soft_wrap=True, markup=False, highlight=False)


def _quiet_lightning() -> None:
    """Keep what is true but of no use to the user out of the output."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torchmetrics")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")

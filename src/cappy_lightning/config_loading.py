"""Recipes, overlays and `key=value` words become a checked config."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from cappy_lightning.config import BackboneConfig, Config
from cappy_lightning.errors import InputError
from cappy_lightning.schema import merge

#: Words for what takes its data from elsewhere than the config.
NO_DATA = (
    "data.task=null",
    "data.instances=[]",
    "data.validation_instances=[]",
    "data.test_instances=[]",
    "data.pool=[]",
    "data.examples=-",
)


def load_config(arguments: Sequence[str]) -> Config:
    """Merge YAML files and `key=value` words, left to right, into a checked `Config`.

    Raises:
        InputError: a file that cannot be read, an unknown key, a value of the wrong type or range.
    """
    if not arguments:
        raise InputError("train", "no recipe, expected RECIPE.yaml [OVERLAY.yaml ...] [key=value ...]")
    config = merge(Config, arguments)
    check_config(config)
    return config


def word(name: str, value: Any) -> str:
    """A `key=value` word, as YAML: JSON's escapes are not all YAML's."""
    text: str = yaml.safe_dump([value], default_flow_style=True, width=math.inf)
    return f"{name}={text.strip()[1:-1]}"


def check_config(config: Config) -> None:
    """Check what the types cannot say.

    Raises:
        InputError: naming the first key whose value is out of its range.
    """

    def expect(good: bool, name: str, expected: str) -> None:
        if not good:
            value: Any = config
            for part in name.split("."):
                value = getattr(value, part)
            raise InputError(name, f"is {value!r}, expected {expected}")

    scorer, finetune, data, batch = config.scorer, config.finetune, config.data, config.batch
    trainer, optimizer, backbone = config.trainer, config.optimizer, config.backbone
    expect(0 <= config.seed < 2**32, "seed", "0 to 4294967295")
    if backbone.url and "@" in backbone.url.partition("://")[2].partition("/")[0]:
        raise InputError("backbone.url", "holds a name or a password, expected a key in $OPENAI_API_KEY instead")
    expect(scorer.activation in (None, "sigmoid", "identity"), "scorer.activation", "sigmoid, identity or null")
    expect(scorer.truncate_instruction in ("left", "right"), "scorer.truncate_instruction", "left or right")
    expect(scorer.max_length >= 8, "scorer.max_length", "at least 8 tokens")
    expect(scorer.dropout is None or 0 <= scorer.dropout < 1, "scorer.dropout", "a share from 0 to below 1, or null")
    expect(finetune.mode in ("full", "lora", "head", "layers"), "finetune.mode", "full, lora, head or layers")
    if finetune.mode != "full" and scorer.tokenizer and not scorer.random_weights:
        raise InputError(
            "scorer.tokenizer", f"stands beside finetune.mode={finetune.mode}, but an adapter takes its base's own"
        )
    expect(finetune.layers >= 1, "finetune.layers", "at least 1")
    expect(finetune.lora_rank >= 1, "finetune.lora_rank", "at least 1")
    expect(finetune.lora_alpha >= 1, "finetune.lora_alpha", "at least 1")
    expect(0 <= finetune.lora_dropout < 1, "finetune.lora_dropout", "a share from 0 to below 1")
    sources = [name for name in ("pool", "examples", "task", "instances") if getattr(data, name)]
    if data.pool and data.task:  # a recorded pool of the task
        sources.remove("task")
    if len(sources) != 1:
        found = " and ".join(f"data.{name}" for name in sources) or "none"
        raise InputError(
            "data", f"expected one source (data.pool, data.examples, data.task or data.instances), found {found}"
        )
    for name in ("validation_instances", "test_instances"):
        if getattr(data, name) and not data.instances:
            raise InputError(f"data.{name}", "stands without data.instances, expected both")
    if data.instances:
        expect(data.max_train is None, "data.max_train", "null beside data.instances")
        expect(data.max_validation is None, "data.max_validation", "null beside data.instances")
    expect(0 < data.validation_fraction < 1, "data.validation_fraction", "a share between 0 and 1")
    expect(data.max_train is None or data.max_train >= 1, "data.max_train", "at least 1")
    expect(data.max_validation is None or data.max_validation >= 1, "data.max_validation", "at least 1")
    label = config.label
    expect(label.tokenizer in ("paper", "unicode"), "label.tokenizer", "paper or unicode")
    expect(label.mismatches >= 0, "label.mismatches", "0 or more")
    expect(label.max_wrong_choices is None or label.max_wrong_choices >= 0, "label.max_wrong_choices", "0 or more")
    expect(data.workers >= 0, "data.workers", "0 or more")
    expect(all(cap >= 0 for cap in data.caps.values()), "data.caps", "numbers of 0 or more")
    expect(all(0 <= weight < math.inf for weight in data.weights.values()), "data.weights", "factors of 0 or more")
    expect(data.window >= data.lanes, "data.window", f"at least data.lanes ({data.lanes})")
    expect(data.on_error in ("stop", "skip"), "data.on_error", "stop or skip")
    expect(data.lanes >= 1, "data.lanes", "at least 1")
    _check_backbone(backbone, expect)
    expect(config.select.by in ("scorer", "fused"), "select.by", "scorer or fused")
    expect(config.select.by != "fused" or not data.instances, "select.by", "scorer beside data.instances")
    expect(config.select.folds >= 2, "select.folds", "at least 2")
    answer = config.answer
    expect(answer.step >= 1, "answer.step", "at least 1")
    for name in ("stop", "abstain"):
        value = getattr(answer, name)
        expect(value is None or 0 <= value <= 1, f"answer.{name}", "a score from 0 to 1, or null")
    expect(answer.budget_tokens is None or answer.budget_tokens >= 1, "answer.budget_tokens", "at least 1, or null")
    serve = config.serve
    expect(0 <= serve.port < 2**16, "serve.port", "0 to 65535")
    for name in ("concurrency", "max_body_bytes", "max_pairs"):
        expect(getattr(serve, name) >= 1, f"serve.{name}", "at least 1")
    expect(0 < serve.timeout < math.inf, "serve.timeout", "seconds above 0")
    expect(batch.micro_size >= 1, "batch.micro_size", "at least 1")
    expect(batch.validation_size >= 1, "batch.validation_size", "at least 1")
    expect(trainer.devices >= 1, "trainer.devices", "at least 1")
    expect(trainer.nodes >= 1, "trainer.nodes", "at least 1")
    ranks = trainer.devices * trainer.nodes
    if data.lanes % ranks:
        raise InputError("data.lanes", f"is {data.lanes}, expected a multiple of the number of ranks ({ranks})")
    forward = batch.micro_size * ranks
    if batch.global_size < 1 or batch.global_size % forward:
        raise InputError(
            "batch.global_size",
            f"is {batch.global_size}, expected a multiple of {forward}"
            " (batch.micro_size x trainer.devices x trainer.nodes)",
        )
    expect(0 < optimizer.learning_rate < math.inf, "optimizer.learning_rate", "a number above 0")
    expect(optimizer.weight_decay >= 0, "optimizer.weight_decay", "0 or more")
    expect(0 <= optimizer.warmup <= 1, "optimizer.warmup", "a share from 0 to 1")
    expect(0 < optimizer.layer_decay <= 1, "optimizer.layer_decay", "a factor above 0, at most 1")
    expect(0 <= optimizer.ranking < math.inf, "optimizer.ranking", "a factor of 0 or more")
    if optimizer.ranking and 2 * data.lanes > batch.global_size:
        raise InputError(
            "data.lanes",
            f"is {data.lanes}, expected at most half of batch.global_size ({batch.global_size}) beside"
            " optimizer.ranking, which compares the pairs of a lane in a step: as few as there are ranks",
        )
    expect(0 < trainer.epochs < math.inf, "trainer.epochs", "a number above 0")
    expect(trainer.max_steps is None or trainer.max_steps >= 1, "trainer.max_steps", "at least 1")
    expect(trainer.validations >= 1, "trainer.validations", "at least 1")
    expect(trainer.checkpoint_every >= 1, "trainer.checkpoint_every", "at least 1")
    expect(trainer.accelerator in ("auto", "cpu", "gpu"), "trainer.accelerator", "auto, cpu or gpu")
    strategies = ("auto", "ddp", "zero1", "zero2", "zero3")
    expect(trainer.strategy in strategies, "trainer.strategy", f"one of {', '.join(strategies)}")
    zero = trainer.strategy.startswith("zero")
    expect(zero or not trainer.offload, "trainer.offload", "it only beside trainer.strategy=zero1, zero2 or zero3")
    expect(
        not trainer.compile or trainer.strategy != "zero3",
        "trainer.compile",
        "false beside trainer.strategy=zero3, which swaps parameters in and out between the layers",
    )
    expect(trainer.zero3_persistence >= 0, "trainer.zero3_persistence", "0 or more")
    expect(trainer.precision in ("32-true", "bf16-mixed"), "trainer.precision", "32-true or bf16-mixed")
    loggers = ("tensorboard", "csv", "wandb", "none")
    expect(trainer.logger in loggers, "trainer.logger", f"one of {', '.join(loggers)}")
    expect(trainer.gradient_clip is None or trainer.gradient_clip > 0, "trainer.gradient_clip", "above 0, or null")


def _check_backbone(backbone: BackboneConfig, expect: Callable[[bool, str, str], None]) -> None:
    kinds = ("embedded", "openai", "transformers", "recorded")
    expect(backbone.kind in kinds, "backbone.kind", f"one of {', '.join(kinds)}")
    for name, only in (
        ("url", ("openai",)),
        ("pools", ("recorded",)),
        ("min_tokens", ("transformers",)),
        ("model", ("openai", "transformers")),
    ):
        fits = backbone.kind in only or not getattr(backbone, name)
        expect(fits, f"backbone.{name}", f"it only beside backbone.kind={' or '.join(only)}")
    expect(backbone.kind != "transformers" or bool(backbone.model), "backbone.model", "a model for kind=transformers")
    files = bool(backbone.pools) and "-" not in backbone.pools  # which are read more than once
    expect(backbone.kind != "recorded" or files, "backbone.pools", "pool files for kind=recorded")
    template = backbone.template
    expect(template is None or "{instruction}" in template, "backbone.template", "a text with {instruction} in it")
    expect(any(backbone.decodings.values()), "backbone.decodings", "at least one decoding")
    for name in ("shots", "retries", "min_tokens"):
        expect(getattr(backbone, name) >= 0, f"backbone.{name}", "0 or more")
    for name in ("max_tokens", "concurrency", "batch_size", "max_prompt_tokens"):
        expect(getattr(backbone, name) >= 1, f"backbone.{name}", "at least 1")
    expect(backbone.min_tokens <= backbone.max_tokens, "backbone.min_tokens", "at most backbone.max_tokens")
    expect(0 < backbone.timeout < math.inf, "backbone.timeout", "seconds above 0")
    for name in ("input_price", "output_price", "budget_tokens", "budget_usd"):
        value = getattr(backbone, name)
        expect(value is None or 0 <= value < math.inf, f"backbone.{name}", "0 or more, or null")
    priced = backbone.input_price is not None and backbone.output_price is not None
    expect(backbone.budget_usd is None or priced, "backbone.budget_usd", "it only beside both prices")

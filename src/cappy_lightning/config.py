"""The one schema of every YAML: its fields are the keys, their metadata the help texts.

A run's configuration is `merge(schema, *yaml files, key=value ...)`, left to right, by OmegaConf.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cappy_lightning.errors import InputError

Schema = typing.TypeVar("Schema")


def key(default: Any, help: str) -> Any:
    """A config key with its default and its help text."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def section(cls: type) -> Any:
    """A nested section of the schema."""
    return field(default_factory=cls)


@dataclass
class ScorerConfig:
    """Which encoder, and how it reads a pair."""

    name: str = key("cappy", "The scorer's name in reports")
    base: str = key("embedded", "Encoder or scorer to start from: hub name, local path, or 'embedded' (MiniLM)")
    revision: str | None = key(None, "Branch, tag or commit of `base` on the hub")
    random_weights: bool = key(False, "Build `base` from its config with random weights instead of loading it")
    config: dict[str, Any] = key({}, "Architecture for random_weights, as in config.json; empty: that of `base`")
    tokenizer: str | None = key(None, "Tokenizer, if it is not that of `base`: hub name, local path, or 'embedded'")
    activation: str | None = key(
        None, "sigmoid or identity (linear regressors); null: as the checkpoint says, else sigmoid for a new head"
    )
    max_length: int = key(256, "Most tokens of a pair, special tokens included")
    truncate_instruction: str = key("left", "Which end of a long instruction gives way: left or right")
    dropout: float | None = key(None, "Dropout everywhere in the model while it is trained; null: as its config says")


@dataclass
class FinetuneConfig:
    """Which weights are trained."""

    mode: str = key(
        "full",
        "full (every weight; exports model/), or what exports adapter/: lora (LoRA on the encoder, and the head), head,"
        " layers (the last layers of the encoder, and the head)",
    )
    layers: int = key(2, "mode=layers: how many layers of the encoder, counted from the head")
    lora_rank: int = key(16, "Rank of the LoRA matrices")
    lora_alpha: int = key(32, "LoRA scale: updates are multiplied by lora_alpha / lora_rank")
    lora_dropout: float = key(0.0, "Dropout before the LoRA matrices")
    lora_targets: list[str] = key(
        [], "Linear layers of the encoder that get LoRA; empty: attention and feed-forward layers"
    )


@dataclass
class DataConfig:
    """Where the training and validation data come from. Exactly one of pool, examples, task, instances."""

    pool: list[str] = key([], "Pool files (JSONL): examples with their candidates; go before `task`")
    examples: str | None = key(
        None,
        "Examples (JSONL, CSV, Parquet, or a sources file); those with references are answered by the backbone first",
    )
    task: str | None = key(None, "BIG-bench task name; its candidates are recorded from the backbone once")
    instances: list[str] = key(
        [],
        "Training instances: directories of Parquet shards (paths or fsspec URLs), or JSONL, CSV or Parquet files with"
        " your own scores",
    )
    validation_instances: list[str] = key(
        [], "Validation instances in the same forms; empty: split off from `instances`"
    )
    test_instances: list[str] = key([], "Test instances in the same forms, scored once after the training")
    validation_fraction: float = key(0.2, "Share of the examples that become the validation split, where there is none")
    max_train: int | None = key(None, "Most training examples, drawn by `seed`; null: all")
    max_validation: int | None = key(None, "Most validation examples, drawn by `seed`; null: all")
    seed: int = key(0, "Seed of splits, caps and mismatches; the training seed leaves them alone")
    caps: dict[str, int] = key(
        {}, "Most instances of a task in an epoch: pattern of task names (* stands for any text) to number"
    )
    weights: dict[str, float] = key(
        {}, "How often the instances of a task (after its cap) come in an epoch: pattern of task names to factor"
    )
    lanes: int = key(64, "Streams that the order is made of; the number of ranks must divide it")
    window: int = key(
        256, "Row groups (1,000 instances as `cappy label` writes them) held and shuffled at a time, over all ranks"
    )
    on_error: str = key("stop", "At a row group that cannot be read: stop, or skip it and count its instances")
    workers: int = key(0, "Loader processes per rank; 0: in the training process")


@dataclass
class LabelConfig:
    """How responses get their weak labels. `score` and `tokenizer` are the metric of reports, too."""

    score: str = key(
        "rouge_l",
        "Score of a sampled response: rouge_l, exact_match, token_f1, or package.module:function of"
        " (instruction, references, response)",
    )
    tokenizer: str = key(
        "paper", "Tokens of rouge_l and token_f1: paper (a-z, 0-9, stems; Latin script only) or unicode (every script)"
    )
    mismatches: int = key(1, "Mismatch instances per training example (score 0)")
    max_wrong_choices: int | None = key(None, "Most wrong choices per training example, drawn by data.seed; null: all")


@dataclass
class BackboneConfig:
    """The frozen LLM that proposes candidates, and how it is asked."""

    kind: str = key(
        "embedded",
        "embedded (SmolLM2-135M, packaged), openai (any endpoint that speaks the OpenAI API; key from"
        " $OPENAI_API_KEY), transformers (a model in this process) or recorded (pool files)",
    )
    url: str | None = key(None, "openai: base URL of the endpoint; null: OpenAI's own, or $OPENAI_BASE_URL")
    model: str | None = key(None, "openai: model name; transformers: hub name, local path or .gguf file")
    revision: str | None = key(None, "transformers: branch, tag or commit of the model on the hub")
    pools: list[str] = key([], "recorded: pool files that hold the candidates")
    chat: bool = key(False, "Ask in a chat: the model's chat template is applied, shots become earlier turns")
    decodings: dict[str, int] = key(
        {"greedy": 1, "sampling": 4, "temperature_0.7": 4, "nucleus_0.9": 4},
        "Candidates per decoding (greedy, beam_K, sampling, temperature_T, top_k_K, nucleus_P); 0 leaves one out",
    )
    shots: int = key(3, "Training examples shown in the prompt, the same for every example of a task")
    template: str | None = key(
        None,
        "How the prompt shows an instruction; null: 'Question: {instruction}\\nAnswer:', in a chat '{instruction}'",
    )
    stop: str | None = key(None, "Where an answer ends; '': nowhere; null: at the end of the line, in a chat nowhere")
    max_tokens: int = key(48, "Most tokens of an answer")
    min_tokens: int = key(0, "transformers: least tokens of an answer")
    seed: int = key(0, "Seed of the shots and of sampling")
    concurrency: int = key(4, "embedded, openai: HTTP requests under way at a time")
    timeout: float = key(120.0, "embedded, openai: seconds without an answer after which a request is sent again")
    retries: int = key(6, "embedded, openai: times that a failed request (429, 5xx, no connection) is sent again")
    batch_size: int = key(8, "transformers: prompts that are answered together")
    max_prompt_tokens: int = key(512, "transformers: most tokens of a prompt; a longer one loses its beginning")
    device: str = key("auto", "transformers: cpu, cuda, cuda:1 ...; auto: a GPU if there is one")
    input_price: float | None = key(None, "US dollars per million prompt tokens, to show the cost")
    output_price: float | None = key(None, "US dollars per million answer tokens, to show the cost")
    budget_tokens: int | None = key(None, "Stop when so many tokens (prompts and answers) have been used")
    budget_usd: float | None = key(None, "Stop when so many US dollars have been spent; needs both prices")


@dataclass
class BatchConfig:
    """Batches are named by the optimizer step; accumulation follows."""

    global_size: int = key(32, "Pairs per optimizer step, over all ranks and accumulated forwards")
    micro_size: int = key(32, "Pairs per rank and forward; micro_size x ranks must divide global_size")
    validation_size: int = key(64, "Pairs per rank and forward in validation")


@dataclass
class OptimizerConfig:
    """AdamW with a linear schedule."""

    learning_rate: float = key(2e-5, "Peak learning rate")
    weight_decay: float = key(0.0, "Decoupled weight decay; never on biases and LayerNorm")
    warmup: float = key(0.1, "Share of the steps in which the learning rate rises from 0; then it falls to 0")
    layer_decay: float = key(
        1.0, "The learning rate of a layer is that of the next one above, beginning with the head, times this"
    )


@dataclass
class TrainerConfig:
    """How long, and on what."""

    epochs: float = key(1.0, "Passes over the training instances")
    max_steps: int | None = key(None, "Optimizer steps instead of `epochs`")
    validations: int = key(4, "Validation rounds, evenly spread, the last one after the training")
    checkpoint_every: int = key(200, "Optimizer steps between checkpoints")
    accelerator: str = key("auto", "Lightning accelerator: auto, cpu, gpu")
    devices: int = key(1, "Processes (GPUs) per node")
    nodes: int = key(1, "Nodes")
    strategy: str = key(
        "auto",
        "auto (ddp for more than one process), ddp, or DeepSpeed's zero1, zero2, zero3 (AdamW's state, gradients too,"
        " parameters too are divided among the ranks); may change where a run continues",
    )
    offload: bool = key(False, "zero1 to zero3: keep optimizer states, with zero3 parameters too, in the host's memory")
    zero3_persistence: int = key(100_000, "zero3: parameters of at most so many numbers stay whole on every rank")
    activation_checkpointing: bool = key(
        False, "Compute the activations of a layer again in the backward pass instead of keeping them"
    )
    compile: bool = key(False, "torch.compile the encoder: minutes at the start, then faster steps on a GPU")
    precision: str = key("32-true", "Lightning precision: 32-true, bf16-mixed")
    gradient_clip: float | None = key(None, "Largest gradient norm; null: not clipped")


@dataclass
class Config:
    """A whole run."""

    name: str = key("run", "Short name; the default run directory is made of it")
    run_dir: str = key("runs/${name}", "Everything the run writes; the same command on it again continues")
    seed: int = key(11111, "Training seed: new head, dropout, order of the instances")
    push_to_hub: str | None = key(
        None, "Repository (NAME or USER/NAME) that the export is uploaded to at the end; token from $HF_TOKEN"
    )
    scorer: ScorerConfig = section(ScorerConfig)
    finetune: FinetuneConfig = section(FinetuneConfig)
    data: DataConfig = section(DataConfig)
    label: LabelConfig = section(LabelConfig)
    backbone: BackboneConfig = section(BackboneConfig)
    batch: BatchConfig = section(BatchConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    trainer: TrainerConfig = section(TrainerConfig)


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


def merge(schema: type[Schema], arguments: Sequence[str]) -> Schema:
    """Merge YAML files and `key=value` words, left to right, onto a dataclass.

    Raises:
        InputError: a file that cannot be read, an unknown key, or a value of the wrong type.
    """
    merged = OmegaConf.structured(schema)
    for argument in arguments:
        overlay, where = _parse_argument(argument)
        try:
            _check_keys(overlay, merged, where, list(all_keys(schema)))
            merged = typing.cast(DictConfig, OmegaConf.merge(merged, overlay))
        except OmegaConfBaseException as error:
            raise InputError(f"{where}: {error.full_key or ''}", _reason(error)) from None
        except (TypeError, ValueError, AttributeError) as error:  # OmegaConf's answer to a list for a mapping
            raise InputError(where, str(error).splitlines()[0]) from None
    try:
        OmegaConf.resolve(merged)
        return typing.cast(Schema, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise InputError(error.full_key or "config", _reason(error)) from None


def _reason(error: OmegaConfBaseException) -> str:
    return str(error.msg if error.msg else error).splitlines()[0]


def _parse_argument(argument: str) -> tuple[DictConfig, str]:
    """One YAML file or one `key=value` as a config, with its name for messages."""
    name, equals, value = argument.partition("=")
    if equals and "/" not in name:
        if value == "-":  # standard input, which YAML takes for an empty list
            argument = f"{name}='-'"
        try:
            return OmegaConf.from_dotlist([argument]), f"{name}={value}"
        except Exception as error:  # OmegaConf lets the YAML parser's own errors through
            raise InputError(argument, f"cannot be read as key=value ({str(error).splitlines()[0]})") from None
    if not argument.endswith((".yaml", ".yml")):
        raise InputError(argument, "is neither a .yaml file nor key=value")
    try:
        loaded = OmegaConf.load(argument)
    except OSError as error:
        if error.strerror is None:  # OmegaConf's word for a file that is a single number
            raise InputError(argument, "is no mapping, expected 'key: value' lines") from None
        raise InputError(argument, f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(argument, "is not UTF-8 text") from None
    except Exception as error:  # the YAML parser's own errors
        raise InputError(argument, f"is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(loaded, DictConfig):
        raise InputError(argument, "is no mapping, expected 'key: value' lines")
    if not loaded:
        raise InputError(argument, "is empty, expected 'key: value' lines")
    return loaded, argument


def _check_keys(overlay: DictConfig, schema: DictConfig, where: str, known: Sequence[str], prefix: str = "") -> None:
    """Every key of the overlay must stand in the schema; a single value may stand for a list of one, null for none."""
    for name in list(overlay):
        path = f"{prefix}{name}"
        if name not in schema:
            near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
            hint = f", did you mean '{near[0]}'?" if near else ""
            raise InputError(where, f"unknown key '{path}'{hint}")
        below, value = OmegaConf.get_type(schema, name), overlay._get_node(name)
        if dataclasses.is_dataclass(below):
            if not isinstance(value, DictConfig):
                raise InputError(where, f"'{path}' is a section, expected keys below it")
            _check_keys(value, schema[name], where, known, f"{path}.")
        elif below is list and not OmegaConf.is_config(value):
            overlay[name] = [] if overlay[name] in (None, "") else [overlay[name]]


def all_keys(cls: type = Config, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Every key of the schema, dotted, with its field."""
    keys: dict[str, dataclasses.Field[Any]] = {}
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            keys |= all_keys(typing.cast(type, hints[f.name]), f"{prefix}{f.name}.")
        else:
            keys[prefix + f.name] = f
    return keys


def describe_keys(cls: type = Config, prefix: str = "") -> str:
    """The help text: every key of the schema, or of a section of it, with its type, default and meaning."""
    defaults, lines = cls(), []
    for name, f in all_keys(cls).items():
        value: Any = defaults
        for part in name.split("."):
            value = getattr(value, part)
        shown = repr(value) if isinstance(value, str | dict | list) else "null" if value is None else str(value).lower()
        kind = str(f.type.__name__ if isinstance(f.type, type) and not typing.get_args(f.type) else f.type)
        kind = kind.replace("typing.", "").replace(" | None", " or null")
        lines.append(f"  {prefix}{name}  ({kind}, default {shown})\n      {f.metadata['help']}")
    return "\n".join(lines)


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
    expect(backbone.kind != "recorded" or bool(backbone.pools), "backbone.pools", "pool files for kind=recorded")
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

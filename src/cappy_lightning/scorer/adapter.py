"""Adapters: LoRA on the encoder plus the head, in PEFT's own format."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftModelForSequenceClassification,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from safetensors.torch import load_file

import cappy_lightning
from cappy_lightning.config import FinetuneConfig
from cappy_lightning.errors import InputError
from cappy_lightning.files import write_json
from cappy_lightning.scorer.model import EMBEDDED, EMBEDDED_HUB_NAME, LORA_TARGETS, Scorer, head_names, weights_hash

#: What PEFT does not know: the base by name and hash, and how pairs are encoded and logits read.
SETTINGS_FILE = "cappy.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def add_lora(scorer: Scorer, config: FinetuneConfig) -> dict[str, Any]:
    """Wrap the scorer's model in PEFT: LoRA on the encoder, the whole head trained and saved beside it.

    Returns:
        the settings to store with the adapter, the hash of the base's weights among them.

    Raises:
        InputError: a target that is no linear layer of the encoder.
    """
    model_type = scorer.config.model_type
    heads = head_names(model_type)
    targets = list(config.lora_targets) or list(LORA_TARGETS[model_type])
    settings = {
        "base": scorer.base,
        "revision": scorer.revision,
        "base_sha256": weights_hash(scorer.model, heads),
        **scorer.encoding_settings(),
        "cappy_lightning": cappy_lightning.__version__,
    }
    lora = LoraConfig(
        task_type="SEQ_CLS",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        exclude_modules=r".*\b(" + "|".join(heads) + r")\b.*",  # a head's layers are trained whole
        modules_to_save=list(heads),
        revision=scorer.revision,
    )
    try:
        with _quiet():
            model = get_peft_model(scorer.model, lora)
    except ValueError as error:
        raise InputError("finetune.lora_targets", f"are {targets} ({str(error).splitlines()[0]})") from None
    # The name that others know it by; PEFT has put the path from which it was loaded.
    lora.base_model_name_or_path = EMBEDDED_HUB_NAME if scorer.base == EMBEDDED else scorer.base
    scorer.model = model
    return settings


def save_adapter(scorer: Scorer, settings: dict[str, Any], directory: Path) -> None:
    """Write the adapter: PEFT's two files and `cappy.json`. No base weights are among them."""
    assert isinstance(scorer.model, PeftModel)
    # Without the base name PEFT would try to look up the base's vocabulary on the hub.
    scorer.model.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's empty template
    write_json(directory / SETTINGS_FILE, settings)


def read_settings(directory: Path) -> dict[str, Any]:
    """The `cappy.json` of an adapter.

    Raises:
        InputError: the directory is no adapter of ours.
    """
    path = directory / SETTINGS_FILE
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, SETTINGS_FILE):
        if not (directory / name).is_file():
            raise InputError(directory, f"is no adapter, expected {name} in it")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["base"], settings["base_sha256"], settings["max_length"]
    except (ValueError, KeyError, TypeError):
        raise InputError(path, "is damaged, expected the settings of an adapter") from None
    return dict(settings)


def load_adapter(scorer: Scorer, directory: Path, name: str) -> None:
    """Put a saved adapter onto a base scorer, under a name, and make it the active one.

    Raises:
        InputError: the base has other weights than the adapter was trained on, or tensors are missing,
            too many, of another shape or not finite.
    """
    settings = read_settings(directory)
    model = scorer.model
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    heads = head_names(scorer.config.model_type)
    if not isinstance(model, PeftModel) and weights_hash(base, heads) != settings["base_sha256"]:
        raise InputError(
            directory, f"was trained on other weights than {scorer.base}, expected {settings['base']} unchanged"
        )
    weights = directory / ADAPTER_WEIGHTS
    try:
        stored = load_file(weights)
        lora = PeftConfig.from_pretrained(str(directory))
        with _quiet():
            if isinstance(model, PeftModel):
                model.add_adapter(name, lora)
            else:
                scorer.model = model = PeftModelForSequenceClassification(model, lora, adapter_name=name)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(directory, f"cannot be loaded ({str(error).strip().splitlines()[0]})") from None
    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if odd := sorted(set(expected) ^ set(stored)):
        problem = "lacks" if odd[0] in expected else "has an unknown"
        raise InputError(weights, f"{problem} tensor {odd[0]}")
    for key, tensor in stored.items():
        if tensor.shape != expected[key].shape:
            shapes = f"{list(tensor.shape)}, expected {list(expected[key].shape)}"
            raise InputError(weights, f"tensor {key} has the shape {shapes}")
        if not tensor.numel() or not torch.isfinite(tensor).all():
            raise InputError(weights, f"tensor {key} is empty or not finite")
    set_peft_model_state_dict(model, stored, adapter_name=name)
    model.set_adapter(name)
    model.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # PEFT uses names that transformers deprecates.
        warnings.simplefilter("ignore")
        yield

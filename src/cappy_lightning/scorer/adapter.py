"""Adapters: the head with LoRA, with whole layers, or alone, in PEFT's own format."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftModelForSequenceClassification,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

import cappy_lightning
from cappy_lightning.config import FinetuneConfig
from cappy_lightning.errors import InputError, first_line
from cappy_lightning.files import file_sha256, write_json
from cappy_lightning.scorer.architectures import LAYERS, LORA_TARGETS, head_names
from cappy_lightning.scorer.model import EMBEDDED, EMBEDDED_HUB_NAME, Scorer, weights_hash

#: What PEFT does not know: the base by name and hash, and how pairs are encoded and logits read.
SETTINGS_FILE = "cappy.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def add_adapter(scorer: Scorer, config: FinetuneConfig) -> dict[str, Any]:
    """Wrap the scorer's model in PEFT: what `finetune.mode` trains is trained and saved, all else is frozen.

    LoRA matrices go into the encoder. The head, and with `layers` the last layers of the encoder, are trained as
    copies, which PEFT saves whole.

    Returns:
        the settings to store with the adapter, the hash of the base's weights among them.

    Raises:
        InputError: a target that is no linear layer of the encoder, or more layers than it has.
    """
    check_targets(scorer.model, config)
    lora = lora_config(scorer.config, config, scorer.base)
    lora.revision = scorer.revision
    settings = {
        "base": scorer.base,
        "revision": scorer.revision,
        "base_sha256": weights_hash(scorer.model, head_names(scorer.config.model_type)),
        **scorer.encoding_settings(),
        "cappy_lightning": cappy_lightning.__version__,
    }
    with quiet_peft():
        model = get_peft_model(scorer.model, lora)
    # The name that others know it by; PEFT has put the path from which it was loaded.
    lora.base_model_name_or_path = EMBEDDED_HUB_NAME if scorer.base == EMBEDDED else scorer.base
    scorer.model = model
    return settings


def check_targets(model: nn.Module, config: FinetuneConfig) -> None:
    """Refuse LoRA targets that fit nothing; PEFT passes over them where another one fits.

    Raises:
        InputError: a target that is no linear layer of the encoder.
    """
    if config.mode != "lora":
        return
    hf_config: Any = model.config
    heads = head_names(hf_config.model_type)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    encoder = [name for name in layers if not set(name.split(".")) & set(heads)]
    for target in config.lora_targets:
        if not any(f".{name}".endswith(f".{target}") for name in encoder):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in encoder}))
            raise InputError("finetune.lora_targets", f"names '{target}', expected layers of the encoder: {known}")


def lora_config(model: Any, config: FinetuneConfig, name: str) -> LoraConfig:
    """PEFT's settings for a finetune mode.

    Args:
        model: the Hugging Face config of the base.
        config: the `finetune` section; of a mode with an adapter.
        name: of the base, for messages.

    Raises:
        InputError: more layers than the base has.
    """
    heads = head_names(model.model_type)
    targets: list[str] | str = DUMMY_TARGET_MODULES
    excluded, trained = None, list(heads)
    if config.mode == "lora":
        targets = list(config.lora_targets) or list(LORA_TARGETS[model.model_type])
        excluded = r".*\b(" + "|".join(heads) + r")\b.*"  # a head's layers are trained whole
    if config.mode == "layers":
        count = model.num_hidden_layers
        if config.layers > count:
            raise InputError("finetune.layers", f"is {config.layers}, expected at most {count} for {name}")
        trained += [f"{LAYERS[model.model_type]}.{number}" for number in range(count - config.layers, count)]
        if model.model_type == "modernbert":  # has a norm between its last layer and the head
            trained.append("final_norm")
    return LoraConfig(
        task_type="SEQ_CLS",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        exclude_modules=excluded,
        modules_to_save=trained,
    )


def save_adapter(scorer: Scorer, settings: dict[str, Any], directory: Path) -> None:
    """Write the adapter: PEFT's two files and `cappy.json`. No base weights are among them."""
    assert isinstance(scorer.model, PeftModel)
    # Without the base name PEFT would try to look up the base's vocabulary on the hub.
    scorer.model.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's empty template
    hashes = {name: file_sha256(directory / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    write_json(directory / SETTINGS_FILE, settings | {"sha256": hashes})


def find_adapter(name: str | Path, revision: str | None = None) -> Path | None:
    """The directory of an adapter that is there or on the hub; None for what is no adapter.

    Args:
        name: a directory or a hub name.
        revision: of a hub name.
    """
    if Path(name).exists() or str(name) == EMBEDDED:
        return Path(name) if (Path(name) / ADAPTER_CONFIG).is_file() else None
    try:
        hf_hub_download(str(name), ADAPTER_CONFIG, revision=revision)
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, OSError):  # no such file or repository, or no hub
        return None


def read_settings(directory: Path) -> dict[str, Any]:
    """The `cappy.json` of an adapter.

    Raises:
        InputError: the directory is no adapter of ours, or its files have changed since it was written.
    """
    path = directory / SETTINGS_FILE
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, SETTINGS_FILE):
        if not (directory / name).is_file():
            raise InputError(directory, f"is no adapter, expected {name} in it")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        for name, kind in (("base", str), ("base_sha256", str), ("activation", str), ("max_length", int)):
            if not isinstance(settings[name], kind):
                raise TypeError
        if not isinstance(settings.get("revision"), str | None):
            raise TypeError
        hashes = dict(settings["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(path, "is damaged, expected the settings of an adapter") from None
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if file_sha256(directory / name) != hashes.get(name):
            raise InputError(directory / name, f"is not as it was exported, expected the SHA-256 {hashes.get(name)}")
    return dict(settings)


def load_adapter(scorer: Scorer, directory: Path, settings: dict[str, Any], name: str) -> None:
    """Put a saved adapter onto a base scorer, under a name, and make it the active one.

    Args:
        scorer: the base, or with other adapters on it already.
        directory: of the adapter.
        settings: from `read_settings`.
        name: of the adapter on this scorer.

    Raises:
        InputError: the base has other weights than the adapter was trained on; tensors are missing,
            too many, of another shape or not finite; or an adapter that is there trained other layers whole.
    """
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
        if isinstance(model, PeftModel):
            for other in model.peft_config.values():
                if set(other.modules_to_save) != set(lora.modules_to_save):  # PEFT would nest the copies
                    raise InputError(
                        directory,
                        "trained other layers whole than the first adapter, expected adapters of mode layers"
                        " beside their like only",
                    )
        with quiet_peft():
            if isinstance(model, PeftModel):
                model.add_adapter(name, lora)
            else:
                scorer.model = model = PeftModelForSequenceClassification(model, lora, adapter_name=name)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(directory, f"cannot be loaded ({first_line(error)})") from None
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
def quiet_peft() -> Iterator[None]:
    """Without the warnings of PEFT's own code."""
    with warnings.catch_warnings():
        # PEFT uses names that transformers deprecates.
        warnings.simplefilter("ignore")
        yield

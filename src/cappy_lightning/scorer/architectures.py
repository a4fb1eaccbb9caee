"""Where the head and the layers lie in each supported architecture."""

import re
from typing import Any

from cappy_lightning.errors import InputError

#: Every parameter outside the encoder proper, by architecture: never guessed. The names are module names
#: anywhere in the model, so that BERT's pooler, which lies inside `bert`, is found too.
HEADS: dict[str, tuple[str, ...]] = {
    "roberta": ("classifier",),
    "xlm-roberta": ("classifier",),
    "bert": ("pooler", "classifier"),
    "deberta": ("pooler", "classifier"),
    "deberta-v2": ("pooler", "classifier"),
    "modernbert": ("head", "classifier"),
}

#: Linear layers of attention and feed-forward, where LoRA goes unless the user says otherwise.
LORA_TARGETS: dict[str, tuple[str, ...]] = {
    "roberta": ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"),
    "xlm-roberta": ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"),
    "bert": ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"),
    "deberta": ("in_proj", "attention.output.dense", "intermediate.dense", "output.dense"),
    "deberta-v2": (
        "query_proj",
        "key_proj",
        "value_proj",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
    "modernbert": ("Wqkv", "Wo", "Wi"),
}

#: The list of the encoder's layers, by architecture, as it ends in the names of parameters.
LAYERS: dict[str, str] = {
    "roberta": "layer",
    "xlm-roberta": "layer",
    "bert": "layer",
    "deberta": "layer",
    "deberta-v2": "layer",
    "modernbert": "layers",
}


def head_names(model_type: str) -> tuple[str, ...]:
    """The modules of an architecture's head.

    Raises:
        InputError: an architecture that is not supported.
    """
    if model_type not in HEADS:
        raise InputError(
            "scorer.base", f"is of the architecture '{model_type}', expected one of {', '.join(sorted(HEADS))}"
        )
    return HEADS[model_type]


def in_head(parameter: str, heads: tuple[str, ...]) -> bool:
    """Whether a parameter, by its dotted name, belongs to the head.

    ModernBERT's `head` and RoBERTa's `classifier` stand at the top; attention "heads" never match,
    because whole components of the name are compared.
    """
    return any(component in heads for component in parameter.split("."))


def depth(parameter: str, config: Any) -> int:
    """How many layers lie between a parameter and the head, the head's own at 0.

    The last layer of the encoder, and what stands between it and the head, are at 1; embeddings, and what all layers
    share, lie below the first layer.

    Args:
        parameter: its dotted name.
        config: the Hugging Face config of the model.
    """
    layers = int(config.num_hidden_layers)
    if in_head(parameter, head_names(config.model_type)):
        return 0
    if match := re.search(rf"\.{LAYERS[config.model_type]}\.(\d+)\.", parameter):
        return layers - int(match[1])
    return 1 if ".final_norm." in parameter else layers + 1  # ModernBERT has a norm above its last layer

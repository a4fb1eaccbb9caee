"""A scorer as a plain model directory of Hugging Face's format, for other libraries to load."""

import copy
from pathlib import Path
from typing import Any

from peft import PeftModel

from cappy_lightning.files import read_json, write_json
from cappy_lightning.scorer.model import Scorer


def merged_model(scorer: Scorer) -> Any:
    """The plain model of transformers behind a scorer; LoRA weights are merged into a copy of the base's.

    Its config says how pairs are encoded and logits read, to us under `cappy` and to sentence-transformers.
    """
    model: Any = scorer.model
    if isinstance(model, PeftModel):
        model = copy.deepcopy(model).merge_and_unload()
    model.config.cappy = scorer.encoding_settings()
    model.config.problem_type = "regression"
    model.config.sentence_transformers = {"activation_fn": _activation(scorer)}  # read by versions 4 and 5
    return model


def write_model(scorer: Scorer, directory: Path) -> None:
    """Write the files of a model directory."""
    merged_model(scorer).save_pretrained(directory, safe_serialization=True)
    write_tokenizer(scorer, directory)
    # What sentence-transformers' CrossEncoder reads: the activation, and that the response is never cut.
    transformer = "sentence_transformers.models.Transformer"
    write_json(directory / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": transformer}])
    write_json(
        directory / "config_sentence_transformers.json",
        {"model_type": "CrossEncoder", "activation_fn": _activation(scorer)},
    )
    write_json(
        directory / "sentence_bert_config.json",
        {
            "transformer_task": "sequence-classification",
            "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
            "module_output_name": "scores",
            "processing_kwargs": {"text": {"truncation": "only_first"}},
        },
    )


def write_tokenizer(scorer: Scorer, directory: Path) -> None:
    """Write the tokenizer so that others cut pairs as we do."""
    tokenizer = copy.deepcopy(scorer.tokenizer)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.model_max_length = scorer.encoder.max_length
    tokenizer.truncation_side = scorer.encoder.truncate_instruction
    tokenizer.save_pretrained(directory)
    if not scorer.encoder.use_segments:
        # A tokenizer of BERT's kind would make segments, for which such a model has no place.
        path = directory / "tokenizer_config.json"
        write_json(path, read_json(path) | {"model_input_names": ["input_ids", "attention_mask"]})


def _activation(scorer: Scorer) -> str:
    name = "activation.Sigmoid" if scorer.activation == "sigmoid" else "linear.Identity"
    return f"torch.nn.modules.{name}"

"""Small random models of every supported architecture, with the embedded tokenizer."""

from cappy_lightning.config import ScorerConfig

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 30522,
}
ARCHITECTURES = {
    "roberta": {"max_position_embeddings": 130, "type_vocab_size": 1},
    "xlm-roberta": {"max_position_embeddings": 130, "type_vocab_size": 1},
    "bert": {"max_position_embeddings": 128},
    "deberta": {"max_position_embeddings": 128, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {"max_position_embeddings": 128, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "modernbert": {"max_position_embeddings": 128},
}


def settings(model_type: str, **changes: object) -> ScorerConfig:
    config = {"model_type": model_type, **SMALL, **ARCHITECTURES[model_type]}
    values = {"base": model_type, "random_weights": True, "config": config, "tokenizer": "embedded", "max_length": 64}
    return ScorerConfig(**{**values, **changes})

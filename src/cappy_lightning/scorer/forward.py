"""The forward of BERT and RoBERTa without what nobody needs: padding, and tokens that the head does not read.

Without padding the pairs of a batch stand one after the other in one row. Attention goes through transformers'
interface for it, so that the modules are Hugging Face's own: on a GPU in half precision by
`torch.nn.attention.varlen`, elsewhere pair by pair. Positions begin anew with each pair; none attends to another.
"""

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cappy_lightning.scorer.encoding import PairEncoder

#: The name of the attention in transformers' interface.
NAME = "cappy_unpadded"


def _roberta_head(model: Any, first: Tensor) -> Tensor:
    logits: Tensor = model.classifier(first[:, None])
    return logits


def _bert_head(model: Any, first: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.dropout(model.bert.pooler(first[:, None])))
    return logits


#: What an architecture makes of the first token of every pair, [pairs, width] to [pairs, 1]. Others than these have
#: attention of their own.
_HEADS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "bert": _bert_head,
    "roberta": _roberta_head,
    "xlm-roberta": _roberta_head,
}


class FirstTokens:
    """Lets the last layer go on, after its attention, with the first token of each pair alone: the head reads no other.

    A hook before the module that takes the attention's result; gradients and scores stay what they are.

    Attributes:
        starts: of the packed batch in work, where each pair begins and the last one ends; None: it is padded.
    """

    def __init__(self) -> None:
        self.starts: Tensor | None = None
        self._tokens = 0

    def of_batch(self, packed: dict[str, Any] | None) -> None:
        """Say what the next forward, and its backward with activation checkpointing, will be about."""
        self.starts = None if packed is None else packed["starts"]
        self._tokens = 0 if packed is None else packed["input_ids"].shape[1]

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Of every input, [batch, tokens, width], what belongs to first tokens."""
        if self.starts is not None and inputs[0].shape[:2] == (1, self._tokens):
            return tuple(tensor[:, self.starts[:-1]] for tensor in inputs)
        return tuple(tensor[:, :1] for tensor in inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FirstTokens":
        """The same one: PEFT copies whole layers."""
        return self


def skip_other_tokens(model: Any) -> None:
    """Let the last layer compute first tokens only, where the architecture is known.

    Args:
        model: a one-logit classifier of transformers.
    """
    if model.config.model_type in _HEADS:
        model.first_tokens = FirstTokens()
        last = getattr(model, model.base_model_prefix).encoder.layer[-1]
        last.attention.output.register_forward_pre_hook(model.first_tokens)


def can_unpad(config: Any, *, training: bool) -> bool:
    """Whether a model can do without padding.

    `torch.nn.attention.varlen` has no dropout.

    Args:
        config: the Hugging Face config of the model.
        training: whether dropout counts.
    """
    return config.model_type in _HEADS and not (training and config.attention_probs_dropout_prob)


def has_kernels() -> bool:
    """Whether the GPU has the kernels of `torch.nn.attention.varlen`: those of Ampere and later do."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def unpad(model: Any, encoder: PairEncoder) -> None:
    """Let a model take packed batches, and its encoder make them; padded ones are computed as ever.

    Args:
        model: one that `can_unpad`, or the PEFT model around one.
        encoder: of pairs for it.
    """
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    _set_attention(model, NAME)
    # RoBERTa's positions begin behind the padding index.
    encoder.packed_from = 0 if model.config.model_type == "bert" else model.config.pad_token_id + 1


def plain_attention(model: Any) -> None:
    """Let attention be plain matrix products instead of torch's fused kernel.

    On a CPU that kernel goes back in bf16 four times as slowly as in fp32, which costs more than bf16 gains.

    Args:
        model: any of transformers, or the PEFT model around one.
    """
    _set_attention(model, "eager")


def _set_attention(model: Any, name: str) -> None:
    model.set_attn_implementation(name)
    for module in model.modules():  # layers that PEFT has copied have a config of their own
        if hasattr(module, "config") and hasattr(module.config, "_attn_implementation"):
            module.config._attn_implementation = name


def encoder_of(model: nn.Module) -> nn.Module:
    """The encoder under the head of a model, or of the PEFT model around one."""
    whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    found: nn.Module = getattr(whole, whole.base_model_prefix)
    return found


def raw_logits(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Raw outputs of the head for a batch, [pairs, 1].

    The head of a known architecture computes in the precision of its weights, also where the encoder has less: in bf16
    logits of 2 or more differ by 1/64 at least, and equally good candidates would be the first one's.

    Args:
        model: a one-logit classifier of transformers, or the PEFT model around one.
        inputs: of its `PairEncoder`, padded, or packed after `unpad`, on the model's device.
    """
    whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if whole.config.model_type not in _HEADS or not hasattr(whole, "first_tokens"):
        logits: Tensor = model(**inputs).logits
        return logits
    packed = "starts" in inputs
    whole.first_tokens.of_batch(inputs if packed else None)
    options = inputs
    if packed:
        assert whole.config._attn_implementation == NAME, "every pair would attend to all others"
        options = {name: value for name, value in inputs.items() if name.endswith("_ids")}
        options |= {"cu_seq_lens_q": inputs["starts"], "max_length_q": inputs["longest"]}
    hidden = encoder_of(model)(**options).last_hidden_state
    first = hidden[0] if packed else hidden[:, 0]
    with torch.autocast(first.device.type, enabled=False):
        return _HEADS[whole.config.model_type](whole, first.to(next(whole.classifier.parameters()).dtype))


def keep_exact(module: nn.Module) -> None:
    """Let a module have fp32 weights and inputs, whatever the rest of the model has."""
    module.float()
    module.register_forward_pre_hook(lambda _, inputs: tuple(tensor.float() for tensor in inputs))


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of [1, heads, tokens, width] within each pair; gives [1, tokens, heads, width]."""
    if cu_seq_lens_q is None or max_length_q is None:
        padded: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return padded
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn

        queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        found = varlen_attn(
            queries, keys, values, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling
        )
        assert isinstance(found, Tensor)
        return found[None], None
    return torch.cat(list(_by_length(query, key, value, cu_seq_lens_q, scaling)), dim=2).transpose(1, 2), None


def _by_length(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, scaling: float) -> Iterator[Tensor]:
    """Attention within each pair, [1, heads, tokens, width] each; neighbours of one length together."""
    heads, width = query.shape[1], query.shape[3]
    begin = 0
    for length, same in groupby(starts.diff().tolist()):
        count = len(list(same))
        rows = slice(begin, begin := begin + count * length)
        queries, keys, values = (
            tensor[0, :, rows].reshape(heads, count, length, width).transpose(0, 1) for tensor in (query, key, value)
        )
        yield _attend(queries, keys, values, scaling).transpose(0, 1).reshape(1, heads, count * length, width)


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention without mask, of [pairs, heads, tokens, width]."""
    if query.dtype == torch.float32:
        return nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    # The fused kernel goes back in bf16 on CPUs four times as slowly as plain matrix products.
    return (query @ key.transpose(-1, -2) * scaling).softmax(dim=-1) @ value

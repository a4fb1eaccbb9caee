"""The one way a pair becomes tokens: the same for training, scoring and export."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from cappy_lightning.errors import InputError

Side = Literal["left", "right"]


@dataclass(frozen=True)
class EncodedPair:
    """The token ids of one pair, its segment ids, and how many tokens did not fit."""

    ids: list[int]
    segments: list[int]
    cut: int


class PairEncoder:
    """Encodes (instruction, response) as the tokenizer's own pair format, `<s> a </s></s> b </s>` and alike.

    The response is kept whole as long as it fits alone; one that does not is cut at its end. The
    instruction gets the rest, cut on the side that `truncate_instruction` names.

    Args:
        tokenizer: a Hugging Face fast tokenizer; its own truncation and padding settings are not used
            (the embedded encoder's tokenizer, for one, comes with both switched on).
        max_length: most tokens of a pair, special tokens included.
        truncate_instruction: the end of the instruction that gives way.
        use_segments: whether the encoder distinguishes the two texts by segment ids (BERT).

    Raises:
        InputError: `max_length` leaves no room beside the special tokens.
    """

    def __init__(self, tokenizer: "object", max_length: int, truncate_instruction: Side, use_segments: bool) -> None:
        backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        self._tokenizer = Tokenizer.from_str(backend.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.pad_id = int(tokenizer.pad_token_id)  # type: ignore[attr-defined]
        self.max_length, self.truncate_instruction, self.use_segments = max_length, truncate_instruction, use_segments
        self._room = max_length - self._tokenizer.num_special_tokens_to_add(is_pair=True)
        if self._room < 2:
            raise InputError("scorer.max_length", f"is {max_length}, expected room for text beside the special tokens")

    def encode(self, instructions: Sequence[str], responses: Sequence[str]) -> list[EncodedPair]:
        """Encode pairs; the two sequences have the same length."""
        firsts = self._tokenizer.encode_batch(list(instructions), add_special_tokens=False)
        seconds = self._tokenizer.encode_batch(list(responses), add_special_tokens=False)
        encoded = []
        for first, second in zip(firsts, seconds, strict=True):
            whole = len(first) + len(second)
            second.truncate(self._room, direction="right")
            first.truncate(self._room - len(second), direction=self.truncate_instruction)
            cut = whole - len(first) - len(second)
            pair = self._tokenizer.post_process(first, second, add_special_tokens=True)
            encoded.append(EncodedPair(pair.ids, pair.type_ids, cut))
        return encoded

    def pad(self, pairs: Sequence[EncodedPair]) -> dict[str, Tensor]:
        """Stack pairs into the encoder's inputs, [batch, longest pair], padded on the right."""
        width = max(len(pair.ids) for pair in pairs)
        ids = torch.full((len(pairs), width), self.pad_id)
        mask = torch.zeros_like(ids)
        segments = torch.zeros_like(ids)
        for row, pair in enumerate(pairs):
            ids[row, : len(pair.ids)] = torch.tensor(pair.ids)
            mask[row, : len(pair.ids)] = 1
            segments[row, : len(pair.ids)] = torch.tensor(pair.segments)
        inputs = {"input_ids": ids, "attention_mask": mask}
        return inputs | {"token_type_ids": segments} if self.use_segments else inputs

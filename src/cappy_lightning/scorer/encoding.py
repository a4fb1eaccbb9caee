"""The one way a pair becomes tokens: the same for training, scoring and export."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from cappy_lightning.errors import InputError

Side = Literal["left", "right"]


@dataclass(frozen=True)
class EncodedPair:
    """The token ids of one pair, how many of them are of the first segment, and how many tokens did not fit."""

    ids: list[int]
    first: int
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

    Attributes:
        packed_from: the position of a pair's first token, where batches are packed into one row; None: they are padded.

    Raises:
        InputError: `max_length` leaves no room beside the special tokens.
    """

    def __init__(self, tokenizer: "object", max_length: int, truncate_instruction: Side, use_segments: bool) -> None:
        backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        self._tokenizer = Tokenizer.from_str(backend.to_str())
        self.packed_from: int | None = None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.pad_id = int(tokenizer.pad_token_id)  # type: ignore[attr-defined]
        self.max_length, self.truncate_instruction, self.use_segments = max_length, truncate_instruction, use_segments
        self._room = max_length - self._tokenizer.num_special_tokens_to_add(is_pair=True)
        if self._room < 2:
            raise InputError("scorer.max_length", f"is {max_length}, expected room for text beside the special tokens")
        one, other = self._tokenizer.encode_batch(["a", "b"], add_special_tokens=False)
        pair = self._tokenizer.post_process(one, other, add_special_tokens=True)
        text = [place for place, special in enumerate(pair.special_tokens_mask) if not special]
        begin, end, second, rest = text[0], text[len(one) - 1] + 1, text[len(one)], text[-1] + 1
        #: Special tokens before, between and after the two texts.
        self._before, self._between, self._after = pair.ids[:begin], pair.ids[end:second], pair.ids[rest:]
        #: Tokens of the first segment beside those of the instruction; the pair begins with it.
        self._first = pair.type_ids.count(0) - len(one) if 1 in pair.type_ids else max_length

    def encode(self, instructions: Sequence[str], responses: Sequence[str]) -> list[EncodedPair]:
        """Encode pairs; the two sequences have the same length. Equal texts are read once."""
        firsts, seconds = self._ids(instructions), self._ids(responses)
        encoded = []
        for instruction, response in zip(instructions, responses, strict=True):
            first, second = firsts[instruction], seconds[response]
            kept = second[: self._room]
            room = self._room - len(kept)
            if len(first) > room:
                head = first[:room] if self.truncate_instruction == "right" else first[len(first) - room :]
            else:
                head = first
            ids = [*self._before, *head, *self._between, *kept, *self._after]
            cut = len(first) - len(head) + len(second) - len(kept)
            encoded.append(EncodedPair(ids, self._first + len(head), cut))
        return encoded

    def _ids(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """The tokens of each distinct text, special ones left out."""
        distinct = list(dict.fromkeys(texts))
        encoded = self._tokenizer.encode_batch_fast(distinct, add_special_tokens=False)
        return {text: encoding.ids for text, encoding in zip(distinct, encoded, strict=True)}

    def batch(self, pairs: Sequence[EncodedPair]) -> dict[str, Any]:
        """The inputs of a forward: padded, or packed where `packed_from` says so."""
        return self.pad(pairs) if self.packed_from is None else self.pack(pairs, self.packed_from)

    def pad(self, pairs: Sequence[EncodedPair]) -> dict[str, Tensor]:
        """Stack pairs into the encoder's inputs, [batch, longest pair], padded on the right."""
        lengths = np.array([len(pair.ids) for pair in pairs])
        places = np.arange(lengths.max())
        real = places < lengths[:, None]
        ids = np.full(real.shape, self.pad_id, dtype=np.int64)
        ids[real] = self._flat(pairs, lengths.sum())
        inputs = {"input_ids": ids, "attention_mask": real.astype(np.int64)}
        if self.use_segments:
            firsts = np.array([pair.first for pair in pairs])
            inputs["token_type_ids"] = (real & (places >= firsts[:, None])).astype(np.int64)
        return {name: torch.from_numpy(array) for name, array in inputs.items()}

    def pack(self, pairs: Sequence[EncodedPair], first_position: int) -> dict[str, Any]:
        """Put pairs into one row, one after the other.

        Args:
            pairs: at least one.
            first_position: of the first token of each.

        Returns:
            `input_ids`, `position_ids` and, where they are used, `token_type_ids`, [1, tokens]; `starts`, where each
            pair begins and the last one ends, [pairs + 1]; `longest`, a plain number.
        """
        lengths = np.array([len(pair.ids) for pair in pairs])
        starts = np.concatenate([[0], lengths.cumsum()])
        places = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        row = {"input_ids": self._flat(pairs, starts[-1]), "position_ids": places + first_position}
        if self.use_segments:
            firsts = np.repeat([pair.first for pair in pairs], lengths)
            row["token_type_ids"] = (places >= firsts).astype(np.int64)
        inputs: dict[str, Any] = {name: torch.from_numpy(values)[None] for name, values in row.items()}
        return inputs | {"starts": torch.from_numpy(starts.astype(np.int32)), "longest": int(lengths.max())}

    def _flat(self, pairs: Sequence[EncodedPair], count: int) -> NDArray[np.int64]:
        return np.fromiter(chain.from_iterable(pair.ids for pair in pairs), np.int64, count)

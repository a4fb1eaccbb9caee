"""From pairs to logits: equal pairs once, little padding, memory that does not grow with the input."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch

from cappy_lightning.scorer.encoding import EncodedPair
from cappy_lightning.scorer.model import Scorer

Pair = tuple[str, str]

#: Pairs that are held, encoded and sorted by length at a time.
WINDOW = 8192

#: Tokens of a forward, padding included, by the type of the device.
TOKENS = {"cpu": 1024, "cuda": 65_536}


class Inference:
    """Computes the logits of pairs with a scorer, which it puts into evaluation mode meanwhile.

    Args:
        scorer: on any device.

    Attributes:
        tokens: of a forward, padding included; half of what the memory of a GPU has not sufficed for.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.tokens = TOKENS.get(scorer.device.type, TOKENS["cpu"])

    def logits(self, pairs: Iterable[Pair]) -> Iterator[float]:
        """The logit of every pair, in order.

        Pairs are taken `WINDOW` at a time. Within these, equal ones are computed once, and pairs of like length
        share a forward, the longest first. The next ones are encoded meanwhile.

        Args:
            pairs: (instruction, response) each.
        """
        iterator = iter(pairs)
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(self._encode, list(islice(iterator, WINDOW)))
            while window := following.result():
                following = pool.submit(self._encode, list(islice(iterator, WINDOW)))
                yield from self._window(*window)

    def _encode(self, pairs: list[Pair]) -> tuple[list[Pair], dict[Pair, EncodedPair]] | None:
        distinct = list(dict.fromkeys(pairs))
        if not distinct:
            return None
        instructions, responses = zip(*distinct, strict=True)
        return pairs, dict(zip(distinct, self.scorer.encoder.encode(instructions, responses), strict=True))

    def _window(self, pairs: list[Pair], encoded: dict[Pair, EncodedPair]) -> list[float]:
        # By the texts where lengths are equal: what comes out does not hang on the order of the input.
        order = sorted(encoded, key=lambda pair: (-len(encoded[pair].ids), pair))
        training = self.scorer.model.training
        self.scorer.model.eval()
        try:
            with torch.inference_mode():
                found, start = [], 0
                while start < len(order):
                    count = max(1, self.tokens // len(encoded[order[start]].ids))
                    found.append(self._forward([encoded[pair] for pair in order[start : start + count]]))
                    start += count
                values = torch.cat(found).tolist()
        finally:
            self.scorer.model.train(training)
        logits = dict(zip(order, values, strict=True))
        return [logits[pair] for pair in pairs]

    def _forward(self, pairs: Sequence[EncodedPair]) -> torch.Tensor:
        try:
            return self._logits(pairs)
        except torch.OutOfMemoryError:
            if len(pairs) == 1:
                raise
        # Outside of the handler, whose traceback keeps the tensors.
        torch.cuda.empty_cache()
        self.tokens = max(1, len(pairs) * max(len(pair.ids) for pair in pairs) // 2)
        half = len(pairs) // 2
        return torch.cat([self._forward(pairs[:half]), self._forward(pairs[half:])])

    def _logits(self, pairs: Sequence[EncodedPair]) -> torch.Tensor:
        return self.scorer.logits(
            {name: self._moved(value) for name, value in self.scorer.encoder.batch(pairs).items()}
        )

    def _moved(self, value: Any) -> Any:
        """An input on the device of the model; the plain numbers among them stay what they are."""
        if not isinstance(value, torch.Tensor) or self.scorer.device.type == "cpu":
            return value
        pinned = value.pin_memory() if self.scorer.device.type == "cuda" else value
        return pinned.to(self.scorer.device, non_blocking=True)

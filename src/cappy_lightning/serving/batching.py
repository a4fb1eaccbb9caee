"""Pairs of many requests, scored together."""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cappy_lightning.cappy import Cappy
from cappy_lightning.scorer.inference import Pair

#: Pairs that are scored at a time: enough to fill forwards, few enough that nobody waits for long.
TOGETHER = 256

_Job = tuple[Sequence[Pair], str | None, asyncio.Future[list[float]]]


class BatchingScorer:
    """A scorer for the event loop: what comes while it works is taken together when it is done.

    No request waits for others to come. One thread computes, as the scorer is not made for several.

    Args:
        cappy: who scores.

    Attributes:
        pairs: scored so far.
        batches: how many times the scorer was called for them.
    """

    def __init__(self, cappy: Cappy) -> None:
        self._cappy = cappy
        self._waiting: deque[_Job] = deque()
        self._thread = ThreadPoolExecutor(1)
        self._work: asyncio.Task[None] | None = None
        self.pairs = self.batches = 0

    async def logits(self, pairs: Sequence[Pair], task: str | None) -> list[float]:
        """The logit of every pair.

        Args:
            pairs: (instruction, response) each.
            task: where adapters for several tasks were loaded.
        """
        if not pairs:
            return []
        future: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._waiting.append((pairs, task, future))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._drain())
        return await future

    def scores(self, logits: Sequence[float]) -> list[float]:
        """The scores in [0, 1] that belong to logits."""
        found: list[float] = self._cappy.to_scores(np.array(logits, dtype=np.float32)).tolist()
        return found

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            jobs: list[_Job] = []
            count = 0
            while self._waiting and (not jobs or count + len(self._waiting[0][0]) <= TOGETHER):
                job = self._waiting.popleft()
                if not job[2].done():  # else its client has gone
                    jobs.append(job)
                    count += len(job[0])
            if not jobs:
                continue
            pairs = [pair for own, _, _ in jobs for pair in own]
            tasks = [task for own, task, _ in jobs for _ in own]
            try:
                values = await loop.run_in_executor(self._thread, self._cappy.logits, pairs, tasks)
            except Exception as error:
                for _, _, future in jobs:
                    if not future.done():
                        future.set_exception(error)
                continue
            self.pairs += len(pairs)
            self.batches += 1
            logits = iter(values.tolist())
            for own, _, future in jobs:
                found = [next(logits) for _ in own]
                if not future.done():
                    future.set_result(found)

    def close(self) -> None:
        """End the thread, when it is done."""
        self._thread.shutdown()

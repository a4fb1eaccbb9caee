"""Pairs of many requests, scored together."""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from cappy_lightning.cappy import Cappy
from cappy_lightning.records import Pool, Selection
from cappy_lightning.scorer.inference import Pair

#: Pairs that are scored at a time: enough to fill forwards, few enough that nobody waits for long.
TOGETHER = 256


@dataclass
class _Job:
    """Pairs to be scored, and what is known of them: the logits of the first ones."""

    pairs: Sequence[Pair]
    task: str | None
    future: asyncio.Future[list[float]]
    logits: list[float] = field(default_factory=list)

    def slice(self) -> Sequence[Pair]:
        """The pairs that come next."""
        return self.pairs[len(self.logits) : len(self.logits) + TOGETHER]


class BatchingScorer:
    """A scorer for the event loop: what comes while it works is taken together when it is done.

    No request waits for others to come, nor for all of a large one: these are cut into slices, and take turns. One
    thread computes, as the scorer is not made for several.

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
        self._waiting.append(_Job(pairs, task, future))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._drain())
        return await future

    def scores(self, logits: Sequence[float]) -> list[float]:
        """The scores in [0, 1] that belong to logits."""
        found: list[float] = self._cappy.to_scores(np.array(logits, dtype=np.float32)).tolist()
        return found

    async def final(self, pool: Pool, selection: Selection) -> tuple[Selection, Sequence[float]]:
        """See `Cappy.final`; a fusion's features, which compare all candidates, are not computed on the loop."""
        if self._cappy.fusion is None:
            return self._cappy.final(pool, selection)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._cappy.final, pool, selection)

    async def tokens(self, pairs: Sequence[Pair]) -> int:
        """How many tokens the scorer reads of pairs."""

        def count() -> int:
            encoded = self._cappy.scorer.encoder.encode(*zip(*pairs, strict=True))
            return sum(len(one.ids) for one in encoded)

        return await asyncio.to_thread(count)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while jobs := self._next():
            pairs = [pair for job in jobs for pair in job.slice()]
            tasks = [job.task for job in jobs for _ in job.slice()]
            try:
                values = await loop.run_in_executor(self._thread, self._cappy.logits, pairs, tasks)
            except Exception as error:
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(error)
                continue
            self.pairs += len(pairs)
            self.batches += 1
            logits = iter(values.tolist())
            for job in jobs:
                job.logits += [next(logits) for _ in job.slice()]
                if len(job.logits) < len(job.pairs):
                    self._waiting.append(job)
                elif not job.future.done():
                    job.future.set_result(job.logits)

    def _next(self) -> list[_Job]:
        """The jobs whose slices are scored together next; none where all is done."""
        jobs: list[_Job] = []
        count = 0
        while self._waiting and (not jobs or count + len(self._waiting[0].slice()) <= TOGETHER):
            job = self._waiting.popleft()
            if not job.future.done():  # else its client has gone
                jobs.append(job)
                count += len(job.slice())
        return jobs

    def close(self) -> None:
        """End the thread, when it is done."""
        self._thread.shutdown()

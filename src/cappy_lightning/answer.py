"""The job behind `cappy answer`: an LLM answers every example, and the best of what it says is written down."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import tee
from pathlib import Path
from typing import Any

from cappy_lightning.answering.stopping import abstains, until_sure
from cappy_lightning.backbones.generate import record_pools
from cappy_lightning.cappy import Cappy
from cappy_lightning.config import AnswerConfig, Config
from cappy_lightning.progress import Ticker, say
from cappy_lightning.records import Example, Pool, Selection


class Answered:
    """What has been chosen: the rows to be written, and what is to be said of them at the end.

    Args:
        cappy: who chooses.
        config: when it abstains.

    Attributes:
        judged: the pools with references or choices, each with the scorer's own selection and the final one.
    """

    def __init__(self, cappy: Cappy, config: AnswerConfig) -> None:
        self._cappy, self._config = cappy, config
        self._count = self._unsure = self._candidates = 0
        self.judged: list[tuple[Pool, Selection, Selection]] = []

    def rows(self, pools: Iterator[Pool]) -> Iterator[dict[str, Any]]:
        """A row for each pool: the pool with its selection, whose `response` is null where it is not good enough."""
        pools, again = tee(pools)
        with Ticker("selecting", None) as ticker:
            for pool, (selection, _) in zip(again, self._cappy.choose(pools), strict=True):
                unsure = abstains(selection.score, self._config)
                self._count += 1
                self._unsure += unsure
                self._candidates += len(pool.candidates)
                if pool.example.references or pool.example.choices:
                    responses = [candidate.response for candidate in pool.candidates]
                    own = Selection.best(selection.logits, selection.scores, responses, pool.example)
                    self.judged.append((pool, own, selection))
                yield pool.to_row() | selection.to_row() | ({"response": None} if unsure else {})
                ticker.advance()

    def say(self, most: int) -> None:
        """How many were answered, and with how many candidates of at most how many."""
        if not self._count:
            return
        say(
            f"{self._count - self._unsure} answered, {self._unsure} not sure;"
            f" {self._candidates / self._count:.1f} candidates an instruction, of at most {most}"
        )


def answer(
    examples: Callable[[], Iterable[Example]],
    cappy: Cappy,
    config: Config,
    out: Path,
    *,
    part: bool,
    made_by: Mapping[str, Any],
) -> Answered:
    """Let the LLM answer every example, with as many candidates as it takes, and write the best of them to `out`.

    Args:
        examples: gives the examples from the start, the same ones each time.
        cappy: who scores and chooses.
        config: whose sections `backbone` and `answer` are used.
        out: the file (JSONL), which appears when all are answered; a stopped job continues.
        part: this is one of several parts, which may be without any example.
        made_by: which scorer `cappy` is; a job with another is not continued.

    Raises:
        InputError: see `record_pools`.
    """
    answered = Answered(cappy, config.answer)
    record_pools(
        examples,
        config.backbone,
        out,
        part=part,
        around=lambda backbone: until_sure(backbone, cappy, config.answer),
        rows=answered.rows,
        made_also_by={"answer": vars(config.answer), **made_by},
    )
    answered.say(sum(config.backbone.decodings.values()))
    return answered

"""The job behind `cappy answer`: an LLM answers every example, and the best of what it says is written down."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from cappy_lightning.answering.scoring import KeptLogits, ScoringBackbone, fill_logits
from cappy_lightning.answering.stopping import abstains, until_sure
from cappy_lightning.backbones.backbone import Backbone
from cappy_lightning.backbones.generate import record_pools
from cappy_lightning.cappy import Cappy
from cappy_lightning.config import AnswerConfig, Config, LabelConfig
from cappy_lightning.labeling.measures import open_measure
from cappy_lightning.progress import Ticker, say
from cappy_lightning.records import Example, Pool, Selection
from cappy_lightning.selection.baselines import rewards
from cappy_lightning.selection.engine import POOLS_AT_ONCE, select_by_logits


class Answered:
    """What has been chosen: the rows to be written, and what is to be said of them at the end.

    Args:
        cappy: who chooses.
        config: when it abstains.

    Attributes:
        judged: the pools with references or choices, each with the scorer's own selection and the final one.
    """

    def __init__(self, cappy: Cappy, config: AnswerConfig) -> None:
        self._cappy, self._config, self._kept = cappy, config, KeptLogits()
        self._count = self._unsure = self._candidates = 0
        self.judged: list[tuple[Pool, Selection, Selection]] = []

    def around(self, backbone: Backbone) -> Backbone:
        """The backbone, asked as often as it takes; what it says is scored while it says more."""
        return ScoringBackbone(until_sure(backbone, self._cappy, self._config), self._cappy, self._kept)

    def rows(self, pools: Iterator[Pool]) -> Iterator[dict[str, Any]]:
        """A row for each pool: the pool with its selection, whose `response` is null where it is not good enough."""
        with Ticker("selecting", None) as ticker:
            for pool, own in self._selections(pools):
                selection, _ = self._cappy.final(pool, own)
                unsure = abstains(selection.score, self._config)
                self._count += 1
                self._unsure += unsure
                self._candidates += len(pool.candidates)
                if pool.example.references or pool.example.choices:
                    self.judged.append((pool, own, selection))
                yield pool.to_row() | selection.to_row() | ({"response": None} if unsure else {})
                ticker.advance()

    def _selections(self, pools: Iterator[Pool]) -> Iterator[tuple[Pool, Selection]]:
        """Every pool with the scorer's own selection; scored is what was recorded by an interrupted job."""
        while chunk := list(islice(pools, POOLS_AT_ONCE)):
            logits = fill_logits(self._cappy, chunk, [self._kept.read(pool) for pool in chunk])
            for pool, own in zip(chunk, logits, strict=True):
                yield pool, select_by_logits(self._cappy, pool, own)

    def given(self, label: LabelConfig) -> dict[str, Any] | None:
        """What the given answers are worth, for the report; None where it never abstains or nothing is judged.

        Args:
            label: the metric.

        Returns:
            `abstain`, `n_examples`, how many of them are `answered`, this as a share (`coverage`), and the `mean`
            reward of these answers, None where there is none.
        """
        if self._config.abstain is None or not self.judged:
            return None
        pools, _, final = zip(*self.judged, strict=True)
        all_rewards = rewards(pools, open_measure(label.score, label.tokenizer))
        own = [
            values[selection.index]
            for values, selection in zip(all_rewards, final, strict=True)
            if not abstains(selection.score, self._config)
        ]
        return {
            "abstain": self._config.abstain,
            "n_examples": len(pools),
            "answered": len(own),
            "coverage": len(own) / len(pools),
            "mean": sum(own) / len(own) if own else None,
        }

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
        around=answered.around,
        rows=answered.rows,
        made_also_by={"answer": vars(config.answer), **made_by},
    )
    answered.say(sum(config.backbone.decodings.values()))
    return answered


def say_given(given: Mapping[str, Any], metric: str) -> None:
    """One line: how many answers are given, and what they are worth; the tables are about all selections.

    Args:
        given: see `Answered.given`.
        metric: its name.
    """
    mean = "" if given["mean"] is None else f"; their mean {metric} x 100 is {100 * given['mean']:.1f}"
    say(f"with answer.abstain={given['abstain']:g}, {100 * given['coverage']:.0f}% are answered{mean}")

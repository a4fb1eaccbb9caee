"""What has been recorded so far, with its counts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cappy_lightning.backbones.backbone import Answer
from cappy_lightning.journal import Journal
from cappy_lightning.records import Example, Pool

#: What a failure to write leaves.
KEPT = "what was recorded"


class Recording:
    """A journal with a line for each example.

    Args:
        path: the file; begun, or continued.
        made_by: the settings.

    Attributes:
        count: examples recorded; of these `left_out` have no answer, and `passed` have choices and were not asked.
        empty: empty answers, which are left out.
        input_tokens: of the prompts.
        output_tokens: of the answers.

    Raises:
        InputError: it is a recording of something else, or cannot be written.
    """

    def __init__(self, path: Path, made_by: dict[str, Any]) -> None:
        self._journal = Journal(path, made_by, KEPT)
        self.count = self.left_out = self.passed = self.empty = 0
        self.input_tokens = self.output_tokens = 0
        for row in self._journal.rows():
            self._add(row)

    def _add(self, row: dict[str, Any]) -> None:
        self.count += 1
        self.left_out += "problem" in row
        self.passed += "choices" in row.get("pool", ())
        self.input_tokens += row["tokens"][0]
        self.output_tokens += row["tokens"][1]
        self.empty += row.get("empty", 0)

    def write(self, example: Example, answer: Answer) -> None:
        """Add the answer of the next example."""
        tokens = [answer.input_tokens, answer.output_tokens]
        row: dict[str, Any] = {"pool": Pool(example, answer.candidates).to_row(), "tokens": tokens}
        if answer.empty:
            row["empty"] = answer.empty
        if answer.problem:
            row = {"example": example.to_row(), "problem": answer.problem, "tokens": tokens}
        self._journal.write(row)
        self._add(row)

    @property
    def answered(self) -> int:
        """How many examples the backbone has answered."""
        return self.count - self.left_out - self.passed

    def rows(self) -> Iterator[dict[str, Any]]:
        """Everything recorded, in order."""
        return self._journal.rows()

    def remove(self) -> None:
        """The recording is finished: its file goes."""
        self._journal.remove()

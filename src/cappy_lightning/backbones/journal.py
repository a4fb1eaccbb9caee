"""What has been recorded so far: `OUT.partial`, which a stopped recording leaves and the next one continues."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cappy_lightning.backbones.backbone import Answer
from cappy_lightning.errors import InputError
from cappy_lightning.files import kept_on_failure, parse_line, to_line
from cappy_lightning.records import Example, Pool

#: What a failure to write leaves.
KEPT = "what was recorded"


class Journal:
    """A line of settings, then a line for each example.

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
        self._path = path
        self.count = self.left_out = self.passed = self.empty = 0
        self.input_tokens = self.output_tokens = 0
        head = to_line(made_by).encode()
        if path.exists() and path.stat().st_size:
            self._continue(head)
        else:
            with kept_on_failure(path, KEPT), open(path, "wb") as stream:
                stream.write(head)
        self._stream = open(path, "ab")

    def _continue(self, head: bytes) -> None:
        """Count what is there; a line that a kill cut off is removed."""
        end = 0
        with open(self._path, "rb") as lines:
            for number, line in enumerate(lines):
                if not line.endswith(b"\n"):
                    break
                if number == 0 and line != head:
                    raise InputError(
                        self._path,
                        "is a recording of other examples or settings; finish it, delete it or write elsewhere",
                    )
                if number:
                    self._add(parse_line(line, f"{self._path}:{number + 1}"))
                end += len(line)
        with open(self._path, "r+b") as stream:
            stream.truncate(end)
            if not end:
                stream.write(head)

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
        with kept_on_failure(self._path, KEPT):
            self._stream.write(to_line(row).encode())
            self._stream.flush()
        self._add(row)

    @property
    def answered(self) -> int:
        """How many examples the backbone has answered."""
        return self.count - self.left_out - self.passed

    def rows(self) -> Iterator[dict[str, Any]]:
        """Everything recorded, in order."""
        with open(self._path, "rb") as lines:
            for line in islice(lines, 1, None):
                yield json.loads(line)

    def remove(self) -> None:
        """The recording is finished: its file goes."""
        self._stream.close()
        self._path.unlink()

"""Candidates that were recorded before, from pool files."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from cappy_lightning.backbones.backbone import LACKING, Answer, Request
from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.files import find_parts, open_input, parse_line
from cappy_lightning.records import Candidate
from cappy_lightning.sources.jsonl import pool_from_row


class RecordedBackbone:
    """Answers with the candidates of pool files, found by the instruction.

    Memory holds a small entry for each pool, not its candidates.

    Args:
        paths: pool files, or folders of parts of one; of equal instructions the first counts.

    Raises:
        InputError: a file that cannot be read, or a line that is no pool.
    """

    group = 1

    def __init__(self, paths: Sequence[str]) -> None:
        self._places: dict[bytes, tuple[str, int, int]] = {}
        self._decodings: set[str] = set()
        for path in paths:
            parts = find_parts(Path(path), ".jsonl") if Path(path).is_dir() else []
            for file in map(str, parts) if parts else [path]:
                self._index(file)

    def _index(self, path: str) -> None:
        offset = 0
        with open_input(path) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    pool = pool_from_row(parse_line(line, f"{path}:{number}"), f"{path}:{number}", labelled=False)
                    self._decodings.update(candidate.decoding for candidate in pool.candidates)
                    self._places.setdefault(_key(pool.example.instruction), (path, number, offset))
                offset += len(line)

    def refuses(self, decoding: Decoding) -> str | None:
        """Why it has none of this decoding; None if it has."""
        known = ", ".join(sorted(self._decodings)) or "none"
        return None if decoding.name in self._decodings else f"the recorded pools have no such candidates, but {known}"

    def answer(self, requests: Iterator[Request], decodings: Sequence[Decoding]) -> Iterator[Answer]:
        """The first `n` recorded candidates of each decoding, after those that are skipped."""
        for request in requests:
            place = self._places.get(_key(request.example.instruction))
            if place is None:
                yield Answer((), problem="no recorded pool has this instruction")
                continue
            path, number, offset = place
            with open_input(path) as stream:
                stream.seek(offset)
                row = parse_line(stream.readline(), f"{path}:{number}")
            recorded = pool_from_row(row, f"{path}:{number}", labelled=False).candidates
            chosen: list[Candidate] = []
            for decoding in decodings:
                own = [one for one in recorded if one.decoding == decoding.name]
                chosen += own[decoding.skip : decoding.skip + decoding.n]
            yield Answer(tuple(chosen), problem=None if chosen else LACKING)


def _key(instruction: str) -> bytes:
    return hashlib.sha256(instruction.strip().encode()).digest()[:12]

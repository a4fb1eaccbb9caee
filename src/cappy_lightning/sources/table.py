"""Rows of a table of one's own as examples or pools, by a mapping of columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cappy_lightning.errors import InputError
from cappy_lightning.instructions import fill_template
from cappy_lightning.records import Pool, Split

#: What columns can be mapped to; several columns can give the last three together.
FIELDS = ("task", "id", "split", "instruction", "label", "score", "references", "choices", "responses")
LISTS = FIELDS[-3:]


@dataclass(frozen=True)
class Columns:
    """How rows become pools.

    A field that is not mapped is the column of its own name, if there is one, `instruction` else the column `text`;
    mapped to null it is none.

    Args:
        of: the column of a field, or of `references`, `choices` and `responses` a list of columns. Cells of
            these may be lists; empty cells are no reference, choice or response.
        task: the task of rows without a column for it.
        split: the split of rows without a column for it.
        choices: the choices of all rows, where no column has them. `label` is the index or the text of the
            right one.
        template: how the instruction shows its column (`fill_template`).
        score_range: the lowest and highest value of `score`, which is mapped to [0, 1] and belongs to the
            one response of the row.
        labelled: whether a row without a score must have references or choices.
    """

    of: Mapping[str, str | Sequence[str] | None] = field(default_factory=dict)
    task: str = "default"
    split: Split | None = None
    choices: Sequence[str] = ()
    template: str = "{text}"
    score_range: tuple[float, float] = (0.0, 1.0)
    labelled: bool = True

    def pool(self, row: Mapping[str, Any], where: str) -> Pool:
        """The pool of a row, without candidates where it has no responses.

        Raises:
            InputError: a column is missing, or a cell cannot be what it is mapped to.
        """
        if not self.of:
            self._refuse_unmapped(row, where)
        found: dict[str, Any] = {"task": self.task, "split": self.split}
        for name in FIELDS:
            columns = self._columns(name, row, where)
            values = [row[column] for column in columns if row[column] not in (None, "")]
            if name in LISTS:
                cells = [cell for value in values for cell in (value if isinstance(value, list) else [value])]
                if texts := [_text(cell) for cell in cells if cell not in (None, "")]:
                    found[name] = texts
            elif values:
                found[name] = values[0] if name in ("label", "score") else _text(values[0])
        if self.choices and "choices" not in found:
            found["choices"] = list(self.choices)
        if "choices" in found:
            found["label"] = _label(found.get("label"), found["choices"], where)
        text, choices = found.get("instruction"), found.get("choices", ())
        if isinstance(text, str) and all(isinstance(choice, str) for choice in choices):  # else refused below
            found["instruction"] = fill_template(self.template, text, choices)
        responses = found.pop("responses", [])
        score = self._score(found.pop("score", None), len(responses), where)
        if responses:
            own = {} if score is None else {"score": score}
            found["candidates"] = [{"response": response, **own} for response in responses]
        return Pool.from_row(found, where, labelled=self.labelled and score is None, answered=False)

    def _refuse_unmapped(self, row: Mapping[str, Any], where: str) -> None:
        """Of a table whose columns have other names, say which it has."""
        told = f"found {', '.join(row)}"[:200] + "; columns of other names are mapped in a sources file"
        if not row.keys() & {"instruction", "text"}:
            raise InputError(where, f"field 'instruction' is missing, {told}")
        if self.labelled and not self.choices and not row.keys() & {"references", "choices", "score"}:
            raise InputError(where, f"expected either 'references' or 'choices' with 'label', {told}")

    def _columns(self, name: str, row: Mapping[str, Any], where: str) -> list[str]:
        if name not in self.of:
            own = "text" if name == "instruction" and name not in row else name
            return [own] if own in row else []
        mapped = self.of[name] or ()
        columns = [mapped] if isinstance(mapped, str) else list(mapped)
        for column in columns:
            if column not in row:
                raise InputError(where, f"has no column '{column}' (for {name}), but {', '.join(row)}"[:300])
        return columns

    def _score(self, value: Any, responses: int, where: str) -> float | None:
        if value is None:
            return None
        if responses != 1:
            raise InputError(where, f"has a score and {responses} responses, expected one response")
        low, high = self.score_range
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = low - 1
        if not low <= number <= high:
            raise InputError(where, f"score is {value!r}, expected a number from {low:g} to {high:g}")
        return (number - low) / (high - low)


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _label(label: Any, choices: list[str], where: str) -> Any:
    if isinstance(label, bool):
        label = int(label)
    untyped = ".csv:" in where  # elsewhere the index is a number and the choice a text
    if untyped and isinstance(label, int) and str(label) in choices and choices.index(str(label)) != label:
        raise InputError(
            where, f"label is {label}, which is both an index and one of the choices, expected one meaning"
        )
    if isinstance(label, str):
        if label not in choices:
            raise InputError(where, f"label is '{label[:80]}', expected one of the {len(choices)} choices")
        return choices.index(label)
    return label

"""PromptSource templates over the rows of a dataset: each template and row make an example.

The format is that of github bigscience-workshop/promptsource (Bach et al. 2022,
https://aclanthology.org/2022.acl-demo.9): a YAML file per dataset or subset with Jinja templates of the
form `prompt ||| answer`. The texts are those of its own `Template.apply(row, truncate=False)`, except
that random filters are seeded by template and row, and that templates run in a sandbox.
"""

import random
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cappy_lightning.errors import InputError
from cappy_lightning.records import SPLITS, Example, Split

TEMPLATES_FILE = "templates.yaml"
SEPARATOR = "|||"
#: Stands for the separator where a row's own text holds it, until the rendered text is cut.
_PROTECTED = "\x00bar\x00"
#: Longest text that a template may build by repetition.
_MAX_REPEATED = 1_000_000
#: A format whose width is large or comes from elsewhere.
_WIDE = re.compile(r"%[^%a-zA-Z]*(\*|[0-9]{5})")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Safe YAML with PromptSource's two tags, which become plain mappings."""


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, lambda loader, node: loader.construct_mapping(node, deep=True))


@dataclass(frozen=True)
class Template:
    """One prompt template: Jinja texts as they stand in the file.

    Attributes:
        dataset: the dataset's name, with its subset behind a slash where there is one.
        name: unique within the file.
        jinja: `prompt ||| answer`.
        answer_choices: `choice ||| choice ...`, or None for open-ended templates.
        where: file and template, for messages.
    """

    dataset: str
    name: str
    jinja: str
    answer_choices: str | None
    where: str


def find_template_files(folder: str | Path) -> list[Path]:
    """All template files at or below a path, as they lie in a clone of PromptSource, sorted.

    Raises:
        InputError: there is none.
    """
    root = Path(folder)
    files = [root] if root.is_file() else sorted(root.rglob(TEMPLATES_FILE))
    if not files:
        raise InputError(root, f"has no {TEMPLATES_FILE} in it, expected a folder of PromptSource templates")
    return files


def read_templates(path: Path) -> list[Template]:
    """The templates of one file, in the order of their names.

    Raises:
        InputError: no YAML, tags other than PromptSource's two, or a template without a name or text.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            content = yaml.load(stream, Loader=_Loader)  # a SafeLoader
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(path, "is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise InputError(path, f"is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or not isinstance(content.get("templates"), dict):
        raise InputError(path, "has no mapping 'templates', expected a PromptSource file")
    dataset = str(content.get("dataset") or path.parent.name)
    if content.get("subset"):
        dataset += f"/{content['subset']}"
    return sorted((_template(path, dataset, fields) for fields in content["templates"].values()), key=lambda t: t.name)


def _template(path: Path, dataset: str, fields: Any) -> Template:
    if not isinstance(fields, dict) or not all(isinstance(fields.get(key), str) for key in ("name", "jinja")):
        raise InputError(path, "has a template without 'name' and 'jinja'")
    name, choices = fields["name"], fields.get("answer_choices")
    if choices is not None and not isinstance(choices, str):
        raise InputError(f"{path}: {name}", f"answer_choices is {type(choices).__name__}, expected a text")
    return Template(dataset, name, fields["jinja"], choices, f"{path}: {name}")


@dataclass(frozen=True)
class Rendered:
    """What a template makes of a row: the prompt, the answers, and the choices where it names some."""

    prompt: str
    answers: tuple[str, ...]
    choices: tuple[str, ...]


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja that reaches no attribute of Python's own, and builds no giant text in one step.

    Loops are as long as the row makes them: templates are not guarded against taking their time.
    """

    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_widths(left)
        sizes = [len(value) * times for value, times in ((left, right), (right, left)) if hasattr(value, "__len__")]
        if operator == "**" or any(size > _MAX_REPEATED for size in sizes):
            raise SecurityError(f"'{operator}' could build a giant value")
        return super().call_binop(context, operator, left, right)


def _check_widths(text: str) -> None:
    if _WIDE.search(text):
        raise SecurityError("a format could build a giant value")


def _format(text: str, *values: Any, **named: Any) -> str:
    """Jinja's filter `format`, for formats of decent width."""
    _check_widths(str(text))
    return str(text) % (named or values)


class Renderer:
    """Renders one template.

    Args:
        template: the template.
        seed: of the random filters, together with template and row: the order of rows has no part in it.

    Raises:
        InputError: Jinja that does not parse.
    """

    def __init__(self, template: Template, seed: int) -> None:
        self.template, self.seed = template, seed
        self._random = random.Random()
        environment = _Sandbox(loader=jinja2.BaseLoader())
        environment.globals["zip"] = zip
        for name in ("center", "indent"):  # their widths could build a giant text
            del environment.filters[name]
        environment.filters["format"] = _format
        # With the context, because Jinja computes other filters of constants once, when it compiles.
        draw = jinja2.pass_context(lambda context, items: self._random.choice(list(items)))
        environment.filters |= {"choice": draw, "random": draw, "most_frequent": most_frequent}
        try:
            texts = [text for text in (template.jinja, template.answer_choices) if text is not None]
            self.columns = frozenset().union(*(_columns(environment, text) for text in texts)) - {"answer_choices"}
            self._jinja = environment.from_string(template.jinja)
            self._choices = environment.from_string(template.answer_choices) if template.answer_choices else None
        except jinja2.TemplateError as error:
            raise InputError(template.where, f"does not parse ({error})") from None

    def render(self, row: Mapping[str, Any], number: int) -> Rendered | None:
        """Render a row; None where the template leaves the prompt or the answer empty for it.

        Args:
            row: the columns by name.
            number: the row's place in its dataset.

        Raises:
            InputError: the template attacks the sandbox.
            ValueError: it cannot be rendered for this row; the text says why.
        """
        if missing := sorted(self.columns - row.keys()):  # Jinja would print nothing for it
            raise ValueError(f"the column '{missing[0]}' is missing")
        self._random.seed(f"{self.seed} {self.template.dataset} {self.template.name} {number}")
        values = {k: v.replace(SEPARATOR, _PROTECTED) if isinstance(v, str) else v for k, v in row.items()}
        try:
            choices = _parts(self._choices.render(values)) if self._choices else None
            # As promptsource does: the choices, with their separators back, are a variable of the text.
            parts = _parts(self._jinja.render({**values, "answer_choices": choices}))
        except SecurityError as error:
            raise InputError(self.template.where, f"is not safe to run ({error})") from None
        except (
            *(jinja2.TemplateError, ArithmeticError, LookupError, TypeError, AttributeError),
            *(RecursionError, MemoryError),
        ) as error:
            raise ValueError(str(error) or type(error).__name__) from None
        if len(parts) < 2 or not parts[0] or not any(parts[1:]):
            return None
        rendered = Rendered(
            parts[0], tuple(part for part in parts[1:] if part), tuple(choice for choice in choices or () if choice)
        )
        try:
            "".join((rendered.prompt, *rendered.answers, *rendered.choices)).encode()
        except UnicodeEncodeError:  # a lone surrogate, which JSON can escape
            raise ValueError("the text is not Unicode") from None
        return rendered


def most_frequent(items: Sequence[Any]) -> list[Any] | None:
    """PromptSource's filter: the items that appear most often, in order of appearance; None for none."""
    if not items:
        return None
    counts = Counter(items)
    most = max(counts.values())
    return [item for item, count in counts.items() if count == most]


def _parts(text: str) -> list[str]:
    return [part.replace(_PROTECTED, SEPARATOR).strip() for part in text.split(SEPARATOR)]


def _columns(environment: jinja2.Environment, text: str) -> frozenset[str]:
    """The columns that a text needs: those that it asks about with `is defined` may be absent."""
    tree = environment.parse(text)
    tested = (test.node for test in tree.find_all(nodes.Test) if test.name in ("defined", "undefined"))
    optional = {node.name for node in tested if isinstance(node, nodes.Name)}
    return frozenset(meta.find_undeclared_variables(tree) - optional - set(environment.globals))


class PromptSourceExamples:
    """Examples of every template over every row, row by row, and what became of the rest.

    A template whose answer is one of its choices makes an example with choices, any other one an example
    with references. Each template is a task of its own, named `DATASET/TEMPLATE`.

    Args:
        templates: of one dataset.
        columns: the columns of its rows.
        seed: of the random filters.

    Attributes:
        left_out: the templates that cannot be used, with the reason.
        counts: by template, how many rows gave an `example`, were `empty` or `failed`.
        failures: by template, why the first failed row did.

    Raises:
        InputError: no template can be used.
    """

    def __init__(self, templates: Sequence[Template], columns: Collection[str], seed: int) -> None:
        self._dataset = templates[0].dataset if templates else ""
        self.left_out: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self._renderers: list[Renderer] = []
        for template in templates:
            try:
                renderer = Renderer(template, seed)
            except InputError as error:
                self.left_out[template.name] = error.problem
                continue
            if missing := sorted(renderer.columns - set(columns)):
                self.left_out[template.name] = f"asks for the column '{missing[0]}', which the rows do not have"
            else:
                self._renderers.append(renderer)
        if not self._renderers:
            reason = next(iter(self.left_out.values()), "there is none")
            raise InputError(templates[0].where if templates else "templates", f"no template can be used ({reason})")
        self.counts: dict[str, Counter[str]] = {renderer.template.name: Counter() for renderer in self._renderers}

    @property
    def templates(self) -> list[str]:
        """The names of the templates that are used."""
        return list(self.counts)

    def notes(self) -> list[str]:
        """What was left out, and why."""
        found = [f"template '{name}' is left out: {reason}" for name, reason in self.left_out.items()]
        for name, counts in self.counts.items():
            if counts["empty"]:
                found.append(f"template '{name}' is empty for {counts['empty']} of {counts.total()} rows")
            if counts["failed"]:
                reason = self.failures[name]
                found.append(f"template '{name}' failed for {counts['failed']} of {counts.total()} rows ({reason})")
        return [f"{self._dataset}: {note}" for note in found]

    def of(self, number: int, row: Mapping[str, Any], split: str | None, names: Collection[str]) -> Iterator[Example]:
        """The examples that some templates make of a row.

        Args:
            number: the row's place in its data set; the examples' ids are made of it.
            row: the columns by name.
            split: of the rows, by any name; `train` and `validation` are also that of the examples.
            names: the templates.
        """
        for renderer in self._renderers:
            template = renderer.template
            if template.name not in names:
                continue
            counts = self.counts[template.name]
            try:
                rendered = renderer.render(row, number)
            except ValueError as error:
                counts["failed"] += 1
                self.failures.setdefault(template.name, f"row {number}: {error}")
                continue
            counts["example" if rendered else "empty"] += 1
            if rendered:
                yield _example(template, rendered, f"{split or 'row'}:{number}", split)


def _example(template: Template, rendered: Rendered, identity: str, rows: str | None) -> Example:
    task, answer = f"{template.dataset}/{template.name}", rendered.answers[0]
    split: Split | None = next((name for name in SPLITS if name == rows), None)
    # Of several right choices the first is the one, and the others are no wrong ones.
    choices = tuple(choice for choice in rendered.choices if choice == answer or choice not in rendered.answers)
    if len(choices) > 1 and answer in choices:
        return Example(task, identity, rendered.prompt, choices=choices, label=choices.index(answer), split=split)
    return Example(task, identity, rendered.prompt, rendered.answers, split=split)

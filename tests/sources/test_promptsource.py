"""PromptSource templates: promptsource's own texts, seeded, sandboxed, and what is left out is said."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from cappy_lightning.errors import InputError
from cappy_lightning.records import Example, Split
from cappy_lightning.sources.promptsource import (
    PromptSourceExamples,
    Renderer,
    Template,
    find_template_files,
    most_frequent,
    read_templates,
)

FILE = """
dataset: shop_mail
subset: uk
templates:
  0b1f2f54-0000-0000-0000-000000000001: !Template
    answer_choices: Praise ||| Complaint
    id: 0b1f2f54-0000-0000-0000-000000000001
    jinja: "{{mail}}\\n\\nIs this praise or a complaint? ||| \\n{{ answer_choices[label] }}"
    metadata: !TemplateMetadata
      choices_in_prompt: true
      metrics: [Accuracy]
      original_task: true
    name: kind
    reference: ''
  0b1f2f54-0000-0000-0000-000000000002: !Template
    answer_choices: null
    id: 0b1f2f54-0000-0000-0000-000000000002
    jinja: '{% if subject %}Write a subject line for: {{mail}} ||| {{subject}}{% endif %}'
    name: a subject
    reference: ''
"""

ROWS = [
    {"mail": "Lovely teapot!", "label": 0, "subject": "teapot"},
    {"mail": "  Where is it? ||| Angry ", "label": 1, "subject": ""},
]


def examples(
    source: PromptSourceExamples, rows: Sequence[dict[str, object]], split: Split | None = None
) -> list[Example]:
    return [found for number, row in enumerate(rows) for found in source.of(number, row, split, source.templates)]


def template(jinja: str, choices: str | None = None) -> Template:
    return Template("mail", "mine", jinja, choices, "mine.yaml: mine")


def render(jinja: str, row: dict[str, object], choices: str | None = None, number: int = 0, seed: int = 0) -> object:
    found = Renderer(template(jinja, choices), seed).render(row, number)
    return found and (found.prompt, *found.answers)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop_mail" / "uk").mkdir(parents=True)
    (tmp_path / "shop_mail" / "uk" / "templates.yaml").write_text(FILE, encoding="utf-8")
    return tmp_path


def test_a_file_with_promptsource_tags_is_read_safely(folder: Path) -> None:
    (path,) = find_template_files(folder)
    subject, kind = read_templates(path)
    assert (kind.name, kind.dataset) == ("kind", "shop_mail/uk")
    assert kind.answer_choices == "Praise ||| Complaint"
    assert subject.answer_choices is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "templates: {a: !!python/object/apply:os.system [ls]}",
            "is not valid YAML (could not determine a constructor",
        ),
        ("templates: [", "is not valid YAML"),
        ("nothing: here", "has no mapping 'templates'"),
        ("templates: {a: !Template {jinja: x}}", "has a template without 'name' and 'jinja'"),
        ("templates: {a: !Template {name: n, jinja: x, answer_choices: [a, b]}}", "n: answer_choices is list"),
    ],
)
def test_a_bad_template_file_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "templates.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_templates(path)
    assert f"{path}: {expected}" in str(error.value)


def test_rows_become_examples_with_choices_or_references(folder: Path) -> None:
    source = PromptSourceExamples(read_templates(find_template_files(folder)[0]), ROWS[0].keys(), seed=0)
    subject, first, second = examples(source, ROWS, "train")
    assert (subject.task, subject.id, subject.split) == ("shop_mail/uk/a subject", "train:0", "train")
    assert (subject.instruction, subject.references) == ("Write a subject line for: Lovely teapot!", ("teapot",))
    assert (first.choices, first.label) == (("Praise", "Complaint"), 0)
    # White space inside is the template's and the row's own; a separator in a row's text is text.
    assert second.instruction == "Where is it? ||| Angry \n\nIs this praise or a complaint?"
    assert second.label == 1
    assert source.counts == {"kind": {"example": 2}, "a subject": {"example": 1, "empty": 1}}


@pytest.mark.parametrize(
    ("jinja", "row", "choices", "expected"),
    [
        ("{{a}} ||| {{b}}", {"a": "x", "b": 3}, None, ("x", "3")),
        ("  {{a}}  \n ||| \n {{b}}\n", {"a": " x  y ", "b": "z "}, None, ("x  y", "z")),
        ("{{a}} ||| {{b}}", {"a": "", "b": "z"}, None, None),
        ("{{a}} ||| {{b}}", {"a": "x", "b": " "}, None, None),
        ("{{a}}", {"a": "x"}, None, None),
        ("{{a}} ||| {{b}} ||| {{c}}", {"a": "x", "b": "y", "c": "z"}, None, ("x", "y", "z")),
        ("{{a}} ||| {{answer_choices[1]}}", {"a": "x", "o": ["p", "q"]}, "{{o | join('|||')}}", ("x", "q")),
        ("{{ '%.1f of %s' | format(a, b) }} ||| {{ '%d' % b }}", {"a": 0.25, "b": 3}, None, ("0.2 of 3", "3")),
        ("{{ a | most_frequent | first }} ||| y", {"a": ["u", "v", "v"]}, None, ("v", "y")),
        ("{% for x, y in zip(a, b) %}{{x}}{{y}} {% endfor %}||| y", {"a": [1, 2], "b": [3, 4]}, None, ("13 24", "y")),
        ("{{a}} ||| {{answer_choices[label]}}", {"a": "x", "label": None}, "p ||| q", None),
    ],
)
def test_texts_are_those_of_promptsource(
    jinja: str, row: dict[str, object], choices: str | None, expected: tuple[str, ...] | None
) -> None:
    assert render(jinja, row, choices) == expected


def test_random_filters_are_seeded_by_template_row_and_seed() -> None:
    jinja = "{{ range(1000) | choice }} {{ [1, 2, 3] | random }} ||| {{ range(1000) | choice }}"
    assert render(jinja, {}, number=3) == render(jinja, {}, number=3)
    assert len({render(jinja, {}, number=number) for number in range(20)}) > 15
    assert render(jinja, {}, number=3) != render(jinja, {}, number=3, seed=1)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }} ||| y",
        "{{ row.append(1) }} ||| y",
        "{{ 'a' * 10000000000 }} ||| y",
        "{{ 10 ** 10000000 }} ||| y",
        "{{ 'a' | center(10000000000) }} ||| y",
        "{{ '%10000000000d' % 3 }} ||| y",
        "{{ '%*d' | format(10000000000, 3) }} ||| y",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }} ||| y",
        "{% for i in range(10000000) %}x{% endfor %} ||| y",
    ],
)
def test_attacks_on_the_sandbox_are_refused(attack: str) -> None:
    with pytest.raises((InputError, ValueError)) as error:
        render(attack, {"row": []})
    if isinstance(error.value, InputError):
        assert str(error.value).startswith(
            ("mine.yaml: mine: is not safe to run (", "mine.yaml: mine: does not parse (No filter named 'center'")
        )


def test_what_the_sandbox_hides_is_empty() -> None:
    assert render("{{ zip.__globals__ }}{{ row.__class__ }} ||| y", {"row": []}) is None


def test_templates_that_cannot_be_used_are_left_out_with_the_reason() -> None:
    good, broken = template("{{a}} ||| {{b}}"), Template("mail", "broken", "{{ a ", None, "f: broken")
    asks = Template("mail", "asks", "{{nowhere}} ||| x", None, "f: asks")
    may = Template("mail", "may", "{% if c is defined %}{{c}}{% endif %}{{a}} ||| x", None, "f: may")
    source = PromptSourceExamples([good, broken, asks, may], ["a", "b"], seed=0)
    assert [example.task for example in examples(source, [{"a": "1", "b": "2"}])] == ["mail/mine", "mail/may"]
    assert "does not parse" in source.left_out["broken"]
    assert source.left_out["asks"] == "asks for the column 'nowhere', which the rows do not have"
    with pytest.raises(InputError, match="no template can be used"):
        PromptSourceExamples([broken], ["a"], seed=0)


def test_rows_that_cannot_be_rendered_are_counted_with_the_first_reason() -> None:
    source = PromptSourceExamples([template("{{ 12 / a }} ||| y")], ["a"], seed=0)
    assert [example.id for example in examples(source, [{"a": 0}, {"a": 3}, {"a": 0}])] == ["row:1"]
    assert source.counts["mine"] == {"failed": 2, "example": 1}
    assert source.failures["mine"].startswith("row 0: ")
    source = PromptSourceExamples([template("{{a}}, is it? ||| {{b}}")], ["a", "b"], seed=0)
    assert [example.id for example in examples(source, [{"b": "y"}, {"a": "x", "b": "y"}])] == ["row:1"]
    assert source.failures["mine"] == "row 0: the column 'a' is missing"


def test_choices_are_texts_and_a_second_right_one_is_not_wrong() -> None:
    jinja, choices = "{{a}} ||| x ||| y", "{{ o | join('|||') }}"
    source = PromptSourceExamples([template(jinja, choices)], ["a", "o"], seed=0)
    (example,) = examples(source, [{"a": "q", "o": ["x", "", "y", "z"]}])
    assert (example.choices, example.label) == (("x", "z"), 0)


def test_a_text_that_is_not_unicode_fails_for_its_row() -> None:
    source = PromptSourceExamples([template("{{a}} ||| y")], ["a"], seed=0)
    assert [example.id for example in examples(source, [{"a": "\ud83d"}, {"a": "x"}])] == ["row:1"]
    assert source.failures["mine"] == "row 0: the text is not Unicode"


def test_most_frequent_keeps_all_that_tie() -> None:
    assert most_frequent(["b", "a", "b", "a", "c"]) == ["b", "a"]
    assert most_frequent([]) is None

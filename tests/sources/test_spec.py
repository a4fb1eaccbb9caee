"""Sources files, tables of one's own, and what is wrong with them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cappy_lightning.errors import InputError
from cappy_lightning.records import Candidate, Pool
from cappy_lightning.sources.config import Shard
from cappy_lightning.sources.rows import file_rows
from cappy_lightning.sources.spec import Sources

TEMPLATES = """
dataset: mail
templates:
  1: !Template
    answer_choices: good ||| bad
    jinja: "{{mail}} Good or bad? ||| {{ answer_choices[label] }}"
    name: kind
  2: !Template
    answer_choices: null
    jinja: 'Subject of: {{mail}} ||| {{subject}}'
    name: subject
  3: !Template
    answer_choices: null
    jinja: 'Who wrote {{mail}}? ||| {{author}}'
    name: author
"""


def pools(*arguments: object, shard: Shard | None = None) -> list[Pool]:
    return list(Sources([str(argument) for argument in arguments], shard).pools())


def refusal(*arguments: object) -> str:
    with pytest.raises(InputError) as error:
        pools(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def spec(folder: Path, *sources: str, head: str = "") -> Path:
    path = folder / "sources.yaml"
    path.write_text(f"{head}\nsources:\n" + "".join(f"  - {source}\n" for source in sources), encoding="utf-8")
    return path


@pytest.fixture
def mail(tmp_path: Path) -> Path:
    """A folder with a table in three formats and templates for it."""
    rows = [{"mail": f"mail, {n}\nend", "label": n % 2, "subject": f"s {n}"} for n in range(20)]
    (tmp_path / "mail.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mail.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mail.parquet")
    lines = [f'"{row["mail"]}",{row["label"]},{row["subject"]}' for row in rows]
    (tmp_path / "mail.csv").write_text("\ufeffmail,label,subject\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "root" / "mail").mkdir(parents=True)
    (tmp_path / "root" / "mail" / "templates.yaml").write_text(TEMPLATES, encoding="utf-8")
    return tmp_path


COLUMNS = "columns: {instruction: mail, references: subject}"


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_a_table_with_a_mapping_gives_the_same_examples_in_every_format(mail: Path, kind: str) -> None:
    found = pools(spec(mail, f"{{files: [{mail}/mail.{kind}], task: post, {COLUMNS}}}"))
    assert len(found) == 20
    example = found[3].example
    assert (example.task, example.instruction, example.references) == ("post", "mail, 3\nend", ("s 3",))
    assert {pool.candidates for pool in found} == {()}
    assert len({pool.example.id for pool in found}) == 20


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_templates_over_local_rows(mail: Path, kind: str) -> None:
    path = spec(mail, f"{{files: [{mail}/mail.{kind}], templates: {mail}/root/mail}}")
    sources = Sources([str(path)])
    found = list(sources.pools())
    assert [pool.example.task for pool in found[:2]] == ["mail/kind", "mail/subject"]
    assert (found[2].example.choices, found[2].example.label) == (("good", "bad"), 1)
    assert [c.response for c in found[2].candidates] == ["good", "bad"]
    assert len(found) == 40
    assert sources.notes() == [
        "mail: template 'author' is left out: asks for the column 'author', which the rows do not have"
    ]


def test_a_data_set_finds_its_templates_below_the_root(mail: Path) -> None:
    (mail / "data").mkdir()
    (mail / "mail.parquet").rename(mail / "data" / "train.parquet")
    path = spec(mail, f"{{dataset: {mail}/data, templates: {mail}/root/mail, split: train, template_names: [subject]}}")
    found = pools(path)
    assert len(found) == 20
    assert (found[0].example.split, found[0].example.id) == ("train", "train:0")
    assert refusal(spec(mail, "{dataset: mail}"), f"templates={mail}/elsewhere").startswith(f"{mail}/elsewhere/mail")


def test_caps_and_t0s_rule_draw_rows_for_each_template(mail: Path) -> None:
    source = f"{{files: [{mail}/mail.jsonl], templates: {mail}/root/mail}}"
    path = spec(mail, source, head="large_dataset: 12")
    found = pools(path)
    kind, subject = (
        [pool.example.id for pool in found if pool.example.task == f"mail/{name}"] for name in ("kind", "subject")
    )
    assert (len(kind), len(subject)) == (6, 6)  # 12 by the two templates that can be used
    assert kind != subject
    assert found == pools(path) != pools(path, "seed=1")
    assert len(pools(path, "large_dataset=20")) == 40  # it is not larger
    table = spec(mail, f"{{files: [{mail}/mail.csv], {COLUMNS}, max_examples: 5}}")
    assert len(pools(table)) == 5


def test_shards_hold_every_row_once(mail: Path) -> None:
    path = spec(
        mail,
        f"{{files: [{mail}/mail.jsonl], templates: {mail}/root/mail, max_examples: 7}}",
        f"{{files: [{mail}/mail.csv], {COLUMNS}}}",
    )
    parts = [pools(path, shard=Shard(index, 3)) for index in range(3)]
    assert sorted(str(pool) for part in parts for pool in part) == sorted(map(str, pools(path)))
    assert all(len(part) > 5 for part in parts)


def test_columns_give_choices_candidates_and_ratings(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("q,a,b,right,gpt,llama,stars\nq1,yes,no,no,Yes!,,4\nq2,on,off,on,x,y,1\n")
    (one, other) = pools(
        spec(tmp_path, f"{{files: [{path}], columns: {{instruction: q, choices: [a, b], label: right}}}}")
    )
    assert (one.example.choices, one.example.label, other.example.label) == (("yes", "no"), 1, 0)
    columns = "columns: {instruction: q, references: a, responses: [gpt, llama]}"
    (one, other) = pools(spec(tmp_path, f"{{files: [{path}], {columns}}}"))
    assert [c.response for c in one.candidates] == ["Yes!"]
    assert [c.response for c in other.candidates] == ["x", "y"]
    columns = "columns: {instruction: q, responses: gpt, score: stars}, score_range: [1, 5]"
    (one, other) = pools(spec(tmp_path, f"{{files: [{path}], {columns}}}"))
    assert one.candidates == (Candidate("Yes!", "given", score=0.75),)
    assert other.candidates[0].score == 0
    assert one.example.references == ()
    fixed = pools(spec(tmp_path, f"{{files: [{path}], choices: ['on', 'yes'], columns: {{instruction: q, label: a}}}}"))
    assert [pool.example.label for pool in fixed] == [1, 0]


def test_the_labels_of_a_plain_table_are_the_choices(tmp_path: Path) -> None:
    path = tmp_path / "mail.csv"
    path.write_text("text,label\nlate again,complaint\nthanks,praise\nwhere is it?,complaint\n")
    found = pools(path)
    assert [pool.example.instruction for pool in found] == ["late again", "thanks", "where is it?"]
    assert {pool.example.choices for pool in found} == {("complaint", "praise")}
    assert [pool.example.label for pool in found] == [0, 1, 0]
    assert [c.response for c in found[0].candidates] == ["complaint", "praise"]
    shard = pools(path, shard=Shard(1, 3))
    assert [pool.example for pool in shard] == [found[1].example]
    source = (
        f"{{files: [{path}], columns: {{instruction: label, label: text}}, template: 'Is {{text}} of {{choices}}?'}}"
    )
    assert pools(spec(tmp_path, source))[1].example.instruction == "Is praise of late again, thanks, where is it??"


def test_labels_that_are_numbers_are_taken_by_their_text_and_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_text("text,label\na,10\nb,2\nc,10\n")
    sources = Sources([str(path)])
    found = list(sources.pools())
    assert {pool.example.choices for pool in found} == {("2", "10")}
    assert [pool.example.label for pool in found] == [1, 0, 1]
    assert sources.notes() == [f"{path}: the labels are numbers; `choices` in a sources file can name them"]
    named = pools(
        spec(tmp_path, f"{{files: [{path}], columns: {{label: label}}, choices: [{', '.join('abcdefghijk')}]}}")
    )
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": "1"}\n{"text": "c", "label": "no"}\n')
    assert [(pool.example.choices, pool.example.label) for pool in Sources([str(mixed)]).pools()] == [
        (("1", "no"), 0),
        (("1", "no"), 0),
        (("1", "no"), 1),
    ]
    assert [pool.example.right_choice for pool in named] == ["k", "c", "k"]


def test_labels_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": "x", "label": f"l{n}"}) + "\n" for n in range(1001)))
    assert refusal(path) == f"{path}:1001: is the 1001th different label, expected at most 1000"
    path.write_text('{"text": "x", "label": "a"}\n{"text": "y", "label": "a"}\n')
    assert refusal(path) == f"{path}: has 1 different labels, expected at least two classes"
    path.write_text('{"text": "x", "label": 0.5}\n')
    assert refusal(path) == f"{path}:1: has the label 0.5, expected a text or a whole number"
    path.write_text('{"text": "x", "label": "a"}\n{"text": "y", "label": ""}\n{"text": "z", "label": "b"}\n')
    assert refusal(path).startswith(f"{path}:2: field 'label' is None")
    for name, labels in (("train", "abc"), ("test", "ab")):
        rows = "".join(f'{{"text": "x", "label": "{label}"}}\n' for label in labels)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    both = [f"{{files: [{tmp_path}/{name}.jsonl], task: mail}}" for name in ("train", "test")]
    assert "has other labels than a source before it of the task 'mail', expected `choices`" in refusal(
        spec(tmp_path, *both)
    )
    assert len(pools(spec(tmp_path, f"{{files: [{tmp_path}/train.jsonl, {tmp_path}/test.jsonl]}}"))) == 5
    path.write_text('{"task": "t", "instruction": "i", "choices": ["a", true], "label": 0}\n')
    assert refusal(path).startswith(f"{path}:1: field 'choices[1]' is bool")


def test_a_file_of_pools_stays_what_it_is(tmp_path: Path) -> None:
    row = {
        "task": "t",
        "id": "1",
        "instruction": "i",
        "references": ["a"],
        "candidates": [{"response": "b", "decoding": "x"}],
    }
    path = tmp_path / "pool.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert [pool.to_row() for pool in pools(path)] == [row]
    path.write_text("\ufeff" + json.dumps(row) + "\nnot JSON\n")  # as some editors begin a file
    found = Sources([str(path)]).pools()  # one at a time
    assert next(found).to_row() == row
    with pytest.raises(InputError, match=r"pool\.jsonl:2: not valid JSON"):
        next(found)


def test_pools_of_the_reference_implementation_may_have_no_answer(tmp_path: Path) -> None:
    row = {"dataset": "t", "example_idx": 3, "instruction": "i", "references": ["a"]}
    path = tmp_path / "t_train.jsonl"
    path.write_text(json.dumps(row | {"flan_samples": {"greedy": [{"response": " "}]}}) + "\n")
    (found,) = pools(path)
    assert (found.example.id, found.example.references, found.candidates) == ("train:3", ("a",), ())


def test_a_label_that_is_a_number_is_an_index_where_cells_have_types(tmp_path: Path) -> None:
    rows = [{"task": "t", "instruction": "2+1?", "choices": ["1", "2", "3"], "label": label} for label in (2, "2")]
    path = tmp_path / "quiz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [pool.example.right_choice for pool in pools(path)] == ["3", "2"]
    pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "quiz.parquet")
    assert [pool.example.right_choice for pool in pools(tmp_path / "quiz.parquet")] == ["3"]
    table = tmp_path / "quiz.csv"
    table.write_text("text,label\n2+1?,2\n")
    source = spec(tmp_path, f"{{files: [{table}], choices: ['1', '2', '3']}}")
    assert (
        refusal(source) == f"{table}:2: label is 2, which is both an index and one of the choices, expected one meaning"
    )


def test_empty_cells_of_a_list_are_none(tmp_path: Path) -> None:
    rows = [{"instruction": "i", "references": ["x", None, ""], "responses": ["y", ""]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet")
    (found,) = pools(tmp_path / "f.parquet")
    assert (found.example.references, [one.response for one in found.candidates]) == (("x",), ["y"])


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{files: [x.csv], dataset: y}", "expected one of 'files', 'dataset' or 'bigbench', found files and dataset"),
        ("{task: t}", "expected one of 'files', 'dataset' or 'bigbench', found none"),
        ("{files: [x.xls]}", "x.xls: is none of .jsonl, .json, .csv, .parquet"),
        ("{files: [nowhere.csv]}", "nowhere.csv: cannot be read (No such file or directory)"),
        ("{files: [x.csv], columns: {question: q}}", "columns maps 'question', expected one of task, id"),
        ("{files: [x.csv], score_range: [5, 1]}", "score_range is [5.0, 1.0], expected [lowest, highest]"),
        ("{files: [x.csv], max_examples: 0}", "max_examples is 0, expected at least 1"),
        ("{files: [x.csv], file: y}", "Key 'file' not in 'SourceConfig'"),
        ("{files: [x.csv], columns: {references: 2023}}", "columns.references is 2023, expected the name of a column"),
        ("{files: [no.parquet], max_examples: 5}", "no.parquet: is no readable Parquet file"),
        ("{bigbench: tense, split: train}", "names a split beside bigbench, whose tasks have their own"),
        ("{files: [x.csv], template: 'Which {choices}?'}", "template is 'Which {choices}?', expected '{text}' in it"),
        ("{bigbench: tense, template: '{text}?'}", "has a template of its own beside those of the data set"),
        ("{files: [x.csv], columns: {label: [a, b]}}", "columns.label is a list, expected the name of one column"),
        ("{bigbench: ../etc}", "bigbench: is '../etc', expected the name of a BIG-bench task"),
    ],
)
def test_sources_that_make_no_sense_are_refused(tmp_path: Path, source: str, problem: str) -> None:
    assert problem in refusal(spec(tmp_path, source))


@pytest.mark.parametrize(
    ("text", "columns", "problem"),
    [
        ("q,a\nx\n", "{}", ":2: has 1 cells, expected 2 as in the first line"),
        ("q,q\nx,y\n", "{}", ": has no first line of distinct column names"),
        ("", "{}", ": has no first line of distinct column names"),
        ('q,a\n"x,y\n', "{}", ":2: is not valid CSV ("),
        ("q,a\nx,\xff\n", "{}", "is not UTF-8 text"),
        ("q,a\nx,y\n", "{instruction: q, references: b}", ":2: has no column 'b' (for references), but q, a"),
        ("q,a\nx,\n", "{instruction: q, references: a}", ":2: expected either 'references' or 'choices' with 'label'"),
        ("q,a\n,y\n", "{instruction: q, references: a}", ":2: field 'instruction' is missing"),
        (
            "q,c,d,l\nx,a,b,e\n",
            "{instruction: q, choices: [c, d], label: l}",
            ":2: label is 'e', expected one of the 2",
        ),
        ("q,r,s\nx,y,7\n", "{instruction: q, responses: r, score: s}", ":2: score is 7, expected a number from 0 to 1"),
        ("q,r,s\nx,y,much\n", "{instruction: q, responses: r, score: s}", ":2: score is 'much', expected a number"),
        (
            "q,a,b,c,l\n1+1?,1,2,3,2\n",
            "{instruction: q, choices: [a, b, c], label: l}",
            ":2: label is 2, which is both",
        ),
        ("q,s\nx,1\n", "{instruction: q, score: s}", ":2: has a score and 0 responses, expected one response"),
    ],
)
def test_bad_rows_are_refused_by_file_and_line(tmp_path: Path, text: str, columns: str, problem: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("latin-1"))
    assert problem in refusal(spec(tmp_path, f"{{files: [{path}], columns: {columns}}}"))


def test_whole_numbers_of_a_csv_file_are_numbers_and_what_is_none_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("q,n,m\nx,,--5\n" + "x,1,2\n" * 1500 + "x,one,007\n")
    found = list(file_rows([str(path)]).read())
    assert [row["n"] for _, row in (found[0], found[1], found[-1])] == ["", 1, "one"]
    assert [row["m"] for _, row in (found[0], found[1], found[-1])] == ["--5", "2", "007"]
    assert found[-1][0] == f"{path}:1503"


def test_the_split_of_a_source_is_that_of_its_examples(mail: Path) -> None:
    for kind, split in (("jsonl", "validation"), ("csv", "train")):
        found = pools(spec(mail, f"{{files: [{mail}/mail.{kind}], {COLUMNS}, split: {split}}}"))
        assert {pool.example.split for pool in found} == {split}
    other = spec(mail, f"{{files: [{mail}/mail.csv], templates: {mail}/root/mail, split: test}}")
    assert {(pool.example.split, pool.example.id[:5]) for pool in pools(other)} == {(None, "test:")}


def test_what_a_cap_draws_does_not_depend_on_where_the_sources_file_lies(mail: Path) -> None:
    source = f"{{files: [{mail}/mail.csv], {COLUMNS}, max_examples: 5}}"
    (mail / "other").mkdir()
    assert pools(spec(mail, source)) == pools(spec(mail / "other", source))


def test_a_column_can_be_told_to_be_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("question,answer,score,split\nq,a,17,test\n")
    columns = "{instruction: question, references: answer, score: null, split: null}"
    (pool,) = pools(spec(tmp_path, f"{{files: [{path}], columns: {columns}}}"))
    assert pool.example.references == ("a",)


def test_the_t0_recipe_lists_the_collection() -> None:
    recipe = Path(__file__).parents[2] / "conf" / "sources" / "t0.yaml"
    with pytest.raises(InputError, match=r"no_such_folder/glue/mrpc/templates.yaml: has no templates.yaml in it"):
        Sources([str(recipe), "templates=no_such_folder"])
    assert recipe.read_text().count("{dataset: ") == 38


def test_a_row_that_stands_twice_is_one_example(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("instruction,references,split\na,x,train\nb,y,train\na,x,train\na,z,train\n")
    sources = Sources([str(table)])
    assert [(one.instruction, one.references) for one in sources.distinct()] == [
        ("a", ("x",)),
        ("b", ("y",)),
        ("a", ("z",)),
    ]
    assert sources.notes() == [f"{table}: 1 row repeated and used once"]
    table.write_text("instruction,references,split\na,x,train\na,x,validation\n")
    with pytest.raises(InputError, match="stands there twice, with different contents or splits"):
        list(sources.distinct())

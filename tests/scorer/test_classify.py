"""Classification by the scorer alone: the call, and the recipe on a table of labelled texts."""

import csv
import json
from pathlib import Path

import pytest
from conftest import QUICKSTART_POOL, TINY_SCORER, Run

from cappy_lightning import Cappy
from cappy_lightning.errors import InputError

TEXTS = ["The kettle leaks.", "Thank you for the quick delivery!", "The kettle leaks."]
CHOICES = ["complaint", "praise", "question"]


@pytest.fixture(scope="module")
def scorer(lora_run: Path) -> Cappy:
    return Cappy.from_pretrained(lora_run / "adapter")


def test_classify_is_select_for_every_text(scorer: Cappy) -> None:
    found = scorer.classify(TEXTS, CHOICES, template="{text}\nOne of {choices}:")
    assert len(found) == 3
    for text, one in zip(TEXTS, found, strict=True):
        own = scorer.select(f"{text}\nOne of complaint, praise, question:", CHOICES)
        assert one.logits == pytest.approx(own.logits, abs=1e-5)
        assert (one.index, one.response) == (own.index, CHOICES[own.index])
        assert one.scores[one.index] == one.score == max(one.scores)
    assert found[0] == found[2]
    assert scorer.classify([], CHOICES) == []
    plain = scorer.classify(TEXTS[:1], CHOICES)[0]
    assert plain.logits == pytest.approx(scorer.select(TEXTS[0], CHOICES).logits, abs=1e-5)


def test_a_text_may_hold_the_templates_own_words(scorer: Cappy) -> None:
    (found,) = scorer.classify(["{choices} {text}"], CHOICES, template="{text} {x}")
    assert found.logits == pytest.approx(scorer.select("{choices} {text} {x}", CHOICES).logits, abs=1e-5)


def test_no_choices_and_templates_without_a_text_are_refused(scorer: Cappy) -> None:
    with pytest.raises(InputError, match="choices: are empty, expected at least one"):
        scorer.classify(TEXTS, [])
    with pytest.raises(InputError, match="texts: are one text, expected a list of texts"):
        scorer.classify("The kettle leaks.", CHOICES)
    with pytest.raises(InputError, match=r"template: is 'Which\?', expected '{text}' in it"):
        scorer.classify(TEXTS, CHOICES, template="Which?")


def test_the_recipe_learns_from_a_table_and_reports_classes(cappy: Run, tmp_path: Path) -> None:
    table = tmp_path / "mail.csv"
    rows = [json.loads(line) for line in QUICKSTART_POOL.read_text(encoding="utf-8").splitlines()[:60]]
    with open(table, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label"))
        for row in [*rows, rows[0]]:  # real tables repeat themselves
            writer.writerow((row["instruction"], row["references"][0].split(":")[0]))
    run = tmp_path / "run"
    words = (
        f"data.examples={table}",
        f"run_dir={run}",
        "trainer.max_steps=3",
        "label.max_wrong_choices=2",
        *TINY_SCORER,
    )
    done = cappy("train", "conf/classify.yaml", *words)
    assert done.returncode == 0, done.stderr
    assert f"{table}: 1 row repeated and used once" in done.stderr
    assert "mean (macro-F1)" in done.stdout
    report = json.loads((run / "report.json").read_text())
    part = report["tasks"]["mail"]
    classes = part["classification"]["classes"]
    assert sum(map(sum, part["classification"]["confusion"])) == part["n_examples"]
    assert part["methods"]["random"]["mean"] == pytest.approx(1 / len(classes))
    assert json.loads((run / "metrics.json").read_text())["macro_f1"] == report["average"]["macro_f1"]["mean"]
    assert (run / "confusion.png").stat().st_size > 1000

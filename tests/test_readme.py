"""What the README and the docs tell people to type works, and what they point to is there."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from cappy_lightning.command_line import parse
from cappy_lightning.config import Config
from cappy_lightning.config_loading import NO_DATA, load_config
from cappy_lightning.errors import InputError
from cappy_lightning.schema import all_keys
from cappy_lightning.sources.config import SourcesConfig

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "data" / "quickstart" / "README.md",
]
README = PAGES[0].read_text(encoding="utf-8")
#: Words in the pages that stand for what a reader puts there.
PLACEHOLDERS = {"SEED": "1"}


def commands(page: Path) -> list[list[str]]:
    """Every `cappy ...` and `python train.py ...` of a page as words, without comments and redirections."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    quoted = re.findall(r"`((?:cappy |python train\.py )[^`]+)`", text)
    typed = re.findall(r"^ *((?:cappy (?!=)|python train\.py )[^#\n]+)", text, flags=re.MULTILINE)
    found = []
    for line in quoted + typed:
        words = [word for word in shlex.split(re.sub(r"[<>] ?\S+", "", line)) if word != "..."]
        found.append(["train", *words[2:]] if words[0] == "python" else words[1:])
    return [words for words in found if len(words) > 1]  # else only a command's name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in link or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse_and_name_known_keys_and_recipes(page: Path) -> None:
    known = {*all_keys(Config), *all_keys(SourcesConfig)}
    made = {words[words.index("-o") + 1] for words in commands(page) if "-o" in words}
    for words in commands(page):
        if "--help" in words:
            continue
        for word in getattr(parse(words), "config", []):
            name, equals, _ = word.partition("=")
            assert name in known if equals else word in made or (ROOT / word).is_file(), " ".join(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_configs_that_are_accepted(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    of_sources = {*all_keys(SourcesConfig)}
    for words in commands(page):
        if "--help" in words:
            continue
        options = parse(words)
        own: list[str] = []
        for word in getattr(options, "config", []):
            name, equals, value = word.partition("=")
            if equals and name not in of_sources:
                own.append(f"{name}={PLACEHOLDERS.get(value, value)}")
            elif not equals and (ROOT / word).is_file():  # one that another command writes has no key that clashes
                own.append(word)
        # Of these commands a training alone takes its data from the config; a benchmark adds the task.
        no_data = [] if options.command == "train" else list(NO_DATA)
        if own or options.command == "train":
            try:
                load_config([*own, *no_data])
            except InputError as error:
                pytest.fail(f"{' '.join(words)}\n{error}")


def test_troubleshooting_quotes_messages_that_there_are() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    known = " ".join(
        one for folder in ("src", "callbacks") for path in (ROOT / folder).rglob("*.py") for one in texts(path)
    )
    quoted = re.findall(r"^\| `(.+?)`", page, flags=re.MULTILINE)
    assert len(quoted) > 35
    for message in quoted:
        for part in re.split(r"FILE:LINE|\.\.\.|\bN\b|\b404\b|'|\(|\)|: ", message):
            assert part.strip(" :,?") in known, message


def texts(path: Path) -> list[str]:
    """The constant parts of all texts of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [one.value for one in ast.walk(tree) if isinstance(one, ast.Constant) and isinstance(one.value, str)]


def test_every_recipe_and_overlay_is_in_the_table() -> None:
    cells = " ".join(re.findall(r"^\| (`conf/[^|]+)\|", README, flags=re.MULTILINE))
    assert set(re.findall(r"`(conf/\S+)`", cells)) == {
        str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")
    }


def test_the_readme_shows_the_figures_of_the_results_page() -> None:
    names = {
        "a random candidate": "random",
        "highest log-likelihood": "self_score_sum",
        "the LLM's greedy answer": "greedy",
        "minimum Bayes risk": "mbr",
        "majority vote": "majority",
        "highest mean log-likelihood": "self_score_mean",
        "**Cappy**": "cappy",
        "the best candidate there is (oracle)": "oracle",
    }
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) \| (.*?) ?\|$", README, flags=re.MULTILINE)
    assert {name for name, _, _ in rows} == set(names)
    for name, mean, difference in rows:
        assert re.search(rf"^\| {names[name]} \| {mean} \| {re.escape(difference)} ?\|$", results, re.MULTILINE), name

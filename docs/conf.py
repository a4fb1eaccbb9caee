"""The documentation as a site: settings of Sphinx, and what its reference pages are made of.

A page asks by a line `{{ config }}`, `{{ commands }}` or `{{ messages }}` for the config's schema, the commands' help,
or the messages in the code.
"""

import argparse
import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cappy_lightning.command_line import command_parsers
from cappy_lightning.config import Config
from cappy_lightning.schema import key_lines
from cappy_lightning.sources.config import SourceConfig, SourcesConfig

ROOT = Path(__file__).parent.parent
#: Where the code is, by the name under which the messages of its modules are shown.
SOURCES = {"": ROOT / "src" / "cappy_lightning", "callbacks.": ROOT / "callbacks"}


def config_keys() -> str:
    """Every key of a recipe by section, then those of sources files."""
    sections: dict[str, list[tuple[str, str, str, str]]] = {}
    for line in key_lines(Config):
        sections.setdefault(line[0].partition(".")[0] if "." in line[0] else "the run", []).append(line)
    parts = [_table(f"`{name}`" if name != "the run" else "The run", lines) for name, lines in sections.items()]
    parts.append(_table("Sources files", key_lines(SourcesConfig)))
    parts.append(_table("Each of their `sources`", key_lines(SourceConfig)))
    return "\n\n".join(parts)


def _table(title: str, lines: Any) -> str:
    rows = [f"| `{name}` | {kind} | `{default}` | {_cell(text)} |" for name, kind, default, text in lines]
    return "\n".join([f"## {title}", "", "| key | type | default | meaning |", "|---|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def commands() -> str:
    """The help of every command, without the keys, which the configuration's page has."""
    parts = []
    for name, parser in command_parsers().items():
        parser.epilog = None
        parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=110)
        parts.append(f"## cappy {name}\n\n```text\n{parser.format_help().strip()}\n```")
    return "\n\n".join(parts)


def messages() -> str:
    """What the code refuses input with, by module: where each message points, what it says."""
    parts = []
    for prefix, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            rows = sorted(set(_raised(ast.parse(path.read_text(encoding="utf-8")))))
            if rows:
                lines = [f"| {_cell(where)} | {_cell(problem)} |" for where, problem in rows]
                title = f"## {prefix}{path.relative_to(folder).with_suffix('').as_posix().replace('/', '.')}"
                parts.append("\n".join([title, "", "| where | what |", "|---|---|", *lines]))
    return "\n\n".join(parts)


def _raised(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "InputError":
            where, problem = (_template(argument) for argument in node.args)
            yield where, problem


def _template(node: ast.expr) -> str:
    """A text with its variable parts in italics, by the names that they have in the code."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) for part in node.values)
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    return f"‹{ast.unparse(inner)}›"


MADE: dict[str, Callable[[], str]] = {"config": config_keys, "commands": commands, "messages": messages}


def _fill(_: Any, __: str, source: list[str]) -> None:
    for name, make in MADE.items():
        asked = f"{{{{ {name} }}}}"
        if asked in source[0]:
            source[0] = source[0].replace(asked, make())


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _fill)


project = "cappy-lightning"
author = "the authors of cappy-lightning"
html_title = "cappy-lightning"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"

"""A dataclass as the schema of YAML files: its fields are the keys, their metadata the help texts.

A configuration is `merge(schema, [*yaml files, key=value ...])`, left to right, by OmegaConf.
"""

import dataclasses
import difflib
import typing
from collections.abc import Collection, Sequence
from dataclasses import field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from cappy_lightning.errors import InputError, first_line
from cappy_lightning.yaml_reading import read_yaml

Schema = typing.TypeVar("Schema")

#: What values of a type are called.
_EXPECTED: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    NoneType: "null",
}


def key(default: Any, help: str) -> Any:
    """A config key with its default and its help text."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def section(cls: type) -> Any:
    """A nested section of the schema."""
    return field(default_factory=cls)


def merge(schema: type[Schema], arguments: Sequence[str]) -> Schema:
    """Merge YAML files and `key=value` words, left to right, onto a dataclass.

    A list or a mapping takes the place of the one before it; a word `key.entry=value` changes one entry of a mapping.

    Raises:
        InputError: a file that cannot be read, an unknown key, or a value of the wrong type.
    """
    merged, known = OmegaConf.structured(schema), all_keys(schema)
    mappings = [name for name, f in known.items() if typing.get_origin(f.type) is dict]
    for argument in arguments:
        overlay, where, changed = _parse_argument(argument, mappings)
        try:
            _check_keys(overlay, merged, where, list(known))
            for name in mappings:
                value = OmegaConf.select(overlay, name, throw_on_resolution_failure=False)
                if isinstance(value, DictConfig) and name != changed:
                    OmegaConf.update(merged, name, {}, merge=False)
            merged = typing.cast(DictConfig, OmegaConf.merge(merged, overlay))
        except OmegaConfBaseException as error:
            place = where if where.startswith(f"{error.full_key}=") else f"{where}: {error.full_key or ''}"
            raise InputError(place, _reason(error, schema, overlay)) from None
        except (TypeError, ValueError, AttributeError) as error:  # OmegaConf's answer to a list for a mapping
            raise InputError(where, first_line(error)) from None
    try:
        OmegaConf.resolve(merged)
        return typing.cast(Schema, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise InputError(error.full_key or "config", _reason(error, schema, merged)) from None


def _reason(error: OmegaConfBaseException, schema: type, config: DictConfig) -> str:
    """What a value is and what was expected, where it is a single one; else in OmegaConf's words."""
    known = all_keys(schema).get(error.full_key or "")
    if isinstance(error, ValidationError) and known and typing.get_origin(known.type) in (None, UnionType):
        expected = [_EXPECTED.get(one, "") for one in typing.get_args(known.type) or [known.type]]
        if all(expected):
            value = OmegaConf.select(config, str(error.full_key), throw_on_resolution_failure=False)
            return f"is {'null' if value is None else repr(value)}, expected {' or '.join(expected)}"
    return str(error.msg if error.msg else error).splitlines()[0]


def _parse_argument(argument: str, mappings: Sequence[str]) -> tuple[DictConfig, str, str | None]:
    """One YAML file or one `key=value` as a config, its name for messages, and the mapping that it changes in part."""
    name, equals, value = argument.partition("=")
    mapping = next((one for one in mappings if name.startswith(f"{one}.")), None)
    if equals and (mapping or "/" not in name):
        if value == "-":  # standard input, which YAML takes for an empty list
            value = "'-'"
        try:
            overlay = OmegaConf.create()
            if mapping:  # the rest names an entry, dots included, as in temperature_0.7
                OmegaConf.update(overlay, mapping, {name[len(mapping) + 1 :]: read_yaml(value)})
            else:
                OmegaConf.update(overlay, name, read_yaml(value))
            return overlay, f"{name}={value}", mapping
        except Exception as error:  # OmegaConf lets the YAML parser's own errors through
            raise InputError(argument, f"cannot be read as key=value ({first_line(error)})") from None
    if not argument.endswith((".yaml", ".yml")):
        problem = "is neither a .yaml file nor key=value; files with data are named by a key, as in data.pool=FILE"
        raise InputError(argument, problem)
    try:
        with open(_find_recipe(argument), encoding="utf-8") as stream:
            loaded = read_yaml(stream)
    except OSError as error:
        raise InputError(argument, f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(argument, "is not UTF-8 text") from None
    except Exception as error:  # the YAML parser's own errors
        raise InputError(argument, f"is not valid YAML ({' '.join(str(error).split())})") from None
    if not loaded:
        raise InputError(argument, "is empty, expected 'key: value' lines")
    if not isinstance(loaded, dict):
        raise InputError(argument, "is no mapping, expected 'key: value' lines")
    try:
        return OmegaConf.create(loaded), argument, None
    except (OmegaConfBaseException, RecursionError) as error:  # an alias within its own anchor, a key of another type
        raise InputError(argument, f"cannot be read ({first_line(error)[:200]})") from None


def _find_recipe(argument: str) -> Path:
    """A recipe `conf/...` is also found where there is no checkout: the package has them all."""
    path, packaged = Path(argument), Path(__file__).parent / argument
    return packaged if path.parts[:1] == ("conf",) and not path.exists() and packaged.is_file() else path


def _check_keys(overlay: DictConfig, schema: DictConfig, where: str, known: Sequence[str], prefix: str = "") -> None:
    """Every key of the overlay must stand in the schema; a single value may stand for a list of one, null for none."""
    for name in list(overlay):
        path = f"{prefix}{name}"
        if name not in schema:
            near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
            hint = f", did you mean '{near[0]}'?" if near else ""
            raise InputError(where, f"unknown key '{path}'{hint}")
        below, value = OmegaConf.get_type(schema, name), overlay._get_node(name)
        if dataclasses.is_dataclass(below):
            if not isinstance(value, DictConfig):
                raise InputError(where, f"'{path}' is a section, expected keys below it")
            _check_keys(value, schema[name], where, known, f"{path}.")
        elif below is list and not OmegaConf.is_config(value):
            # What `${...}` refers to may come later.
            single = value._value() if value and OmegaConf.is_interpolation(overlay, name) else overlay[name]
            overlay[name] = [] if single in (None, "") else [single]


def all_keys(cls: type, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Every key of the schema, dotted, with its field."""
    keys: dict[str, dataclasses.Field[Any]] = {}
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            keys |= all_keys(typing.cast(type, hints[f.name]), f"{prefix}{f.name}.")
        else:
            keys[prefix + f.name] = f
    return keys


def key_lines(cls: type) -> list[tuple[str, str, str, str]]:
    """Every key of the schema with its type, default and meaning, as they are shown."""
    defaults, lines = cls(), []
    for name, f in all_keys(cls).items():
        value: Any = defaults
        for part in name.split("."):
            value = getattr(value, part)
        shown = repr(value) if isinstance(value, str | dict | list) else "null" if value is None else str(value).lower()
        kind = str(f.type.__name__ if isinstance(f.type, type) and not typing.get_args(f.type) else f.type)
        kind = kind.replace("typing.", "").replace(" | None", " or null")
        lines.append((name, kind, shown, str(f.metadata["help"])))
    return lines


def describe_keys(cls: type, prefix: str = "", only: Collection[str] | None = None) -> str:
    """The help text: every key of the schema, or of a section of it, with its type, default and meaning.

    Args:
        cls: the schema, or a section.
        prefix: of the names.
        only: the keys that are told of; None: all.
    """
    lines = [
        f"  {prefix}{name}  ({kind}, default {shown})\n      {text}"
        for name, kind, shown, text in key_lines(cls)
        if only is None or name in only
    ]
    return "\n".join(lines)

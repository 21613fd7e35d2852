"""A configuration file: TOML, with a line for each setting.

This module parses the form of settings. Which settings exist is in `options`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pyrycode_relay.startup_error import StartupError

_MAX_BYTES: Final = 1_048_576
"""Bytes of a configuration file: far more than it needs. The wrong file may be huge."""
_MAX_BITS: Final = 64
"""Bits of a number: no setting allows a larger one."""
_PLACE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)\Z")


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The contents of a configuration file: the texts of each setting, by its name with dashes."""

    path: str = ""
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    lists: frozenset[str] = frozenset()
    """The names of the settings that are lists."""


def read(path: str) -> ConfigFile:
    """Read a file. Raises `StartupError`."""
    shown = path if path.isprintable() else ascii(path)
    try:
        with Path(path).open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise StartupError(f"{shown} is larger than {_MAX_BYTES} bytes.")
        return parse(shown, raw.decode())
    except OSError as error:
        raise StartupError(f"Cannot read {shown}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise StartupError(f"{shown}, line {line}: not UTF-8.") from error


def parse(path: str, text: str) -> ConfigFile:
    """Parse the text of the file at ``path``. Raises `StartupError`."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise StartupError(f"{path}{_explained(error)}") from error
    problems: list[str] = []
    texts: dict[str, Sequence[str]] = {}
    lists = set()
    for key, value in table.items():
        name = key.replace("_", "-")
        if name in texts:
            problems.append(f"{path}: {name} is set twice, with dashes and with underscores.")
            continue
        values = [value]
        if isinstance(value, list):
            values = value
            lists.add(name)
        if all(isinstance(each, str | int | float) for each in values):
            texts[name] = [*map(_text, values)]
        else:
            problems.append(
                f"{path}: {name} is {_kind(value)}; a setting is text in quotes, a number, true or "
                "false, or a list of these, outside of any [table]."
            )
    if problems:
        raise StartupError(*problems)
    return ConfigFile(path, texts, frozenset(lists))


def _explained(error: Exception) -> str:
    """Return the mistake in a file that is not TOML, with its line in front."""
    if isinstance(error, RecursionError):
        return " is nested too deeply."
    text = str(error).rstrip(".")
    place = _PLACE.search(text)
    if place is None:
        return f" is not TOML: {text}."
    where = f", line {place[1]}" if place[1] else ", at its end"
    return f"{where}: {text[: place.start()]}."


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return "too large a number"  # str refuses to write a very long one.
    return str(value)


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "a table"
    return "a list of other things" if isinstance(value, list) else "a date or time"


def quoted(value: str) -> str:
    """Return a text as a file has it."""
    return '"' + "".join(map(_escaped, value)) + '"'


def _escaped(character: str) -> str:
    if character in {'"', "\\"}:
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08x}"

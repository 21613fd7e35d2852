"""The conversations and tables of ``docs/clients.md``, for the tests that try them out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs" / "clients.md").read_text(encoding="utf-8")

_LINE = re.compile(r"    (daemon|phone|other|relay) (▶ |◀ |)(.+)")


@dataclass(frozen=True)
class Turn:
    """One line of a conversation: a client sends or receives something, or the relay drains."""

    who: str
    sends: bool
    what: str

    @property
    def is_message(self) -> bool:
        """Whether it is a message, and not the start or the end of a connection."""
        return self.what[0] in '{["n'


def conversations() -> Iterator[list[Turn]]:
    """Yield each conversation."""
    for found, lines in groupby(PAGE.splitlines(), lambda line: _LINE.fullmatch(line) is not None):
        if found:
            parts = [match.groups() for line in lines if (match := _LINE.fullmatch(line))]
            yield [Turn(who, arrow == "▶ ", what) for who, arrow, what in parts]


def table(first: str) -> list[list[str]]:
    """Return the cells of each row of the table whose first column is named ``first``."""
    _, _, rest = PAGE.partition(f"\n| {first} |")
    rows = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]

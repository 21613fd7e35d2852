"""The fault of a path that the relay does not have, in words that quote nothing of it.

A path can contain a secret, such as a token in the wrong place. So the log gets the relay's own
path that was meant, if there is one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection
from typing import Final
from urllib.parse import unquote_to_bytes

_SLASHES: Final = re.compile(rb"/+")


@enum.unique
class PathFault(enum.Enum):
    """Why a path is not one of the relay's: the text for the log, and the metric label."""

    SPELLING = ("like this path, but in other letters, slashes or escapes", "path_spelling")
    SURROUNDED = ("this path, but with more in front of it or behind it", "path_surrounded")
    UNKNOWN = ("no path of the relay", "path_unknown")

    def __init__(self, text: str, label: str) -> None:
        self.text = text
        self.label = label

    def __str__(self) -> str:
        return self.text


def find_path_fault(path: bytes, known: Collection[bytes]) -> tuple[PathFault, bytes | None]:
    """Return what is wrong with ``path``, and the known path that was meant, if there is one."""
    plain = _SLASHES.sub(b"/", unquote_to_bytes(path).lower()).rstrip(b"/")
    for each in known:
        if plain == each:
            return PathFault.SPELLING, each
    for each in known:
        if plain.endswith(each) or plain.startswith(each + b"/"):
            return PathFault.SURROUNDED, each
    return PathFault.UNKNOWN, None

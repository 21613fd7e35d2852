"""The server-ids of probes.

Source: "Probes" in ``docs/protocol.md``. The prefix gives no privilege: anybody can use it.
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "pyrycode-relay-probe-"
"""The beginning of every server-id that ``pyrycode-relay-probe`` makes. It is reserved."""


def is_probe(server_id: str) -> bool:
    """Whether a server-id is that of a probe."""
    return server_id.startswith(PREFIX)

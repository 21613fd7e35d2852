"""The stages of a connection."""

from __future__ import annotations

import enum


class Stage(enum.Enum):
    """How far a connection has come; it only moves forward, and may skip a stage.

    ======= ============================= ==================== ==============================
    stage   begins when                   input                output
    ======= ============================= ==================== ==============================
    OPENING it is made                    none                 the answer to the handshake
    SERVING it has accepted the handshake messages, control    messages, control frames
                                          frames
    CLOSING it leaves service             control frames,      queued messages, then the close
                                          until input is       frame
                                          ignored
    GONE    its socket is gone            none                 none
    ======= ============================= ==================== ==============================

    A connection leaves service once: it calls ``ended``, and the close timeout begins. It ignores
    input after a violation, after the closing handshake and after an abort.
    """

    OPENING = enum.auto()
    SERVING = enum.auto()
    CLOSING = enum.auto()
    GONE = enum.auto()

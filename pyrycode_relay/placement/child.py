"""The process of one worker, as its parent sees it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

_MAX_LINE: Final = 2**16
"""Bytes of a worker's output without an end of line that are kept."""


class WorkerProcess(ProcessProtocol):
    """A worker's process: passes its output on, line by line, and reports its end."""

    def __init__(self, write: Callable[[str], None], ended: Callable[[str], None]) -> None:
        self._write = write
        self._report_end = ended
        self._partial = {1: b"", 2: b""}

    def connectionMade(self) -> None:
        """Close the worker's standard input."""
        self.transport.closeChildFD(0)  # type: ignore[union-attr]

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Pass lines on."""
        *lines, rest = (self._partial[childFD] + data).split(b"\n")
        self._partial[childFD] = rest[-_MAX_LINE:]
        for line in lines:
            self._write(line.decode(errors="backslashreplace"))

    def processEnded(self, reason: Failure) -> None:
        """Report the end."""
        for rest in self._partial.values():
            if rest:
                self._write(rest.decode(errors="backslashreplace"))
        value: Any = reason.value
        if isinstance(value, ProcessDone):
            self._report_end("exit status 0")
        elif value.signal is not None:
            self._report_end(f"signal {value.signal}")
        else:
            self._report_end(f"exit status {value.exitCode}")


def memory_file(content: bytes) -> int:
    """Return a descriptor of a file in memory."""
    number = os.memfd_create("pyrycode-relay", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(number), "wb") as file:
        file.write(content)
    os.fchmod(number, 0o400)
    return number

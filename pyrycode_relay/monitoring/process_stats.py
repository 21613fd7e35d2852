"""Open files and memory of the process, as Linux reports them."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path
from typing import Final

_DESCRIPTORS: Final = "/proc/self/fd"
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Descriptors:
    """The number of files that the process has open.

    Since Linux 6.2 the size of ``/proc/self/fd`` is this number. On an older kernel a thread
    counts the entries, because that takes two microseconds for each, and `count` returns the
    thread's previous result.
    """

    def __init__(self) -> None:
        self._listed = 0
        self._thread: threading.Thread | None = None

    def count(self) -> int:
        """Return the number, or 0 if it is unknown."""
        try:
            size = Path(_DESCRIPTORS).stat().st_size
        except OSError:
            return 0
        return size or self._count_in_thread()

    def _count_in_thread(self) -> int:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._list, daemon=True)
            self._thread.start()
        return self._listed

    def _list(self) -> None:
        self._listed = len(os.listdir(_DESCRIPTORS))


def resident_bytes() -> int:
    """Return the resident memory of the process in bytes, or 0 if it is unknown."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE
    except OSError:
        return 0


def descriptor_limit() -> int:
    """Return the maximum number of open files."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

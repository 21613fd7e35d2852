"""Open files, memory and CPU time of the process, as Linux reports them."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_DESCRIPTORS: Final = "/proc/self/fd"
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_UNLIMITED: Final = 1 << 60
"""From this many bytes on, a control group of version 1 means no limit."""


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


def cpu_seconds() -> float:
    """Return the CPU time that the process has used, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def memory_limit(root: Path = Path("/")) -> int:
    """Return the bytes of memory that the process may use, or 0 if that is unknown.

    The limit is the smallest of its control groups', or the machine's memory. ``root`` is the
    directory that has ``proc`` and ``sys``.
    """
    return min((*_group_limits(root), *_machine_memory(root)), default=0)


def _machine_memory(root: Path) -> Iterator[int]:
    try:
        first = (root / "proc/meminfo").read_text(encoding="ascii").split("\n", 1)[0]
        yield int(first.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return


def _group_limits(root: Path) -> Iterator[int]:
    """Yield the limits of the process's control groups, of both versions, and of those above."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = base / path.strip("/")
        # In a container, the path may be that of the host, and the mount the container's own.
        for each in (group, *group.parents):
            if each == base or base in each.parents:
                yield from _limit_in(each / name)


def _limit_in(file: Path) -> Iterator[int]:
    try:
        limit = int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return  # There is no such group here, or the file says "max".
    if limit < _UNLIMITED:
        yield limit

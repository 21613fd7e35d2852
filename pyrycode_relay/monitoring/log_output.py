"""Where the log's lines go: a bounded queue, and a thread that empties it.

Logging never waits. A pipe that nobody reads, or a disk that is full or does not answer, costs
lines and nothing else. Lines that are dropped are counted, and a line in their place says how many.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from pyrycode_relay.events import Level

MOST_BYTES: Final = 1 << 20
"""Bytes of lines that may wait. Above this, lines are dropped until half of it is free again."""
_LINE_COST: Final = 64
"""Bytes that a waiting line takes beside its text."""
_BATCH: Final = select.PIPE_BUF
"""Bytes that one write has at most, unless one line is longer. A pipe takes so many at once, so
that the lines of several processes do not mix."""
_PAUSE: Final = 0.01
"""Seconds between two turns of the thread, which would otherwise take its turn for every line."""
_EXIT: Final = 2.0
"""Seconds that the end of the process waits for the last lines."""

_MODE: Final = 0o640

_PRIORITIES: Final = {Level.DEBUG: 7, Level.INFO: 6, Level.WARN: 4, Level.ERROR: 3}
"""The priorities of syslog(3)."""


def is_journal(descriptor: int, environment: Mapping[str, str]) -> bool:
    """Whether a descriptor is the stream to systemd's journal that ``JOURNAL_STREAM`` names."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def journal_prefix(level: Level) -> str:
    """Return what tells the journal the priority of the line that it begins."""
    return f"<{_PRIORITIES[level]}>"


class Destination(Protocol):
    """A file, a pipe or a terminal; only the writing thread uses it."""

    def write(self, data: bytes) -> int:
        """Write some of ``data``; return how many bytes. Waits if it must, or raises `OSError`."""

    def reopen(self) -> None:
        """Open it again by its name. Raises `OSError`, and then continues as it was."""


class Stream:
    """An open descriptor that other processes may share, such as standard output."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> int:
        """Write some of ``data``, also if somebody has made the descriptor non-blocking."""
        while True:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()

    def reopen(self) -> None:
        """Do nothing: a stream has no name."""


class LogFile:
    """A file that is appended to. If it does not exist, it is created with mode 0640.

    Raises `OSError` if it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._descriptor = self._open()

    def _open(self) -> int:
        # Without O_NONBLOCK, opening a FIFO waits for its reader.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK
        try:
            descriptor = os.open(self._path, flags | os.O_EXCL, _MODE)
            os.fchmod(descriptor, _MODE)  # whatever the umask is
        except FileExistsError:
            descriptor = os.open(self._path, flags, _MODE)
        os.set_blocking(descriptor, True)
        return descriptor

    def write(self, data: bytes) -> int:
        """Write some of ``data``."""
        return os.write(self._descriptor, data)

    def reopen(self) -> None:
        """Open the file that has the name now, and close the one that had it."""
        old, self._descriptor = self._descriptor, self._open()
        os.close(old)


class Notes(Protocol):
    """Makes the lines that the output itself adds to the log."""

    def dropped(self, lines: int) -> str:
        """Return the line that stands in the place of dropped ones."""

    def not_reopened(self, error: OSError) -> str:
        """Return the line that says that the file could not be opened again."""


class _Gap:
    """The place of lines that were dropped because too many waited."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        self.lines = 0


class LogOutput:
    """Takes lines from any thread, and writes them in one of its own.

    Args:
        destination: Where the lines go.
        notes: Makes the output's own lines.
        in_journal: Whether the destination is the journal, which is told each line's priority.
        most_bytes: The bound on what waits; see `MOST_BYTES`.

    """

    def __init__(
        self,
        destination: Destination,
        notes: Notes,
        *,
        in_journal: bool = False,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.dropped = 0
        """Lines dropped since the start."""
        self._destination = destination
        self._notes = notes
        self._in_journal = in_journal
        self._most_bytes = most_bytes
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        # Guarded by _changed.
        self._waiting: deque[bytes | _Gap] = deque()
        self._bytes = 0
        self._dropping = False
        self._reopen_wanted = False
        # The thread's own.
        self._owed = 0
        """Lines lost in failed writes that the log does not mention yet."""
        self._torn = False
        """Whether the last write ended within a line."""

    # Called from any thread

    def start(self) -> None:
        """Begin to write. A process that forks calls this afterwards; until then, lines wait."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()

    def write(self, text: str, level: Level) -> None:
        """Write one or more lines, or drop them if too much waits; never waits.

        ``text`` comes without the final newline.
        """
        data = self._encoded(text, level)
        cost = len(data) + _LINE_COST
        with self._changed:
            if self._bytes + cost > self._most_bytes:
                self._dropping = True
            if self._dropping:
                self._drop()
                return
            self._waiting.append(data)
            self._bytes += cost
            self._changed.notify()

    def reopen(self) -> None:
        """Have the destination opened again by its name, before any further line."""
        with self._changed:
            self._reopen_wanted = True
            self._changed.notify()

    def close(self, deadline: float = _EXIT) -> None:
        """Write what waits, for up to ``deadline`` seconds, and end."""
        try:
            self.start()
        except RuntimeError:
            return  # No thread can start so late in the process's life, and none has.
        self._stopped.set()
        with self._changed:
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(deadline)

    def _encoded(self, text: str, level: Level) -> bytes:
        if self._in_journal:
            prefix = journal_prefix(level)
            text = "\n".join(prefix + line for line in text.split("\n"))
        return (text + "\n").encode("utf-8", "backslashreplace")

    def _drop(self) -> None:
        self.dropped += 1
        last = self._waiting[-1] if self._waiting else None
        if not isinstance(last, _Gap):
            last = _Gap()
            self._waiting.append(last)
            self._changed.notify()
        last.lines += 1

    # The thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._reopen_wanted or self._stopped.is_set()):
                    self._changed.wait()
                reopen, self._reopen_wanted = self._reopen_wanted, False
                batch = self._take()
                rest = bool(self._waiting)
            if reopen:
                self._reopen()
            if batch:
                self._write_batch(batch)
            if not rest:
                if self._stopped.is_set() and not batch:
                    return
                self._stopped.wait(_PAUSE)

    def _take(self) -> list[bytes | _Gap]:
        batch: list[bytes | _Gap] = []
        size = 0
        while self._waiting:
            first = self._waiting[0]
            if isinstance(first, bytes):
                if batch and size + len(first) > _BATCH:
                    break
                size += len(first)
                self._bytes -= len(first) + _LINE_COST
            batch.append(self._waiting.popleft())
        if self._bytes <= self._most_bytes // 2:
            self._dropping = False
        return batch

    def _reopen(self) -> None:
        try:
            self._destination.reopen()
        except OSError as error:
            self._write_batch([self._encoded(self._notes.not_reopened(error), Level.WARN)])

    def _write_batch(self, batch: Iterable[bytes | _Gap]) -> None:
        """Write lines; those that cannot be written are counted as dropped."""
        # Texts, with the lines that each stands for, and how many of these are not counted yet.
        parts: list[tuple[bytes, int, int]] = []
        if self._torn:
            parts.append((b"\n", 0, 0))
        if self._owed:
            parts.append((self._note(self._owed), self._owed, 0))
        for each in batch:
            if isinstance(each, bytes):
                parts.append((each, 1, 1))
            else:
                parts.append((self._note(each.lines), each.lines, 0))
        data = b"".join(text for text, _, _ in parts)
        written = self._write_all(data)
        if written:
            self._torn = data[written - 1] != ord("\n")
        end = owed = dropped = 0
        for text, lines, uncounted in parts:
            end += len(text)
            if end > written:
                owed += lines
                dropped += uncounted
        self._owed = owed
        if dropped:
            with self._changed:
                self.dropped += dropped

    def _note(self, lines: int) -> bytes:
        return self._encoded(self._notes.dropped(lines), Level.WARN)

    def _write_all(self, data: bytes) -> int:
        """Write ``data``; return how many bytes were written before an error."""
        written = 0
        while written < len(data):
            try:
                written += self._destination.write(data[written:])
            except OSError:
                break
        return written

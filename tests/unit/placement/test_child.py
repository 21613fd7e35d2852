"""A worker's process, as its parent sees it."""

from __future__ import annotations

import os

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.python.failure import Failure

from pyrycode_relay.placement.child import WorkerProcess, memory_file
from tests.unit.bench import Cases, cases


class ProcessTests(Cases):
    """Output and end."""

    def setUp(self) -> None:
        self.lines: list[str] = []
        self.ends: list[str] = []
        self.process = WorkerProcess(self.lines.append, self.ends.append)

    def test_lines(self) -> None:
        """Both outputs are passed on by whole lines, whatever the pieces; the rest at the end."""
        for number, piece in ((1, b"one\ntw"), (2, b"error"), (1, b"o\n"), (2, b"\nrest \xff")):
            self.process.childDataReceived(number, piece)
        self.assertEqual(["one", "two", "error"], self.lines)
        self.process.processEnded(Failure(ProcessDone(0)))
        self.assertEqual("rest \\xff", self.lines[-1])

    def test_endless_line(self) -> None:
        """A line without an end is kept in part only."""
        for _ in range(100):
            self.process.childDataReceived(1, b"x" * 4096)
        self.process.childDataReceived(1, b"\n")
        self.assertEqual([65536], [len(line) for line in self.lines])

    @cases(
        {
            "done": (ProcessDone(0), "exit status 0"),
            "status": (ProcessTerminated(exitCode=2), "exit status 2"),
            "signal": (ProcessTerminated(signal=9), "signal 9"),
        }
    )
    def test_end(self, reason: Exception, text: str) -> None:
        """The end is reported in words."""
        self.process.processEnded(Failure(reason))
        self.assertEqual([text], self.ends)


class MemoryFileTests(Cases):
    """Files that only the parent could read."""

    def test_content(self) -> None:
        """A process that has the descriptor can read the file, as often as it likes."""
        number = memory_file(b"key")
        self.addCleanup(os.close, number)
        for _ in range(2):
            with open(f"/proc/self/fd/{number}", "rb") as file:
                self.assertEqual(b"key", file.read())

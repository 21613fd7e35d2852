"""The log's output: it never waits, and says what it has dropped."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from pyrycode_relay.events import Level
from pyrycode_relay.monitoring.log_output import LogFile, LogOutput, Stream, is_journal
from tests.peers.waiting import DEADLINE
from tests.unit.bench import Cases, cases

LINE = "x" * 99


class Notes:
    """Short texts for what the output says of itself."""

    def dropped(self, lines: int) -> str:
        return f"{lines} dropped"

    def not_reopened(self, error: OSError) -> str:
        return f"not reopened: {error.errno}"


class Gate:
    """A destination that waits until it is opened, and then fails or writes as it is told to."""

    def __init__(self) -> None:
        self.written = b""
        self.outcomes: list[int | OSError] = []
        """What the next writes do: raise, or write so many bytes; then all is written."""
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.reopened: list[int] = []
        """How many bytes were written at each reopening."""

    def write(self, data: bytes) -> int:
        self.entered.set()
        assert self.opened.wait(DEADLINE)
        outcome = self.outcomes.pop(0) if self.outcomes else len(data)
        if isinstance(outcome, OSError):
            raise outcome
        self.written += data[:outcome]
        return min(outcome, len(data))

    def reopen(self) -> None:
        self.reopened.append(len(self.written))

    def lines(self) -> list[str]:
        """Return the lines that were written."""
        return self.written.decode().splitlines()


class OutputCase(Cases):
    def output(self, gate: Gate, most_bytes: int = 1 << 20, in_journal: bool = False) -> LogOutput:
        """Return an output whose thread has ended when the test has."""
        output = LogOutput(gate, Notes(), most_bytes=most_bytes, in_journal=in_journal)

        def end() -> None:
            gate.opened.set()
            output.close(DEADLINE)

        self.addCleanup(end)
        return output


class QueueTests(OutputCase):
    def test_order(self) -> None:
        """Lines come out whole and in their order; those written before the start, too."""
        gate = Gate()
        gate.opened.set()
        output = self.output(gate)
        expected = [str(number) * 10 for number in range(500)]
        for number, line in enumerate(expected):
            if number == 250:
                output.start()
            output.write(line, Level.INFO)
        output.close(DEADLINE)
        self.assertEqual(gate.lines(), expected)
        self.assertEqual(output.dropped, 0)

    def test_never_waits(self) -> None:
        """While nothing is taken, lines beyond the bound are dropped; a line says how many."""
        gate = Gate()
        output = self.output(gate, most_bytes=100_000)
        output.start()
        output.write("first", Level.INFO)
        self.assertTrue(gate.entered.wait(DEADLINE))
        for _ in range(1000):
            output.write(LINE, Level.INFO)
        self.assertGreater(output.dropped, 300)
        dropped = output.dropped
        gate.opened.set()
        output.close(DEADLINE)
        kept = 1000 - dropped
        self.assertEqual(gate.lines(), ["first", *[LINE] * kept, f"{dropped} dropped"])

    def test_room_again(self) -> None:
        """Once half is free again, lines are taken again, behind the line about the gap."""
        gate = Gate()
        output = self.output(gate, most_bytes=1000)
        for _ in range(10):
            output.write(LINE, Level.INFO)
        self.assertEqual(output.dropped, 4)
        gate.opened.set()
        output.start()
        output.close(DEADLINE)
        self.assertEqual(gate.lines(), [*[LINE] * 6, "4 dropped"])
        again = self.output(gate, most_bytes=1000)
        again.start()
        again.write("short", Level.INFO)
        again.close(DEADLINE)
        self.assertEqual(gate.lines()[-1], "short")

    def test_one_line_too_long(self) -> None:
        """A line that is longer than all that may wait is dropped, and the next ones are not."""
        gate = Gate()
        gate.opened.set()
        output = self.output(gate, most_bytes=1000)
        output.write("x" * 2000, Level.INFO)
        output.start()
        output.close(DEADLINE)
        self.assertEqual((gate.lines(), output.dropped), (["1 dropped"], 1))

    def test_deadline(self) -> None:
        """The end of the process does not wait for a destination that takes nothing."""
        gate = Gate()
        output = self.output(gate)
        output.start()
        output.write("first", Level.INFO)
        self.assertTrue(gate.entered.wait(DEADLINE))
        output.close(0.01)
        self.assertEqual(gate.written, b"")

    def test_never_started(self) -> None:
        """What waits is written at the end of a process that never began to serve."""
        gate = Gate()
        gate.opened.set()
        output = self.output(gate)
        output.write("first", Level.INFO)
        output.close(DEADLINE)
        self.assertEqual(gate.lines(), ["first"])

    def test_strange_text(self) -> None:
        """Text that cannot be encoded costs nothing."""
        gate = Gate()
        gate.opened.set()
        output = self.output(gate)
        output.write("\udc80 \N{SNOWMAN}", Level.INFO)
        output.close(DEADLINE)
        self.assertEqual(gate.lines(), ["\\udc80 \N{SNOWMAN}"])


class FailureTests(OutputCase):
    def written(self, *outcomes: int | OSError, then: str = "last") -> tuple[list[str], int]:
        """Write three lines at once while writes fail, then one more; return lines and count."""
        gate = Gate()
        gate.opened.set()
        gate.outcomes = [*outcomes]
        output = self.output(gate)
        for line in ("one", "two", "three"):
            output.write(line, Level.INFO)
        output.start()
        # The output is idle when its thread takes this.
        output.reopen()
        self.until(lambda: bool(gate.reopened) and not gate.outcomes)
        output.write(then, Level.INFO)
        output.close(DEADLINE)
        return gate.lines(), output.dropped

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition."""
        done = threading.Event()
        for _ in range(int(DEADLINE * 1000)):
            if condition():
                return
            done.wait(0.001)
        self.fail("the condition does not come true")

    def test_full_disk(self) -> None:
        """Lines that cannot be written are counted; the next that can has the number before it."""
        full = OSError(errno.ENOSPC, "No space left on device")
        self.assertEqual(self.written(full), (["3 dropped", "last"], 3))

    def test_torn_line(self) -> None:
        """A line that was written in part ends there, and counts as dropped."""
        full = OSError(errno.ENOSPC, "No space left on device")
        self.assertEqual(self.written(6, full), (["one", "tw", "2 dropped", "last"], 2))

    def test_short_writes(self) -> None:
        """Short writes are continued."""
        self.assertEqual(self.written(1, 2, 3), (["one", "two", "three", "last"], 0))

    def test_full_for_long(self) -> None:
        """The number grows until it can be written, and is not lost with its own line."""
        gate = Gate()
        gate.opened.set()
        output = self.output(gate)
        output.start()
        for count in range(1, 6):
            gate.outcomes = [OSError(errno.ENOSPC, "No space left on device")]
            output.write("lost", Level.INFO)
            self.until(lambda count=count: output.dropped == count)  # type: ignore[misc]
        output.write("last", Level.INFO)
        output.close(DEADLINE)
        self.assertEqual(gate.lines(), ["5 dropped", "last"])

    def test_reopening_fails(self) -> None:
        """A file that cannot be opened again is said so in the old one."""
        gate = Gate()
        gate.opened.set()

        def refuse() -> None:
            raise OSError(errno.EACCES, "Permission denied")

        self.patch(gate, "reopen", refuse)
        output = self.output(gate)
        output.reopen()
        output.write("last", Level.INFO)
        output.close(DEADLINE)
        self.assertEqual(gate.lines(), [f"not reopened: {errno.EACCES}", "last"])


class JournalTests(OutputCase):
    def test_priorities(self) -> None:
        """Each line, also of a traceback, begins with the priority of its level."""
        gate = Gate()
        gate.opened.set()
        output = self.output(gate, in_journal=True)
        for level in Level:
            output.write(f"{level.name}\n  below", level)
        output.close(DEADLINE)
        expected = []
        for level, priority in zip(Level, (7, 6, 4, 3), strict=True):
            expected += [f"<{priority}>{level.name}", f"<{priority}>  below"]
        self.assertEqual(gate.lines(), expected)

    def test_recognized(self) -> None:
        """The journal is recognized by the device and inode that it gives."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        status = os.fstat(writing)
        named = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        self.assertTrue(is_journal(writing, named))
        self.assertFalse(is_journal(writing, {}))
        self.assertFalse(is_journal(writing, {"JOURNAL_STREAM": "8:1"}))
        os.close(writing)
        self.assertFalse(is_journal(writing, named))


class StreamTests(Cases):
    @cases({"blocking": (True,), "non_blocking": (False,)})
    def test_slow_pipe(self, blocking: bool) -> None:
        """A pipe gets everything as it is read, also if somebody made it non-blocking."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, writing)
        os.set_blocking(writing, blocking)
        output = LogOutput(Stream(writing), Notes())
        expected = [f"{number} {LINE}" for number in range(3000)]
        for line in expected:
            output.write(line, Level.INFO)
        output.start()
        with os.fdopen(reading, encoding="ascii") as lines:
            self.assertEqual([lines.readline()[:-1] for _ in expected], expected)
        output.reopen()
        output.write("nobody reads this", Level.INFO)
        output.close(DEADLINE)
        self.assertEqual(output.dropped, 1)


class FileTests(Cases):
    def path(self) -> Path:
        """Return a path in a directory of this test's."""
        directory = Path(self.mktemp())
        directory.mkdir()
        return directory / "relay.log"

    @cases({"open": (0o000,), "closed": (0o077,)})
    def test_mode(self, umask: int) -> None:
        """A new file has mode 0640, whatever the umask; one that exists keeps its own."""
        path = self.path()
        old = os.umask(umask)
        try:
            LogFile(str(path)).write(b"one\n")
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o640)
            path.chmod(0o600)
            LogFile(str(path)).write(b"two\n")
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        finally:
            os.umask(old)
        self.assertEqual(path.read_bytes(), b"one\ntwo\n")

    def test_reopen(self) -> None:
        """After a rename, reopening goes on in a new file of the old name."""
        path = self.path()
        file = LogFile(str(path))
        file.write(b"one\n")
        path.rename(path.with_suffix(".1"))
        file.write(b"two\n")
        file.reopen()
        file.write(b"three\n")
        self.assertEqual(path.with_suffix(".1").read_bytes(), b"one\ntwo\n")
        self.assertEqual(path.read_bytes(), b"three\n")

    def test_reopening_fails(self) -> None:
        """If there can be no new file, the old one stays in use."""
        path = self.path()
        file = LogFile(str(path))
        aside = path.parent.with_suffix(".aside")
        path.parent.rename(aside)
        with self.assertRaises(FileNotFoundError):
            file.reopen()
        file.write(b"one\n")
        self.assertEqual((aside / path.name).read_bytes(), b"one\n")

    def test_nobody_reads(self) -> None:
        """A FIFO without a reader is an error, and not a start that waits."""
        path = self.path()
        os.mkfifo(path)
        with self.assertRaises(OSError) as caught:
            LogFile(str(path))
        self.assertEqual(caught.exception.errno, errno.ENXIO)

    def test_full(self) -> None:
        """A full disk costs lines and nothing else."""
        output = LogOutput(LogFile("/dev/full"), Notes())
        output.write("one", Level.INFO)
        output.close(DEADLINE)
        self.assertEqual(output.dropped, 1)

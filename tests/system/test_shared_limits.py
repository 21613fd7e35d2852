"""Limits over several processes that are stopped and killed at any point."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import IO

from twisted.trial.unittest import SynchronousTestCase

from pyrycode_relay.http.shared_memory import SharedMemory, Total, create
from tests.peers.waiting import DEADLINE
from tests.system.harness import ROOT, clean_environment
from tests.system.limits_worker import CAPACITY, LIMITS

PROGRAM = Path(__file__).with_name("limits_worker.py")
WORKERS = 3
EVER = 1_000_000_000


class SharedLimitsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.descriptor = create(WORKERS, CAPACITY.connections)
        self.addCleanup(os.close, self.descriptor)
        self.memory = SharedMemory(self.descriptor)
        self.pipes = [os.pipe2(os.O_NONBLOCK) for _ in range(WORKERS)]
        for end in (end for pipe in self.pipes for end in pipe):
            self.addCleanup(os.close, end)
        self.workers: list[subprocess.Popen[bytes]] = []
        for index in range(WORKERS):
            self.workers.append(self.start(index))
        # From here on, all of them run, and a signal meets them at work.
        self.all_do("rest")

    def start(self, index: int) -> subprocess.Popen[bytes]:
        """Start a worker."""
        ends = [end for pipe in self.pipes for end in pipe]
        worker = subprocess.Popen(
            [sys.executable, PROGRAM, str(self.descriptor), str(index), *map(str, ends)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=(self.descriptor, *ends),
            env=clean_environment({"PYTHONPATH": str(ROOT)}),
        )
        self.addCleanup(self.end, worker)
        return worker

    def end(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill a worker, if it has not ended."""
        worker.kill()
        worker.wait(DEADLINE)
        self.pipe(worker.stdin).close()
        self.pipe(worker.stdout).close()

    def pipe(self, pipe: IO[bytes] | None) -> IO[bytes]:
        """Return a pipe that is there."""
        assert pipe is not None
        return pipe

    def tell(self, index: int, command: str) -> None:
        """Send a command."""
        self.pipe(self.workers[index].stdin).write(f"{command}\n".encode())

    def answer(self, index: int) -> str:
        """Return a worker's answer; fail if it is held up."""
        stdout = self.pipe(self.workers[index].stdout)
        ready = select.select([stdout], [], [], DEADLINE)[0]
        self.assertTrue(ready, f"worker {index} does not answer")
        return stdout.readline().decode().strip()

    def all_do(self, command: str) -> list[str]:
        """Have all workers carry out a command at the same time; return the answers."""
        for index in range(WORKERS):
            self.tell(index, command)
        return [self.answer(index) for index in range(WORKERS)]

    def exact_counts(self) -> Counter[str]:
        """Compare the memory with what the resting workers have; return it."""
        counts: Counter[str] = Counter()
        for answer in self.all_do("rest"):
            counts.update(json.loads(answer))
        memory = self.memory
        self.assertEqual(memory.on_their_way(), (0, 0))
        both = memory.sum(Total.BINARY_CONNECTIONS) + memory.sum(Total.PHONE_CONNECTIONS)
        self.assertEqual(both, counts.total())
        for address, number in counts.items():
            rows = memory.rows(memory.key(address))
            self.assertEqual(sum(memory.counts[row] for row in rows), number, address)
        self.assertEqual(sum(memory.counts), counts.total(), "no other address has connections")
        return counts

    def test_hammered(self) -> None:
        """N workers exceed no number by more than N - 1, and the numbers are exact."""
        for _ in range(5):
            self.all_do("run 2000")
            counts = self.exact_counts()
            most = LIMITS.max_connections_per_address + WORKERS - 1
            self.assertLessEqual(max(counts.values()), most)
            self.assertLessEqual(counts.total(), CAPACITY.connections + WORKERS - 1)
            self.assertGreater(counts.total(), 50)
        self.all_do("leave")
        self.assertEqual(self.exact_counts(), Counter())

    def test_killed_in_the_midst(self) -> None:
        """A worker that is killed at any point leaves nothing behind once it is cleared."""
        for round_ in range(12):
            victim = round_ % WORKERS
            self.tell(victim, f"run {EVER}")
            others = [index for index in range(WORKERS) if index != victim]
            for index in others:
                self.tell(index, "run 300")
            for index in others:
                self.assertEqual(self.answer(index), "ran")
            self.end(self.workers[victim])
            # The others work on while the parent clears, and while there is no successor.
            for index in others:
                self.tell(index, "run 300")
            self.memory.clear(victim)
            self.workers[victim] = self.start(victim)
            for index in others:
                self.assertEqual(self.answer(index), "ran")
            self.exact_counts()
        self.all_do("leave")
        self.assertEqual(self.exact_counts(), Counter())

    def test_stopped_in_the_midst(self) -> None:
        """A worker that is stopped at any point holds up nobody, and then carries on."""
        for round_ in range(12):
            stopped = round_ % WORKERS
            self.tell(stopped, f"run {EVER}")
            others = [index for index in range(WORKERS) if index != stopped]
            for index in others:
                self.tell(index, "run 100")
            for index in others:
                self.assertEqual(self.answer(index), "ran")
            self.workers[stopped].send_signal(signal.SIGSTOP)
            for index in others:
                self.tell(index, "run 500")
            for index in others:
                self.assertEqual(self.answer(index), "ran")
            self.workers[stopped].send_signal(signal.SIGCONT)
            self.tell(stopped, "rest")
            self.assertEqual(self.answer(stopped), "ran")
            self.answer(stopped)
            self.exact_counts()
        self.all_do("leave")
        self.assertEqual(self.exact_counts(), Counter())

    def test_one_bucket(self) -> None:
        """Workers that take tokens at the same time get a burst in all, not one each."""
        burst = LIMITS.upgrade_burst
        taken = [int(answer) for answer in self.all_do(f"take {2 * burst} 198.51.100.1")]
        self.assertGreater(sum(taken), 0.9 * burst)
        self.assertLess(sum(taken), 1.1 * burst)

"""A worker that does nothing but count connections: the program of ``test_shared_limits``.

``limits_worker.py MEMORY INDEX PIPES...`` takes the descriptors of the shared memory, and of a pipe
for each worker: its reading and its writing end, by way of which connections move to it. Commands
come as lines, and each is answered by a line:

- ``run N``: do N random things, or as many as there is time for until the next command
- ``take N ADDRESS``: try N times to take a token; the answer is how many there were
- ``rest``: let all connections arrive that are on their way here; the answer counts those here
- ``leave``: end all connections
"""

from __future__ import annotations

import json
import os
import select
import struct
import sys
import time
from collections import Counter
from random import Random

from pyrycode_relay.http.admission import Admission, Leg, Place
from pyrycode_relay.http.capacity import Capacity
from pyrycode_relay.http.shared_limits import SharedLimits
from pyrycode_relay.http.shared_memory import SharedMemory
from pyrycode_relay.limits import Limits

ADDRESSES = [f"192.0.2.{number}" for number in range(20)]
LIMITS = Limits(upgrade_rate=6, upgrade_burst=20_000, max_connections_per_address=20)
CAPACITY = Capacity(4096, 1000, 150, 15, 100)
RECORD = struct.Struct("=QBB")
"""A connection on its way: its ticket, its leg, its address."""


class Worker:
    """Asks, enters, passes on, receives and leaves, in random order."""

    def __init__(self, memory: int, index: int, pipes: list[tuple[int, int]]) -> None:
        self.shared = SharedLimits(SharedMemory(memory), index, LIMITS, time.monotonic)
        self.admission = Admission(LIMITS, CAPACITY, self.shared)
        self.index = index
        self.inlet = pipes[index][0]
        self.outlets = [outlet for _, outlet in pipes]
        self.random = Random(os.getpid())
        self.places: list[tuple[str, Place]] = []
        self.names = 0

    def receive(self) -> None:
        """Enter the connections that have arrived."""
        try:
            records = os.read(self.inlet, 16 * RECORD.size)
        except BlockingIOError:
            return
        for ticket, leg, number in RECORD.iter_unpack(records):
            address = ADDRESSES[number]
            self.places.append((address, self.admission.enter([*Leg][leg], address)))
            self.shared.settle(ticket)

    def come(self) -> None:
        """Let a connection in that wants to, here or in another worker."""
        # Some addresses by name, which are new each time: they need rows, and have tokens.
        self.names += 1
        self.shared.take(f"{self.index}-{self.names}")
        leg, number = self.random.randrange(2), self.random.randrange(len(ADDRESSES))
        address = ADDRESSES[number]
        owner = self.random.randrange(len(self.outlets))
        denial = self.admission.ask([*Leg][leg], address)
        if denial is not None and denial.bound.label != "rate":
            return
        if owner == self.index:
            self.places.append((address, self.admission.enter([*Leg][leg], address)))
            return
        ticket = self.shared.send([*Leg][leg], address, owner)
        try:
            os.write(self.outlets[owner], RECORD.pack(ticket, leg, number))
        except BlockingIOError:
            self.shared.settle(ticket)

    def step(self) -> None:
        """Do one thing."""
        choice = self.random.randrange(4)
        if choice == 0:
            self.receive()
        elif choice < 3 or not self.places:
            self.come()
        else:
            self.places.pop(self.random.randrange(len(self.places)))[1].leave()

    def obey(self, command: str, *arguments: str) -> str:
        """Carry out a command but ``run``."""
        if command == "take":
            number, address = arguments
            return str(sum(not self.shared.take(address) for _ in range(int(number))))
        if command == "leave":
            while self.places:
                self.places.pop()[1].leave()
        while select.select([self.inlet], [], [], 0)[0]:
            self.receive()
        return json.dumps(Counter(address for address, _ in self.places))

    def work(self) -> None:
        """Carry out commands to the end of the input."""
        # Unbuffered: a command that has been read ahead would not interrupt the one before it.
        commands = open(0, "rb", buffering=0)  # noqa: SIM115 - open to the end
        while line := commands.readline():
            command, *arguments = line.decode().split()
            if command == "run":
                for number in range(int(arguments[0])):
                    self.step()
                    if number % 50 == 0 and select.select([0], [], [], 0)[0]:
                        break
                answer = "ran"
            else:
                answer = self.obey(command, *arguments)
            sys.stdout.write(answer + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    MEMORY, INDEX, *ENDS = (int(each) for each in sys.argv[1:])
    Worker(MEMORY, INDEX, [*zip(ENDS[::2], ENDS[1::2], strict=True)]).work()

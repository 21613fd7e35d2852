"""The load: phones and binaries in one process of its own, on picows.

``python -m benchmarks.load JOB`` with a job as JSON; reports are JSON lines, the last is the
result. Run by `benchmarks.measure.Bench`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import secrets
import ssl
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from picows import WSError, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from benchmarks.measure import (
    allow_many_files,
    cpu_seconds,
    resident_bytes,
    segments_sent,
    waited_seconds,
)

TEXT: Final = WSMsgType.TEXT
AT_ONCE: Final = 32
"""Upgrades under way at a time, except in a storm."""
PATIENCE: Final = 60.0
"""Seconds for anything that has to happen."""
NO_SERVER: Final = 4404
CONFLICT: Final = 4409


def message(size: int) -> bytes:
    """Return a phone's message of ``size`` bytes: JSON around what looks like ciphertext."""
    head, tail = b'{"v":2,"data":"', b'"}'
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    filling = bytes(random.Random(size).choices(alphabet, k=size - len(head) - len(tail)))
    return head + filling + tail


def report(**what: Any) -> None:
    """Write a JSON line."""
    print(json.dumps(what), flush=True)


class Peer(WSListener):
    """A connection; `closed` is the code it was closed with, None while it is open."""

    closed: int | None = None
    transport: WSTransport = None
    """Set when the connection is upgraded."""
    on_closed: Callable[[], None] | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == TEXT:
            self.received(transport, frame)
        elif frame.msg_type == WSMsgType.CLOSE:
            payload = frame.get_payload_as_bytes()
            self.closed = int.from_bytes(payload[:2], "big") or 1005
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002
        if self.closed is None:
            self.closed = 1006
        if self.on_closed is not None:
            self.on_closed()

    def received(self, transport: WSTransport, frame: WSFrame) -> None:
        """Take a text message."""


class Binary(Peer):
    """Sends every envelope back as it came: both directions have the same form."""

    def received(self, transport: WSTransport, frame: WSFrame) -> None:
        """Send it back, unless it is a close notice, which has a code and no frame."""
        envelope = frame.get_payload_as_bytes()
        if envelope.endswith(b'"}}'):
            transport.send(TEXT, envelope)


class Run:
    """Round trips that are under way, and those that have been made."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.round_trips = 0
        self.latencies = array("d")
        self.going = True
        self.wrong = 0
        self.turn: deque[Phone] | None = None
        """Phones that speak in turn; None when each speaks again as soon as it was answered."""


class Phone(Peer):
    """Sends the run's message, and takes the time until it comes back."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sent: deque[float] = deque()

    def speak(self, now: float) -> None:
        """Send the message."""
        self.sent.append(now)
        self.transport.send(TEXT, self.run.payload)

    def received(self, transport: WSTransport, frame: WSFrame) -> None:  # noqa: ARG002
        """Count a round trip, and begin another one."""
        run = self.run
        now = time.perf_counter()
        run.latencies.append(now - self.sent.popleft())
        run.round_trips += 1
        if frame.payload_size < len(run.payload) or run.round_trips % 512 == 1:
            # Byte for byte would be dear; the baseline puts blanks in.
            told = json.loads(frame.get_payload_as_bytes())
            run.wrong += told != json.loads(run.payload)
        if not run.going:
            return
        if run.turn is None:
            self.speak(now)
        else:
            run.turn.rotate(-1)
            run.turn[0].speak(now)


class Crowd:
    """Opens connections to one server. ``mark`` makes its server-ids its own."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.url: str = job["url"]
        self.mark = secrets.token_hex(3)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.tls.check_hostname = False
        self.tls.verify_mode = ssl.CERT_NONE
        self.buffer: int = job.get("buffer", 2048)

    def headers(self, number: int, *, binary: bool) -> dict[str, str]:
        """Return what a request for server-id ``number`` carries."""
        headers = {"X-Pyrycode-Server": f"bench-{self.mark}-{number}", "User-Agent": "bench"}
        headers["X-Pyrycode-Version" if binary else "X-Pyrycode-Token"] = "bench"
        return headers

    async def open(self, peer: Peer, number: int) -> None:
        """Connect a peer that belongs to server-id ``number``."""
        binary = isinstance(peer, Binary | Listener)
        await ws_connect(
            lambda: peer,
            self.url + ("/v1/server" if binary else "/v1/client"),
            ssl_context=self.tls,
            extra_headers=self.headers(number, binary=binary),
            websocket_handshake_timeout=PATIENCE,
            read_buffer_init_size=self.buffer,
        )

    async def open_all(self, peers: Sequence[tuple[Peer, int]]) -> None:
        """Connect many, `AT_ONCE` at a time."""
        queue = iter(peers)

        async def work() -> None:
            for peer, number in queue:
                await self.open(peer, number)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))


def check(peers: Sequence[Peer]) -> None:
    """Fail when any connection has gone."""
    codes = {peer.closed for peer in peers} - {None}
    if codes:
        raise RuntimeError(f"connections were closed: {codes}")


class Window:
    """What the server used and the run achieved from here on."""

    def __init__(self, run: Run, pid: int) -> None:
        self.run, self.pid = run, pid
        run.latencies = array("d")
        self.waited, self.segments = waited_seconds(pid), segments_sent()
        self.trips, self.start, self.cpu = run.round_trips, time.perf_counter(), cpu_seconds(pid)

    def close(self) -> dict[str, float]:
        """Return the figures. A round trip is two routed frames."""
        cpu, wall = cpu_seconds(self.pid) - self.cpu, time.perf_counter() - self.start
        frames = 2 * (self.run.round_trips - self.trips)
        if not frames or self.run.wrong:
            raise RuntimeError(f"{frames} frames came through, {self.run.wrong} of them wrong")
        ordered = sorted(self.run.latencies)
        return {
            "frames": frames,
            "cpu_us": cpu / frames * 1e6,
            "frames_per_second": frames / wall,
            "segments": (segments_sent() - self.segments) / frames,
            "busy": cpu / wall,
            "waited": (waited_seconds(self.pid) - self.waited) / wall,
            "p50_ms": ordered[len(ordered) // 2] * 1e3,
            "p99_ms": ordered[len(ordered) * 99 // 100] * 1e3,
        }


async def traffic(job: dict[str, Any]) -> None:
    """Keep frames in flight; report what one costs."""
    crowd = Crowd(job | {"buffer": 65536})
    run = Run(message(job["size"]))
    binaries = [Binary() for _ in range(job["ids"])]
    phones = [Phone(run) for _ in range(job["ids"] * job["phones"])]
    await crowd.open_all([(binary, number) for number, binary in enumerate(binaries)])
    await crowd.open_all([(phone, i % job["ids"]) for i, phone in enumerate(phones)])
    for phone in phones:
        for _ in range(job["in_flight"]):
            phone.speak(time.perf_counter())
    await asyncio.sleep(job["warm_up"])
    window = Window(run, job["pid"])
    await asyncio.sleep(job["seconds"])
    result = window.close()
    check([*binaries, *phones])
    run.going = False
    report(**result)


class Circle:
    """Phones of one server that speak in turn."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.crowd = Crowd(job)
        self.pid: int = job["pid"]
        self.phones: int = job["phones"]
        self.in_flight: int = job["in_flight"]
        self.run = Run(message(job["size"]))
        self.turn: deque[Phone] = deque()
        self.run.turn = self.turn
        self.binaries: list[Binary] = []

    async def grow(self, connections: int) -> None:
        """Have that many connections, and have each speak twice."""
        ids = -(-connections // (self.phones + 1))
        new = [(Binary(), number) for number in range(len(self.binaries), ids)]
        await self.crowd.open_all(new)
        self.binaries += [binary for binary, _ in new]
        joining = [
            (Phone(self.run), number // self.phones)
            for number in range(len(self.turn), connections - ids)
        ]
        await self.crowd.open_all(joining)
        self.turn.extend(phone for phone, _ in joining)
        target = self.run.round_trips + max(2 * len(self.turn), 10_000)
        self.speak()
        await until(lambda: self.run.round_trips >= target)
        await self.fall_silent()

    def speak(self) -> None:
        """Have as many messages under way as there shall be."""
        self.run.going = True
        for _ in range(self.in_flight):
            self.turn.rotate(-1)
            self.turn[0].speak(time.perf_counter())

    async def fall_silent(self) -> None:
        """Wait until nothing is under way any more."""
        self.run.going = False
        await until(lambda: not any(phone.sent for phone in self.turn))
        check([*self.binaries, *self.turn])

    async def window(self, seconds: float) -> dict[str, float]:
        """Return what frames cost for a while."""
        self.speak()
        await asyncio.sleep(seconds / 4)
        window = Window(self.run, self.pid)
        await asyncio.sleep(seconds)
        figures = window.close()
        await self.fall_silent()
        return figures


async def growth(job: dict[str, Any]) -> None:
    """Take what a frame costs with more and more connections.

    In turn with a second server that has the first number of them all the time: what else the
    machine does meanwhile then costs both.
    """
    few, many = Circle(job | job["few"]), Circle(job)
    await few.grow(job["connections"][0])
    steps = []
    for connections in job["connections"]:
        await many.grow(connections)
        windows = [
            {"few": await few.window(job["seconds"]), "many": await many.window(job["seconds"])}
            for _ in range(job["windows"])
        ]
        report(connections=connections, windows=windows)
        steps.append({"connections": connections, "windows": windows})
    report(steps=steps)


class Listener(Peer):
    """A binary that only listens."""

    def __init__(self) -> None:
        self.heard = 0

    def received(self, transport: WSTransport, frame: WSFrame) -> None:  # noqa: ARG002
        """Count a message."""
        self.heard += 1


async def dribble(job: dict[str, Any]) -> None:
    """Send messages piece by piece on a bare socket; report what a KiB costs at each size."""
    crowd = Crowd(job)
    binary = Listener()
    await crowd.open(binary, 0)
    host, port = job["url"].removeprefix("ws://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    fields = crowd.headers(0, binary=False) | {
        "Host": host, "Upgrade": "websocket", "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAECAwQFBgcICQoLDA0ODw==",
    }  # fmt: skip
    lines = ["GET /v1/client HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    await reader.readuntil(b"\r\n\r\n")
    steps = []
    for size in job["sizes"]:
        # Masked with zeros, which costs the server what any mask costs.
        length = size.to_bytes(2, "big") if size < 65_536 else size.to_bytes(8, "big")
        frame = (b"\x81\xfe" if size < 65_536 else b"\x81\xff") + length + bytes(4) + message(size)
        before, cpu = binary.heard, cpu_seconds(job["pid"])
        for number in range(job["messages"]):
            for at in range(0, len(frame), job["piece"]):
                writer.write(frame[at : at + job["piece"]])
                await asyncio.sleep(0)
            await until(lambda: binary.heard > before + number)  # noqa: B023 - called at once
        cpu = cpu_seconds(job["pid"]) - cpu
        steps.append({"size": size, "cpu_us": cpu * 1e6 / (job["messages"] * size / 1024)})
    report(steps=steps)


async def upgrades(job: dict[str, Any]) -> None:
    """Open a crowd and leave it idle; report what upgrades cost, and the memory they took."""
    pid = job["pid"]
    first = Crowd(job)
    warm = [Binary() for _ in range(4)], [Peer() for _ in range(40)]
    await first.open_all([(binary, number) for number, binary in enumerate(warm[0])])
    await first.open_all([(phone, number % 4) for number, phone in enumerate(warm[1])])
    for peer in [*warm[1], *warm[0]]:
        peer.transport.disconnect()
    await asyncio.sleep(0.5)
    crowd = Crowd(job)
    binaries = [Binary() for _ in range(job["ids"])]
    phones = [Peer() for _ in range(job["ids"] * job["phones"])]
    memory = resident_bytes(pid)
    cpu, start = cpu_seconds(pid), time.perf_counter()
    await crowd.open_all([(binary, number) for number, binary in enumerate(binaries)])
    await crowd.open_all([(phone, i % job["ids"]) for i, phone in enumerate(phones)])
    wall, cpu = time.perf_counter() - start, cpu_seconds(pid) - cpu
    await asyncio.sleep(job["settle"])
    check([*binaries, *phones])
    count = len(binaries) + len(phones)
    report(
        connections=count,
        cpu_us=cpu / count * 1e6,
        per_second=count / wall,
        busy=cpu / wall,
        kib=(resident_bytes(pid) - memory) / count / 1024,
    )


class Caller(Peer):
    """A phone of a storm: says one thing, and waits for it to come back, byte for byte."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.gone = asyncio.Event()
        self.answered = asyncio.Event()
        self.wrong = 0
        self.on_closed = self._end

    def _end(self) -> None:
        self.gone.set()
        self.answered.set()

    def received(self, transport: WSTransport, frame: WSFrame) -> None:  # noqa: ARG002
        """Take the answer; a second one, or another than what was said, is wrong."""
        right = frame.get_payload_as_bytes() == self.text and not self.answered.is_set()
        self.wrong += not right
        self.answered.set()


class StormBinary(Binary):
    """A binary of a storm."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.on_closed = self.gone.set


class Storm:
    """A crowd whose members redial at once, and again after 50 to 150 ms when refused."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.crowd = Crowd(job)
        self.ids: int = job["ids"]
        self.count: int = job["ids"] * job["phones"]
        self.dropped = False
        """Whether the server has gone, so that what happens counts."""
        self.claimed: dict[int, float] = {}
        """When each binary that is there had its upgrade."""
        self.answers: dict[int, float] = {}
        """When each phone that is there had its answer."""
        names = ("dials", "refused", "early_4404", "wrong_4404", "4409", "other")
        self.tally = dict.fromkeys(names, 0)

    @property
    def complete(self) -> bool:
        """Whether everyone is there."""
        return len(self.claimed) == self.ids and len(self.answers) == self.count

    def note(self, name: str) -> None:
        """Count something that happened after the server had gone."""
        self.tally[name] += self.dropped

    async def dial(self, peer: Peer, number: int) -> bool:
        """Connect; False when that fails."""
        self.note("dials")
        try:
            await self.crowd.open(peer, number)
        except (OSError, WSError):
            self.note("refused")
            return False
        if peer.transport is None:
            # Dropped before its upgrade, which picows does not call an error.
            self.note("refused")
        return peer.transport is not None

    async def binary(self, number: int) -> None:
        """Live as a binary."""
        while True:
            peer = StormBinary()
            if await self.dial(peer, number):
                self.claimed[number] = time.monotonic()
                await peer.gone.wait()
                del self.claimed[number]
                if peer.closed == CONFLICT:
                    self.note("4409")
            await self.pause()

    async def phone(self, index: int) -> None:
        """Live as a phone."""
        number = index % self.ids
        text = b'{"phone":%d,"data":"%s"}' % (index, b"x" * 200)
        while True:
            peer, began = Caller(text), time.monotonic()
            # A refusal is right only when the binary was not there before the phone dialled.
            known = self.claimed.get(number, began) < began
            if await self.dial(peer, number):
                peer.transport.send(TEXT, text)
                await peer.answered.wait()
                if not peer.gone.is_set():
                    self.answers[index] = time.monotonic()
                    await peer.gone.wait()
                    del self.answers[index]
                elif peer.closed == NO_SERVER:
                    self.note("wrong_4404" if known else "early_4404")
                else:
                    self.note("other")
                self.tally["other"] += peer.wrong
            await self.pause()

    async def pause(self) -> None:
        """Wait before the next try."""
        await asyncio.sleep(random.uniform(0.05, 0.15))

    async def run(self) -> None:
        """Report ``up`` when the crowd stands; after the restart, when it stood again."""
        lives = [asyncio.create_task(self.binary(number)) for number in range(self.ids)]
        await until(lambda: len(self.claimed) == self.ids)
        lives += [asyncio.create_task(self.phone(index)) for index in range(self.count)]
        await until(lambda: self.complete)
        self.dropped = True
        report(up=True)
        await until(lambda: not self.answers)
        await until(lambda: self.complete)
        times = sorted(self.answers.values())
        result = {"back": times[-1], "half": times[self.count // 2], "count": self.count}
        report(**result)
        # Long enough for a late wrong close, or a second answer, to show.
        await asyncio.sleep(1)
        report(**result, lost=self.count - len(self.answers), **self.tally)
        for life in lives:
            life.cancel()


async def storm(job: dict[str, Any]) -> None:
    """Open a crowd, have the server killed and restarted, and see everyone come back."""
    await Storm(job).run()


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not happen")
        await asyncio.sleep(0.02)


KINDS: Final[dict[str, Callable[[dict[str, Any]], Coroutine[Any, Any, None]]]] = {
    "traffic": traffic,
    "growth": growth,
    "upgrades": upgrades,
    "storm": storm,
    "dribble": dribble,
}


def main() -> None:
    """Do the job that stands on the command line."""
    job = json.loads(sys.argv[1])
    os.sched_setaffinity(0, {job["core"]})
    allow_many_files()
    asyncio.run(KINDS[job["kind"]](job))
    # Connections need not be closed one by one.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

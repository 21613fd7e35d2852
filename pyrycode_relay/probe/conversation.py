"""What a relay must do: one binary, its phone, and two that must be turned away."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from pyrycode_relay import __version__
from pyrycode_relay.probe.dial import Dial
from pyrycode_relay.probe.report import ProbeError, Report, Status, percentiles, printable
from pyrycode_relay.protocol import close_codes
from pyrycode_relay.protocol.close_codes import EndCause

_TOKEN = "probe"  # noqa: S105 - the relay wants one and looks at none
_GOODBYE = close_codes.Close(close_codes.NORMAL, "")


def _id() -> str:
    """Return a server-id that nobody else has."""
    return f"probe-{secrets.token_hex(8)}"


def _binary(server_id: str) -> Mapping[str, str]:
    return {"X-Pyrycode-Server": server_id, "X-Pyrycode-Version": f"probe {__version__}"}


def _phone(server_id: str) -> Mapping[str, str]:
    return {
        "X-Pyrycode-Server": server_id,
        "X-Pyrycode-Token": _TOKEN,
        "X-Pyrycode-Device-Name": "pyrycode-relay-probe",
    }


async def converse(dial: Dial, report: Report, count: int) -> None:
    """Go through all of it, with ``count`` round trips. Raises `ProbeError`."""
    server_id = _id()
    report.begin("upgrade")
    async with _leg(dial, "binary", _binary(server_id)) as binary:
        report.begin("second_claim")
        async with _leg(dial, "second binary", _binary(server_id)) as second:
            await _turned_away(report, second, EndCause.CONFLICT.close)
        report.begin("unknown_id")
        async with _leg(dial, "phone of an unknown server-id", _phone(_id())) as stranger:
            await _turned_away(report, stranger, EndCause.NO_SERVER.close)
        report.begin("phone")
        async with _leg(dial, "phone", _phone(server_id)) as phone:
            report.begin("round_trips")
            conn_id = await _round_trips(report, binary, phone, count)
        report.begin("close_notice")
        await _noticed(report, binary, conn_id)
    report.end()


@asynccontextmanager
async def _leg(dial: Dial, who: str, fields: Mapping[str, str]) -> AsyncIterator[ClientConnection]:
    """Have a connection; when the relay closes it before its time, say whose it was."""
    path = "/v1/client" if "X-Pyrycode-Token" in fields else "/v1/server"
    async with dial.leg(path, fields) as connection:
        try:
            yield connection
        except ConnectionClosed as closed:
            if closed.rcvd is not connection.protocol.close_rcvd:
                raise  # it is about the connection around this one
            raise _cut_off(who, closed) from closed


def _cut_off(who: str, closed: ConnectionClosed) -> ProbeError:
    if closed.rcvd is None:
        return ProbeError(Status.MISBEHAVES, f"The {who}'s connection broke.")
    said = printable(f"{closed.rcvd.code} {closed.rcvd.reason}".strip())
    busy = closed.rcvd.code == close_codes.GOING_AWAY
    return ProbeError(
        Status.BUSY if busy else Status.MISBEHAVES,
        f"The relay closed the {who}'s connection with {said!r}.",
    )


async def _turned_away(report: Report, peer: ClientConnection, expected: close_codes.Close) -> None:
    """See that the relay closes a connection as it should."""
    try:
        await peer.recv()
    except ConnectionClosed as closed:
        code = closed.rcvd.code if closed.rcvd else 1006
        reason = printable(closed.rcvd.reason) if closed.rcvd else ""
        report.found(code=code, reason=reason)
        if code == close_codes.GOING_AWAY:
            raise ProbeError(Status.BUSY, "The relay is shutting down.") from None
        if (code, reason) != expected:
            said = f"{code} {reason}".strip()
            raise ProbeError(
                Status.MISBEHAVES,
                f"It closed with {said!r}, not with '{expected.code} {expected.reason}'.",
            ) from None
    else:
        raise ProbeError(Status.MISBEHAVES, f"It was sent a message, not closed {expected.code}.")


async def _round_trips(
    report: Report, binary: ClientConnection, phone: ClientConnection, count: int
) -> str:
    """Send frames there and back, look at every byte of them, and return the phone's conn_id."""
    durations, conn_id = [], ""
    for number in range(count):
        # White space and key order are a frame's own affair: it has to come as it went.
        frame = f'{{"trip": {number},"probe" :"{secrets.token_hex(8)}"}}'
        started = time.perf_counter()
        await phone.send(frame)
        envelope = await binary.recv()
        if '"close_code"' in str(envelope):
            await phone.recv()  # which says why it has gone
        conn_id = _unwrapped(envelope, frame)
        await binary.send(f'{{"conn_id":{json.dumps(conn_id)},"frame":{frame}}}')
        back = await phone.recv()
        durations.append((time.perf_counter() - started) * 1000)
        if back != frame:
            raise ProbeError(Status.MISBEHAVES, "A frame came to the phone as something else.")
    report.found(count=count, **percentiles(durations))
    return conn_id


def _unwrapped(envelope: str | bytes, frame: str) -> str:
    """Return the conn_id of an envelope, whose frame has to be ``frame`` byte for byte."""
    try:
        conn_id = json.loads(envelope)["conn_id"]
    except (ValueError, KeyError, TypeError):
        raise ProbeError(
            Status.MISBEHAVES, "The binary was sent something that is no envelope."
        ) from None
    if envelope != f'{{"conn_id":{json.dumps(conn_id)},"frame":{frame}}}':
        raise ProbeError(Status.MISBEHAVES, "A frame came to the binary as something else.")
    return str(conn_id)


async def _noticed(report: Report, binary: ClientConnection, conn_id: str) -> None:
    """See that the binary is told how its phone went."""
    notice = await binary.recv()
    expected = f'{{"conn_id":{json.dumps(conn_id)},"close_code":{close_codes.NORMAL}}}'
    if notice != expected:
        raise ProbeError(
            Status.MISBEHAVES, "The binary was not told that its phone went with 1000."
        )
    report.found(code=close_codes.NORMAL)

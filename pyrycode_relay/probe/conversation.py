"""The test of a relay: a binary and its phone, and two connections that it must reject."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from pyrycode_relay import __version__
from pyrycode_relay.probe.dial import Dial
from pyrycode_relay.probe.report import ProbeError, Report, Status, percentiles, printable
from pyrycode_relay.probe.wake import Wake, check
from pyrycode_relay.protocol import close_codes, probe_ids
from pyrycode_relay.protocol.close_codes import EndCause

_TOKEN = "probe"  # noqa: S105 - no secret: the relay checks only that there is a token


STEPS: Final = (*("upgrade", "second_claim", "unknown_id", "phone", "round_trips", "close_notice"),)
"""The steps of `converse`, without the push wake."""


def _random_server_id() -> str:
    return f"{probe_ids.PREFIX}{secrets.token_hex(8)}"


def _binary_headers(server_id: str) -> Mapping[str, str]:
    return {"X-Pyrycode-Server": server_id, "X-Pyrycode-Version": f"probe {__version__}"}


def _phone_headers(server_id: str) -> Mapping[str, str]:
    return {
        "X-Pyrycode-Server": server_id,
        "X-Pyrycode-Token": _TOKEN,
        "X-Pyrycode-Device-Name": "pyrycode-relay-probe",
    }


async def converse(dial: Dial, report: Report, count: int, wake: Wake | None = None) -> None:
    """Test the relay with ``count`` round trips and, if given, ``wake``. Raises `ProbeError`."""
    server_id = _random_server_id()
    report.begin("upgrade")
    async with _leg(dial, "binary", _binary_headers(server_id)) as binary:
        report.begin("second_claim")
        async with _leg(dial, "second binary", _binary_headers(server_id)) as second:
            await _expect_close(report, second, EndCause.CONFLICT.close)
        report.begin("unknown_id")
        async with _leg(
            dial, "phone of an unknown server-id", _phone_headers(_random_server_id())
        ) as stranger:
            await _expect_close(report, stranger, EndCause.NO_SERVER.close)
        report.begin("phone")
        async with _leg(dial, "phone", _phone_headers(server_id)) as phone:
            report.begin("round_trips")
            conn_id = await _round_trips(report, binary, phone, count)
        report.begin("close_notice")
        await _expect_close_notice(report, binary, conn_id)
        if wake is not None:
            report.begin("wake")
            await _send_wake(report, binary, wake)
    report.end()


@asynccontextmanager
async def _leg(dial: Dial, who: str, fields: Mapping[str, str]) -> AsyncIterator[ClientConnection]:
    """Open a connection. Raises `ProbeError` if the relay closes it too early."""
    path = "/v1/client" if "X-Pyrycode-Token" in fields else "/v1/server"
    async with dial.leg(path, fields) as connection:
        try:
            yield connection
        except ConnectionClosed as closed:
            if closed.rcvd is not connection.protocol.close_rcvd:
                raise  # another leg's connection was closed
            raise _unexpected_close(who, closed) from closed


def _unexpected_close(who: str, closed: ConnectionClosed) -> ProbeError:
    if closed.rcvd is None:
        return ProbeError(Status.MISBEHAVES, f"The {who}'s connection broke.")
    received = printable(f"{closed.rcvd.code} {closed.rcvd.reason}".strip())
    busy = closed.rcvd.code == close_codes.GOING_AWAY
    return ProbeError(
        Status.BUSY if busy else Status.MISBEHAVES,
        f"The relay closed the {who}'s connection with {received!r}.",
    )


async def _expect_close(
    report: Report, peer: ClientConnection, expected: close_codes.Close
) -> None:
    """Check that the relay closes a connection with ``expected``. Raises `ProbeError`."""
    try:
        await peer.recv()
    except ConnectionClosed as closed:
        code = closed.rcvd.code if closed.rcvd else 1006
        reason = printable(closed.rcvd.reason) if closed.rcvd else ""
        report.found(code=code, reason=reason)
        if code == close_codes.GOING_AWAY:
            raise ProbeError(Status.BUSY, "The relay is shutting down.") from None
        if (code, reason) != expected:
            received = f"{code} {reason}".strip()
            raise ProbeError(
                Status.MISBEHAVES,
                f"The relay closed with {received!r} instead of "
                f"'{expected.code} {expected.reason}'.",
            ) from None
    else:
        raise ProbeError(
            Status.MISBEHAVES, f"The relay sent a message instead of closing with {expected.code}."
        )


async def _round_trips(
    report: Report, binary: ClientConnection, phone: ClientConnection, count: int
) -> str:
    """Send frames to the binary and back, and compare each byte. Return the phone's conn_id."""
    durations, conn_id = [], ""
    for number in range(count):
        # The relay must forward white space and key order unchanged.
        frame = f'{{"trip": {number},"probe" :"{secrets.token_hex(8)}"}}'
        started = time.perf_counter()
        await phone.send(frame)
        envelope = await binary.recv()
        if '"close_code"' in str(envelope):
            await phone.recv()  # raises, with the close frame that says why the phone has gone
        conn_id = _unwrapped(envelope, frame)
        await binary.send(f'{{"conn_id":{json.dumps(conn_id)},"frame":{frame}}}')
        back = await phone.recv()
        durations.append((time.perf_counter() - started) * 1000)
        if back != frame:
            raise ProbeError(Status.MISBEHAVES, "A frame was changed on its way to the phone.")
    report.found(count=count, **percentiles(durations))
    return conn_id


def _unwrapped(envelope: str | bytes, frame: str) -> str:
    """Return the conn_id of an envelope. Raises `ProbeError` unless it contains ``frame``."""
    try:
        conn_id = json.loads(envelope)["conn_id"]
    except (ValueError, KeyError, TypeError):
        raise ProbeError(
            Status.MISBEHAVES, "The binary received a message that is not an envelope."
        ) from None
    if envelope != f'{{"conn_id":{json.dumps(conn_id)},"frame":{frame}}}':
        raise ProbeError(Status.MISBEHAVES, "A frame was changed on its way to the binary.")
    return str(conn_id)


async def _expect_close_notice(report: Report, binary: ClientConnection, conn_id: str) -> None:
    """Check that the binary receives its phone's close notice. Raises `ProbeError`."""
    notice = await binary.recv()
    expected = f'{{"conn_id":{json.dumps(conn_id)},"close_code":{close_codes.NORMAL}}}'
    if notice != expected:
        raise ProbeError(
            Status.MISBEHAVES, "The binary did not receive its phone's close notice with code 1000."
        )
    report.found(code=close_codes.NORMAL)


async def _send_wake(report: Report, binary: ClientConnection, wake: Wake) -> None:
    """Send a push wake and wait for its outcome. Raises `ProbeError` unless it was sent."""
    report.found(platform=wake.platform)
    await binary.send(wake.envelope())
    outcome = wake.outcome(await binary.recv())
    report.found(outcome=outcome)
    check(outcome)

"""Connections to a relay, step by step: name, TCP, TLS, upgrade; each failure a sentence."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHeader, InvalidStatus, WebSocketException

from pyrycode_relay import __version__
from pyrycode_relay.probe.report import ProbeError, Report, Status, printable
from pyrycode_relay.probe.target import Place, Target, authority

_PROXY: Final = b"\r\n\r\n\0\r\nQUIT\n\x21"
"""The beginning of a PROXY header, version 2, for somebody who is calling."""

_CLOSE_TIMEOUT: Final = 1.0
"""Seconds the relay has to answer our close: the verdict does not depend on it."""

_PATIENCE: Final = 3.0
"""Seconds for one of several addresses: one that drops what it gets must not use up all time."""

_NOT_TLS: Final = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"}
"""OpenSSL's words for bytes that are no TLS record."""

_EXPIRED: Final = {10}
_NOT_YET: Final = {9}
_WRONG_NAME: Final = {62, 64}
_UNTRUSTED: Final = {2, 18, 19, 20, 21, 27}
"""OpenSSL's verification errors (openssl-verification-options(1), X509_V_ERR_*)."""


class Dial:
    """Opens WebSocket connections to ``target``.

    ``place`` is where to connect, if not where the target says; ``trust`` is how TLS is checked,
    ``send_proxy`` whether a PROXY header goes first.
    """

    def __init__(
        self,
        target: Target,
        report: Report,
        trust: ssl.SSLContext,
        place: Place | None = None,
        send_proxy: bool = False,
        min_days: int = 0,
    ) -> None:
        self._target = target
        self._report = report
        self._trust = trust
        self._place = place or Place(target.host, target.port)
        self._send_proxy = send_proxy
        self._min_days = min_days
        self._address: tuple[int, Any]

    async def find(self) -> None:
        """Look the name up, choose the first of its addresses that accepts, and try TLS there."""
        addresses: list[tuple[int, Any]]
        if self._place.is_unix:
            addresses = [(socket.AF_UNIX, self._place.host)]
        else:
            self._report.begin("dns")
            addresses = await self._look_up()
            self._report.found(addresses=[where[0] for _, where in addresses])
        self._report.begin("tcp")
        sock = await self._choose(addresses)
        if self._target.secure:
            self._report.begin("tls")
            await self._shake_hands(sock)
        else:
            sock.close()

    async def _look_up(self) -> list[tuple[int, Any]]:
        place = self._place
        try:
            return [(each[0], each[4]) for each in await _addresses(place.host, place.port)]
        except (socket.gaierror, UnicodeError) as error:
            missing = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
            if getattr(error, "errno", None) in missing:
                sentence = f"There is no host named {place.host}."
            else:
                cause = getattr(error, "strerror", None) or "it is not a name"
                sentence = f"The name {place.host} cannot be looked up: {cause}."
            raise ProbeError(Status.UNREACHABLE, sentence) from error

    async def _choose(self, addresses: Sequence[tuple[int, Any]]) -> socket.socket:
        failed: list[str] = []
        for number, (family, where) in enumerate(addresses, 1):
            shown = where if isinstance(where, str) else authority(where[0], where[1])
            self._report.found(address=shown)
            self._address = (family, where)
            try:
                # The last one may take all the time that is left.
                async with asyncio.timeout(_PATIENCE if number < len(addresses) else None):
                    sock = await self._connect()
            except TimeoutError:
                failed.append(f"{shown} does not answer")
            except ConnectionRefusedError:
                failed.append(f"{shown} refuses connections")
            except OSError as error:
                failed.append(f"{shown} cannot be reached ({error.strerror})")
            else:
                self._report.found(failed=failed)
                return sock
        raise ProbeError(Status.UNREACHABLE, f"{', '.join(failed)}.")

    async def _connect(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        family, where = self._address
        sock = socket.socket(family)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, where)
            if self._send_proxy:
                await loop.sock_sendall(sock, _proxy_header(sock))
        except BaseException:
            sock.close()
            raise
        return sock

    async def _shake_hands(self, sock: socket.socket) -> None:
        """Try TLS; of a certificate that is refused, have a look what it is."""
        try:
            await self._note_tls(sock, self._trust)
        except ssl.SSLCertVerificationError as error:
            with contextlib.suppress(OSError):
                await self._note_tls(await self._connect(), unverified())
            raise ProbeError(Status.TLS, self._refused_certificate(error)) from error
        except (OSError, EOFError) as error:
            raise ProbeError(Status.TLS, self._failed_tls(error)) from error
        found = self._report.steps[-1].found
        if self._min_days and found["days_left"] < self._min_days:
            sentence = (
                f"The certificate expires on {found['not_after']}, in {days(found['days_left'])}."
            )
            raise ProbeError(Status.TLS, sentence)

    async def _note_tls(self, sock: socket.socket, trust: ssl.SSLContext) -> None:
        _, writer = await asyncio.open_connection(
            sock=sock, ssl=trust, server_hostname=self._target.host
        )
        try:
            tls = writer.get_extra_info("ssl_object")
            self._report.found(
                version=tls.version(),
                cipher=tls.cipher()[0],
                verified=trust.verify_mode is ssl.CERT_REQUIRED,
                **certificate(tls.getpeercert(binary_form=True)),
            )
        except ValueError as error:
            raise ProbeError(Status.TLS, "The certificate cannot be read.") from error
        finally:
            # Politely would mean to wait for the peer.
            writer.transport.abort()

    def _refused_certificate(self, error: ssl.SSLCertVerificationError) -> str:
        found = self._report.steps[-1].found
        code = error.verify_code
        if code in _EXPIRED and "not_after" in found:
            return (
                f"The certificate expired on {found['not_after']}, {days(-found['days_left'])} ago."
            )
        if code in _NOT_YET:
            return "The certificate is not valid yet; is this machine's clock right?"
        if code in _WRONG_NAME:
            names = ", ".join(found.get("names", ())) or "another name"
            return f"The certificate is for {names}, not for {self._target.host}."
        if code in _UNTRUSTED:
            return (
                "The certificate is self-signed, or signed by nobody whom this machine trusts; "
                "give --ca-file=FILE, or --insecure to look past it."
            )
        return f"The certificate is refused: {error.verify_message}."

    def _failed_tls(self, error: Exception) -> str:
        place = self._report.steps[-2].found["address"]
        reason = getattr(error, "reason", None) or ""
        if reason in _NOT_TLS:
            return f"What listens on {place} does not speak TLS; is it ws:// that you want?"
        if "ALERT" in reason or reason == "TLSV1_UNRECOGNIZED_NAME":
            words = reason.partition("ALERT_")[2].replace("_", " ").lower() or "unrecognized name"
            host = self._target.host
            return f"The server ends the TLS handshake ({words}); does it serve the name {host}?"
        if isinstance(error, ssl.SSLError) and reason:
            return f"TLS fails: {reason.lower().replace('_', ' ')}."
        return f"{place} ends the connection during the TLS handshake; is it ws:// that you want?"

    @asynccontextmanager
    async def leg(self, path: str, fields: Mapping[str, str]) -> AsyncIterator[ClientConnection]:
        """Have a WebSocket connection of its own to one of the relay's paths.

        Raises `ProbeError` when it is not upgraded.
        """
        secure = self._target.secure
        try:
            connection = await connect(
                self._target.url(path),
                sock=await self._connect(),
                additional_headers=fields,
                user_agent_header=f"pyrycode-relay-probe/{__version__}",
                compression=None,
                proxy=None,
                open_timeout=None,
                close_timeout=_CLOSE_TIMEOUT,
                ping_interval=None,
                ssl=self._trust if secure else None,
                server_hostname=self._target.host if secure else None,
            )
        except (OSError, EOFError, ValueError, WebSocketException) as error:
            raise _refused_upgrade(error, path) from error
        try:
            yield connection
            await connection.close()
        finally:
            connection.transport.abort()


def _proxy_header(sock: socket.socket) -> bytes:
    """Return a PROXY header that announces the socket's own ends.

    Not LOCAL, which is for health checks that open no WebSocket.
    """
    if sock.family == socket.AF_UNIX:
        return _PROXY + struct.pack("!BH", 0x31, 216) + bytes(216)
    ends = sock.getsockname(), sock.getpeername()
    addresses = b"".join(socket.inet_pton(sock.family, end[0].partition("%")[0]) for end in ends)
    addresses += struct.pack("!HH", ends[0][1], ends[1][1])
    family = 0x11 if sock.family == socket.AF_INET else 0x21
    return _PROXY + struct.pack("!BH", family, len(addresses)) + addresses


def _refused_upgrade(error: BaseException, path: str) -> ProbeError:
    inner = error.__cause__ or error.__context__
    if isinstance(inner, InvalidStatus):
        # A redirect, which the library does not follow on a socket that it was given.
        error = inner
    if isinstance(error, InvalidStatus):
        response = error.response
        status = response.status_code
        again = response.headers.get("Retry-After", "")
        wait = f"; try again in {int(again)} s" if again.isdecimal() and len(again) < 6 else ""
        answer = f"The answer to the upgrade of {path} is {status}"
        if status in _ANSWERS:
            return ProbeError(*_ANSWERS[status](answer, wait))
        return ProbeError(Status.NO_RELAY, f"{answer}, not 101.")
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return ProbeError(Status.UNREACHABLE, f"The connection fails: {error.strerror}.")
    if isinstance(error, InvalidHeader):
        return ProbeError(Status.NO_RELAY, f"The answer to the upgrade of {path} breaks RFC 6455.")
    return ProbeError(Status.NO_RELAY, f"There is no HTTP/1.1 answer to the upgrade of {path}.")


def _try_later(answer: str, wait: str) -> tuple[Status, str]:
    return Status.BUSY, f"{answer}: the relay is draining, or full{wait}."


def _too_many(answer: str, wait: str) -> tuple[Status, str]:
    return Status.BUSY, f"{answer}: too many upgrades from this address{wait}."


def _no_path(answer: str, _: str) -> tuple[Status, str]:
    return Status.NO_RELAY, f"{answer}: no relay, or what stands before it hides its paths."


def _other_host(answer: str, _: str) -> tuple[Status, str]:
    return Status.NO_RELAY, f"{answer}: the relay does not serve this host name."


def _mangled(answer: str, _: str) -> tuple[Status, str]:
    sentence = f"{answer}: no relay, or what stands before it drops headers of the request."
    return Status.NO_RELAY, sentence


_ANSWERS: Final = {
    400: _mangled,
    404: _no_path,
    421: _other_host,
    426: _mangled,
    429: _too_many,
    503: _try_later,
}
"""What answers to an upgrade mean, by their status; see "Endpoints" in ``docs/protocol.md``."""


async def _addresses(host: str, port: int) -> list[Any]:
    """Return what `socket.getaddrinfo` does, from a thread that nobody has to wait for.

    The loop's own threads are joined at the end, and a look-up cannot be interrupted.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[Any]] = loop.create_future()

    def tell(found: list[Any] | Exception) -> None:
        if answer.done():
            return
        if isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def look_up() -> None:
        found: list[Any] | Exception
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except Exception as error:
            found = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: too late
            loop.call_soon_threadsafe(tell, found)

    threading.Thread(target=look_up, daemon=True).start()
    return await answer


def verified(ca_file: str | None = None) -> ssl.SSLContext:
    """Return how TLS is checked: against ``ca_file``, or what this machine trusts.

    Raises `OSError` for a file that has no certificates.
    """
    return ssl.create_default_context(cafile=ca_file)


def unverified() -> ssl.SSLContext:
    """Return how TLS is done without a check of the certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def days(number: int) -> str:
    """Return a number of days in words."""
    return f"{number} day" if number == 1 else f"{number} days"


def certificate(der: bytes) -> dict[str, Any]:
    """Return what a report says of a certificate: issuer, names, end and days until then."""
    parsed = x509.load_der_x509_certificate(der)
    left = parsed.not_valid_after_utc - datetime.now(UTC)
    return {
        "issuer": printable(_common_name(parsed.issuer)),
        "names": [printable(each) for each in _names(parsed)],
        "not_after": parsed.not_valid_after_utc.date().isoformat(),
        "days_left": left.days,
    }


def _common_name(name: x509.Name) -> str:
    for kind in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME):
        for attribute in name.get_attributes_for_oid(kind):
            return str(attribute.value)
    return name.rfc4514_string() or "nobody"


def _names(parsed: x509.Certificate) -> list[str]:
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [
        *names.get_values_for_type(x509.DNSName),
        *(str(each) for each in names.get_values_for_type(x509.IPAddress)),
    ]

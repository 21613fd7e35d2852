"""Connections to a relay, step by step: name, TCP, TLS, upgrade. Each failure is one sentence."""

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
from websockets.http11 import Response

from pyrycode_relay import __version__
from pyrycode_relay.probe.report import ProbeError, Report, Status, printable
from pyrycode_relay.probe.target import Place, Target, authority

_PROXY_START: Final = b"\r\n\r\n\0\r\nQUIT\n\x21"
"""Start of a PROXY header: the signature, then version 2 with the command PROXY."""

_CLOSE_TIMEOUT: Final = 1.0
"""Seconds to wait for the answer to the probe's close frame. The verdict does not depend on it."""

_TLS_TIMEOUT: Final = 2.0
"""Seconds for finding out whether a server that speaks no HTTP speaks TLS."""

_ADDRESS_TIMEOUT: Final = 3.0
"""Seconds for each address but the last, so that a silent one does not use up the whole time."""

_NOT_TLS: Final = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"}
"""OpenSSL's reasons for bytes that are not a TLS record."""

_EXPIRED: Final = {10}
_NOT_YET: Final = {9}
_WRONG_NAME: Final = {62, 64}
_UNTRUSTED: Final = {2, 18, 19, 20, 21, 27}
"""OpenSSL's verification errors (openssl-verification-options(1), X509_V_ERR_*)."""


class Dial:
    """Opens WebSocket connections to a relay.

    Args:
        target: The relay.
        report: Receives the steps of `find` and their results.
        trust: Verifies the certificate.
        place: Where to connect; by default the target's host and port.
        send_proxy: Whether each connection begins with a PROXY header.
        min_days: Days that the certificate must have left; 0 means no check.

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
        """Family and address of the relay; `find` sets it."""

    async def find(self) -> None:
        """Look up the name, choose its first address that accepts a connection, and try TLS there.

        Raises `ProbeError`.
        """
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
                cause = getattr(error, "strerror", None) or "it is not a host name"
                sentence = f"The name {place.host} cannot be looked up: {cause}."
            raise ProbeError(Status.UNREACHABLE, sentence) from error

    async def _choose(self, addresses: Sequence[tuple[int, Any]]) -> socket.socket:
        failed: list[str] = []
        for number, (family, where) in enumerate(addresses, 1):
            shown = where if isinstance(where, str) else authority(where[0], where[1])
            self._report.found(address=shown)
            self._address = (family, where)
            try:
                # The last address may use all the remaining time.
                async with asyncio.timeout(_ADDRESS_TIMEOUT if number < len(addresses) else None):
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
        """Try TLS. Read a refused certificate anyway, without verification, for the report."""
        try:
            await self._record_tls(sock, self._trust)
        except ssl.SSLCertVerificationError as error:
            with contextlib.suppress(OSError):
                await self._record_tls(await self._connect(), unverified())
            raise ProbeError(Status.TLS, self._refused_certificate(error)) from error
        except (OSError, EOFError) as error:
            raise ProbeError(Status.TLS, self._failed_tls(error)) from error
        found = self._report.steps[-1].found
        if self._min_days and found["days_left"] < self._min_days:
            sentence = (
                f"The certificate expires on {found['not_after']}, in {days(found['days_left'])}."
            )
            raise ProbeError(Status.TLS, sentence)

    async def _record_tls(self, sock: socket.socket, trust: ssl.SSLContext) -> None:
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
            # An orderly close would wait for the peer.
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
                "The certificate is self-signed, or signed by a CA that this machine does not "
                "trust; add --ca-file=FILE, or --insecure to skip the check."
            )
        return f"The certificate is refused: {error.verify_message}."

    def _failed_tls(self, error: Exception) -> str:
        place = self._report.steps[-2].found["address"]
        reason = getattr(error, "reason", None) or ""
        if reason in _NOT_TLS:
            return f"The server on {place} does not speak TLS; did you mean ws://?"
        if "ALERT" in reason or reason == "TLSV1_UNRECOGNIZED_NAME":
            words = reason.partition("ALERT_")[2].replace("_", " ").lower() or "unrecognized name"
            host = self._target.host
            return f"The server ends the TLS handshake ({words}); does it serve the name {host}?"
        if isinstance(error, ssl.SSLError) and reason:
            return f"TLS fails: {reason.lower().replace('_', ' ')}."
        return f"{place} ends the connection during the TLS handshake; did you mean ws://?"

    @asynccontextmanager
    async def leg(self, path: str, fields: Mapping[str, str]) -> AsyncIterator[ClientConnection]:
        """Open a WebSocket connection to one of the relay's paths; close it at the end.

        Raises `ProbeError` if the relay does not upgrade it.
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
            problem = _refused_upgrade(error, path)
            if not secure and problem.status is Status.NO_RELAY and await self._speaks_tls():
                sentence = f"{str(problem).removesuffix('.')}; did you mean wss://?"
                problem = ProbeError(Status.NO_RELAY, sentence)
            raise problem from error
        try:
            yield connection
            await connection.close()
        finally:
            connection.transport.abort()

    async def _speaks_tls(self) -> bool:
        """Whether the server takes a TLS handshake, whatever its certificate."""
        try:
            async with asyncio.timeout(_TLS_TIMEOUT):
                _, writer = await asyncio.open_connection(
                    sock=await self._connect(),
                    ssl=unverified(),
                    server_hostname=self._target.host,
                )
        except (OSError, EOFError, TimeoutError):
            return False
        writer.transport.abort()
        return True


def dial_steps(target: Target, place: Place | None) -> list[str]:
    """Return the names of the steps of `Dial.find`."""
    names = [] if place is not None and place.is_unix else ["dns"]
    return [*names, "tcp", *(["tls"] if target.secure else [])]


def _proxy_header(sock: socket.socket) -> bytes:
    """Return a PROXY header with the socket's own addresses.

    Its command is PROXY. The relay closes a connection whose header has the command LOCAL.
    """
    if sock.family == socket.AF_UNIX:
        return _PROXY_START + struct.pack("!BH", 0x31, 216) + bytes(216)
    ends = sock.getsockname(), sock.getpeername()
    addresses = b"".join(socket.inet_pton(sock.family, end[0].partition("%")[0]) for end in ends)
    addresses += struct.pack("!HH", ends[0][1], ends[1][1])
    family = 0x11 if sock.family == socket.AF_INET else 0x21
    return _PROXY_START + struct.pack("!BH", family, len(addresses)) + addresses


def _refused_upgrade(error: BaseException, path: str) -> ProbeError:
    inner = error.__cause__ or error.__context__
    if isinstance(inner, InvalidStatus):
        # The library does not follow a redirect on a socket that it was given.
        error = inner
    if isinstance(error, InvalidStatus):
        return _refused_with_status(error.response, path)
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return ProbeError(Status.UNREACHABLE, f"The connection fails: {error.strerror}.")
    if isinstance(error, InvalidHeader):
        return ProbeError(
            Status.NO_RELAY, f"The answer to the upgrade of {path} violates RFC 6455."
        )
    return ProbeError(Status.NO_RELAY, f"There is no HTTP/1.1 answer to the upgrade of {path}.")


_MANGLED: Final = "there is no relay here, or a proxy drops headers of the request"
_ANSWERS: Final = {
    400: (Status.NO_RELAY, _MANGLED),
    404: (Status.NO_RELAY, "there is no relay here, or a proxy hides its paths"),
    421: (Status.NO_RELAY, "the relay does not serve this host name"),
    426: (Status.NO_RELAY, _MANGLED),
    429: (Status.BUSY, "too many upgrades from the probe's address"),
    503: (Status.BUSY, "the relay is draining, or full"),
}
"""Meaning of each HTTP status that refuses an upgrade; see "Endpoints" in ``docs/protocol.md``."""


def _refused_with_status(response: Response, path: str) -> ProbeError:
    answer = f"The answer to the upgrade of {path} is {response.status_code}"
    if response.status_code not in _ANSWERS:
        return ProbeError(Status.NO_RELAY, f"{answer}, not 101.")
    status, meaning = _ANSWERS[response.status_code]
    seconds = response.headers.get("Retry-After", "")
    if status is Status.BUSY and seconds.isdecimal() and len(seconds) < 6:
        meaning += f"; try again in {int(seconds)} s"
    return ProbeError(status, f"{answer}: {meaning}.")


async def _addresses(host: str, port: int) -> list[Any]:
    """Return the result of `socket.getaddrinfo`, called in a thread that is never joined.

    A look-up cannot be interrupted, and the loop would join its own threads at the end.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[Any]] = loop.create_future()

    def resolve(found: list[Any] | Exception) -> None:
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
        with contextlib.suppress(RuntimeError):  # The loop is closed: the result is too late.
            loop.call_soon_threadsafe(resolve, found)

    threading.Thread(target=look_up, daemon=True).start()
    return await answer


def verified(ca_file: str | None = None) -> ssl.SSLContext:
    """Return a TLS context that trusts ``ca_file``, or by default this machine's certificates.

    Raises `OSError` if the file cannot be read or has no certificates.
    """
    return ssl.create_default_context(cafile=ca_file)


def unverified() -> ssl.SSLContext:
    """Return a TLS context that does not verify the certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def days(number: int) -> str:
    """Return a number of days in words."""
    return f"{number} day" if number == 1 else f"{number} days"


def certificate(der: bytes) -> dict[str, Any]:
    """Return a certificate's issuer, names, expiry date and days left, for the report."""
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

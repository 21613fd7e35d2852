"""TLS: which certificate a client gets, sessions that resume, and certificates that change.

A connection begins on the *front* context, which has no certificate but the keys of session
tickets. The name a client asks for (SNI) decides which context it goes on with. So certificates
can change under a listener, and sessions resume all the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.internet.interfaces import (
    IDelayedCall,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IReactorTime,
    ITransport,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import (
    BufferingTLSTransport,
    TLSMemoryBIOFactory,
    TLSMemoryBIOProtocol,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from pyrycode_relay import addresses
from pyrycode_relay.events import Event, Observer
from pyrycode_relay.startup_error import StartupError
from pyrycode_relay.tls.certificate import (
    Certificate,
    Pair,
    Source,
    wildcard,
)

_bugs = Logger()

POLL: Final = 2.0
"""Seconds between looks at the files; a change is taken once two looks have found it the same,
so that a certificate and its key need not be replaced in one instant."""

RETRY: Final = 60.0
"""Seconds after which files that could not be used are tried again though they are the same:
the fault may have been elsewhere, in the clock or in a directory above them."""

TICKET_KEYS_LIFE: Final = 12 * 3600.0
"""Seconds after which tickets get new keys, and old tickets lead to a full handshake: who steals
the keys can read no more than this of what TLS 1.2 clients resumed."""

_DAY: Final = 86400.0
_WARN_BEFORE: Final = 14 * _DAY
_WARN_SHARE: Final = 0.25
"""A certificate that ends within 14 days, or in the last quarter of a shorter life, is late."""

_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: ephemeral keys and AEAD."""
_CIPHERS_13: Final = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
_OPTIONS: Final = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
_SESSION_ID_CONTEXT: Final = b"pyrycode-relay"
_PROTOCOL: Final = b"http/1.1"

_MAX_HELLO: Final = 2**14
"""Bytes in which a client has to get its handshake done: they send 2 KiB, keys for a time after
quantum computers included. OpenSSL alone would keep 128 KiB of each."""

Fingerprint = tuple[object, ...]


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """The certificates that listeners serve, from ``sources``.

    ``domains`` are the names that clients may ask for; none is any. ``clock`` times looks at the
    files and the change of ticket keys, ``now`` says how late it is in seconds since 1970.
    Until there is a certificate, which only an awaited source may cause, handshakes are refused.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        domains: Iterable[str],
        observer: Observer,
        clock: IReactorTime,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.last_reload: tuple[float, bool] | None = None
        """When certificates were last read, in seconds since 1970, and whether all was well."""
        self._sources = tuple(sources)
        self._domains = frozenset(domains)
        self._observer = observer
        self._clock = clock
        self._now = now
        self._front = self._make_front()
        self._front_made = clock.seconds()
        self._loaded: Mapping[Pair, Certificate] = {}
        self._pairs: Mapping[Source, Sequence[Pair]] = {}
        self._contexts: Mapping[str, SSL.Context] = {}
        self._default: SSL.Context | None = None
        self._problems: frozenset[str] = frozenset()
        self._read_at = 0.0
        self._read: Fingerprint = ()
        self._seen: Fingerprint = ()
        self._warned_at: float | None = None
        self._look: IDelayedCall | None = None

    @property
    def ready(self) -> bool:
        """Whether there is a certificate."""
        return self._default is not None

    def not_after(self) -> dict[str, float]:
        """Return when the certificate of each name ends, in seconds since 1970.

        Of several for a name, it is the one that ends first. One for addresses alone is under
        the name of its file.
        """
        ends: dict[str, float] = {}
        for pair, certificate in self._loaded.items():
            for name in certificate.names or {str(pair.certificate)}:
                ends[name] = min(certificate.not_after, ends.get(name, certificate.not_after))
        return ends

    # Reading

    def load(self) -> None:
        """Read the certificates for the first time.

        Raises `StartupError` with all that is wrong with sources that are not awaited.
        """
        harvest = self._collect()
        if harvest.problems:
            raise StartupError(*harvest.problems)
        self._take(harvest)
        self._tell(harvest.excused)

    def reload(self) -> bool:
        """Read the certificates again, at any time; return whether all was well.

        A pair that cannot be used is logged, and the certificate it had stays in use.
        """
        return self._reload(told=frozenset())

    def _reload(self, told: frozenset[str]) -> bool:
        try:
            harvest = self._collect()
            self._take(harvest)
        except Exception:
            _bugs.failure("a bug costs this reload of certificates")
            return False
        problems = [*harvest.problems, *harvest.excused]
        self._tell(each for each in problems if each not in told)
        if not problems:
            shown = "; ".join(sorted(map(str, self._loaded.values())))
            self._observer.saw(Event.TLS_RELOADED, certificates=shown or "none yet")
        return not problems

    def _tell(self, problems: Iterable[str]) -> None:
        for problem in problems:
            self._observer.saw(Event.TLS_RELOAD_FAILED, err=problem)

    def _collect(self) -> _Harvest:
        """Read all sources. Where a new certificate is no use, the old one is in its place."""
        self._read = self._seen = self._fingerprint()
        self._read_at = self._clock.seconds()
        harvest = _Harvest()
        for source in self._sources:
            self._gather(source, harvest)
        for name in sorted(self._domains):
            served = any(each.covers(name) for each in harvest.certificates.values())
            if not served and not any(source.awaited for source in self._sources):
                harvest.problems.append(
                    f"No certificate is for {name}, which is a --domain; have one issued for it, "
                    "or leave out the option."
                )
                harvest.certificates = dict(self._loaded)
        return harvest

    def _gather(self, source: Source, harvest: _Harvest) -> None:
        old = self._loaded
        served = {pair.certificate: certificate for pair, certificate in old.items()}
        problems: list[str] = []
        try:
            pairs = source.pairs()
        except StartupError as error:
            problems.extend(error.problems)
            pairs = self._pairs.get(source, ())
            harvest.certificates.update({pair: old[pair] for pair in pairs if pair in old})
        else:
            for pair in pairs:
                if source.awaited and pair not in old and not pair.certificate.exists():
                    continue
                try:
                    harvest.certificates[pair] = self._usable(pair)
                except StartupError as error:
                    problems.extend(error.problems)
                    # In a folder, where a key is gone another file is taken for it.
                    if pair.certificate in served:
                        harvest.certificates[pair] = served[pair.certificate]
        harvest.pairs[source] = pairs
        told = harvest.excused if source.awaited else harvest.problems
        told.extend(f"{source.option}: {problem}" for problem in problems)

    def _usable(self, pair: Pair) -> Certificate:
        certificate = Certificate.read(pair, self._now())
        if self._domains and not any(map(certificate.covers, self._domains)):
            raise StartupError(
                f"The certificate in {pair.certificate} is for none of the names given as "
                "--domain; have it issued for them, or leave out the option."
            )
        try:
            _serving([certificate])
        except SSL.Error as error:
            raise StartupError(
                f"OpenSSL does not serve the certificate in {pair.certificate}: {_words(error)}."
            ) from None
        return certificate

    def _take(self, harvest: _Harvest) -> None:
        """Serve connections that begin from now on with these certificates."""
        certificates = [*harvest.certificates.values()]
        made: dict[frozenset[int], SSL.Context] = {}

        def context(served: Sequence[Certificate]) -> SSL.Context:
            key = frozenset(map(id, served))
            if key not in made:
                made[key] = _serving(served)
            return made[key]

        names = {name for each in certificates for name in each.names}
        contexts = {
            name: context(_one_of_a_kind(each for each in certificates if name in each.names))
            for name in names
        }
        if certificates:
            first = certificates[0]
            like_it = (each for each in certificates if each is first or each.names & first.names)
            self._default = context(_one_of_a_kind(like_it))
        self._contexts = contexts
        self._loaded = harvest.certificates
        self._pairs = harvest.pairs
        self._problems = frozenset([*harvest.problems, *harvest.excused])
        self.last_reload = (self._now(), not self._problems)

    # Watching

    def watch(self) -> None:
        """Look at the files now and again, until `stop`."""
        self._look = self._clock.callLater(POLL, self.watch)
        try:
            self._look_at_files()
            self._look_at_clock()
        except Exception:
            _bugs.failure("a bug costs this look at the certificates")

    def stop(self) -> None:
        """Look at the files no more."""
        if self._look is not None and self._look.active():
            self._look.cancel()

    def _look_at_files(self) -> None:
        seen = self._fingerprint()
        if seen != self._read and seen == self._seen:
            self.reload()
        elif self._problems and self._clock.seconds() - self._read_at >= RETRY:
            self._reload(told=self._problems)
        self._seen = seen

    def _look_at_clock(self) -> None:
        if self._clock.seconds() - self._front_made >= TICKET_KEYS_LIFE:
            self._front, self._front_made = self._make_front(), self._clock.seconds()
        now = self._now()
        if self._warned_at is not None and now - self._warned_at < _DAY:
            return
        self._warned_at = now
        for certificate in self._loaded.values():
            life = certificate.not_after - certificate.not_before
            if certificate.not_after - now < min(_WARN_BEFORE, life * _WARN_SHARE):
                self._observer.saw(
                    Event.TLS_EXPIRES, certificates=f"{certificate.pair.certificate}: {certificate}"
                )

    def _fingerprint(self) -> Fingerprint:
        """Return what tells whether any file is another one than before, or other in itself."""
        files: list[object] = []
        for source in self._sources:
            try:
                pairs = source.pairs()
            except StartupError:
                pairs = ()
            for pair in pairs:
                files += [pair, _state(pair.certificate), _state(pair.key)]
        return tuple(files)

    # Serving

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Return a connection about to begin; which certificate it gets is not known yet."""
        connection = SSL.Connection(self._front, None)
        connection.set_accept_state()
        connection.set_app_data(tlsProtocol)
        return connection

    def _make_front(self) -> SSL.Context:
        """Make a context with new ticket keys: OpenSSL makes them along with it."""
        front = _bare()
        front.set_tlsext_servername_callback(self._choose)
        return front

    def _choose(self, connection: SSL.Connection) -> None:
        """Go on with the certificate for the name that is asked for.

        Where there is none the connection stays without a certificate, so that OpenSSL refuses
        the handshake; pyOpenSSL has no other way that would be as quiet. A session that resumes
        needs no certificate and gets past this; it is `TLSConnection` that ends it. (Of TLS 1.2
        OpenSSL tells the session's own name here; what is left then is the check of the Host.)
        """
        try:
            asked = (connection.get_servername() or b"").decode("latin-1").lower()
            context = self._context_for(asked)
            if context is not None:
                connection.set_context(context)
            elif isinstance(protocol := connection.get_app_data(), TLSConnection):
                protocol.refused = "a name that is not served" if self.ready else "no certificate"
        except Exception:
            _bugs.failure("a bug costs this handshake")

    def _context_for(self, name: str) -> SSL.Context | None:
        if name and self._domains and name not in self._domains:
            return None
        return self._contexts.get(name) or self._contexts.get(wildcard(name)) or self._default


@dataclass(slots=True)
class _Harvest:
    """What reading all sources has brought."""

    certificates: dict[Pair, Certificate] = field(default_factory=dict)
    pairs: dict[Source, Sequence[Pair]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)
    """Problems of awaited sources, for which nobody has to give up."""


class TLSConnection(BufferingTLSTransport):
    """A connection's TLS, which bounds its handshake, and tells when that fails."""

    factory: TLSFactory
    refused: str | None = None
    """Why the handshake is refused, where that is our doing."""
    _unfinished = 0

    def makeConnection(self, transport: ITransport) -> None:
        """Begin."""
        # In the way until the handshake is done, and of no frame.
        self.dataReceived = self._shake_hands  # type: ignore[method-assign]
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    def _shake_hands(self, data: bytes) -> None:
        super().dataReceived(data)  # type: ignore[no-untyped-call]
        if self._handshakeDone:
            self.__dict__.pop("dataReceived", None)
            return
        self._unfinished += len(data)
        if self._unfinished > _MAX_HELLO and not self._lostTLSConnection:
            self.refused = "too long"
            self.abortConnection()  # type: ignore[no-untyped-call]

    def _checkHandshakeStatus(self) -> None:
        super()._checkHandshakeStatus()  # type: ignore[no-untyped-call]
        if self._handshakeDone and self.refused is not None:
            self.abortConnection()  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End."""
        self.__dict__.pop("dataReceived", None)
        if not self._handshakeDone or self.refused is not None:
            self.factory.handshake_failed(self, self.refused or self._cause())
        super().connectionLost(reason)

    def _cause(self) -> str:
        failure = self._reason
        if failure is not None and isinstance(failure.value, SSL.Error):
            return _words(failure.value)
        return "not completed" if self._aborted else "closed by the peer"


class TLSFactory(TLSMemoryBIOFactory):
    """Puts TLS around the connections of ``wrapped``.

    A handshake has no deadline here: what is wrapped is told of a connection when it begins, and
    has one for the whole request.
    """

    protocol = TLSConnection

    def __init__(
        self,
        certificates: Certificates,
        wrapped: IProtocolFactory,
        observer: Observer,
        clock: IReactorTime,
    ) -> None:
        super().__init__(certificates, False, wrapped, clock)
        self._observer = observer

    def handshake_failed(self, connection: TLSConnection, reason: str) -> None:
        """Tell that a handshake has failed."""
        remote = addresses.remote_address(cast(Any, connection).getPeer())
        self._observer.saw(Event.TLS_HANDSHAKE_FAILED, remote=remote, reason=reason)


def _bare() -> SSL.Context:
    """Return a context with all that contexts have in common, and no certificate."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(_OPTIONS)
    # An idle connection keeps no buffers: 34 KiB less.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_cipher_list(_CIPHERS)
    context.set_tls13_ciphersuites(_CIPHERS_13)
    # Sessions are in tickets, which the clients keep; the relay remembers none.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(_SESSION_ID_CONTEXT)
    context.set_timeout(int(TICKET_KEYS_LIFE))
    context.set_alpn_select_callback(_agree_on_protocol)
    return context


def _serving(certificates: Iterable[Certificate]) -> SSL.Context:
    """Return a context that serves certificates, each with a key of another type.

    Raises `SSL.Error` where OpenSSL does not take one.
    """
    context = _bare()
    for certificate in certificates:
        # Chains of their own for several certificates are loaded from files only.
        file = os.memfd_create("chain", os.MFD_CLOEXEC)
        try:
            os.write(file, b"".join(each.public_bytes(Encoding.PEM) for each in certificate.chain))
            context.use_certificate_chain_file(f"/proc/self/fd/{file}")
        finally:
            os.close(file)
        context.use_privatekey(cast(Any, certificate.key))
        context.check_privatekey()
    return context


def _agree_on_protocol(_: SSL.Connection, offered: Sequence[bytes]) -> bytes:
    """Choose HTTP/1.1, or refuse the handshake of a client that offers only others (RFC 7301)."""
    if _PROTOCOL not in offered:
        raise SSL.Error([("SSL routines", "", "no application protocol")])
    return _PROTOCOL


def _one_of_a_kind(certificates: Iterable[Certificate]) -> list[Certificate]:
    """Return one certificate for each type of key: of several, the one that ends last."""
    best: dict[object, Certificate] = {}
    for certificate in certificates:
        rival = best.get(certificate.kind)
        if rival is None or rival.not_after < certificate.not_after:
            best[certificate.kind] = certificate
    return [*best.values()]


def _words(error: SSL.Error) -> str:
    """Return what OpenSSL says: a text from its own table, with nothing of the peer in it."""
    queue = error.args[0] if error.args else ()
    return str(queue[-1][2]) if queue else "an error without a name"


def _state(path: Path) -> object:
    try:
        status = path.stat()
    except OSError as error:
        return error.errno
    # Its mode and owner, as a key is refused for them.
    owner = status.st_mode, status.st_uid, status.st_gid
    return status.st_mtime_ns, status.st_ino, status.st_dev, status.st_size, owner

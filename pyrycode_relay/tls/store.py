"""The certificates that listeners serve: read, chosen by name, and replaced when files change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from OpenSSL import SSL
from twisted.internet.interfaces import (
    IDelayedCall,
    IOpenSSLServerConnectionCreator,
    IReactorTime,
)
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from pyrycode_relay.events import Event, Observer
from pyrycode_relay.startup_error import StartupError
from pyrycode_relay.tls import contexts
from pyrycode_relay.tls.certificate import Certificate, Pair
from pyrycode_relay.tls.connection import Refusal, TLSConnection
from pyrycode_relay.tls.contexts import TICKET_KEYS_LIFE, NamedContexts
from pyrycode_relay.tls.sources import Fingerprint, Source, fingerprint

_bugs = Logger()

POLL: Final = 2.0
"""Seconds between looks at the files. The store reads changed files when two looks in a row have
found them the same, so a certificate and its key need not be replaced in one instant."""

RETRY: Final = 60.0
"""Seconds after which the store retries files with problems even if they are unchanged: the cause
may be elsewhere, in the clock or in a directory above them."""

_DAY: Final = 86400.0
_WARN_BEFORE: Final = 14 * _DAY
_WARN_SHARE: Final = 0.25
"""A certificate is late in its last 14 days, or in the last quarter of a shorter lifetime."""


class Reload(NamedTuple):
    """The last time that certificates were read."""

    time: float
    """In seconds since 1970."""
    succeeded: bool
    """Whether every certificate could be used."""


@dataclass(slots=True)
class _Found:
    """The result of reading all sources."""

    certificates: dict[Pair, Certificate] = field(default_factory=dict)
    pairs: dict[Source, Sequence[Pair]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    tolerated: list[str] = field(default_factory=list)
    """Problems of awaited sources, which do not prevent a start."""


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """The certificates that listeners serve.

    As long as there is no certificate, which is possible only with awaited sources, handshakes are
    refused.

    Args:
        sources: Where the certificates come from. Clients that ask for no name, or for an unknown
            one, get the first.
        domains: The names that clients may ask for; empty for any.
        observer: Notified of reloads, and of certificates that are about to expire.
        clock: Times the looks at the files and the change of ticket keys.
        now: Returns the time in seconds since 1970.

    """

    def __init__(
        self,
        sources: Sequence[Source],
        domains: Iterable[str],
        observer: Observer,
        clock: IReactorTime,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.last_reload: Reload | None = None
        self._sources = tuple(sources)
        self._domains = frozenset(domains)
        self._observer = observer
        self._clock = clock
        self._now = now
        self._front = contexts.front(self._choose)
        self._front_made = clock.seconds()
        self._loaded: Mapping[Pair, Certificate] = {}
        self._pairs: Mapping[Source, Sequence[Pair]] = {}
        self._contexts = NamedContexts([])
        self._problems: frozenset[str] = frozenset()
        self._read_at = 0.0
        self._read: Fingerprint = ()
        self._seen: Fingerprint = ()
        self._warned_at: float | None = None
        self._timer: IDelayedCall | None = None

    @property
    def ready(self) -> bool:
        """Whether there is a certificate."""
        return self._contexts.default is not None

    @property
    def problems(self) -> tuple[str, ...]:
        """Why certificates could not be used when they were last read, in sentences."""
        return tuple(sorted(self._problems))

    def not_after(self) -> dict[str, float]:
        """Return when the certificate for each name expires, in seconds since 1970.

        If several certificates are for a name, the first expiry counts. A certificate that is only
        for addresses stands under the name of its file.
        """
        ends: dict[str, float] = {}
        for pair, certificate in self._loaded.items():
            for name in certificate.names or {str(pair.certificate)}:
                ends[name] = min(certificate.not_after, ends.get(name, certificate.not_after))
        return ends

    @property
    def names(self) -> list[str]:
        """The names that the certificates are for."""
        return sorted({name for each in self._loaded.values() for name in each.names})

    @property
    def described(self) -> list[str]:
        """Names and last day of each certificate."""
        return sorted(map(str, self._loaded.values()))

    def __str__(self) -> str:
        return "; ".join(self.described) or "none yet"

    # Reading

    def load(self) -> None:
        """Read the certificates for the first time.

        Raises `StartupError` with all problems of the sources that are not awaited.
        """
        found = self._read_all()
        if found.problems:
            raise StartupError(*found.problems)
        self._serve(found)
        self._report(found.tolerated)

    def reload(self) -> bool:
        """Read the certificates again; return whether every one could be used.

        If a pair cannot be used, the problem is reported and the certificate from before stays.
        """
        return self._reload(known=frozenset())

    def _reload(self, known: frozenset[str]) -> bool:
        """Reload, and report the problems that are not ``known``."""
        try:
            found = self._read_all()
            self._serve(found)
        except Exception:
            _bugs.failure("a bug costs this reload of certificates")
            return False
        problems = [*found.problems, *found.tolerated]
        self._report(each for each in problems if each not in known)
        if not problems:
            self._observer.saw(Event.TLS_RELOADED, certificates=str(self))
        return not problems

    def _report(self, problems: Iterable[str]) -> None:
        for problem in problems:
            self._observer.saw(Event.TLS_RELOAD_FAILED, err=problem)

    def _read_all(self) -> _Found:
        """Read all sources. A certificate that cannot be used is replaced by the one before it."""
        self._read = self._seen = fingerprint(self._sources)
        self._read_at = self._clock.seconds()
        found = _Found()
        for source in self._sources:
            self._read_source(source, found)
        if any(source.awaited for source in self._sources):
            return found
        for name in sorted(self._domains):
            if not any(each.covers(name) for each in found.certificates.values()):
                found.problems.append(
                    f"No certificate is for {name}, which is a --domain; have one issued for it, "
                    "or leave out the option."
                )
                found.certificates = dict(self._loaded)
        return found

    def _read_source(self, source: Source, found: _Found) -> None:
        loaded = self._loaded
        by_file = {pair.certificate: certificate for pair, certificate in loaded.items()}
        problems: list[str] = []
        try:
            pairs = source.pairs()
        except StartupError as error:
            problems.extend(error.problems)
            pairs = self._pairs.get(source, ())
            found.certificates.update({pair: loaded[pair] for pair in pairs if pair in loaded})
        else:
            for pair in pairs:
                if source.awaited and pair not in loaded and not pair.certificate.exists():
                    continue
                try:
                    found.certificates[pair] = self._usable(pair)
                except StartupError as error:
                    problems.extend(error.problems)
                    # By file: when a key in a folder is gone, the pair is another one.
                    if pair.certificate in by_file:
                        found.certificates[pair] = by_file[pair.certificate]
        found.pairs[source] = pairs
        kind = found.tolerated if source.awaited else found.problems
        kind.extend(f"{source.option}: {problem}" for problem in problems)

    def _usable(self, pair: Pair) -> Certificate:
        certificate = Certificate.read(pair, self._now())
        if self._domains and not any(map(certificate.covers, self._domains)):
            raise StartupError(
                f"The certificate in {pair.certificate} is for none of the names given as "
                "--domain; have it issued for them, or leave out the option."
            )
        try:
            contexts.serving([certificate])
        except SSL.Error as error:
            raise StartupError(
                f"OpenSSL does not serve the certificate in {pair.certificate}: "
                f"{contexts.words(error)}."
            ) from None
        return certificate

    def _serve(self, found: _Found) -> None:
        """Serve these certificates to connections that begin from now on."""
        self._contexts = NamedContexts([*found.certificates.values()])
        self._loaded = found.certificates
        self._pairs = found.pairs
        self._problems = frozenset([*found.problems, *found.tolerated])
        self.last_reload = Reload(self._now(), not self._problems)

    # Watching

    def watch(self) -> None:
        """Look at files and clock every `POLL` seconds, until `stop`."""
        self._timer = self._clock.callLater(POLL, self.watch)
        try:
            self._look_at_files()
            self._change_ticket_keys()
            self._warn_of_expiry()
        except Exception:
            _bugs.failure("a bug costs this look at the certificates")

    def stop(self) -> None:
        """Stop looking."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _look_at_files(self) -> None:
        seen = fingerprint(self._sources)
        if seen != self._read and seen == self._seen:
            self.reload()
        elif self._problems and self._clock.seconds() - self._read_at >= RETRY:
            self._reload(known=self._problems)
        self._seen = seen

    def _change_ticket_keys(self) -> None:
        if self._clock.seconds() - self._front_made >= TICKET_KEYS_LIFE:
            self._front = contexts.front(self._choose)
            self._front_made = self._clock.seconds()

    def _warn_of_expiry(self) -> None:
        now = self._now()
        if self._warned_at is not None and now - self._warned_at < _DAY:
            return
        self._warned_at = now
        for certificate in self._loaded.values():
            lifetime = certificate.not_after - certificate.not_before
            if certificate.not_after - now < min(_WARN_BEFORE, lifetime * _WARN_SHARE):
                self._observer.saw(
                    Event.TLS_EXPIRES, certificates=f"{certificate.pair.certificate}: {certificate}"
                )

    # Serving

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """Return a connection that is about to begin, still without a certificate."""
        connection = SSL.Connection(self._front, None)
        connection.set_accept_state()
        connection.set_app_data(tlsProtocol)
        return connection

    def _choose(self, connection: SSL.Connection) -> None:
        """Continue on the context for the name that the client asks for.

        If there is none, the connection stays without a certificate, so OpenSSL refuses the
        handshake; pyOpenSSL has no quieter way. A session that resumes needs no certificate, so
        `TLSConnection` ends it. In TLS 1.2 OpenSSL gives the session's name here, not the one the
        client asks for; then only the check of the Host header is left.
        """
        try:
            name = (connection.get_servername() or b"").decode("latin-1").lower()
            context = self._context_for(name)
            if context is not None:
                connection.set_context(context)
            elif isinstance(protocol := connection.get_app_data(), TLSConnection):
                protocol.refused = Refusal.NAME if self.ready else Refusal.NO_CERTIFICATE
        except Exception:
            _bugs.failure("a bug costs this handshake")

    def _context_for(self, name: str) -> SSL.Context | None:
        if name and self._domains and name not in self._domains:
            return None
        return self._contexts.find(name)

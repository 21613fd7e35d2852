"""The relay as a Twisted service: what it is made of, how it starts, reloads and stops."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final

from autobahn import websocket
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorTime

from pyrycode_relay import __version__, start_report
from pyrycode_relay.acme.cache import CertCache
from pyrycode_relay.addresses import Trusted
from pyrycode_relay.config.settings import Settings
from pyrycode_relay.deadlines import Deadlines
from pyrycode_relay.drain import Connections, Drain
from pyrycode_relay.endpoints.binary import BinaryFactory
from pyrycode_relay.endpoints.context import RelayContext
from pyrycode_relay.endpoints.phone import PhoneFactory
from pyrycode_relay.event_bus import EventBus
from pyrycode_relay.events import Event, Observer
from pyrycode_relay.heap_trimmer import HeapTrimmer
from pyrycode_relay.http.admission import Admission, Leg, Usage
from pyrycode_relay.http.capacity import Capacity
from pyrycode_relay.http.challenge_site import ChallengeSite
from pyrycode_relay.http.proxy_protocol import ProxyFactory
from pyrycode_relay.http.relay_site import Backend, Endpoint, Owner, Readiness, RelaySite
from pyrycode_relay.listeners import Listener, Listeners, Purpose, listen
from pyrycode_relay.monitoring.admin_site import AdminSite
from pyrycode_relay.monitoring.monitored import Monitored, Push
from pyrycode_relay.monitoring.status import Status
from pyrycode_relay.protocol import header_gate
from pyrycode_relay.served_certificates import certificate_cache, make_certificates
from pyrycode_relay.startup_error import StartupError
from pyrycode_relay.tls.certificate import read_authorities
from pyrycode_relay.tls.connection import TLSFactory
from pyrycode_relay.websocket.connection import RelayProtocol
from pyrycode_relay.websocket.factory import RelayFactory
from pyrycode_relay.websocket.poller import Epoll, Poller

if TYPE_CHECKING:
    from pyrycode_relay.acme.issuance import Issuance
    from pyrycode_relay.push.guarded_endpoint import Network
    from pyrycode_relay.push.service import PushService

_OPEN_FILES: Final = 4096
"""Limit of open files that is assumed if the caller gives no capacity."""


class RelayService(Service):
    """The relay.

    Args:
        reactor: Listens and keeps the time.
        observers: Notified of every event.
        random: Spreads actions that must not happen all at once.
        capacity: How many connections the process has room for.
        epoll: Makes the poll object for the connections.

    """

    name = "pyrycode-relay"

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        observers: Sequence[Observer],
        random: Random | None = None,
        capacity: Capacity | None = None,
        epoll: Callable[[], Epoll] = select.epoll,
    ) -> None:
        limits = settings.limits
        self.settings = settings
        self.readiness = Readiness.STARTING
        self.events = EventBus(observers)
        self.listeners = Listeners(self.listen)
        self._admin_listeners = Listeners(partial(listen, reactor))
        self._reactor = reactor
        self._clock: IReactorTime = reactor
        self._deadlines = Deadlines(self._clock)
        self._started = self._clock.seconds()
        self._random = random or Random()  # noqa: S311 - spreads load, no secret
        self._trusted = Trusted(settings.trusted_proxy)
        self._poller = Poller(reactor, epoll)
        self._push = self._make_push() if settings.push else None
        self.context = RelayContext(
            self._deadlines, limits, self.events, self._random, self._poller, self._push
        )
        binaries = BinaryFactory(self.context)
        phones_v1 = PhoneFactory(self.context, header_gate.gate_phone_v1)
        phones_v2 = PhoneFactory(self.context, header_gate.gate_phone_v2)
        self._binaries: tuple[RelayFactory[RelayProtocol], ...] = (binaries,)
        self._phones: tuple[PhoneFactory, ...] = (phones_v1, phones_v2)
        self.admission = Admission(
            limits, capacity or Capacity.within(_OPEN_FILES, limits), self.make_usage()
        )
        server = Endpoint(Leg.BINARY, binaries)
        backend = Backend(
            endpoints={
                b"/v1/server": server,
                b"/v2/server": server,
                b"/v1/client": Endpoint(Leg.PHONE, phones_v1),
                b"/v2/client": Endpoint(Leg.PHONE, phones_v2),
            },
            admission=self.admission,
            readiness=lambda: self.readiness,
            health=self.health,
            elsewhere=self.elsewhere,
        )
        self.site = RelaySite(
            self._deadlines, self.events, limits, backend, self._trusted, settings.domain
        )
        self.challenge_site = ChallengeSite(self._deadlines, self.events, limits)
        self._cache = certificate_cache(settings)
        self._issuance: Issuance | None = None
        if self._cache is not None and self.orders_certificates:
            self._issuance = self._make_issuance(self._cache)
        self.certificates = make_certificates(settings, self.events, self._clock)
        self.status: Status | None = None
        self.admin: AdminSite | None = None
        if settings.admin_listen:
            self.status = self._make_status()
            self.events.add(self.status)
            self.admin = AdminSite(
                self._deadlines, self.status, settings.admin_allow_remote, self.events, limits
            )
        self._heap_trimmer = HeapTrimmer(self._clock)
        self.context.memory_budget.on_shrink = self._heap_trimmer.plan
        self._drain = self._make_drain()
        self.log_lines_dropped: Callable[[], int] = lambda: 0
        """Returns how many lines of the log were dropped; the process sets it."""

    # What differs for one of several workers

    is_whole = True
    """Whether this process is the whole relay, and reports its start."""
    orders_certificates = True
    """Whether this process orders certificates and answers the CA's challenges."""

    moved = False
    """Whether another process serves the server-ids from now on; this one passes requests on."""

    def make_usage(self) -> Usage:
        """Make the count of the connections that limits apply to."""
        return Usage(self.settings.limits, self._clock.seconds)

    def listen(self, address: str, factory: IProtocolFactory) -> IListeningPort:
        """Listen on an address of the settings."""
        return listen(self._reactor, address, factory)

    def elsewhere(self, server_id: str) -> Owner | None:  # noqa: ARG002
        """Return the process that serves a server-id; None if it is this one."""
        return None

    # Making

    def _make_push(self) -> PushService:
        # Imported only for push, because its libraries cost time and memory, and come with an
        # extra.
        from pyrycode_relay.push import providers, service  # noqa: PLC0415

        made = providers.make(self._reactor, self.settings, self.strangers())
        return service.PushService(self._clock, self.events, made)

    def strangers(self) -> Network:
        """Return the network that strangers' URLs may name: the public internet."""
        from pyrycode_relay.push import guarded_endpoint  # noqa: PLC0415

        return guarded_endpoint.public_internet(self._reactor)

    def _make_issuance(self, cache: CertCache) -> Issuance:
        # Imported only for ACME, because these modules cost 6 MiB and 200 ms; imported here, before
        # twistd drops the privileges that it may need to read them.
        from pyrycode_relay.acme import authority, client, issuance, threads  # noqa: PLC0415

        settings = self.settings
        ca = client.Ca(settings.acme_directory, settings.acme_email, settings.acme_ca_file)
        return issuance.Issuance(
            frozenset(settings.domain),
            authority.Authority(
                lambda key: client.Conversation(ca, key),
                cache,
                self.challenge_site.challenges,
                threads.acme_threads(self._reactor).run,
            ),
            self._read_certificates,
            self.events,
            issuance.Timing(self._clock, time.time, self._random),
        )

    def _make_status(self) -> Status:
        push = self._push
        monitored = Monitored(
            registry=self.context.registry,
            memory_budget=self.context.memory_budget,
            tally=self.context.tally,
            admission=self.admission,
            certificates=self.certificates,
            push=None
            if push is None
            else Push(
                faults=push.faults,
                breakers=push.breaker_states,
                under_way=lambda: push.under_way,
            ),
            state=lambda: self.readiness.value,
            talkers=[each.connections for each in self._phones],
            listeners=[self.listeners, self._admin_listeners],
            id_hash=self.context.id_hash,
            ids_in_clear=self.settings.status_ids,
            crowded_out=lambda: self.site.channels.crowded_out,
            log_lines_dropped=lambda: self.log_lines_dropped(),  # noqa: PLW0108 - set later
            seconds=self._clock.seconds,
            wall=time.time,
        )
        return Status(self._clock, monitored)

    def _make_drain(self) -> Drain:
        connections = Connections(
            phones=[each.connections for each in self._phones],
            binaries=[each.connections for each in self._binaries],
            requests=[self.site.channels, self.challenge_site.channels],
        )
        limits = self.settings.limits
        return Drain(
            self._clock,
            self._random,
            connections,
            timeout=limits.drain_timeout,
            close_timeout=limits.close_timeout,
        )

    def accept_failed(self, error: str) -> None:
        """Report that a listener could not accept a connection; ``error`` names the shortage."""
        self.events.saw(
            Event.ACCEPT_FAILED,
            err=error,
            reason="new connections are closed; the limit of open files, or memory, is too low",
        )

    def health(self) -> dict[str, object]:
        """Return what ``/healthz`` shows, in its order."""
        return {
            "status": "ok",
            "version": __version__,
            "connected_binaries": self.context.registry.binaries,
            "connected_phones": self.context.registry.phones,
            "uptime_seconds": int(self._clock.seconds() - self._started),
        }

    # Starting

    def privilegedStartService(self) -> None:
        """Open the listeners, while ports below 1024 can still be bound.

        Raises `StartupError`, with no listener left open.
        """
        if self.certificates is not None:
            # Perhaps only root can read the keys. In that case a changed key needs a restart.
            self.certificates.load()
        self.listeners.open(self._public_listeners())
        if self.admin is not None:
            fix = "; give --admin-listen another address, or an empty one"
            try:
                self._admin_listeners.open(
                    [Listener(self.settings.admin_listen, self.admin, Purpose.ADMIN, fix)]
                )
            except StartupError:
                self.listeners.close()
                raise
        super().privilegedStartService()

    def _public_listeners(self) -> list[Listener]:
        settings = self.settings
        listeners = [
            Listener(address, self._proxied(self.site)) for address in settings.insecure_listen
        ]
        if self.certificates is not None:
            secure = TLSFactory(self.certificates, self.site, self.events, self._clock)
            listeners += [
                Listener(address, self._proxied(secure), Purpose.TLS)
                for address in settings.tls_listen
            ]
        if self._issuance is not None:
            listeners += [
                Listener(address, self.challenge_site, Purpose.CHALLENGES)
                for address in settings.acme_listen
            ]
        return listeners

    def _proxied(self, factory: IProtocolFactory) -> IProtocolFactory:
        """Put a reader of PROXY headers below ``factory`` if the settings ask for it."""
        if not self.settings.proxy_protocol:
            return factory
        return ProxyFactory(
            factory,
            self._deadlines,
            self.events,
            self.settings.limits,
            max_waiting=self.admission.capacity.waiting,
            trusted=self._trusted,
        )

    def close_listeners(self) -> None:
        """Close the listeners of a relay that does not start."""
        self.listeners.close()
        self._admin_listeners.close()

    def startService(self) -> None:
        """Begin to serve.

        Raises `StartupError` if the certificate cache cannot be used.
        """
        super().startService()
        if not self.listeners.ports:
            self.privilegedStartService()
        if self._cache is not None:
            self._prepare(self._cache)
        if self.certificates is not None:
            self.certificates.watch()
        self._poller.start()
        if self.status is not None:
            self.status.start()
        if self.is_whole:
            self._report_start()
        if not websocket.USES_NVX:
            self.events.saw(
                Event.NVX_MISSING,
                reason="Autobahn's compiled parts are missing: one large frame costs 85 ms of "
                "CPU instead of 0.8; install autobahn from a wheel",
            )
        self._be_ready()
        if self._issuance is not None:
            self._issuance.start()

    def _report_start(self) -> None:
        settings = self.settings
        self.events.saw(
            Event.STARTING,
            version=__version__,
            mode=settings.limits.on_reclaim.value,
            capacity=str(self.admission.capacity),
            listen=", ".join(self.listeners.addresses),
        )
        for each in (self.listeners, self._admin_listeners):
            start_report.report(
                self.events, each, self.certificates, settings.domain, settings.acme_directory
            )

    def _prepare(self, cache: CertCache) -> None:
        """Check that certificates can be obtained and kept."""
        if self.settings.acme_ca_file is not None:
            fix = "give --acme-ca-file the root of the ACME CA's own certificate."
            read_authorities(self.settings.acme_ca_file, fix)
        for folder in cache.prepare():
            self.events.saw(Event.CERT_CACHE_TIGHTENED, path=str(folder))

    def _be_ready(self) -> None:
        """Become ready, unless the first certificate is still to come or the drain has begun."""
        if self.readiness is Readiness.STARTING and (
            self.certificates is None or self.certificates.ready
        ):
            self.readiness = Readiness.READY
            if self.is_whole:
                self.events.saw(Event.READY)

    # For the process

    replace: Callable[[], None] | None = None
    """Nothing: there are no workers to replace."""

    def on_ready(self, call: Callable[[], None]) -> None:
        """Call ``call``: the relay serves as soon as it has started."""
        call()

    # Reloading

    def reload(self) -> None:
        """Read the certificates again, and retry the ACME order if it has failed."""
        self._read_certificates()
        if self._issuance is not None:
            self._issuance.retry_now()

    def _read_certificates(self) -> None:
        if self.certificates is not None:
            self.certificates.reload()
            self._be_ready()

    # Stopping

    def stopService(self) -> Deferred[None]:
        """Drain: close the listeners and every connection, within the drain timeout."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self.certificates is not None:
            self.certificates.stop()
        if self._issuance is not None:
            self._issuance.stop()
        if not self.moved:
            self.readiness = Readiness.DRAINING
        self.events.saw(
            Event.DRAINING,
            version=__version__,
            binaries=_count(self._binaries),
            phones=_count(self._phones),
        )
        closed = self.listeners.stop()
        sends = Deferred.fromCoroutine(self._push.stop()) if self._push is not None else None
        patience = self.settings.limits.header_timeout if self.moved else 0.0
        aborted = await self._drain.run(patience)
        await closed
        if sends is not None:
            await sends
        self.context.registry.close()
        self._poller.stop()
        self._heap_trimmer.stop()
        self.events.saw(Event.DRAINED, version=__version__, aborted=aborted)
        await self._close_admin()

    async def _close_admin(self) -> None:
        """Close the status page and the metrics, which are served until the drain is over."""
        if self.status is not None:
            self.status.stop()
        if self.admin is not None:
            for channel in [*self.admin.channels]:
                channel.forceAbortClient()
        await self._admin_listeners.stop()


def _count(factories: Sequence[RelayFactory[RelayProtocol]]) -> int:
    return sum(len(each.connections) for each in factories)

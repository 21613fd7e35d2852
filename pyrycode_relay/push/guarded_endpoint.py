"""Connections to hosts that strangers name: an address is checked, then connected to.

A name is looked up once. Every address of the answer is checked, and the connection goes to one of
these addresses as numbers, so a second answer of the DNS is never asked for.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from typing import Any, Final

from twisted.internet.address import IPv4Address as TCP4Address
from twisted.internet.address import IPv6Address as TCP6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IProtocol,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from zope.interface import implementer

from pyrycode_relay.daemon_threads import Bounds, DaemonThreads
from pyrycode_relay.push.address_guard import Address, is_public
from pyrycode_relay.push.http_client import CallError
from pyrycode_relay.push.provider import SendFault

MAX_ADDRESSES: Final = 4
"""Addresses of each family of IP that are checked and tried for one wake. A stranger's name can
have thousands, and each costs a socket and time of the reactor's thread."""

Resolve = Callable[[str], Deferred[Sequence[Address]]]
"""Looks up a name; fails with `CallError`."""


@dataclass(frozen=True, slots=True)
class Network:
    """The part of the network that strangers may name.

    Args:
        resolve: Looks up names.
        allows: Whether a connection may go to an address.
        port: The port of every connection.

    """

    resolve: Resolve
    allows: Callable[[Address], bool] = is_public
    port: int = 443


def public_internet(reactor: Any) -> Network:
    """Return the network of a relay in use."""
    # 16 wakes wait for at most 10 s, and the look-ups of names whose servers do not answer go on
    # for up to 30 s. So 48 may hang, and the next one must find a thread.
    bounds = Bounds(most=64, deadline=10.0, busy=_not_found, late=_not_found)
    threads = DaemonThreads(reactor, "webpush-dns", bounds)
    return Network(lambda name: threads.run(lambda: look_up(name)))


def _not_found() -> CallError:
    return CallError(SendFault.UNREACHABLE)


def look_up(name: str) -> Sequence[Address]:
    """Return the first addresses of a DNS name, by the operating system. This blocks.

    Raises `CallError`.
    """
    try:
        # The dot keeps the search list of resolv.conf out.
        found = socket.getaddrinfo(f"{name}.", None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _not_found() from None
    left = {socket.AF_INET: MAX_ADDRESSES, socket.AF_INET6: MAX_ADDRESSES}
    addresses = []
    for family, *_, address in found:
        if left.get(family):
            left[family] -= 1
            addresses.append(ip_address(address[0]))
    return addresses


@implementer(IStreamClientEndpoint)
class GuardedEndpoint:
    """A TCP client endpoint for a host that a stranger has named.

    Args:
        reactor: Connects.
        network: Which addresses the connection may go to.
        host: A DNS name in lower case, or an IP address.
        port: Ignored, because ``network`` has the only port.

    """

    def __init__(self, reactor: Any, network: Network, host: bytes, port: int = 443) -> None:  # noqa: ARG002
        self._reactor = reactor
        self._network = network
        self._host = host.decode("ascii")

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect. Fails with `CallError`, or with an error of Twisted's."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        addresses = await self._addresses()
        if not all(map(self._network.allows, addresses)):
            raise CallError(SendFault.FORBIDDEN_HOST)
        checked = _Checked(self._reactor, addresses)
        return await HostnameEndpoint(checked, self._host, self._network.port).connect(factory)

    async def _addresses(self) -> Sequence[Address]:
        try:
            return [ip_address(self._host)]
        except ValueError:
            found = await self._network.resolve(self._host)
        if not found:
            raise _not_found()
        return found


@implementer(IHostnameResolver, IHostResolution, IReactorPluggableNameResolver)
class _Checked:
    """The reactor as `HostnameEndpoint` needs it, with one answer for every name.

    ``addresses`` are the answer.
    """

    name = ""

    def __init__(self, reactor: Any, addresses: Sequence[Address]) -> None:
        self.nameResolver = self
        self.callLater = reactor.callLater
        self.connectTCP = reactor.connectTCP
        self.seconds = reactor.seconds
        self._addresses = addresses

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        """Refuse, because the answer stands."""
        raise NotImplementedError

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,  # noqa: ARG002 - the answer is for this name
        portNumber: int = 0,
        addressTypes: object = None,  # noqa: ARG002
        transportSemantics: str = "TCP",  # noqa: ARG002
    ) -> IHostResolution:
        """Give the answer."""
        resolutionReceiver.resolutionBegan(self)
        for each in self._addresses:
            kind = TCP4Address if isinstance(each, IPv4Address) else TCP6Address
            resolutionReceiver.addressResolved(kind("TCP", str(each), portNumber))
        resolutionReceiver.resolutionComplete()
        return self

    def cancel(self) -> None:
        """Do nothing, because the answer has been given."""

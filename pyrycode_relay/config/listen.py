"""Addresses to listen on: their short form, and who can reach them."""

from __future__ import annotations

import enum
import ipaddress
import re
import socket
from typing import Any, Final

from twisted.internet.endpoints import UNIXServerEndpoint, serverFromString

_HOST_NAME: Final = re.compile(r"(?:[a-z0-9_-]+\.)*[a-z][a-z0-9-]*", re.ASCII | re.IGNORECASE)
"""A name whose last label begins with a letter: the others could be forms of IPv4 addresses."""

LISTEN_BACKLOG: Final = 1024
"""Connections that the kernel completes ahead of the relay: a reconnect storm is one burst."""


class Reach(enum.Enum):
    """Who can connect to a listener."""

    MACHINE = "this machine only"
    NETWORK = "other machines too"
    UNKNOWN = "known once the socket is open"


def endpoint_string(address: str) -> str:
    """Return the Twisted endpoint string for an address, which may be one already.

    The short form is a port behind an IP address, behind a name or alone: ``127.0.0.1:8080``,
    ``[::1]:8080``, ``localhost:8080``, ``:8080``. A port alone means every IPv4 and IPv6 address
    of the machine. A name means its first IPv4 address, or its first address if it has no such.
    A type of endpoint, such as ``tcp``, is not looked up as a name.

    Raises:
        ValueError: The address is neither, or the name has no address.

    """
    host, colon, port = address.rpartition(":")
    if colon and (not host or _is_ip(host)):
        return _tcp(host.strip("[]") or _every_interface(), port)
    try:
        serverFromString(None, address)
    except Exception as error:
        # Each endpoint's parser fails in its own ways.
        if not _HOST_NAME.fullmatch(host):
            raise ValueError(address) from error
    else:
        return address
    return _tcp(_look_up(host), port)


def _tcp(interface: str, port: str) -> str:
    """Return the endpoint string for an IP address and a port, which may be wrong."""
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(port)
    escaped = interface.replace(":", r"\:")
    return f"tcp:{int(port)}:interface={escaped}:backlog={LISTEN_BACKLOG}"


def _look_up(host: str) -> str:
    """Return an IP address of a host name. Raises `ValueError`."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(host) from error
    found.sort(key=lambda each: each[0] is not socket.AF_INET)
    return str(found[0][4][0])


def reach(address: str) -> Reach:
    """Return who can connect to an address that `endpoint_string` accepts.

    `Reach.UNKNOWN` if the address does not say so, as for a socket from a service manager.
    """
    endpoint = serverFromString(None, endpoint_string(address))
    if isinstance(endpoint, UNIXServerEndpoint):
        return Reach.MACHINE
    interface = getattr(endpoint, "_interface", None)
    if interface is None or interface == "localhost":
        return Reach.UNKNOWN
    return Reach.MACHINE if is_loopback(interface) else Reach.NETWORK


def socket_reach(host: Any) -> Reach:
    """Return who can connect to an open socket; ``host`` is the address that Twisted reports.

    A UNIX socket is open to this machine only. The permissions of its file protect it.
    """
    interface = getattr(host, "host", None)
    return Reach.MACHINE if interface is None or is_loopback(interface) else Reach.NETWORK


def is_loopback(host: str) -> bool:
    """Whether ``host`` is an IP address of the loopback interface."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _every_interface() -> str:
    """Return the IPv6 wildcard, which includes IPv4; IPv4's if the machine has no IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::", 0))
    except OSError:
        return "0.0.0.0"  # noqa: S104 - what was asked for
    return "::"


def _is_ip(host: str) -> bool:
    """Whether ``host`` is an IPv4 address, or an IPv6 address in brackets."""
    try:
        if host.startswith("[") and host.endswith("]"):
            ipaddress.IPv6Address(host[1:-1])
        else:
            ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True

"""Addresses as text: their canonical form, trusted proxies, the real caller, and limits' keys.

Sources: RFC 7239 for ``Forwarded``. ``X-Forwarded-For`` has no standard, so it is read as proxies
write it. Every proxy appends its peer's address. Anything to the left of that may be forged, so
only entries that trusted proxies appended are believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

UNIX: Final = "unix"
"""Replaces the address of a peer on a UNIX socket."""

Source: TypeAlias = IPv4Network | IPv6Network | str
"""A source of connections: a network, or `UNIX`."""

_MAX_ADDRESS: Final = 45
"""Characters of the longest IP address: IPv6 with an IPv4 address at its end."""
_MAX_HOPS: Final = 20
"""Elements of a chain that are read: more than any real chain of proxies has."""
_MAX_ELEMENT: Final = 1024
"""Characters of one element of ``Forwarded``: more than four host names, and quick to parse."""

_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_LIMIT_MASK: Final = ~((1 << 64) - 1)
"""Mask of an IPv6 address for limits: one customer has at least a /64."""

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR: Final = rf'({_WORD})=({_WORD}|"(?:[^"\\]|\\.)*")'
_PAIRS: Final = re.compile(_PAIR)
_ELEMENT: Final = re.compile(rf"(?:{_PAIR})?(?:[ \t]*;[ \t]*(?:{_PAIR})?)*")
_QUOTED: Final = re.compile(r"\\(.)")
_PORT: Final = r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?"
_NODE: Final = re.compile(rf"\[(?P<v6>[0-9A-Fa-f:.]+)\]{_PORT}|(?P<v4>[0-9.]+){_PORT}")


class _MalformedError(ValueError):
    """A chain of proxies that does not identify the caller."""


def _parse(text: str) -> IPv4Address | IPv6Address:
    """Return an address, an IPv4-mapped IPv6 address as IPv4. Raises `ValueError`."""
    if len(text) > _MAX_ADDRESS or "%" in text:
        raise ValueError
    address = ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def canonical(host: str) -> str:
    """Return an address in its canonical form: ``::ffff:192.0.2.1`` becomes ``192.0.2.1``.

    The zone of a link-local address is removed, because it has a meaning only on this machine. Text
    that is not an IP address is returned unchanged.
    """
    try:
        return str(_parse(host.partition("%")[0]))
    except ValueError:
        return host


def remote_address(peer: object) -> str:
    """Return the canonical address of a transport's peer, without its port, or `UNIX`."""
    host = getattr(peer, "host", None)
    return UNIX if host is None else canonical(str(host))


def limit_key(address: str) -> str:
    """Return the key under which limits count ``address``: for IPv6, its /64."""
    if ":" not in address:
        return address
    try:
        parsed = _parse(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    return f"{IPv6Address(int(parsed) & _LIMIT_MASK)}/64"


def source(text: str) -> Source:
    """Parse a network in CIDR notation, a single address, or `UNIX`.

    Raises `ValueError` for anything else, and for a network with bits set beyond its prefix, which
    is most likely a typing error.
    """
    if text == UNIX:
        return UNIX
    if "%" in text:
        raise ValueError
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        return IPv4Network((int(mapped or 0), network.prefixlen - 96))
    return network


class Trusted:
    """The proxies whose headers are believed; test with ``address in trusted``."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._networks = [each for each in sources if not isinstance(each, str)]
        self._unix = UNIX in sources

    def __contains__(self, address: str) -> bool:
        """Whether ``address``, which is canonical or `UNIX`, belongs to a trusted proxy."""
        if address == UNIX:
            return self._unix
        if not self._networks:
            return False
        try:
            parsed = _parse(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)


def caller(
    peer: str, trusted: Trusted, forwarded_for: Sequence[bytes], forwarded: Sequence[bytes]
) -> str:
    """Return the canonical address of a request's caller.

    If ``peer`` is trusted, the proxies' chain is read from the right, and the first address that is
    not trusted is the caller. Entries further left are ignored. If all addresses are trusted, the
    leftmost is the caller.

    The caller is ``peer`` if the part of the chain that is read is malformed, hides an address or
    is too long. It is also ``peer`` if the two headers lead to different callers: a proxy writes
    only one of them and passes the other on unchanged, and the relay cannot know which.

    Args:
        peer: The address of the connection itself, or `UNIX`.
        trusted: The proxies whose headers are believed.
        forwarded_for: Values of the header ``X-Forwarded-For``, one for each header line.
        forwarded: Values of the header ``Forwarded``, one for each header line.

    """
    if not (forwarded_for or forwarded) or peer not in trusted:
        return peer
    try:
        answers = {
            _walk(peer, trusted, nodes(b",".join(lines).decode("latin-1")))
            for lines, nodes in ((forwarded_for, _plain_nodes), (forwarded, _forwarded_nodes))
            if lines
        }
    except _MalformedError:
        return peer
    return answers.pop() if len(answers) == 1 else peer


def _walk(peer: str, trusted: Trusted, nodes: Iterator[str]) -> str:
    """Return the first address that is not trusted, or the last if all are trusted."""
    address = peer
    for node in nodes:
        address = _node_address(node)
        if address not in trusted:
            break
    return address


def _node_address(node: str) -> str:
    """Return the address of a node, which may have a port (RFC 7239, section 6)."""
    match = _NODE.fullmatch(node)
    try:
        return str(_parse((match["v6"] or match["v4"]) if match else node))
    except ValueError:
        raise _MalformedError from None


def _plain_nodes(text: str) -> Iterator[str]:
    """Yield the nodes of ``X-Forwarded-For``, from the right; any excess is one last node."""
    for element in reversed(text.rsplit(",", _MAX_HOPS - 1)):
        node = element.strip(" \t")
        if node:  # RFC 9110, section 5.6.1: empty elements of a list do not count.
            yield node


def _forwarded_nodes(text: str) -> Iterator[str]:
    """Yield the nodes of ``Forwarded``, from the right (RFC 7239, section 4).

    Each element is the shortest valid one at the right end of the remaining text. A quote that the
    caller left open therefore cannot swallow the elements that proxies appended.
    """
    element = ""
    for piece in reversed(text.rsplit(",", _MAX_HOPS - 1)):
        element = f"{piece},{element}" if element else piece.strip(" \t")
        if len(element) > _MAX_ELEMENT:
            break
        if element and _ELEMENT.fullmatch(element.strip(" \t")):
            yield _node_of(element)
            element = ""
    if element:
        raise _MalformedError


def _node_of(element: str) -> str:
    """Return the value of ``for`` in an element of ``Forwarded``."""
    values = [value for name, value in _PAIRS.findall(element) if name.lower() == "for"]
    if len(values) != 1:
        raise _MalformedError
    value: str = values[0]
    return _QUOTED.sub(r"\1", value[1:-1]) if value.startswith('"') else value

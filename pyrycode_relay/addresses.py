"""Addresses as text: which are trusted, who stands behind a proxy, whom a limit counts as one.

Sources: RFC 7239 for ``Forwarded``; ``X-Forwarded-For`` has none, so it is read as proxies write
it. What such a header says is only as good as who wrote it: every proxy appends the address that
it was called from, and what stands left of that anybody may have made up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

UNIX: Final = "unix"
"""What stands for an address where a connection came over a UNIX socket."""

Source: TypeAlias = IPv4Network | IPv6Network | str
"""Where a connection may come from: a network, or `UNIX`."""

_MAX_ADDRESS: Final = 45
"""Characters of the longest IP address, an IPv6 one that ends in an IPv4 one."""
_MAX_HOPS: Final = 20
"""Elements of a chain that are looked at: more proxies in a row than anybody runs."""
_MAX_ELEMENT: Final = 1024
"""Characters of one element of ``Forwarded``: above four host names, and soon parsed."""

_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_GROUP: Final = ~((1 << 64) - 1)
"""Mask of what a limit looks at in an IPv6 address: one customer has a /64 at least."""

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR: Final = rf'({_WORD})=({_WORD}|"(?:[^"\\]|\\.)*")'
_PAIRS: Final = re.compile(_PAIR)
_ELEMENT: Final = re.compile(rf"(?:{_PAIR})?(?:[ \t]*;[ \t]*(?:{_PAIR})?)*")
_QUOTED: Final = re.compile(r"\\(.)")
_PORT: Final = r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?"
_NODE: Final = re.compile(rf"\[(?P<v6>[0-9A-Fa-f:.]+)\]{_PORT}|(?P<v4>[0-9.]+){_PORT}")


class _MalformedError(ValueError):
    """A chain that does not say who called."""


def _parse(text: str) -> IPv4Address | IPv6Address:
    """Return an address; IPv4 in IPv6 clothes comes as IPv4. Raises `ValueError`."""
    if len(text) > _MAX_ADDRESS or "%" in text:
        raise ValueError
    address = ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def canonical(host: str) -> str:
    """Return an address in its one spelling: ``::ffff:192.0.2.1`` is ``192.0.2.1``.

    The zone of a link-local address goes, which says something on this machine only. What is no
    IP address comes back as it is.
    """
    try:
        return str(_parse(host.partition("%")[0]))
    except ValueError:
        return host


def remote_address(peer: object) -> str:
    """Return the address of a transport's peer, without its port, canonical; or `UNIX`."""
    host = getattr(peer, "host", None)
    return UNIX if host is None else canonical(str(host))


def limit_key(address: str) -> str:
    """Return whom limits count the caller from ``address`` as: an IPv6 one as its /64."""
    if ":" not in address:
        return address
    try:
        parsed = _parse(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    return f"{IPv6Address(int(parsed) & _GROUP)}/64"


def source(text: str) -> Source:
    """Return a network in CIDR notation, a single address, or `UNIX`, read from ``text``.

    Raises `ValueError` for anything else, and for a network with bits set behind its prefix,
    which is more often a typing error than meant.
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
    """The sources whose word on a caller's address is taken; ``address in trusted`` asks."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._networks = [each for each in sources if not isinstance(each, str)]
        self._unix = UNIX in sources

    def __contains__(self, address: str) -> bool:
        """Whether ``address``, in its canonical spelling or `UNIX`, is one of them."""
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
    """Return the address of whoever sent a request, canonical.

    ``peer`` is the connection's own address, or `UNIX`. ``forwarded_for`` and ``forwarded`` are
    the values of the headers ``X-Forwarded-For`` and ``Forwarded``, a line each. From a trusted
    peer their chain is walked from the right, past every trusted hop: the first that is not is
    the caller, and what stands left of it is not looked at. Where all are trusted, it is the
    leftmost.

    A chain that is malformed where it is looked at, hides an address there, or is too long gives
    ``peer``. So do two headers that give different answers: a proxy writes one of them and lets
    the other through as the caller sent it, and nothing here says which.
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
    """Return the first address that is not trusted, or else the last of all."""
    address = peer
    for node in nodes:
        address = _node_address(node)
        if address not in trusted:
            break
    return address


def _node_address(node: str) -> str:
    """Return the address in a node, which may have a port (RFC 7239, section 6)."""
    match = _NODE.fullmatch(node)
    try:
        return str(_parse((match["v6"] or match["v4"]) if match else node))
    except ValueError:
        raise _MalformedError from None


def _plain_nodes(text: str) -> Iterator[str]:
    """Yield the nodes of ``X-Forwarded-For``, from the right; what is too much as one."""
    for element in reversed(text.rsplit(",", _MAX_HOPS - 1)):
        node = element.strip(" \t")
        if node:  # RFC 9110, section 5.6.1: an empty element of a list is none.
            yield node


def _forwarded_nodes(text: str) -> Iterator[str]:
    """Yield the nodes of ``Forwarded``, from the right (RFC 7239, section 4).

    An element is the shortest end of what is left that is one by itself, so that a quote left
    open by the caller cannot swallow what proxies have appended.
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
    """Return what an element of ``Forwarded`` says it is for."""
    values = [value for name, value in _PAIRS.findall(element) if name.lower() == "for"]
    if len(values) != 1:
        raise _MalformedError
    value: str = values[0]
    return _QUOTED.sub(r"\1", value[1:-1]) if value.startswith('"') else value

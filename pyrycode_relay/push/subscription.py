"""A Web Push subscription: the URL that a stranger has named, read and checked.

Source: "Push wake" in ``docs/protocol.md``. The form is much narrower than RFC 3986 allows, so no
two parsers can read a URL differently. The URL is a secret: no text and no error contains it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final

_URL: Final = re.compile(
    r"https://(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::443)?"
    r"(?P<path>/(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?",
    re.ASCII,
)
_EMPTY: Final = re.compile(r"[^?]*(?:;(?:\?.*)?|\?)", re.ASCII)
"""A path with an empty query or empty parameters, which some parsers drop."""
_LABEL: Final = re.compile(r"(?!..--)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
"""A label of a DNS name. Labels of internationalized names (xn--) are refused."""
_TOP: Final = re.compile(r"[a-z]")
"""How a top-level domain begins. Other names are what some resolvers take for an address."""
_MAX_NAME: Final = 253


class SubscriptionError(Exception):
    """A URL that no wake is sent to. Its text does not contain the URL."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription.

    Args:
        host: A DNS name in lower case, or an IP address without brackets.
        path: Path and query, never empty.

    """

    host: str
    path: str = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Subscription:
        """Read a subscription's URL. Raises `SubscriptionError`."""
        found = _URL.fullmatch(url)
        if found is None or _EMPTY.fullmatch(found["path"] or "/"):
            raise SubscriptionError("the URL has a form that is not allowed")
        try:
            host = _host(found["host"])
        except ValueError:
            raise SubscriptionError("the URL's host is not allowed") from None
        return cls(host, found["path"] or "/")

    @property
    def origin(self) -> str:
        """The URL's scheme and host (RFC 6454)."""
        return f"https://[{self.host}]" if ":" in self.host else f"https://{self.host}"

    @property
    def url(self) -> str:
        """The URL in its one spelling."""
        return self.origin + self.path


def _host(text: str) -> str:
    if text.startswith("["):
        return str(IPv6Address(text[1:-1]))
    name = text.lower()
    labels = name.split(".")
    if not _TOP.match(labels[-1]):
        # `ipaddress` refuses octal, hexadecimal and short forms.
        return str(IPv4Address(name))
    if len(name) > _MAX_NAME or len(labels) < 2 or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError
    return name


class AllowedHosts:
    """The hosts that subscriptions may name; ``host in allowed`` asks.

    Each of ``patterns`` is a name, or with a leading dot all names below it. If there are none,
    every host is allowed.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._all = not patterns
        self._names = frozenset(each for each in patterns if not each.startswith("."))
        self._suffixes = tuple(each for each in patterns if each.startswith("."))

    def __contains__(self, host: str) -> bool:
        """Whether ``host``, in lower case, is allowed."""
        return self._all or host in self._names or host.endswith(self._suffixes)

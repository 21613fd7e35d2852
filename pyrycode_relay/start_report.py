"""The log's lines about what a relay serves: a URL for each listener."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pyrycode_relay.events import Event, Observer
from pyrycode_relay.listeners import Listeners, Purpose, address_of
from pyrycode_relay.tls.store import Certificates

_WILDCARDS: Final = frozenset({"::", "0.0.0.0"})  # noqa: S104 - compared, not bound
_PORTS: Final = {"ws": 80, "http": 80, "wss": 443}


def report(
    observer: Observer,
    listeners: Listeners,
    certificates: Certificates | None,
    domains: Sequence[str],
    authority: str,
) -> None:
    """Report each open listener.

    Args:
        observer: Notified of each listener.
        listeners: The open ones.
        certificates: What the TLS listeners serve.
        domains: The names that the settings give the relay.
        authority: The URL of the ACME CA's directory.

    """
    for purpose, host in listeners.hosts:
        match purpose:
            case Purpose.PLAIN:
                observer.saw(Event.LISTENING, url=url(purpose, host, ()))
            case Purpose.TLS if certificates is not None:
                names = [*domains] or certificates.names
                found = url(purpose, host, names)
                observer.saw(Event.LISTENING, url=found, certificates=str(certificates))
            case Purpose.CHALLENGES:
                found = url(purpose, host, domains)
                observer.saw(Event.ACME_LISTENING, url=found, authority=authority)
            case Purpose.ADMIN:
                page = f"{url(purpose, host, ())}/"
                observer.saw(Event.ADMIN_LISTENING, listen=address_of(host), url=page)


def url(purpose: Purpose, host: Any, names: Sequence[str]) -> str:
    """Return the URL of a listener, without a path.

    Args:
        purpose: What the listener serves.
        host: Where it listens, as Twisted reports it.
        names: The relay's names; for a listener on all addresses, the first stands in the URL.

    """
    scheme = purpose.scheme
    if not hasattr(host, "port"):
        return f"{scheme}+unix:{address_of(host)}"
    name = f"[{host.host}]" if ":" in host.host else host.host
    if host.host in _WILDCARDS:
        name = next((each for each in names if "*" not in each), "localhost")
    port = "" if host.port == _PORTS[scheme] else f":{host.port}"
    return f"{scheme}://{name}{port}"

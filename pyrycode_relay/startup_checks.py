"""Checks before the relay serves; each problem is one sentence with its fix.

They are about the libraries' private names, the limit of open files and, for ``--check-config``,
the certificates. With ``--production`` there are two more: nothing unencrypted is served beyond
this machine, and the process has no privilege that it does not need.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import Clock

from pyrycode_relay import internals
from pyrycode_relay.config.listen import Reach, reach, socket_reach
from pyrycode_relay.config.settings import Settings
from pyrycode_relay.events import Observer
from pyrycode_relay.startup_error import StartupError
from pyrycode_relay.tls import sources
from pyrycode_relay.tls.store import Certificates

_NET_BIND_SERVICE: Final = 1 << 10
"""The capability to bind ports below 1024; it permits nothing else."""
_MOST_FILES: Final = 1_048_576
"""Open files if their number is unlimited: the kernel's own limit, by default."""
_STATUS: Final = Path("/proc/self/status")
_CAPABILITIES: Final = re.compile(rb"^Cap(?:Prm|Eff):\s*([0-9a-f]+)$", re.MULTILINE)


def check_libraries(*, acme: bool) -> None:
    """Raise `StartupError` if a library lacks a private name that the relay uses.

    The libraries for ACME are loaded and checked only if ``acme`` is true.
    """
    _refuse(internals.problems(load=acme))


def raise_open_files() -> int:
    """Raise the soft limit of open files to the hard one; return how many may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # A sandbox may forbid even this.
        return soft
    return wanted


def check_push(settings: Settings) -> None:
    """Check the credentials for push providers. Raises `StartupError`."""
    if settings.push:
        # Its libraries come with an extra.
        from pyrycode_relay.push import providers  # noqa: PLC0415

        providers.check(settings)


def check_certificates(settings: Settings, observer: Observer) -> Sequence[str]:
    """Read the operator's certificates as a start does; return names and last day of each.

    A certificate from an ACME CA is not read: only the relay's user may read it.

    Raises `StartupError`.
    """
    if settings.acme:
        return [f"{','.join(settings.domain)} from {settings.acme_directory}"]
    given = sources.given(settings.tls_cert, settings.tls_key, settings.tls_dir)
    if not given:
        return []
    # Nothing is timed, so the clock may stand still.
    certificates = Certificates(given, settings.domain, observer, Clock())
    certificates.load()
    return certificates.described


def check_settings(settings: Settings) -> None:
    """Check in production, before a socket is open, which addresses serve plain WebSockets.

    Raises `StartupError`. `check_process` checks an address whose reach is unknown.
    """
    if settings.production:
        _refuse(exposed_addresses(settings))


def check_process(settings: Settings, ports: Sequence[IListeningPort]) -> None:
    """Check in production the open sockets, and the privileges that the process has kept.

    Raises `StartupError`. ``ports`` begin with those of ``settings.insecure_listen``.
    """
    if settings.production:
        listeners = zip(settings.insecure_listen, ports, strict=False)
        exposed = (exposed_socket(address, port.getHost()) for address, port in listeners)
        _refuse(chain(chain.from_iterable(exposed), spare_power()))


def _refuse(problems: Iterable[str]) -> None:
    if found := [*problems]:
        raise StartupError(*found)


def exposed_addresses(settings: Settings) -> Iterator[str]:
    """Yield the problems of production with the addresses that serve plain WebSockets.

    An address whose reach is unknown is checked once its socket is open: `exposed_socket`.
    """
    for address in settings.insecure_listen:
        if not _is_encrypted(address) and reach(address) is Reach.NETWORK:
            yield _exposed(address)


def exposed_socket(address: str, host: Any) -> Iterator[str]:
    """Yield the problem of production with an open listener, if there is one.

    ``address`` is the address as it was given, ``host`` the one that Twisted reports.
    """
    if not _is_encrypted(address) and socket_reach(host) is Reach.NETWORK:
        yield _exposed(address)


def _is_encrypted(address: str) -> bool:
    return address.startswith("ssl:")


def _exposed(address: str) -> str:
    return (
        f"--production allows nothing unencrypted beyond this machine, but --insecure-listen is "
        f"{address!r}; serve TLS there, or listen on 127.0.0.1, [::1] or a UNIX socket behind a "
        "proxy that ends TLS."
    )


def spare_power() -> Iterator[str]:
    """Yield the privileges of this process that the relay does not need."""
    if 0 in os.getresuid():
        yield (
            "--production refuses to run as root; give twistd --uid=USER (and --gid=GROUP, but not "
            "--euid), or set User= in the systemd unit."
        )
        return
    try:
        found = _CAPABILITIES.findall(_STATUS.read_bytes())
    except OSError:
        found = []
    if not found:
        yield f"--production cannot read the process's capabilities from {_STATUS}; mount /proc."
        return
    held = 0
    for mask in found:
        held |= int(mask, 16)
    if held & ~_NET_BIND_SERVICE:
        yield (
            f"--production allows only CAP_NET_BIND_SERVICE, but the process has more capabilities "
            f"(`capsh --decode={held:x}` names them); drop them, for example by "
            "CapabilityBoundingSet=CAP_NET_BIND_SERVICE in the systemd unit."
        )

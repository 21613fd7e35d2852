"""The certificates that the settings name, for the listeners that serve them."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from pyrycode_relay.acme.cache import CertCache
from pyrycode_relay.config.settings import Settings
from pyrycode_relay.events import Observer
from pyrycode_relay.tls import sources
from pyrycode_relay.tls.certificate import Pair
from pyrycode_relay.tls.sources import Files
from pyrycode_relay.tls.store import Certificates


def certificate_cache(settings: Settings) -> CertCache | None:
    """Return the cache of certificates from an ACME CA; None if there is no such CA."""
    if not settings.acme:
        return None
    return CertCache(settings.cert_cache.expanduser().absolute(), settings.acme_directory)


def make_certificates(
    settings: Settings, observer: Observer, clock: IReactorTime
) -> Certificates | None:
    """Return the certificates that listeners serve, not read yet; None without TLS."""
    if not settings.tls_listen:
        return None
    found = sources.given(settings.tls_cert, settings.tls_key, settings.tls_dir)
    cache = certificate_cache(settings)
    if cache is not None:
        pair = Pair(cache.fullchain, cache.privkey)
        found = [Files(pair, awaited=True, option="--cert-cache")]
    return Certificates(found, settings.domain, observer, clock)

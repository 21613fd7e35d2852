"""The providers that the settings ask for.

A new provider adds a line to `make`, and its checks to `check`.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from pyrycode_relay.config.settings import Settings
from pyrycode_relay.push import service_account
from pyrycode_relay.push.fcm import PLATFORM, Fcm
from pyrycode_relay.push.guarded_endpoint import GuardedEndpoint, Network
from pyrycode_relay.push.http_client import HttpClient, trust_root
from pyrycode_relay.push.oauth import AccessTokens
from pyrycode_relay.push.provider import Provider
from pyrycode_relay.push.subscription import AllowedHosts


def check(settings: Settings) -> None:
    """Check the credentials. Raises `StartupError`, with nothing of them."""
    trust_root(settings.push_ca_file)
    if settings.fcm_credentials is not None:
        service_account.load(settings.fcm_credentials)
    if settings.webpush_key is not None:
        # Only Web Push needs josepy, which takes 100 ms to import.
        from pyrycode_relay.push.vapid import read_key  # noqa: PLC0415

        read_key(settings.webpush_key)


def make(reactor: Any, settings: Settings, strangers: Network) -> dict[str, Provider]:
    """Make the providers, by platform. Raises `StartupError` like `check`.

    ``strangers`` is the network that the URLs of strangers may lead to.
    """
    providers: dict[str, Provider] = {}
    trust = trust_root(settings.push_ca_file)
    if settings.fcm_credentials is not None:
        account = service_account.load(settings.fcm_credentials)
        client = HttpClient(reactor, trust, time.time, timeout=settings.push_timeout)
        tokens = AccessTokens(account, client, reactor, time.time)
        providers[PLATFORM] = Fcm(client, tokens, account.project, settings.fcm_endpoint)
    if settings.webpush_key is not None:
        from pyrycode_relay.push.vapid import Vapid, read_key  # noqa: PLC0415
        from pyrycode_relay.push.web_push import WebPush  # noqa: PLC0415

        vapid = Vapid(read_key(settings.webpush_key), settings.webpush_subject, time.time)
        connect = partial(GuardedEndpoint, reactor, strangers)
        client = HttpClient(reactor, trust, time.time, connect, timeout=settings.push_timeout)
        providers["webpush"] = WebPush(client, vapid, AllowedHosts(settings.push_allow_host))
    return providers

"""The providers that the settings ask for.

A new provider adds a line to `make`, and its checks to `check`.
"""

from __future__ import annotations

import time
from typing import Any

from pyrycode_relay.config.settings import Settings
from pyrycode_relay.push import service_account
from pyrycode_relay.push.fcm import PLATFORM, Fcm
from pyrycode_relay.push.http_client import HttpClient, trust_root
from pyrycode_relay.push.oauth import AccessTokens
from pyrycode_relay.push.provider import Provider


def check(settings: Settings) -> None:
    """Check the credentials. Raises `StartupError`, with nothing of them."""
    trust_root(settings.push_ca_file)
    if settings.fcm_credentials is not None:
        service_account.load(settings.fcm_credentials)


def make(reactor: Any, settings: Settings) -> dict[str, Provider]:
    """Make the providers, by platform. Raises `StartupError` like `check`."""
    providers: dict[str, Provider] = {}
    trust = trust_root(settings.push_ca_file)
    if settings.fcm_credentials is not None:
        account = service_account.load(settings.fcm_credentials)
        client = HttpClient(reactor, trust, time.time, timeout=settings.push_timeout)
        tokens = AccessTokens(account, client, reactor, time.time)
        providers[PLATFORM] = Fcm(client, tokens, account.project, settings.fcm_endpoint)
    return providers

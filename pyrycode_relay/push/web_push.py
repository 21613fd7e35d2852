"""Web Push (RFC 8030): wakes through the push service that a subscription's URL names.

A wake has no body, so there is nothing to encrypt. A stranger names the URL, and it is a secret:
see `subscription` and `guarded_endpoint`. Of an answer only the status, Retry-After and the last
part of Location are read.
"""

from __future__ import annotations

import re
from typing import Final

from pyrycode_relay.push.http_client import Answer, CallError, HttpClient
from pyrycode_relay.push.provider import Failed, Outcome, SendFault, Sent
from pyrycode_relay.push.subscription import AllowedHosts, Subscription, SubscriptionError
from pyrycode_relay.push.vapid import Vapid

MAX_WAIT: Final = 30.0
"""Longest Retry-After, in seconds, that is waited for. A wait takes the place of another send."""

_TOPIC: Final = "pyry-wake"
"""A newer wake replaces one that waits. A topic is only compared within its subscription."""

_MESSAGE_ID: Final = re.compile(r"[A-Za-z0-9:%_-]{1,256}", re.ASCII)

_FAULTS: Final = {
    400: SendFault.BAD_REQUEST,
    401: SendFault.UNAUTHORIZED,
    403: SendFault.UNAUTHORIZED,
    404: SendFault.UNREGISTERED,
    410: SendFault.UNREGISTERED,
    413: SendFault.BAD_REQUEST,
    429: SendFault.RATE_LIMITED,
}
"""The faults of statuses that do not have the fault of their class."""
_CLASSES: Final = {3: SendFault.REDIRECTED, 4: SendFault.REFUSED, 5: SendFault.UNAVAILABLE}


class WebPush:
    """The provider for platform ``webpush``.

    Args:
        client: Sends requests, through endpoints that check addresses.
        vapid: Identifies the relay.
        allowed: The hosts that a subscription may name.

    """

    is_one_server = False

    def __init__(self, client: HttpClient, vapid: Vapid, allowed: AllowedHosts) -> None:
        self._client = client
        self._vapid = vapid
        self._allowed = allowed

    async def send(self, token: str, ttl: float) -> Outcome:
        """Send a wake to the subscription whose URL is ``token``."""
        try:
            subscription = Subscription.parse(token)
        except SubscriptionError:
            return Failed(SendFault.INVALID_TOKEN)
        if subscription.host not in self._allowed:
            return Failed(SendFault.FORBIDDEN_HOST)
        headers = {
            "Authorization": self._vapid.header(subscription.origin),
            "TTL": str(max(0, int(ttl))),
            "Topic": _TOPIC,
            "Urgency": "high",
        }
        try:
            answer = await self._client.post(subscription.url, headers, b"")
        except CallError as error:
            return Failed(error.fault)
        return outcome_of(answer, subscription)

    async def close(self) -> None:
        """Drop all connections."""
        await self._client.close()


def outcome_of(answer: Answer, subscription: Subscription) -> Outcome:
    """Return what a push service's answer means."""
    if answer.is_success:
        return Sent(_message_id(answer.location, subscription))
    fault = _FAULTS.get(answer.status) or _CLASSES.get(answer.status // 100, SendFault.MALFORMED)
    wait = answer.retry_after
    return Failed(
        fault,
        (str(answer.status),),
        retryable=answer.status in {429, 503} and (wait is None or wait <= MAX_WAIT),
        retry_after=wait,
    )


def _message_id(location: str, subscription: Subscription) -> str:
    """Return the last part of a message's URL if it is fit for the log, and empty otherwise."""
    part = location.rpartition("/")[2]
    # A server may answer with the subscription's own URL, which must not get into the log.
    return part if _MESSAGE_ID.fullmatch(part) and part not in subscription.url else ""

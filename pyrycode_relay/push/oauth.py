"""Access tokens of a service account: fetched when needed, and kept as long as they are good.

Source: "Push wake" in ``docs/protocol.md``; RFC 7523, section 2.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import urlencode

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from pyrycode_relay.push.http_client import Answer, CallError, HttpClient
from pyrycode_relay.push.provider import Failed, SendFault
from pyrycode_relay.push.service_account import ServiceAccount

_bugs = Logger()

_GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_MARGIN: Final = 10.0
"""Seconds before its end from which a token is no longer used."""
_LONGEST: Final = 3600.0
"""Seconds that a token is kept at most, whatever the server says."""
_TOKEN: Final = re.compile(r"[!-~]{1,3500}", re.ASCII)


class _Grant(msgspec.Struct):
    access_token: str
    expires_in: float

    def __repr__(self) -> str:
        return "_Grant()"


_decode = msgspec.json.Decoder(_Grant).decode


class AccessTokens:
    """The access token of ``account``; ``wall`` gives the time since 1970."""

    def __init__(
        self,
        account: ServiceAccount,
        client: HttpClient,
        clock: IReactorTime,
        wall: Callable[[], float],
    ) -> None:
        self._account = account
        self._client = client
        self._clock = clock
        self._wall = wall
        self._token: str | None = None
        self._good_until = 0.0
        self._refresh: Deferred[None] | None = None
        self._waiting: list[Deferred[str | Failed]] = []

    async def get(self) -> str | Failed:
        """Return a token, or why there is none. All who wait for one wait for one fetch."""
        if self._token is not None and self._clock.seconds() < self._good_until:
            return self._token
        waiter: Deferred[str | Failed] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        if self._refresh is None or self._refresh.called:
            self._refresh = Deferred.fromCoroutine(self._run())
        return await waiter

    def forget(self, token: str) -> None:
        """Stop using a token that the provider does not accept."""
        if token == self._token:
            self._token = None

    def close(self) -> None:
        """End a fetch under way, and forget the token."""
        if self._refresh is not None:
            self._refresh.cancel()
        self._token = None

    async def _run(self) -> None:
        try:
            outcome = await self._fetch()
        except CancelledError:
            outcome = Failed(SendFault.CANCELLED)
        except Exception:
            _bugs.failure("a bug costs a fetch of an access token")
            outcome = Failed(SendFault.TOKEN_FETCH, (SendFault.BUG.label,))
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(outcome)

    async def _fetch(self) -> str | Failed:
        assertion = self._account.assertion(self._wall())
        body = urlencode({"grant_type": _GRANT, "assertion": assertion}).encode("ascii")
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        try:
            answer = await self._client.post(self._account.token_url, headers, body)
        except CallError as error:
            return Failed(SendFault.TOKEN_FETCH, (error.fault.label,))
        grant = _grant(answer)
        if grant is None:
            return Failed(SendFault.TOKEN_FETCH, (str(answer.status),))
        self._token = grant.access_token
        life = min(grant.expires_in, _LONGEST)
        self._good_until = self._clock.seconds() + life - _MARGIN
        return grant.access_token


def _grant(answer: Answer) -> _Grant | None:
    if not answer.is_success:
        return None
    try:
        grant = _decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return grant if grant.expires_in > 0 and _TOKEN.fullmatch(grant.access_token) else None

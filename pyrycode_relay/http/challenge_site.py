"""What port 80 is for: answering an ACME CA's http-01 challenges, and nothing else.

Source: RFC 8555, section 8.3. Everything else is 404 and never a redirect: a client that dials
without encryption shall fail, not tell its token first and be sent on.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.interfaces import IReactorTime

from pyrycode_relay.addresses import Trusted
from pyrycode_relay.events import Observer
from pyrycode_relay.http.capacity import SPARE_FILES
from pyrycode_relay.http.relay_site import RelayRequest, Site

_WAITING: Final = SPARE_FILES // 2
"""Connections at a time without an answer: half of the open files that are kept for no peer of
the relay's. Past it the oldest goes: a CA asks at once, and from a handful of places."""


class ChallengeSite(Site):
    """Serves ``challenges``, contents by path."""

    def __init__(
        self, reactor: IReactorTime, observer: Observer, header_timeout: float, close_timeout: float
    ) -> None:
        super().__init__(reactor, observer, header_timeout, close_timeout, _WAITING, Trusted(()))
        self.challenges: dict[bytes, bytes] = {}

    def handle(self, request: RelayRequest) -> None:
        """Answer a request."""
        content = self.challenges.get(request.path)
        if content is None or request.method not in {b"GET", b"HEAD"}:
            request.refuse(404)
            return
        request.setHeader(b"Content-Type", b"application/octet-stream")
        request.answer(200, content)

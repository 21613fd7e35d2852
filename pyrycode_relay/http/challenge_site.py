"""Port 80: answers an ACME CA's http-01 challenges, and nothing else.

Source: RFC 8555, section 8.3. Every other request is 404, never a redirect: a client that dials
without encryption must fail before it sends its token.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.interfaces import IReactorTime

from pyrycode_relay.events import Observer
from pyrycode_relay.http.capacity import SPARE_FILES
from pyrycode_relay.http.server import HardenedRequest, Site
from pyrycode_relay.limits import Limits

_MAX_WAITING: Final = SPARE_FILES // 2
"""Connections that may wait for a request or a response: half of the spare files.

Beyond that the oldest is dropped. A CA sends its request at once, and from a handful of addresses.
"""


class ChallengeSite(Site):
    """Serves ``challenges``: the content of each path."""

    def __init__(self, reactor: IReactorTime, observer: Observer, limits: Limits) -> None:
        super().__init__(reactor, observer, limits, max_waiting=_MAX_WAITING)
        self.challenges: dict[bytes, bytes] = {}

    def handle(self, request: HardenedRequest) -> None:
        """Answer a request."""
        content = self.challenges.get(request.path)
        if content is None or request.method not in {b"GET", b"HEAD"}:
            request.refuse(404)
            return
        request.setHeader(b"Content-Type", b"application/octet-stream")
        request.answer(200, content)

"""The operator's HTTP site: metrics, the status page, and its data as JSON.

It uses the same hardened HTTP server as the public site. The page's security policy lets a browser
load files from this site only. The check of the Host header keeps out foreign pages whose host name
resolves to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from pyrycode_relay.events import Observer
from pyrycode_relay.http.server import HardenedRequest, Site
from pyrycode_relay.limits import Limits
from pyrycode_relay.monitoring.exposition import CONTENT_TYPE
from pyrycode_relay.monitoring.status import Status
from pyrycode_relay.protocol import header_gate

MAX_WAITING: Final = 32
"""Maximum connections without an answer: room for several scrapers and open pages. Beyond that, the
connection that has waited longest is dropped."""

_FOREIGN_NAME: Final = (
    b"This listener answers only to IP addresses and to localhost; "
    b"--admin-allow-remote permits any name.\n"
)

HEADERS: Final = {
    b"Content-Security-Policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    b"Cache-Control": b"no-store",
    b"Cross-Origin-Opener-Policy": b"same-origin",
    b"Cross-Origin-Resource-Policy": b"same-origin",
    b"Referrer-Policy": b"no-referrer",
    b"X-Content-Type-Options": b"nosniff",
}
"""Headers of every answer: content from this site only, no caching, no embedding in frames."""


@dataclass(frozen=True, slots=True)
class Page:
    """The answer on a path: its media type, and a function that returns its body."""

    media_type: str
    body: Callable[[], bytes]


ID_HASH: Final = b"/id-hash"
"""The path that tells the hash of a server-id."""

_SERVER_ID: Final = header_gate.SERVER_ID.encode()

ASSETS: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/words.js": ("words.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/status.js": ("status.js", "text/javascript; charset=utf-8"),
    "/status.css": ("status.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/uplot.js": ("uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    "/uplot.css": ("uPlot.min.css", "text/css; charset=utf-8"),
}
"""The page's files by path: file name in ``static/``, and media type."""


def _asset(name: str, media_type: str) -> Page:
    content = files("pyrycode_relay.monitoring").joinpath("static", name).read_bytes()
    return Page(media_type, lambda: content)


class AdminSite(Site):
    """Serves the operator's paths; if ``any_host`` is true, under any host name."""

    def __init__(
        self,
        reactor: IReactorTime,
        status: Status,
        any_host: bool,
        observer: Observer,
        limits: Limits,
    ) -> None:
        super().__init__(reactor, observer, limits, max_waiting=MAX_WAITING)
        self._any_host = any_host
        self._id_hash = status.id_hash
        self._pages: Mapping[bytes, Page] = {
            b"/metrics": Page(CONTENT_TYPE, status.metrics.text),
            b"/status.json": Page(
                "application/json; charset=utf-8", lambda: msgspec.json.encode(status.document())
            ),
            **{path.encode(): _asset(*asset) for path, asset in ASSETS.items()},
        }

    def handle(self, request: HardenedRequest) -> None:
        """Answer a request."""
        for name, value in HEADERS.items():
            request.setHeader(name, value)
        host = (request.single(b"host") or b"").decode("latin-1")
        if not self._any_host and not is_local_host(host):
            request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
            request.answer(421, _FOREIGN_NAME)
            return
        page = self._pages.get(request.path)
        if request.path == ID_HASH:
            self._answer_hash(request)
        elif page is None:
            request.refuse(404)
        elif self.only_reads(request):
            request.setHeader(b"Content-Type", page.media_type.encode())
            request.answer(200, page.body())

    def _answer_hash(self, request: HardenedRequest) -> None:
        """Answer with the hash of the server-id in the header that clients have it in.

        A URL would be kept in the log of a proxy.
        """
        server_id = (request.single(_SERVER_ID) or b"").decode("latin-1").strip()
        if not server_id:
            request.refuse(400)
        elif self.only_reads(request):
            request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
            request.answer(200, self._id_hash(server_id).encode() + b"\n")


def is_local_host(host: str) -> bool:
    """Whether a Host header is an IP address or ``localhost``, with or without a port.

    No foreign page can have such a name.
    """
    name = host.strip().lower()
    if name.startswith("["):
        name, bracket, port = name[1:].partition("]")
        if not bracket or (port and not _is_port(port[1:])) or port[:1] not in {"", ":"}:
            return False
    else:
        name, colon, port = name.partition(":")
        if colon and not _is_port(port):
            return False
        if name == "localhost" or name.endswith(".localhost"):
            return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5

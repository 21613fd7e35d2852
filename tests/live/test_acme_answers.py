"""ACME CAs that misbehave: each wrong or missing answer becomes one of the relay's sentences.

The CA here is a script over real HTTPS, and the library's client talks to it. A CA that behaves is
in tests/system/test_acme.py.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.trial.unittest import SynchronousTestCase

from pyrycode_relay.acme import client
from pyrycode_relay.acme.cache import new_key
from pyrycode_relay.acme.client import DEADLINE, SILENCE, AcmeError, Ca, Conversation
from pyrycode_relay.acme.schedule import REFUSED, UNREACHABLE
from tests.ca import Authority, Issued

NAMES = frozenset({"a.example", "b.example"})
SECRET = "text-of-the-network"
"""What stands in every answer and must stand in no error."""
PROBLEM = "urn:ietf:params:acme:error:"


class ScriptedCa(ThreadingHTTPServer):
    """An ACME CA that does as told by ``answers``: for a path, what to do instead."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.authority = Authority()
        certificate, key = folder / "ca.pem", folder / "ca.key"
        self.authority.issue("localhost").store(certificate, key)
        self.ca_file = folder / "authority.pem"
        self.ca_file.write_bytes(self.authority.pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = f"https://localhost:{self.server_port}"
        self.answers: dict[str, Callable[[_Request], object]] = {}
        self.statuses = {"authorization": "valid", "order": "ready"}
        self.names: list[str] = sorted(NAMES)
        self.challenge_error: dict[str, str] | None = None
        self.issue: Callable[[x509.CertificateSigningRequest], Issued] = self.issue_rightly
        self.chain = b""
        self.requests: list[str] = []
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self.thread.start()

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no news."""

    def issue_rightly(self, request: x509.CertificateSigningRequest) -> Issued:
        """Issue what was ordered."""
        return self.authority.issue(*self.names, key=_Public(request.public_key()))

    def end(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()

    def order(self) -> dict[str, Any]:
        return {
            "status": self.statuses["order"],
            "identifiers": [{"type": "dns", "value": name} for name in self.names],
            "authorizations": [f"{self.url}/authorization/{name}" for name in self.names],
            "finalize": f"{self.url}/finalize",
            "certificate": f"{self.url}/certificate",
            **self.error(),
        }

    def error(self) -> dict[str, Any]:
        return {} if self.challenge_error is None else {"error": self.challenge_error}


class _Public:
    """A key of which only the public half is known."""

    def __init__(self, public: Any) -> None:
        self.public_key = lambda: public


class _Request(BaseHTTPRequestHandler):
    server: ScriptedCa
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.reply(200, b"")

    def do_GET(self) -> None:
        self.act()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        payload = json.loads(body)["payload"]
        self.payload = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        self.act()

    def act(self) -> None:
        ca, path = self.server, self.path.split("/")[1]
        ca.requests.append(path)
        if path in ca.answers:
            ca.answers[path](self)
            return
        getattr(self, f"on_{path}")()

    def on_dir(self) -> None:
        paths = {"newNonce": "nonce", "newAccount": "account", "newOrder": "order"}
        entries = {name: f"{self.server.url}/{path}" for name, path in paths.items()}
        self.reply_json(entries | {"meta": {}})

    def on_account(self) -> None:
        self.reply_json({"status": "valid"}, 201, Location=f"{self.server.url}/account/1")

    def on_order(self) -> None:
        self.reply_json(self.server.order(), 201, Location=f"{self.server.url}/order/1")

    def on_authorization(self) -> None:
        ca = self.server
        self.reply_json(
            {
                "status": ca.statuses["authorization"],
                "identifier": {"type": "dns", "value": self.path.rpartition("/")[2]},
                "challenges": [
                    {
                        "type": "http-01",
                        "url": f"{ca.url}/challenge",
                        "status": "pending",
                        "token": "dG9rZW50b2tlbnRva2VudG9rZW50b2tlbg",
                        **ca.error(),
                    }
                ],
            }
        )

    def on_challenge(self) -> None:
        url = f"{self.server.url}/challenge"
        self.reply_json(
            {"type": "http-01", "url": url, "token": "dG9rZW50b2tlbnRva2VudG9rZW50b2tlbg"},
            Link=f'<{self.server.url}/authorization>;rel="up"',
        )

    def on_finalize(self) -> None:
        csr = json.loads(self.payload)["csr"]
        der = base64.urlsafe_b64decode(csr + "=" * (-len(csr) % 4))
        request = x509.load_der_x509_csr(der)
        self.server.chain = b"".join(
            each.public_bytes(Encoding.PEM) for each in self.server.issue(request).chain
        )
        self.server.statuses["order"] = "valid"
        self.reply_json(self.server.order())

    def on_certificate(self) -> None:
        self.reply(200, self.server.chain, {"Content-Type": "application/pem-certificate-chain"})

    def reply_json(self, content: object, status: int = 200, **headers: str) -> None:
        self.reply(
            status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
        )

    def problem(self, status: int, kind: str, **headers: str) -> None:
        body = json.dumps({"type": kind, "detail": SECRET, "title": SECRET}).encode()
        self.reply(status, body, {"Content-Type": "application/problem+json", **headers})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Replay-Nonce", "bm9uY2U")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def replying(status: int, body: bytes) -> Callable[[_Request], None]:
    """Return what answers a request with ``body``."""
    return lambda request: request.reply(status, body)


def refusing(status: int, kind: str, **headers: str) -> Callable[[_Request], None]:
    """Return what answers a request with a problem document."""
    return lambda request: request.problem(status, kind, **headers)


class AnswerTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="ca-"))
        self.addCleanup(shutil.rmtree, folder)
        self.ca = ScriptedCa(folder)
        self.addCleanup(self.ca.end)
        self.patch(client, "_POLL", 0.01)
        environment = mock.patch.dict("os.environ", {"NO_PROXY": "*"})
        environment.start()
        self.addCleanup(environment.stop)

    def converse(
        self, *, deadline: float = DEADLINE, silence: float = SILENCE, **more: Any
    ) -> Conversation:
        given = {"directory": f"{self.ca.url}/dir", "ca_file": self.ca.ca_file, **more}
        conversation = Conversation(Ca(**given), new_key(), deadline=deadline, silence=silence)
        self.addCleanup(conversation.stop)
        return conversation

    def obtain(self, **more: Any) -> bytes:
        conversation = self.converse(**more)
        return conversation.complete(conversation.order(NAMES, new_key()))

    def failure(self, **more: Any) -> AcmeError:
        """Return what becomes of an order; it has none of the network's words."""
        error: AcmeError = self.assertRaises(AcmeError, self.obtain, **more)
        self.assertNotIn(SECRET, f"{error} {error.reason} {error.problem}")
        self.assertIsNone(error.__cause__)
        return error

    def test_all_well(self) -> None:
        """The script, left alone, is a CA: otherwise the failures below would prove nothing."""
        self.assertEqual(self.obtain(), self.ca.chain)

    def test_pending(self) -> None:
        """A challenge is answered, looked at until it is decided, and the order is finalized."""
        self.ca.statuses["authorization"] = "pending"
        looks = []

        def look(request: _Request) -> None:
            looks.append(request)
            if len(looks) > 6:
                self.ca.statuses["authorization"] = "valid"
            request.on_authorization()

        self.ca.answers["authorization"] = look
        conversation = self.converse()
        order = conversation.order(NAMES, new_key())
        [(path, content)] = order.challenges.items()
        self.assertTrue(path.startswith(b"/.well-known/acme-challenge/"))
        self.assertTrue(content.startswith(path.rpartition(b"/")[2] + b"."))
        conversation.complete(order)
        self.assertEqual(self.ca.requests.count("challenge"), 2)

    def test_nothing_but_noise(self) -> None:
        """Answers that are no JSON, no object, or not what they should be are one sentence."""
        for path in ("dir", "order", "authorization", "finalize", "certificate"):
            for body in (b"", SECRET.encode(), b"{", b"[]", b'{"status": []}', b"\xff" * 99):
                self.ca.answers = {path: replying(200, body)}
                self.ca.statuses["order"] = "ready"
                # Until the deadline, the relay waits for an order that makes no progress.
                failure = self.failure(deadline=2.0)
                self.assertIn("the CA", failure.reason, (path, body))

    def test_problems(self) -> None:
        """A refusal has ACME's type of problem; of any other type, nothing is told."""
        for kind, told, first in (
            ("rateLimited", "rateLimited", REFUSED),
            ("unauthorized", "unauthorized", REFUSED),
            ("serverInternal", "serverInternal", UNREACHABLE),
            ("badNonce", "badNonce", UNREACHABLE),
        ):
            self.ca.answers["order"] = refusing(403, PROBLEM + kind)
            error = self.failure()
            self.assertEqual((error.problem, error.first_wait), (PROBLEM + told, first))
        for strange in (f"urn:x:{SECRET}", SECRET, f"{PROBLEM}{SECRET}", ""):
            self.ca.answers["order"] = refusing(403, strange)
            self.assertEqual(self.failure().problem, "")

    def test_nonces_without_end(self) -> None:
        """A CA that never likes a nonce is asked ten times, not for ever."""
        self.ca.answers["order"] = lambda request: request.problem(400, PROBLEM + "badNonce")
        self.failure()
        self.assertEqual(self.ca.requests.count("order"), 10)

    def test_retry_after(self) -> None:
        """The wait that a CA asks for is passed on: seconds, a date, or 0 if it is malformed."""
        soon = formatdate(time.time() + 3600, usegmt=True)
        for text, low, high in (
            ("120", 120, 120),
            (soon, 3500, 3601),
            ("soon", 0, 0),
            ("-5", -5, 0),
            ("9" * 400, 0, 0),
            ("Mon, 99 Foo 2026 99:99:99 GMT", 0, 0),
        ):
            self.ca.answers["order"] = refusing(429, PROBLEM + "rateLimited", Retry_After=text)
            asked = self.failure().retry_after
            self.assertTrue(low <= asked <= high, (text, asked))

    def test_out_of_order(self) -> None:
        """A page of a proxy's instead of an answer is a CA that will be back."""
        self.ca.answers["dir"] = lambda request: request.reply(
            503, f"<html>{SECRET}".encode(), {"Retry-After": "30"}
        )
        error = self.failure()
        self.assertEqual((error.first_wait, error.retry_after), (UNREACHABLE, 30))

    def test_too_much(self) -> None:
        """An answer without end is cut off."""

        def pour(request: _Request) -> None:
            request.send_response(200)
            request.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    request.wfile.write(b" " * 65536)

        self.ca.answers["dir"] = pour
        began = time.monotonic()
        self.assertEqual(self.failure().reason, "the CA's answer is not valid ACME")
        self.assertLess(time.monotonic() - began, 20)

    def test_too_slow(self) -> None:
        """A response that comes byte by byte fails at the deadline, not after its last byte."""

        def drip(request: _Request) -> None:
            request.send_response(200)
            request.send_header("Content-Length", "1000000")
            request.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    request.wfile.write(b" ")
                    time.sleep(0.05)

        self.ca.answers["dir"] = drip
        error = self.failure(deadline=1.0)
        self.assertEqual(error.reason, "the CA did not answer in time")

    def test_silence(self) -> None:
        """A CA that sends nothing at all fails too."""
        over = threading.Event()
        self.addCleanup(over.set)
        self.ca.answers["order"] = lambda _: over.wait(60)
        error = self.failure(silence=0.5)
        self.assertEqual(
            (error.reason, error.first_wait), ("the CA did not answer in time", UNREACHABLE)
        )

    def test_an_order_that_never_ends(self) -> None:
        """An order without progress fails at the deadline."""
        self.ca.statuses["authorization"] = "pending"
        self.assertEqual(self.failure(deadline=1.0).reason, "the CA did not answer in time")

    def test_stopped(self) -> None:
        """A conversation that waits is over at once when it is stopped."""
        self.ca.statuses["authorization"] = "pending"
        self.patch(client, "_POLL", 60.0)
        conversation = self.converse()
        order = conversation.order(NAMES, new_key())
        timer = threading.Timer(0.5, conversation.stop)
        timer.start()
        began = time.monotonic()
        self.assertRaises(AcmeError, conversation.complete, order)
        self.assertLess(time.monotonic() - began, 30)

    def test_broken_off(self) -> None:
        """One that breaks off is a CA that will be back."""

        def stop(request: _Request) -> None:
            request.send_response(200)
            request.send_header("Content-Length", "1000")
            request.end_headers()
            request.wfile.write(b"{")
            request.close_connection = True

        self.ca.answers["dir"] = stop
        self.assertEqual(self.failure().first_wait, UNREACHABLE)

    def test_sent_elsewhere(self) -> None:
        """Nothing is asked without TLS, though the CA wants it so."""
        self.ca.answers["dir"] = lambda request: request.reply(
            302, b"", {"Location": f"http://localhost:{self.ca.server_port}/dir"}
        )
        self.assertEqual(self.failure().reason, "the CA's answer is not valid ACME")

    def test_in_a_circle(self) -> None:
        """Nor for ever round in a circle."""
        self.ca.answers["dir"] = lambda request: request.reply(302, b"", {"Location": "/dir"})
        self.failure()
        self.assertLess(len(self.ca.requests), 50)

    def test_not_whom_we_trust(self) -> None:
        """A CA whose own certificate nobody vouches for is not spoken to."""
        self.assertIn("--acme-ca-file", self.failure(ca_file=None).reason)
        other = self.ca.ca_file.with_name("other.pem")
        other.write_bytes(Authority().pem)
        self.assertIn("--acme-ca-file", self.failure(ca_file=other).reason)
        self.assertEqual(self.ca.requests, [])

    def test_authorities_that_are_gone(self) -> None:
        """When the file of authorities is gone, that is what is told."""
        error = self.failure(ca_file=self.ca.ca_file.with_name("none.pem"))
        self.assertIn("--acme-ca-file cannot be read", error.reason)

    def test_nobody_there(self) -> None:
        """Where nobody listens, or the name is nobody's, the CA cannot be reached."""
        for directory in ("https://localhost:1/dir", "https://nobody.invalid/dir"):
            error = self.failure(directory=directory)
            self.assertEqual(
                (error.reason, error.first_wait), ("the CA cannot be reached", UNREACHABLE)
            )

    def test_account_elsewhere(self) -> None:
        """A CA that wants an account made elsewhere says so, and gets no order."""

        def directory(request: _Request) -> None:
            entries = {"newNonce": "nonce", "newAccount": "account", "newOrder": "order"}
            urls: dict[str, Any] = {name: f"{self.ca.url}/{p}" for name, p in entries.items()}
            request.reply_json(urls | {"meta": {"externalAccountRequired": True}})

        self.ca.answers["dir"] = directory
        self.assertIn("an account made elsewhere", self.failure().reason)
        self.assertNotIn("order", self.ca.requests)

    def test_no_http_01(self) -> None:
        """A CA that does not validate over HTTP is of no use, and told so."""
        self.ca.statuses["authorization"] = "pending"
        self.ca.answers["authorization"] = lambda request: request.reply_json(
            {
                "status": "pending",
                "identifier": {"type": "dns", "value": "a.example"},
                "challenges": [{"type": SECRET, "url": f"{self.ca.url}/challenge"}],
            }
        )
        self.assertEqual(self.failure().reason, "the CA does not offer http-01")

    def test_invalid(self) -> None:
        """A validation that failed names our name, and ACME's type of problem."""
        self.ca.statuses["authorization"] = "invalid"
        self.ca.challenge_error = {"type": PROBLEM + "dns", "detail": SECRET}
        error = self.failure()
        self.assertEqual(error.reason, "the CA could not validate a.example")
        self.assertEqual((error.problem, error.first_wait), (PROBLEM + "dns", REFUSED))
        self.ca.names = [SECRET]
        self.assertEqual(self.failure().reason, "the CA could not validate a name")

    def test_given_up(self) -> None:
        """An order that the CA has given up is told so, with its type of problem."""
        self.ca.statuses["order"] = "invalid"
        self.ca.challenge_error = {"type": PROBLEM + "caa", "detail": SECRET}
        error = self.failure()
        self.assertEqual(error.reason, "the CA abandoned the order")
        self.assertEqual(error.problem, PROBLEM + "caa")

    def test_other_certificates(self) -> None:
        """A certificate for other names, or for another's key, is not taken."""
        self.ca.issue = lambda request: self.ca.authority.issue(
            "a.example", key=_Public(request.public_key())
        )
        self.assertIn("not for the names", self.failure().reason)
        self.ca.statuses["order"] = "ready"
        self.ca.issue = lambda _: self.ca.authority.issue(*NAMES)
        self.assertEqual(self.failure().reason, "the CA's answer is not valid ACME")

"""A stand-in for Google: FCM and its token server, in a process of its own, without Twisted.

`FcmServer` starts the process and tells it what to do. The process is a server of the standard
library over TLS. It checks every assertion and every bearer as Google does, answers as a script
says, and keeps what it was asked.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from tests import ca
from tests.peers.waiting import DEADLINE

PROJECT: Final = "wake-project"
EMAIL: Final = "relay@wake-project.iam.example"
KEY_ID: Final = "key-1"
SCOPE: Final = "https://www.googleapis.com/auth/firebase.messaging"
GRANT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
SEND: Final = f"/v1/projects/{PROJECT}/messages:send"
TOKEN: Final = "/token"
FCM_ERROR: Final = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
BAD_REQUEST: Final = "type.googleapis.com/google.rpc.BadRequest"

Step = dict[str, Any]
"""What the server does with one request: ``status``, ``headers`` and ``body`` of an answer, or
``do``, the name of a misdeed. ``CONNECT`` steps are for connections."""


def error(status: int, word: str, *details: Mapping[str, Any], **headers: str) -> Step:
    """Return the step that answers with an error in Google's form."""
    content = {"code": status, "message": "hunter2 says no", "status": word, "details": details}
    return {
        "status": status,
        "headers": {name.replace("_", "-"): value for name, value in headers.items()},
        "body": json.dumps({"error": content}),
    }


def fcm_error(code: str) -> Mapping[str, Any]:
    """Return FCM's own detail of an error."""
    return {"@type": FCM_ERROR, "errorCode": code}


def misdeed(name: str) -> Step:
    """Return the step for a misdeed of `Handler` or `Server`."""
    return {"do": name}


class FcmServer:
    """The process, and the way to it.

    Its files go into ``directory``; ``credentials`` and ``authority`` are what a relay needs.
    """

    def __init__(self, directory: Path) -> None:
        authority = ca.Authority()
        self.authority = directory / "google-ca.pem"
        self.authority.write_bytes(authority.pem)
        chain, key = directory / "google.pem", directory / "google.key"
        authority.issue("localhost").store(chain, key)
        self._key = ca.rsa_key()
        public = self._key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        public_file = directory / "account.pub"
        public_file.write_bytes(public)
        program = [sys.executable, "-m", "tests.fcm_server", chain, key, public_file]
        self._process = subprocess.Popen(
            [str(each) for each in program],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.url = f"https://localhost:{self.port}"
        self._context = ssl.create_default_context(cafile=str(self.authority))
        self.credentials = directory / "account.json"
        self.credentials.write_text(json.dumps(self.account()))

    def account(self, **changes: object) -> dict[str, object]:
        """Return a service account's fields; a change to None leaves the field out."""
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        fields = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": KEY_ID,
            "private_key": pem.decode(),
            "client_email": EMAIL,
            "token_uri": self.url + TOKEN,
            "universe_domain": "googleapis.com",
        }
        return {name: value for name, value in (fields | changes).items() if value is not None}

    @property
    def options(self) -> list[str]:
        """The options of a relay that sends to this server."""
        return [
            f"--fcm-credentials={self.credentials}",
            f"--fcm-endpoint={self.url}",
            f"--push-ca-file={self.authority}",
        ]

    def next(self, path: str, *steps: Step) -> None:
        """Have the next requests to a path answered as ``steps`` say; then as Google does."""
        self._control("steps", {"path": path, "steps": steps})

    def revoke(self) -> None:
        """Make every bearer given so far worthless."""
        self._control("revoke")

    def set(self, **settings: float) -> None:
        """Set ``lifetime`` of bearers in seconds, or ``skew`` of the server's clock."""
        self._control("set", settings)

    def requests(self, path: str) -> list[dict[str, Any]]:
        """Return what was asked at a path."""
        return [each for each in self._control("requests") if each["path"] == path]

    def refusals(self) -> list[str]:
        """Return what was wrong with assertions and bearers."""
        return [each["refused"] for each in self._control("requests") if each["refused"]]

    def waiting(self) -> int:
        """Return the number of requests in whose midst the server hangs."""
        return int(self._control("waiting"))

    def connections(self) -> int:
        """Return how many connections there were but for the tests' own."""
        return int(self._control("connections"))

    def _control(self, what: str, content: object = None) -> Any:
        way = http.client.HTTPSConnection(
            "localhost", self.port, timeout=DEADLINE, context=self._context
        )
        with contextlib.closing(way):
            way.request("POST", f"/control/{what}", json.dumps(content), {"X-Control": "1"})
            return json.loads(way.getresponse().read())

    def freeze(self) -> None:
        """Stop the process: the system still accepts connections for it, and nothing answers."""
        self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


# The process

CONNECT: Final = "connect"
"""The path of steps for connections."""


class Google:
    """What the server knows."""

    def __init__(self, public: RSAPublicKey) -> None:
        self.public = public
        self.port = 0
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.steps: dict[str, list[Step]] = {}
        self.requests: list[dict[str, Any]] = []
        self.bearers: dict[str, float] = {}
        self.given = 0
        self.lifetime = 3600.0
        self.skew = 0.0
        self.waiting = 0
        self.connections = 0

    def step(self, path: str) -> Step:
        """Take the next step for a path; an empty one is to do as Google does."""
        with self.lock:
            steps = self.steps.get(path)
            return steps.pop(0) if steps else {}

    def grant(self, body: bytes) -> str | None:
        """Return what is wrong with a request for a token; None if nothing is."""
        fields = dict(parse_qsl(body.decode(), strict_parsing=True))
        if set(fields) != {"grant_type", "assertion"} or fields["grant_type"] != GRANT:
            return f"fields {sorted(fields)}"
        first, second, third = fields["assertion"].split(".")
        try:
            signed = f"{first}.{second}".encode()
            self.public.verify(_decoded(third), signed, PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return "signature"
        header, claims = json.loads(_decoded(first)), json.loads(_decoded(second))
        if header != {"typ": "JWT", "alg": "RS256", "kid": KEY_ID}:
            return f"header {header}"
        now = time.time() + self.skew
        issued = claims.get("iat", 0)
        expected = {
            "iss": EMAIL,
            "aud": f"https://localhost:{self.port}{TOKEN}",
            "scope": SCOPE,
            "iat": issued,
            "exp": issued + 3600,
        }
        if claims != expected:
            return f"claims {claims}"
        # Ten seconds back, and some for a slow machine.
        if not now - 100 <= issued <= now or not isinstance(issued, int):
            return f"issued {issued - now:+.0f} s from now"
        return None

    def bearer(self) -> Step:
        """Give a bearer."""
        with self.lock:
            self.given += 1
            token = f"bearer-hunter3-{self.given}"
            self.bearers[token] = time.monotonic() + self.lifetime
        grant = {"access_token": token, "expires_in": self.lifetime, "token_type": "Bearer"}
        return {"status": 200, "body": json.dumps(grant)}

    def accepts(self, authorization: str) -> bool:
        """Whether a bearer is good."""
        kind, _, token = authorization.partition(" ")
        with self.lock:
            return kind == "Bearer" and self.bearers.get(token, 0.0) > time.monotonic()


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def reset(sock: socket.socket) -> None:
    """End a connection with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # Not the TLS object's own end, which would be polite.
    socket.socket(fileno=sock.detach()).close()


class Server(ThreadingHTTPServer):
    """Serves over TLS; a connection's misdeeds are ``reset`` and ``reset_in_tls``."""

    daemon_threads = True
    request_queue_size = 128
    google: Google
    context: ssl.SSLContext

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Begin TLS in the connection's own thread."""
        doing = self.google.step(CONNECT).get("do")
        if doing == "reset":
            return reset(request)
        if doing == "reset_in_tls":
            request.recv(16)
            return reset(request)
        if doing == "hang":
            return hang(self.google)
        with contextlib.suppress(OSError):
            wrapped = self.context.wrap_socket(request, server_side=True)
            super().process_request_thread(wrapped, client_address)
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: peers go away."""


def hang(google: Google) -> None:
    """Do nothing until the process ends."""
    google.waiting += 1
    google.released.wait()


class Handler(BaseHTTPRequestHandler):
    """Answers requests."""

    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.counted = False

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        """Answer."""
        google = self.server.google
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/control/"):
            return self.answer({"status": 200, "body": json.dumps(self.control(body))})
        if not self.counted:
            self.counted = True
            google.connections += 1
        refused = self.refused(body)
        seen = {
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": body.decode(),
            "refused": refused,
        }
        with google.lock:
            google.requests.append(seen)
        step = google.step(self.path)
        if "do" in step:
            do: Callable[[], None] = getattr(self, step["do"])
            return do()
        return self.answer(step or self.as_google(refused))

    def refused(self, body: bytes) -> str | None:
        """Return what is wrong with a request."""
        if self.path == TOKEN:
            return self.server.google.grant(body)
        good = self.server.google.accepts(self.headers.get("Authorization", ""))
        return None if good else "bearer"

    def as_google(self, refused: str | None) -> Step:
        """Return the step that Google would take."""
        if self.path == TOKEN:
            wrong = {"status": 400, "body": '{"error":"invalid_grant","error_description":"x"}'}
            return wrong if refused else self.server.google.bearer()
        if refused:
            return error(401, "UNAUTHENTICATED")
        name = f"projects/{PROJECT}/messages/0:1500415314455276%31bd1c96f9fd7ecd"
        return {"status": 200, "body": json.dumps({"name": name})}

    def answer(self, step: Step) -> None:
        """Send an answer."""
        body = step.get("body", "").encode()
        self.send_response(step["status"])
        for name, value in {"Content-Length": str(len(body)), **step.get("headers", {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def control(self, body: bytes) -> object:
        """Do what a test wants."""
        google, content = self.server.google, json.loads(body)
        with google.lock:
            match self.path.rpartition("/")[2]:
                case "steps":
                    google.steps.setdefault(content["path"], []).extend(content["steps"])
                case "revoke":
                    google.bearers.clear()
                case "set":
                    vars(google).update(content)
                case "requests":
                    return google.requests
                case "waiting":
                    return google.waiting
                case "connections":
                    return google.connections
        return None

    # Misdeeds

    def hang(self) -> None:
        """Do not answer."""
        hang(self.server.google)

    def hang_in_headers(self) -> None:
        """Begin an answer and stop."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
        self.hang()

    def hang_in_body(self) -> None:
        """Send half of a success and stop."""
        self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"name":')
        self.hang()

    def slow(self) -> None:
        """Send a success byte by byte, each in a record of its own."""
        body = json.dumps({"name": "projects/p/messages/slow"}).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        for byte in head + body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()

    def huge(self) -> None:
        """Send a success with 10 MB of body, or as much as is taken of it."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
        self.flood(b"x" * 10_000_000)

    def huge_error(self) -> None:
        """Send an error with 10 MB of body."""
        self.wfile.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 10000000\r\n\r\n")
        self.flood(b"x" * 10_000_000)

    def huge_headers(self) -> None:
        """Send headers without end."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        self.flood(b"X-Header: %s\r\n" % (b"x" * 1000) * 10_000)

    def flood(self, data: bytes) -> None:
        """Send data to a peer that may go away."""
        with contextlib.suppress(OSError):
            self.wfile.write(data)
        self.close_connection = True

    def garbage(self) -> None:
        """Send what is no HTTP."""
        self.flood(b"hunter2 is not HTTP\r\n\r\n")

    def reset(self) -> None:
        """End the connection instead of an answer."""
        reset(self.connection)

    def close(self) -> None:
        """Close the connection politely instead of an answer."""
        self.close_connection = True

    def reset_in_headers(self) -> None:
        """End the connection within the headers."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
        reset(self.connection)

    def reset_in_body(self) -> None:
        """End the connection within the body of a success."""
        self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"name":')
        reset(self.connection)

    def close_afterwards(self) -> None:
        """Answer with success, and close a connection that was to be kept."""
        self.answer(self.as_google(None))
        self.close_connection = True


def serve(chain: str, key: str, public: str) -> None:
    """Serve until the process is ended; write the port first."""
    server = Server(("127.0.0.1", 0), Handler)
    loaded = load_pem_public_key(Path(public).read_bytes())
    assert isinstance(loaded, RSAPublicKey)
    server.google = Google(loaded)
    server.google.port = server.server_address[1]
    server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.context.load_cert_chain(chain, key)
    print(server.google.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(*sys.argv[1:])

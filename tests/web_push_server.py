"""A push service of Web Push for tests, in a process of its own, without Twisted.

The token of a subscription says how the service answers: ``/answer/`` and base64url are the bytes
of the answer, and other paths are misdeeds. It keeps what it was asked.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests import ca

HOST: Final = "push.example"
"""The name that the service's certificate is for; no resolver but a test's knows it."""

ENOUGH: Final = 64 * 2**20
"""Bytes after which a flood ends."""


def response(status: str, *headers: str, body: str = "") -> bytes:
    """Return the bytes of an answer."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return ("\r\n".join(head) + f"\r\n\r\n{body}").encode()


def answering(answer: bytes, host: str = HOST) -> str:
    """Return the URL of a subscription that is answered with ``answer``."""
    return f"https://{host}/answer/{base64.urlsafe_b64encode(answer).decode().rstrip('=')}"


class WebPushServer:
    """The process, and the way to it. Its files go into ``directory``."""

    def __init__(self, directory: Path) -> None:
        authority = ca.Authority()
        self.authority = directory / "push-ca.pem"
        self.authority.write_bytes(authority.pem)
        chain, key = directory / "push.pem", directory / "push.key"
        authority.issue(HOST, "127.0.0.1").store(chain, key)
        self._notes = directory / "push.notes"
        self._notes.touch()
        program = [sys.executable, "-m", "tests.web_push_server", chain, key, self._notes]
        self._process = subprocess.Popen(
            [str(each) for each in program],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def _read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._notes.read_text().splitlines()]

    @property
    def connections(self) -> list[str]:
        """The addresses at which the service was connected to."""
        return [note["connected"] for note in self._read() if "connected" in note]

    @property
    def requests(self) -> list[dict[str, Any]]:
        """What it was asked: method, path, headers and body of each request."""
        return [note for note in self._read() if "path" in note]

    @property
    def ended(self) -> int:
        """The number of connections that their client has closed."""
        return sum("ended" in note for note in self._read())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


# What runs in the process


def _request(stream: ssl.SSLSocket) -> dict[str, Any]:
    data = b""
    while b"\r\n\r\n" not in data:
        part = stream.recv(65536)
        if not part:
            raise ConnectionError
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return {"method": method, "path": path, "headers": headers, "body": body.decode()}


def _answer(path: str) -> Iterator[bytes]:
    """Yield what is sent for a path."""
    _, kind, *more = path.split("/")
    if kind == "answer":
        yield base64.urlsafe_b64decode(more[0] + "=" * (-len(more[0]) % 4))
    elif kind == "headers":
        yield b"HTTP/1.1 201 Created\r\n"
        yield from [b"X-More: " + b"x" * 8000 + b"\r\n"] * (ENOUGH // 8000)
    elif kind == "long":
        yield b"HTTP/1.1 201 Created\r\n" + b"X-More: %s\r\n" % (b"x" * int(more[0])) * 3 + b"\r\n"
    elif kind == "interim":
        yield from [b"HTTP/1.1 100 Continue\r\n\r\n" * 1000] * (ENOUGH // 25_000)
    elif kind == "body":
        yield b"HTTP/1.1 201 Created\r\n\r\n"
        yield from [b"x" * 65536] * (ENOUGH // 65536)


def _serve(stream: ssl.SSLSocket, note: Callable[[dict[str, Any]], None]) -> None:
    request = _request(stream)
    note(request)
    for part in _answer(request["path"]):
        stream.sendall(part)
    if not request["path"].startswith("/lost"):
        # The client has to close.
        while stream.recv(65536):
            pass


def _main(certificate: str, key: str, notes: str) -> None:
    """Serve until the process is killed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    lock = threading.Lock()

    def note(what: dict[str, Any]) -> None:
        with lock, open(notes, "a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")

    def accepted(plain: socket.socket) -> None:
        note({"connected": plain.getsockname()[0]})
        with plain, contextlib.suppress(OSError):
            plain.settimeout(60)
            with context.wrap_socket(plain, server_side=True) as stream:
                _serve(stream, note)
        note({"ended": True})

    with socket.create_server(("0.0.0.0", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            threading.Thread(target=accepted, args=listening.accept()[:1], daemon=True).start()


if __name__ == "__main__":
    _main(*sys.argv[1:])

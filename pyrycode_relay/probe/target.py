"""The relay to probe: its URL, and the address to connect to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_SECURE: Final = {"wss": True, "https": True, "ws": False, "http": False}


class TargetError(ValueError):
    """A URL or an address is invalid. The text is one sentence."""


@dataclass(frozen=True, slots=True)
class Target:
    """A relay's URL in parts."""

    secure: bool
    """Whether the relay is reached over TLS."""
    host: str
    port: int
    prefix: str = ""
    """The path in front of the relay's own paths, without a slash at the end."""

    @classmethod
    def parse(cls, text: str) -> Target:
        """Parse ``wss://``, ``ws://``, ``https://``, ``http://`` or a bare host, which means wss.

        Raises `TargetError`, which never quotes a possible secret in the URL.
        """
        scheme, separator, _ = text.partition("://")
        if not separator:
            scheme, text = "wss", f"wss://{text}"
        if scheme.lower() not in _SECURE:
            raise TargetError(
                f"The scheme {scheme!r} is not supported; use wss://, ws://, https:// or http://."
            )
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
            host = host if ":" in host else host.encode("idna").decode("ascii")
        except ValueError:
            raise TargetError("The URL's host, port or path is invalid.") from None
        if parts.username is not None or parts.password is not None:
            raise TargetError(
                "The URL has a user name or a password; remove it, because no relay uses one."
            )
        if parts.query or parts.fragment:
            raise TargetError(
                "The URL has a query or a fragment; remove it, because no relay uses one."
            )
        if not host or port == 0 or not _is_plain(host + parts.path):
            raise TargetError("The URL's host, port or path is invalid.")
        secure = _SECURE[scheme.lower()]
        return cls(secure, host, port or (443 if secure else 80), parts.path.rstrip("/"))

    def url(self, path: str) -> str:
        """Return the URL of one of the relay's paths."""
        scheme = "wss" if self.secure else "ws"
        return f"{scheme}://{authority(self.host, self.port)}{self.prefix}{path}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where to connect: a host and a port, or the path of a UNIX socket (then the port is 0)."""

    host: str
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Place:
        """Parse ``HOST:PORT`` or the absolute path of a UNIX socket. Raises `TargetError`."""
        if text.startswith("/"):
            return cls(text)
        try:
            parts = urlsplit(f"//{text}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not host or not port or parts.netloc != text:
            raise TargetError(
                f"--connect is {text!r}; allowed: HOST:PORT or the path of a UNIX socket."
            )
        return cls(host, port)

    @property
    def is_unix(self) -> bool:
        """Whether it is a UNIX socket."""
        return not self.port

    def __str__(self) -> str:
        return self.host if self.is_unix else authority(self.host, self.port)


def authority(host: str, port: int) -> str:
    """Return ``host:port`` for a URL, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text

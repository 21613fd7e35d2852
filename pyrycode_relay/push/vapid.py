"""VAPID (RFC 8292): how the relay identifies itself to push services."""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from josepy.jwa import ES256
from josepy.jwk import JWKEC
from josepy.jws import JWS

from pyrycode_relay.startup_error import StartupError
from pyrycode_relay.tls.certificate import read_private_key

LIFETIME: Final = 12 * 3600
"""Seconds that a token is valid: half of what RFC 8292 allows, so clocks may differ."""

_LEAST: Final = 3600
"""Seconds that a token must still be valid to be sent again."""

MAX_ORIGINS: Final = 64
"""Origins whose token is kept. There are a handful of public push services; more come from
strangers, and a signature costs a tenth of a millisecond."""

Key = ec.EllipticCurvePrivateKey


def read_key(path: Path) -> Key:
    """Read the relay's key. Raises `StartupError`."""
    key = read_private_key(path)
    if not isinstance(key, Key) or not isinstance(key.curve, ec.SECP256R1):
        raise StartupError(
            f"The key {path} is not an ECDSA key on the curve P-256; make one with "
            "pyrycode-relay-webpush-key."
        )
    return key


def public_half(key: Key) -> str:
    """Return the public half of a key as browsers take it: ``applicationServerKey``."""
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return base64.urlsafe_b64encode(point).decode().rstrip("=")


class Vapid:
    """Makes the relay's ``Authorization`` headers.

    Args:
        key: Signs.
        subject: How a push service's operator reaches the relay's: a mailto: or https: URL.
        wall: The clock, in seconds since 1970.

    """

    def __init__(self, key: Key, subject: str, wall: Callable[[], float]) -> None:
        self._jwk = JWKEC(key=key)
        self._public = public_half(key)
        self._subject = subject
        self._wall = wall
        self._kept: OrderedDict[str, tuple[int, str]] = OrderedDict()
        """The end and the token for each origin, the last used one last."""

    @property
    def kept(self) -> int:
        """The number of origins whose token is kept."""
        return len(self._kept)

    def header(self, origin: str) -> str:
        """Return the value of ``Authorization`` for a request to ``origin``."""
        return f"vapid t={self._token(origin)}, k={self._public}"

    def _token(self, origin: str) -> str:
        now = int(self._wall())
        end, token = self._kept.get(origin, (0, ""))
        # The second bound matters if the clock was set back.
        if not now + _LEAST <= end <= now + LIFETIME:
            end = now + LIFETIME
            token = self._signed({"aud": origin, "exp": end, "sub": self._subject})
            self._kept[origin] = (end, token)
        self._kept.move_to_end(origin)
        if len(self._kept) > MAX_ORIGINS:
            self._kept.popitem(last=False)
        return token

    def _signed(self, claims: dict[str, object]) -> str:
        signed = JWS.sign(
            payload=json.dumps(claims).encode(),
            key=self._jwk,
            alg=ES256,
            protect=frozenset({"alg", "typ"}),
            include_jwk=False,
            typ="application/JWT",
        )
        return signed.to_compact().decode()

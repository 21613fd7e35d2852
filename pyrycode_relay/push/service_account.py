"""A Google service account: its file, checked at the start, and what it signs.

Source: "Push wake" in ``docs/protocol.md``. The one module that knows google-auth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from pyrycode_relay.config.values import Secret
from pyrycode_relay.startup_error import StartupError

SCOPE: Final = "https://www.googleapis.com/auth/firebase.messaging"
TOKEN_URL: Final = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address

_LIFE: Final = 3600
_SKEW: Final = 10
"""Seconds that an assertion is valid for, and how far back it begins: clocks differ."""

_MAX_FILE: Final = 65_536
_MAX_KEY: Final = 4096
"""Largest key, in bits: a signature with it costs a few milliseconds."""

_PROJECT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,127}", re.ASCII)
_WORD: Final = re.compile(r"[!-~]{1,512}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A service account whose key is for the messages of ``project``."""

    project: str
    email: str
    token_url: str
    _signer: Any = field(repr=False)

    def assertion(self, now: float) -> str:
        """Return a JWT that asks for an access token; ``now`` is in seconds since 1970.

        Signing takes a millisecond of the reactor's thread, once an hour.
        """
        from google.auth import jwt  # noqa: PLC0415 - it comes with an extra

        issued = int(now) - _SKEW
        claims = {
            "iss": self.email,
            "aud": self.token_url,
            "scope": SCOPE,
            "iat": issued,
            "exp": issued + _LIFE,
        }
        token: bytes = jwt.encode(self._signer, claims)
        return token.decode("ascii")


def load(credentials: Secret) -> ServiceAccount:
    """Read and check the account of ``--fcm-credentials``.

    Raises:
        StartupError: It cannot be used. The sentence has nothing of the account.

    """
    try:
        from google.auth.crypt import RSASigner  # noqa: PLC0415 - it comes with an extra
    except ImportError:
        raise StartupError(
            "--fcm-credentials needs the package google-auth; install pyrycode-relay[push]."
        ) from None
    fields = _fields(_text(credentials))
    if fields.get("type") != "service_account":
        raise _unusable("its type is not service_account")
    email = _word(fields, "client_email")
    project = _word(fields, "project_id")
    if not _PROJECT.fullmatch(project):
        raise _unusable("its project_id is not one of a project")
    key_id = _word(fields, "private_key_id") if fields.get("private_key_id") else None
    token_url = _word(fields, "token_uri") if "token_uri" in fields else TOKEN_URL
    if not _is_https(token_url):
        raise _unusable("its token_uri is not a URL that begins with https://")
    key = _key(fields)
    return ServiceAccount(project, email, token_url, RSASigner(key, key_id))


def _text(credentials: Secret) -> str:
    try:
        return credentials.read(_MAX_FILE)
    except (OSError, ValueError) as error:
        # A name's own text is not shown, as it could be a credential in a wrong place.
        why = error.strerror if isinstance(error, OSError) else None
        raise _unusable(f"it cannot be read ({why or 'it is not text'})") from None


def _fields(text: str) -> Mapping[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise _unusable("it is not JSON") from None
    if not isinstance(fields, dict):
        raise _unusable("it is not a JSON object")
    return fields


def _word(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise _unusable(f"its {name} is missing, or not a plain word")
    return value


def _key(fields: Mapping[str, Any]) -> RSAPrivateKey:
    pem = fields.get("private_key")
    try:
        key = load_pem_private_key(pem.encode("ascii"), None) if isinstance(pem, str) else None
    except Exception:
        # cryptography raises many kinds, and none of their texts may be shown.
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise _unusable("its private_key is not an RSA key in PEM form")
    if key.key_size > _MAX_KEY:
        raise _unusable(f"its private_key has more than {_MAX_KEY} bits")
    return key


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _unusable(why: str) -> StartupError:
    return StartupError(
        f"--fcm-credentials is not a usable service account: {why}; give the JSON file of a key "
        "from the Firebase console (project settings, service accounts)."
    )

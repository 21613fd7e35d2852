"""Firebase Cloud Messaging, by its HTTP v1 interface.

Source: "Push wake" in ``docs/protocol.md``. Of an answer only a status and a few codes of a closed
form are kept.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import msgspec

from pyrycode_relay.push.http_client import Answer, CallError, HttpClient
from pyrycode_relay.push.oauth import AccessTokens
from pyrycode_relay.push.provider import Failed, Outcome, SendFault, Sent

ENDPOINT: Final = "https://fcm.googleapis.com"
PLATFORM: Final = "fcm"

_COLLAPSE_KEY: Final = "wake"
"""Of several wakes that wait for a device, FCM delivers only the last."""

_CODE: Final = re.compile(r"[A-Z0-9_]{1,64}", re.ASCII)
_MESSAGE_ID: Final = re.compile(r"[A-Za-z0-9/:%_-]{1,256}", re.ASCII)
_FCM_ERROR: Final = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_BAD_REQUEST: Final = "type.googleapis.com/google.rpc.BadRequest"

_LOST: Final = {SendFault.DISCONNECTED, SendFault.UNREACHABLE}
"""Faults without an answer after which another try may succeed at once. A provider that did not
answer in time has had its time."""


class Fcm:
    """The provider for platform ``fcm``: sends to the devices of one Firebase project."""

    is_one_server = True

    def __init__(
        self, client: HttpClient, tokens: AccessTokens, project: str, endpoint: str = ENDPOINT
    ) -> None:
        self._client = client
        self._tokens = tokens
        self._url = f"{endpoint.rstrip('/')}/v1/projects/{project}/messages:send"

    async def send(self, token: str, ttl: float) -> Outcome:
        """Send a wake: a message of high priority without notification and without data.

        A bearer that FCM does not accept is replaced, once.
        """
        message = {
            "token": token,
            "android": {
                "priority": "HIGH",
                "ttl": f"{math.ceil(ttl)}s",
                "collapse_key": _COLLAPSE_KEY,
            },
        }
        body = msgspec.json.encode({"message": message})
        outcome: Outcome = Failed(SendFault.UNAUTHORIZED)
        for _ in range(2):
            bearer = await self._tokens.get()
            if isinstance(bearer, Failed):
                return bearer
            outcome = await self._post(bearer, body)
            if isinstance(outcome, Sent) or outcome.fault is not SendFault.UNAUTHORIZED:
                break
            self._tokens.forget(bearer)
        return outcome

    async def _post(self, bearer: str, body: bytes) -> Outcome:
        headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
        try:
            answer = await self._client.post(self._url, headers, body)
        except CallError as error:
            return Failed(error.fault, retryable=error.fault in _LOST)
        return outcome_of(answer)

    async def close(self) -> None:
        """End what is under way, and drop all connections."""
        self._tokens.close()
        await self._client.close()


def outcome_of(answer: Answer) -> Outcome:
    """Return what FCM's answer means."""
    fields = _object(answer.body)
    if answer.is_success:
        name = fields.get("name")
        known = isinstance(name, str) and _MESSAGE_ID.fullmatch(name)
        return Sent(str(name) if known else "")
    error = _Error(fields.get("error"))
    details = (str(answer.status), *filter(None, (error.status, error.code)))
    fault = _fault(answer.status, error)
    return Failed(
        fault,
        details,
        retryable=answer.status in {429, 503},
        retry_after=answer.retry_after,
    )


class _Error:
    """What is kept of an error: ``status`` and ``code`` are of a closed form, or empty."""

    def __init__(self, error: Any) -> None:
        fields = error if isinstance(error, dict) else {}
        listed = fields.get("details")
        listed = listed if isinstance(listed, list) else []
        details = [each for each in listed if isinstance(each, dict)]
        fcm = [each for each in details if each.get("@type") == _FCM_ERROR]
        self.status = _code(fields.get("status"))
        self.code = next((code for each in fcm if (code := _code(each.get("errorCode")))), "")
        self.is_fcm = bool(fcm)
        self.is_bad_request = any(each.get("@type") == _BAD_REQUEST for each in details)


def _fault(status: int, error: _Error) -> SendFault:
    if error.code == "UNREGISTERED" or (status == 404 and error.status == "NOT_FOUND"):
        return SendFault.UNREGISTERED
    if error.status == "INVALID_ARGUMENT" or error.code == "INVALID_ARGUMENT":
        # FCM adds its own detail to requests that are bad in other ways, too.
        if error.is_bad_request or not error.is_fcm:
            return SendFault.BAD_REQUEST
        return SendFault.INVALID_TOKEN
    if status == 401 and not error.is_fcm:
        # With FCM's own detail, the device's platform does not accept the project.
        return SendFault.UNAUTHORIZED
    if status == 429:
        return SendFault.RATE_LIMITED
    if status >= 500:
        return SendFault.UNAVAILABLE
    if 300 <= status <= 399:
        return SendFault.REDIRECTED
    return SendFault.REFUSED


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _code(value: Any) -> str:
    return value if isinstance(value, str) and _CODE.fullmatch(value) else ""

"""FCM: the message, what answers mean, and what happens to a bearer that is not accepted."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from pyrycode_relay.push.fcm import Fcm, outcome_of
from pyrycode_relay.push.http_client import Answer, CallError
from pyrycode_relay.push.provider import Failed, Outcome, SendFault, Sent
from tests.unit.bench import Cases, cases

FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"


def refused(status: int, word: object, *details: object) -> Answer:
    """Return an answer with an error in Google's form."""
    error = {"code": status, "message": "hunter2", "status": word, "details": details}
    return Answer(status, json.dumps({"error": error}).encode())


def fcm(code: object) -> dict[str, object]:
    """Return FCM's own detail."""
    return {"@type": FCM_ERROR, "errorCode": code}


class OutcomeTests(Cases):
    @cases(
        {
            "id": (b'{"name":"projects/p/messages/0:1%31-_"}', "projects/p/messages/0:1%31-_"),
            "longest": (b'{"name":"%s"}' % (b"a" * 256), "a" * 256),
            "too_long": (b'{"name":"%s"}' % (b"a" * 257), ""),
            "space": (b'{"name":"a b"}', ""),
            "line": (b'{"name":"a\\n"}', ""),
            "number": (b'{"name":1}', ""),
            "array": (b"[1]", ""),
            "nothing": (b"", ""),
            "cut_off": (b'{"name":"projects', ""),
        }
    )
    def test_success(self, body: bytes, message_id: str) -> None:
        """Any 2xx is success; a message id of another form is left out."""
        for status in (200, 201, 204, 299):
            self.assertEqual(outcome_of(Answer(status, body)), Sent(message_id))

    @cases(
        {
            "unregistered": (refused(404, "NOT_FOUND", fcm("UNREGISTERED")), "UNREGISTERED"),
            "unregistered_410": (refused(410, "X", fcm("UNREGISTERED")), "UNREGISTERED"),
            "not_found": (refused(404, "NOT_FOUND"), "UNREGISTERED"),
            "page": (Answer(404, b"<html>"), "REFUSED"),
            "token": (refused(400, "INVALID_ARGUMENT", fcm("INVALID_ARGUMENT")), "INVALID_TOKEN"),
            "request": (refused(400, "INVALID_ARGUMENT", {"@type": BAD_REQUEST}), "BAD_REQUEST"),
            "both": (
                refused(400, "INVALID_ARGUMENT", fcm("INVALID_ARGUMENT"), {"@type": BAD_REQUEST}),
                "BAD_REQUEST",
            ),
            "neither": (refused(400, "INVALID_ARGUMENT"), "BAD_REQUEST"),
            "other_type": (
                refused(400, "INVALID_ARGUMENT", {"@type": "x", "errorCode": "UNREGISTERED"}),
                "BAD_REQUEST",
            ),
            "bearer": (refused(401, "UNAUTHENTICATED"), "UNAUTHORIZED"),
            "apple": (
                refused(401, "UNAUTHENTICATED", fcm("THIRD_PARTY_AUTH_ERROR")),
                "REFUSED",
            ),
            "project": (refused(403, "PERMISSION_DENIED", fcm("SENDER_ID_MISMATCH")), "REFUSED"),
            "rate": (refused(429, "RESOURCE_EXHAUSTED", fcm("QUOTA_EXCEEDED")), "RATE_LIMITED"),
            "internal": (refused(500, "INTERNAL"), "UNAVAILABLE"),
            "gateway": (Answer(502, b"<html>"), "UNAVAILABLE"),
            "unavailable": (refused(503, "UNAVAILABLE"), "UNAVAILABLE"),
            "moved": (Answer(301), "REDIRECTED"),
            "temporary": (Answer(307), "REDIRECTED"),
            "early": (Answer(100), "REFUSED"),
        }
    )
    def test_failure(self, answer: Answer, fault: str) -> None:
        """Each kind of error has its class."""
        outcome = outcome_of(answer)
        assert isinstance(outcome, Failed)
        self.assertEqual(outcome.fault.name, fault)
        self.assertEqual(outcome.retryable, answer.status in {429, 503})

    @cases(
        {
            "all": (refused(404, "NOT_FOUND", fcm("UNREGISTERED")), "NOT_FOUND UNREGISTERED"),
            "longest": (refused(404, "A" * 64, fcm("B" * 64)), "A" * 64 + " " + "B" * 64),
            "too_long": (refused(404, "A" * 65, fcm("B" * 65)), ""),
            "letters": (refused(404, "hunter2", fcm("É")), ""),
            "line": (refused(404, "A\n", fcm("A B")), ""),
            "types": (refused(404, 1, fcm(["A"])), ""),
            "no_detail": (refused(404, "", "UNREGISTERED", None, [fcm("A")]), ""),
            "details": (Answer(404, b'{"error":{"details":{"@type":1}}}'), ""),
            "error": (Answer(404, b'{"error":"hunter2"}'), ""),
            "array": (Answer(404, b'[{"error":"hunter2"}]'), ""),
            "deep": (Answer(404, b"[" * 4000), ""),
            "not_utf8": (Answer(404, b'{"error":"\xff"}'), ""),
        }
    )
    def test_details(self, answer: Answer, words: str) -> None:
        """Of an error only the status and two codes of a closed form are kept."""
        outcome = outcome_of(answer)
        assert isinstance(outcome, Failed)
        self.assertEqual(" ".join(outcome.details), f"404 {words}".strip())
        self.assertNotIn("hunter", f"{outcome} {outcome!r}")

    def test_retry_after(self) -> None:
        """The server's own time to wait goes on."""
        outcome = outcome_of(Answer(429, retry_after=7.0))
        assert isinstance(outcome, Failed)
        self.assertEqual(outcome.retry_after, 7.0)


class Client:
    """Plays the HTTP client: gives out answers, and keeps what was sent."""

    def __init__(self, *answers: Answer | SendFault) -> None:
        self.answers = [*answers]
        self.sent: list[tuple[str, dict[str, str], Any]] = []
        self.closed = False

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """Give the next answer."""
        self.sent.append((url, headers, json.loads(body)))
        answer = self.answers.pop(0)
        if isinstance(answer, SendFault):
            raise CallError(answer)
        return answer

    async def close(self) -> None:
        """Take note."""
        self.closed = True


class Bearers:
    """Plays the source of access tokens."""

    def __init__(self, *bearers: str | Failed) -> None:
        self.bearers = [*bearers]
        self.forgotten: list[str] = []
        self.closed = False

    async def get(self) -> str | Failed:
        """Give the first one that is not forgotten."""
        return self.bearers[len(self.forgotten)]

    def forget(self, token: str) -> None:
        """Take note."""
        self.forgotten.append(token)

    def close(self) -> None:
        """Take note."""
        self.closed = True


class SendTests(Cases):
    def send(self, client: Client, bearers: Bearers, ttl: float = 299.5) -> Outcome:
        """Send a wake."""
        self.fcm = Fcm(client, bearers, "my-project", "https://fcm.test/")  # type: ignore[arg-type]
        return self.successResultOf(Deferred.fromCoroutine(self.fcm.send("device-1", ttl)))

    def test_message(self) -> None:
        """A message has the device's token, a high priority, a life, and nothing else."""
        client = Client(Answer(200))
        self.assertEqual(self.send(client, Bearers("b-1")), Sent())
        [(url, headers, message)] = client.sent
        self.assertEqual(url, "https://fcm.test/v1/projects/my-project/messages:send")
        expected = {"Authorization": "Bearer b-1", "Content-Type": "application/json"}
        self.assertEqual(headers, expected)
        android = {"priority": "HIGH", "ttl": "300s", "collapse_key": "wake"}
        self.assertEqual(message, {"message": {"token": "device-1", "android": android}})

    def test_no_bearer(self) -> None:
        """Without a bearer nothing is sent."""
        client, failed = Client(), Failed(SendFault.TOKEN_FETCH, ("500",))
        self.assertEqual(self.send(client, Bearers(failed)), failed)
        self.assertEqual(client.sent, [])

    def test_bearer_is_replaced(self) -> None:
        """A bearer that is not accepted is forgotten, and the next one used."""
        client = Client(refused(401, "UNAUTHENTICATED"), Answer(200))
        bearers = Bearers("b-1", "b-2", "b-3")
        self.assertEqual(self.send(client, bearers), Sent())
        self.assertEqual(bearers.forgotten, ["b-1"])
        used = [headers["Authorization"] for _, headers, _ in client.sent]
        self.assertEqual(used, ["Bearer b-1", "Bearer b-2"])

    def test_bearer_is_replaced_once(self) -> None:
        """If the next one is not accepted either, the send has failed."""
        client = Client(*[refused(401, "UNAUTHENTICATED")] * 2)
        outcome = self.send(client, Bearers("b-1", "b-2", "b-3"))
        self.assertEqual(outcome, Failed(SendFault.UNAUTHORIZED, ("401", "UNAUTHENTICATED")))
        self.assertEqual(len(client.sent), 2)

    @cases(
        {
            "disconnected": (SendFault.DISCONNECTED, True),
            "unreachable": (SendFault.UNREACHABLE, True),
            "timeout": (SendFault.TIMEOUT, False),
            "tls": (SendFault.TLS, False),
            "malformed": (SendFault.MALFORMED, False),
        }
    )
    def test_no_answer(self, fault: SendFault, retryable: bool) -> None:
        """Without an answer the send has failed; a lost connection is worth another try."""
        outcome = self.send(Client(fault), Bearers("b-1"))
        self.assertEqual(outcome, Failed(fault, retryable=retryable))

    def test_close(self) -> None:
        """Both the client and the source of bearers are closed."""
        client, bearers = Client(Answer(200)), Bearers("b-1")
        self.send(client, bearers)
        self.successResultOf(Deferred.fromCoroutine(self.fcm.close()))
        self.assertTrue(client.closed and bearers.closed)

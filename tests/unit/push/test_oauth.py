"""Access tokens: one fetch for all who wait, kept until shortly before their end."""

from __future__ import annotations

import json
from urllib.parse import parse_qs

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from pyrycode_relay.push.http_client import Answer, CallError
from pyrycode_relay.push.oauth import AccessTokens
from pyrycode_relay.push.provider import Failed, SendFault
from tests.unit.bench import Cases, cases

URL = "https://oauth.test/token"


class Account:
    """Plays a service account."""

    token_url = URL

    def __init__(self) -> None:
        self.broken = False

    def assertion(self, now: float) -> str:
        """Return an assertion with the time in it."""
        if self.broken:
            raise ZeroDivisionError("hunter2")
        return f"assertion-{now:.0f}"


class Client:
    """Plays the HTTP client: keeps requests, for the test to answer."""

    def __init__(self) -> None:
        self.pending: list[Deferred[Answer]] = []
        self.sent: list[tuple[str, dict[str, str], dict[str, list[str]]]] = []

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """Wait for the test's word."""
        self.sent.append((url, headers, parse_qs(body.decode())))
        answer: Deferred[Answer] = Deferred()
        self.pending.append(answer)
        return await answer

    def answer(self, body: object, status: int = 200) -> None:
        """Answer the oldest request."""
        self.pending.pop(0).callback(Answer(status, json.dumps(body).encode()))

    def grant(self, token: str, seconds: float = 3600) -> None:
        """Give a token."""
        self.answer({"access_token": token, "expires_in": seconds, "token_type": "Bearer"})


class TokenTests(Cases):
    def setUp(self) -> None:
        self.clock = Clock()
        self.account, self.client = Account(), Client()
        self.tokens = AccessTokens(
            self.account,  # type: ignore[arg-type]
            self.client,  # type: ignore[arg-type]
            self.clock,
            lambda: 1_700_000_000 + self.clock.seconds(),
        )

    def get(self) -> Deferred[str | Failed]:
        """Ask for a token."""
        return Deferred.fromCoroutine(self.tokens.get())

    def test_request(self) -> None:
        """The request is RFC 7523's, to the account's own URL."""
        waiting = self.get()
        [(url, headers, fields)] = self.client.sent
        self.assertEqual(url, URL)
        self.assertEqual(headers["Content-Type"], "application/x-www-form-urlencoded")
        expected = {
            "grant_type": ["urn:ietf:params:oauth:grant-type:jwt-bearer"],
            "assertion": ["assertion-1700000000"],
        }
        self.assertEqual(fields, expected)
        self.client.grant("t-1")
        self.assertEqual(self.successResultOf(waiting), "t-1")

    def test_kept(self) -> None:
        """A token is used until ten seconds before its end, and then another is fetched."""
        self.get()
        self.client.grant("t-1", 100)
        self.clock.advance(89.9)
        self.assertEqual(self.successResultOf(self.get()), "t-1")
        self.clock.advance(0.1)
        waiting = self.get()
        self.client.grant("t-2")
        self.assertEqual(self.successResultOf(waiting), "t-2")

    def test_kept_an_hour_at_most(self) -> None:
        """However long a server says that it is good for."""
        self.get()
        self.client.grant("t-1", 1e9)
        self.clock.advance(3590)
        self.get()
        self.assertEqual(len(self.client.pending), 1)

    def test_one_fetch(self) -> None:
        """All who wait at a time get the token of one fetch."""
        waiting = [self.get() for _ in range(5)]
        self.assertEqual(len(self.client.sent), 1)
        self.client.grant("t-1")
        self.assertEqual([self.successResultOf(each) for each in waiting], ["t-1"] * 5)

    def test_who_leaves(self) -> None:
        """Somebody who is cancelled leaves the fetch to the others."""
        first, second = self.get(), self.get()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.client.grant("t-1")
        self.assertEqual(self.successResultOf(second), "t-1")

    def test_forget(self) -> None:
        """A token that is not accepted is fetched anew; one that is replaced already is not."""
        self.get()
        self.client.grant("t-1")
        self.tokens.forget("t-1")
        waiting = self.get()
        self.client.grant("t-2")
        self.assertEqual(self.successResultOf(waiting), "t-2")
        self.tokens.forget("t-1")
        self.assertEqual(self.successResultOf(self.get()), "t-2")

    @cases(
        {
            "refused": ({"error": "invalid_grant hunter2"}, 400),
            "no_token": ({"expires_in": 3600}, 200),
            "no_end": ({"access_token": "hunter2"}, 200),
            "ended": ({"access_token": "hunter2", "expires_in": 0}, 200),
            "past": ({"access_token": "hunter2", "expires_in": -1}, 200),
            "end_type": ({"access_token": "hunter2", "expires_in": "3600"}, 200),
            "token_type": ({"access_token": ["hunter2"], "expires_in": 3600}, 200),
            "empty": ({"access_token": "", "expires_in": 3600}, 200),
            "space": ({"access_token": "hunter 2", "expires_in": 3600}, 200),
            "line": ({"access_token": "hunter2\r\nX: 1", "expires_in": 3600}, 200),
            "letter": ({"access_token": "hünter2", "expires_in": 3600}, 200),
            "array": (["hunter2"], 200),
            "redirect": ({"access_token": "hunter2", "expires_in": 3600}, 302),
        }
    )
    def test_no_token(self, body: object, status: int) -> None:
        """What is no grant is a failure with the status and nothing else; the next one asks."""
        waiting = self.get()
        self.client.answer(body, status)
        expected = Failed(SendFault.TOKEN_FETCH, (str(status),))
        self.assertEqual(self.successResultOf(waiting), expected)
        self.get()
        self.assertEqual(len(self.client.pending), 1)

    def test_no_answer(self) -> None:
        """Without an answer the failure says why."""
        waiting = self.get()
        self.client.pending.pop().errback(CallError(SendFault.TIMEOUT))
        expected = Failed(SendFault.TOKEN_FETCH, ("timeout",))
        self.assertEqual(self.successResultOf(waiting), expected)

    def test_bug(self) -> None:
        """A bug fails the fetch, and is logged without its text."""
        self.account.broken = True
        failed = self.successResultOf(self.get())
        self.assertEqual(failed, Failed(SendFault.TOKEN_FETCH, ("bug",)))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_close(self) -> None:
        """A close ends the fetch for all who wait, and forgets the token."""
        self.get()
        self.client.grant("t-1", 20)
        self.clock.advance(15)
        waiting = self.get()
        self.tokens.close()
        self.assertEqual(self.successResultOf(waiting), Failed(SendFault.CANCELLED))
        self.assertNotIn("t-1", str(vars(self.tokens)))

"""Push wakes as binaries write them: what is read, what is malformed, and what is never shown."""

from __future__ import annotations

import json

import msgspec

from pyrycode_relay.protocol.push_wake import (
    PushWake,
    WakeOutcome,
    WakeRefusal,
    WakeRequest,
    parse,
    push_result,
)
from tests.unit.bench import Cases, cases

LONGEST = "Az09_-" * 10 + "abcd"


def parsed(text: str) -> WakeRequest | None:
    """Return the request in the value of ``push_wake``."""
    return parse(msgspec.Raw(text.encode())).request


class ParseTests(Cases):
    @cases(
        {
            "plain": ('{"platform":"fcm","token":"t"}', WakeRequest("fcm", "t")),
            "unknown_fields": (
                '{"v":[1],"platform":"fcm","token":"t","data":{}}',
                WakeRequest("fcm", "t"),
            ),
            "empty": ("{}", WakeRequest("", "")),
            "reply": (
                '{"platform":"fcm","token":"t","reply":"a-1_B"}',
                WakeRequest("fcm", "t", "a-1_B"),
            ),
            "longest_reply": (f'{{"reply":"{LONGEST}"}}', WakeRequest(reply=LONGEST)),
            "no_reply": ('{"platform":"fcm","reply":null}', WakeRequest("fcm")),
        }
    )
    def test_read(self, text: str, expected: WakeRequest) -> None:
        """Platform, token and reply are read; anything else is passed over."""
        self.assertEqual(parsed(text), expected)

    @cases(
        {
            "null": ("null",),
            "array": ('["fcm"]',),
            "string": ('"fcm"',),
            "platform_type": ('{"platform":1,"token":"t"}',),
            "platform_null": ('{"platform":null,"token":"t"}',),
            "token_type": ('{"platform":"fcm","token":["t"]}',),
            "reply_type": ('{"platform":"fcm","token":"t","reply":1}',),
            "reply_empty": ('{"platform":"fcm","token":"t","reply":""}',),
            "reply_long": (f'{{"reply":"{LONGEST}x"}}',),
            "reply_quote": (r'{"reply":"a\"b"}',),
            "reply_line": (r'{"reply":"a\n"}',),
            "reply_letter": ('{"reply":"é"}',),
            "surrogate": (r'{"token":"\ud800"}',),
        }
    )
    def test_malformed(self, text: str) -> None:
        """What is no object, or has a field of a wrong type, is malformed."""
        self.assertIsNone(parsed(text))

    def test_nothing_shows_the_token(self) -> None:
        """Neither a request nor what carries it has the token in its text."""
        wake = PushWake(WakeRequest("fcm", "hunter2", "hunter3"))
        self.assertNotIn("hunter", f"{wake} {wake!r} {wake.request} {wake.request!r}")


class ResultTests(Cases):
    @cases(
        {
            "sent": (WakeOutcome.SENT, "sent"),
            "unregistered": (WakeOutcome.UNREGISTERED, "unregistered"),
            "send_failed": (WakeOutcome.SEND_FAILED, "failed"),
            "token_fetch_failed": (WakeOutcome.TOKEN_FETCH_FAILED, "failed"),
            "dropped": (WakeOutcome.DROPPED, "dropped"),
        }
    )
    def test_result(self, outcome: WakeOutcome, word: str) -> None:
        """The answer names the wake, and has one of four words."""
        expected = {"push_result": {"reply": "a-1", "outcome": word}}
        self.assertEqual(json.loads(push_result("a-1", outcome)), expected)

    def test_limits(self) -> None:
        """Just the two refusals for too many wakes are those of limits."""
        limits = {each for each in WakeRefusal if each.is_limit}
        self.assertEqual(limits, {WakeRefusal.RATE, WakeRefusal.BUSY})

"""The probe's push wake: how it is written, and that its token is shown nowhere."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.probe.report import ProbeError, Status
from pyrycode_relay.probe.target import TargetError
from pyrycode_relay.probe.wake import Wake, check
from pyrycode_relay.protocol import push_wake
from pyrycode_relay.protocol.envelope import unwrap
from pyrycode_relay.protocol.push_wake import WakeOutcome
from tests.unit.bench import Cases, cases, examples


class WakeTests(Cases):
    @cases(
        {
            "fcm": ("fcm:a:b", ("fcm", "a:b")),
            "webpush": ("webpush:https://push.test/x", ("webpush", "https://push.test/x")),
            "at_within": ("fcm:a@b", ("fcm", "a@b")),
            "longest": (f"fcm:{'x' * 4096}", ("fcm", "x" * 4096)),
        }
    )
    def test_parse(self, text: str, expected: tuple[str, str]) -> None:
        """The platform ends at the first colon; the rest is the token."""
        wake = Wake.parse(text)
        self.assertEqual((wake.platform, wake.token), expected)

    def test_envelope(self) -> None:
        """The relay reads the very request; each has a random reply of the contract's form."""
        wakes = [Wake("fcm", 't"\\\u20ac') for _ in range(20)]
        for wake in wakes:
            request = unwrap(wake.envelope().encode())
            assert isinstance(request, push_wake.PushWake)
            assert request.request is not None
            self.assertEqual(
                (request.request.platform, request.request.token, request.request.reply),
                (wake.platform, wake.token, wake.reply),
            )
            self.assertRegex(wake.reply, re.compile(r"\A[A-Za-z0-9_-]{1,64}\Z", re.ASCII))
        self.assertEqual(len({wake.reply for wake in wakes}), len(wakes))

    @cases({outcome.label: (outcome,) for outcome in WakeOutcome})
    def test_outcomes(self, outcome: WakeOutcome) -> None:
        """The probe knows each outcome of the relay; only sent is a success."""
        wake = Wake("fcm", "token")
        word = wake.outcome(push_wake.push_result(wake.reply, outcome))
        self.assertEqual(word, outcome.word)
        if outcome is WakeOutcome.SENT:
            check(word)
        else:
            error = self.assertRaises(ProbeError, check, word)
            self.assertIs(error.status, Status.NOT_WOKEN)
            self.assertRegex(str(error), r"\A[A-Z][^\n]*\.\Z")

    @given(st.text() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
    @examples(200)
    def test_any_answer(self, answer: str) -> None:
        """Whatever the relay answers, it is an outcome or a sentence."""
        for text in (answer, f'{{"push_result":{answer}}}'):
            error = self.assertRaises(ProbeError, Wake("fcm", "token").outcome, text)
            self.assertIs(error.status, Status.MISBEHAVES)

    @given(st.text(max_size=20))
    @examples(200)
    def test_nothing_is_shown(self, text: str) -> None:
        """Neither a wake's own form nor an error shows the token."""
        secret = f"{text}wake-secret"
        for each in (secret, f"fcm:{secret}", f"fcm:@{secret}", f"fcm:@/nowhere/{secret}"):
            try:
                shown = repr(Wake.parse(each))
            except TargetError as error:
                shown = str(error)
                self.assertRegex(shown, r"\A[A-Z-][^\n]*\.\Z")
            self.assertNotIn("wake-secret", shown)

    def test_nul_in_a_file_name(self) -> None:
        """A name that cannot be a file's is refused like a file that does not exist."""
        self.assertRaises(TargetError, Wake.parse, "fcm:@a\0b")

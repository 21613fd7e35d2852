"""Causes are types: their texts are for people, and nothing in the program depends on one."""

from __future__ import annotations

import ast
from collections import Counter

from pyrycode_relay.http.admission import Bound, Enforcement
from pyrycode_relay.http.paths import PathFault
from pyrycode_relay.http.proxy_protocol import ProxyRefusal
from pyrycode_relay.monitoring.counters import OUTCOMES, Counters
from pyrycode_relay.protocol.close_codes import EndCause, FrameFault
from pyrycode_relay.protocol.envelope import EnvelopeFault
from pyrycode_relay.protocol.header_gate import UpgradeRefusal
from pyrycode_relay.protocol.push_wake import WakeOutcome, WakeRefusal
from pyrycode_relay.push.provider import SendFault
from tests.unit.bench import Cases, cases
from tests.unit.sources import MODULES, SOURCES, Source, within

TEXTS = {
    "protocol.close_codes": {
        *(cause.text for cause in EndCause),
        *(cause.sends.reason for cause in EndCause if cause.sends and cause.sends.reason),
    },
    "protocol.envelope": {fault.text for fault in EnvelopeFault},
    "protocol.header_gate": {refusal.text for refusal in UpgradeRefusal},
    "protocol.push_wake": {refusal.text for refusal in WakeRefusal},
    "push.provider": {fault.text for fault in SendFault},
    "http.admission": {str(each) for each in (*Enforcement, *Bound)},
    "http.paths": {fault.text for fault in PathFault},
    "http.proxy_protocol": {str(refusal) for refusal in ProxyRefusal},
}
"""The texts of causes, by the module of their enum."""


def texts_of_others(source: Source) -> list[str]:
    """Return the strings of a module that are the text of a cause from another module."""
    others = {text for home, texts in TEXTS.items() if home != source.module for text in texts}
    return [
        node.value
        for node in source.nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in others
    ]


class TextTests(Cases):
    @cases(MODULES)
    def test_home(self, source: Source) -> None:
        """The text of a cause stands in the module of its enum, and in no other."""
        self.assertEqual(texts_of_others(source), [])

    @cases(
        {
            f"{home}_{number}".replace(".", "_"): (text,)
            for home, texts in TEXTS.items()
            for number, text in enumerate(sorted(texts))
        }
    )
    def test_found(self, text: str) -> None:
        """A comparison with the text of any cause is found."""
        self.assertEqual(texts_of_others(Source("service", f"reason == {text!r}")), [text])

    def test_apart(self) -> None:
        """Each text has one home."""
        homes = Counter(text for texts in TEXTS.values() for text in texts)
        self.assertEqual([text for text, count in homes.items() if count > 1], [])

    def test_counters(self) -> None:
        """The counters know the causes, and neither the connections nor the endpoints."""
        known = SOURCES["monitoring.counters"].siblings
        self.assertFalse([each for each in known if within(each, "websocket", "endpoints")])


class LabelTests(Cases):
    """Each cause has a label with a cell of its own in a counter."""

    def setUp(self) -> None:
        self.counters = Counters()

    @cases({cause.name: (cause,) for cause in EndCause})
    def test_end(self, cause: EndCause) -> None:
        """The end of a connection counts for its initiator."""
        self.assertIn(("phone", "1000", cause.initiator.value), self.counters.closes.counts)
        if cause.frame_fault is not None:
            self.assertIn((cause.frame_fault.value,), self.counters.frames_refused.counts)

    def test_frames(self) -> None:
        """The cells for refused frames are just the faults."""
        expected = {(fault.value,) for fault in FrameFault}
        self.assertEqual(set(self.counters.frames_refused.counts), expected)

    @cases({fault.name: (fault,) for fault in EnvelopeFault})
    def test_envelope(self, fault: EnvelopeFault) -> None:
        """A refused envelope counts by its fault."""
        self.assertIn((fault.label,), self.counters.envelopes_refused.counts)

    @cases({refusal.name: (refusal,) for refusal in WakeRefusal})
    def test_wake(self, refusal: WakeRefusal) -> None:
        """A refused wake counts by its cause."""
        self.assertIn((refusal.label,), self.counters.push_refusals.counts)

    @cases({fault.name: (fault,) for fault in SendFault})
    def test_send(self, fault: SendFault) -> None:
        """A failed send counts by its outcome."""
        self.assertIn((fault.outcome.label,), self.counters.push_wakes.counts)
        self.assertNotIn(fault.outcome, {WakeOutcome.SENT, WakeOutcome.DROPPED})

    @cases({refusal.name: (refusal,) for refusal in UpgradeRefusal})
    def test_upgrade(self, refusal: UpgradeRefusal) -> None:
        """A refused upgrade counts by its cause."""
        self.assertIn(refusal.label, OUTCOMES)
        counted = (refusal.name.lower(),) in self.counters.requests_refused.counts
        self.assertEqual(counted, refusal is not UpgradeRefusal.NOT_READY)

    @cases({fault.name: (fault,) for fault in PathFault})
    def test_path(self, fault: PathFault) -> None:
        """A request for an unknown path counts by what is wrong with the path."""
        self.assertIn((fault.label,), self.counters.requests_refused.counts)

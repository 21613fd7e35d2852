"""Close codes: the table of the wire contract, word for word, and what a directive leads to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.protocol import close_codes
from pyrycode_relay.protocol.close_codes import (
    Close,
    EndCause,
    FrameFault,
    Initiator,
    Refusal,
    violation,
)
from tests.unit.bench import Cases, cases, examples

CONTRACT = {
    "GRACE_EXPIRED": (1000, ""),
    "SHUTTING_DOWN": (1001, "shutting down"),
    "NOT_JSON": (1007, "frame is not valid JSON"),
    "MESSAGE_TIMEOUT": (1008, "message not completed in time"),
    "HEARTBEAT_TIMEOUT": (1011, "heartbeat timeout"),
    "PHONE_BACKLOG_FULL": (1011, "phone backlog full"),
    "PHONE_WRITE_STALLED": (1011, "phone write stalled"),
    "RECLAIMED": (4404, "binary reclaimed server-id"),
    "CONFLICT": (4409, "server-id already claimed"),
}
"""Codes and reasons that the contract spells out."""

OURS = {
    "NOT_UTF8": 1007,
    "BINARY_BACKLOG_FULL": 1011,
    "BINARY_WRITE_STALLED": 1011,
    "INTERNAL_ERROR": 1011,
}
"""Closes of which the contract fixes no reason: 1007 for UTF-8, and 1011 for trouble."""

ALL = {cause.name: cause.sends for cause in EndCause if cause.sends is not None}


def legal(code: int) -> bool:
    """Whether a code may stand in a close frame, as the contract's section 3 puts it."""
    forbidden = (
        code < 1000
        or code in {1004, 1005, 1006}
        or code == 1015
        or 1016 <= code <= 2999
        or code > 4999
    )
    return not forbidden


class ContractTests(Cases):
    @cases({name: (name, *close) for name, close in CONTRACT.items()})
    def test_word_for_word(self, name: str, code: int, reason: str) -> None:
        """A close that the contract spells out has its code and its exact reason."""
        self.assertEqual(ALL[name], (code, reason))

    @cases({name: (name, code) for name, code in OURS.items()})
    def test_own_reasons(self, name: str, code: int) -> None:
        """A close without a reason in the contract has at least the contract's code."""
        self.assertEqual(ALL[name].code, code)

    def test_no_server(self) -> None:
        """A phone whose server-id nobody holds is told so."""
        self.assertEqual(Refusal.NO_SERVER.value.close, (4404, "no server with that id"))

    def test_at_cap(self) -> None:
        """A phone that is one too many is told so."""
        self.assertEqual(Refusal.AT_CAP.value.close, (4429, "too many phones for server-id"))

    def test_no_other(self) -> None:
        """Every close has a code of the contract's table, and a reason of ours at most for 1011."""
        codes_of_the_contract = {1000, 1001, 1002, 1007, 1008, 1009, 1011, 4404, 4409, 4429}
        self.assertLessEqual({close.code for close in ALL.values()}, codes_of_the_contract)
        known = {*CONTRACT, *OURS, "NO_SERVER", "AT_CAP"}
        self.assertLessEqual({ALL[name].code for name in {*ALL} - known}, {1007, 1011})

    @cases({name: (close,) for name, close in ALL.items()})
    def test_can_be_sent(self, close: Close) -> None:
        """Each close is legal on the wire: its code, and a reason of at most 123 bytes."""
        self.assertTrue(legal(close.code))
        self.assertLessEqual(len(close.reason.encode()), 123)

    @cases({name: (close,) for name, close in ALL.items()})
    def test_literal(self, close: Close) -> None:
        """No reason has a place where an id or an address could be filled in."""
        self.assertRegex(close.reason, r"\A[A-Za-z0-9 -]*\Z")

    def test_gone_without_a_code(self) -> None:
        """What a close notice says of a phone that left without a code is 1001."""
        self.assertEqual(close_codes.GOING_AWAY, 1001)


INITIATORS = {
    "CLOSED_BY_PEER": Initiator.PEER,
    "CONNECTION_LOST": Initiator.NETWORK,
    "CLOSED_BY_BINARY": Initiator.BINARY,
}
"""Who ends a connection if it is not the relay."""


class CauseTests(Cases):
    @cases({cause.name: (cause,) for cause in EndCause})
    def test_initiator(self, cause: EndCause) -> None:
        """The relay initiates each end but those of the peer, the network and the binary."""
        self.assertIs(cause.initiator, INITIATORS.get(cause.name, Initiator.RELAY))

    @cases({cause.name: (cause,) for cause in EndCause})
    def test_text(self, cause: EndCause) -> None:
        """Each cause has a text, which is what the log writes: a literal, of one line."""
        self.assertRegex(cause.text, r"\A[A-Za-z0-9 -]+\Z")
        self.assertEqual(str(cause), cause.text)

    @cases({cause.name: (cause,) for cause in EndCause})
    def test_close(self, cause: EndCause) -> None:
        """A cause has a close frame of its own, or asking for one is an error."""
        if cause.sends is None:
            with self.assertRaises(ValueError):
                _ = cause.close
        else:
            self.assertEqual(cause.close, cause.sends)

    def test_frame(self) -> None:
        """The relay's own causes have a close frame, but for protocol errors: their codes vary."""
        without = {cause.name for cause in EndCause if cause.sends is None}
        protocol = {"PROTOCOL_ERROR", "PROTOCOL_NOT_UTF8", "PROTOCOL_TOO_BIG"}
        self.assertEqual(without, {*INITIATORS, *protocol})

    def test_faults(self) -> None:
        """Whatever can be wrong with a phone's frame ends its connection with a cause."""
        faults = [cause.frame_fault for cause in EndCause if cause.frame_fault is not None]
        self.assertEqual(set(faults), set(FrameFault))

    @cases(
        {
            "utf8": (1007, FrameFault.NOT_UTF8),
            "size": (1009, FrameFault.TOO_BIG),
            "framing": (1002, FrameFault.PROTOCOL),
        }
    )
    def test_violation(self, code: int, fault: FrameFault) -> None:
        """The close code of a protocol violation tells its cause."""
        self.assertIs(violation(code).frame_fault, fault)
        self.assertIsNone(violation(code).sends)


class DirectiveTests(Cases):
    @cases({str(code): (code,) for code in (1000, 1001, 1011, 1014, 3000, 4401, 4421, 4426, 4999)})
    def test_legal(self, code: int) -> None:
        """A legal code closes the phone with that very code and no reason."""
        self.assertEqual(close_codes.for_directive(code), (code, ""))

    @cases(
        {
            str(code): (code,)
            for code in (1, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535)
        }
    )
    def test_illegal(self, code: int) -> None:
        """A code that may not stand in a close frame closes the phone with 1000."""
        self.assertEqual(close_codes.for_directive(code), (1000, ""))

    def test_range(self) -> None:
        """A directive's code is a 16-bit number, and not 0."""
        self.assertEqual((close_codes.MIN_DIRECTIVE, close_codes.MAX_DIRECTIVE), (1, 65535))

    @examples(200)
    @given(st.integers(1, 65535))
    def test_every_code(self, code: int) -> None:
        """Every code a binary may name leads to a legal close: itself if it can, else 1000."""
        self.assertEqual(close_codes.for_directive(code), (code if legal(code) else 1000, ""))

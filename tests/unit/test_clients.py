"""What authors of clients are given: the schema, the page and the examples agree with the relay."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pyrycode_relay.limits import ENVELOPE_ALLOWANCE, Limits
from pyrycode_relay.protocol.close_codes import KNOWN, EndCause
from pyrycode_relay.protocol.envelope import (
    SUFFIX,
    EnvelopeError,
    close_notice,
    data_prefix,
    unwrap,
)
from pyrycode_relay.protocol.push_wake import MAX_TOKEN, PushWake, WakeOutcome, push_result
from tests.clients_page import PAGE, conversations, table
from tests.unit.bench import Cases, cases, examples

ROOT = Path(__file__).parents[2]
SCHEMA: dict[str, Any] = json.loads((ROOT / "docs" / "envelope.schema.json").read_text("utf-8"))
PHONES_ONLY = {1000, 4401, 4404, 4421, 4426, 4429}
DAEMONS_ONLY = {4409}


@cache
def validator(direction: str) -> Draft202012Validator:
    """Return the validator of one direction: ``toBinary`` or ``fromBinary``."""
    return Draft202012Validator({**SCHEMA, "anyOf": [{"$ref": f"#/$defs/{direction}"}]})


def valid(direction: str, message: str | bytes) -> bool:
    """Whether the schema accepts a message."""
    return bool(validator(direction).is_valid(json.loads(message)))


def accepted(message: str) -> bool:
    """Whether the relay accepts a binary's message: it forwards, closes or tries to wake."""
    try:
        envelope = unwrap(message.encode())
    except EnvelopeError:
        return False
    if not isinstance(envelope, PushWake):
        return True
    request = envelope.request
    return (
        request is not None
        and bool(request.platform)
        and 0 < len(request.token.encode()) <= MAX_TOKEN
    )


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
codes = st.one_of(
    st.integers(-2, 70_000),
    st.integers(),
    st.sampled_from([0, 1, 65535, 65536, 1000.5, True, None, "1"]),
)


def mostly(*good: object) -> st.SearchStrategy[object]:
    """Return a strategy of which about half is good; the rest is any JSON."""
    return st.one_of(st.sampled_from(good), st.sampled_from(good), json_values, codes)


wakes = json_values | st.fixed_dictionaries(
    {"platform": mostly("fcm", "webpush"), "token": mostly("t", "t" * 4096, "t" * 4097, "")},
    optional={
        "reply": mostly("aZ09_-", "r" * 64, None) | st.text(max_size=70),
        "more": json_values,
    },
)
about_phones = st.fixed_dictionaries(
    {},
    optional={
        "conn_id": mostly("x", "client-home-0123abcd"),
        "frame": json_values,
        "close_code": mostly(1, 1000, 65535),
        "push_wake": wakes,
        "more": json_values,
    },
)
about_wakes = st.fixed_dictionaries(
    {"push_wake": wakes},
    optional={"conn_id": mostly("", None), "close_code": mostly(1, 1000), "frame": json_values},
)
messages = st.one_of(json_values, about_phones, about_wakes)
server_ids = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=9)
conn_ids = st.builds("client-{}-{:08x}".format, server_ids, st.integers(0, 2**32 - 1))


class SchemaTests(Cases):
    def test_itself(self) -> None:
        """The schema is one, and needs nothing but itself."""
        Draft202012Validator.check_schema(SCHEMA)
        references = re.findall(r'"\$ref": "([^"]+)"', json.dumps(SCHEMA))
        self.assertEqual(
            {each.rpartition("/")[2] for each in references} - set(SCHEMA["$defs"]), set()
        )

    @given(messages)
    @examples(3000)
    def test_from_binaries(self, value: object) -> None:
        """What the schema accepts, the relay accepts, and the other way round."""
        message = json.dumps(value)
        if isinstance(value, dict):
            code = value.get("close_code", 1)
            # The three things that a schema cannot say, or says more strictly: `test_differences`.
            assume(not (isinstance(code, float) and code.is_integer()))
            assume(
                "push_wake" not in value
                or isinstance(code, bool)
                or not isinstance(code, int)
                or 0 < code < 65536
            )
        self.assertEqual(valid("fromBinary", message), accepted(message), message)

    @cases(
        {
            "fraction": ('{"conn_id":"x","close_code":1000.0}', True, False),
            "exponent": ('{"conn_id":"x","close_code":1e3}', True, False),
            "bytes": ('{"push_wake":{"platform":"fcm","token":"%s"}}' % ("é" * 4096), True, False),
            "unused_code": (
                '{"push_wake":{"platform":"fcm","token":"x"},"close_code":0}',
                False,
                True,
            ),
        }
    )
    def test_differences(self, message: str, schema: bool, relay: bool) -> None:
        """Where schema and relay differ, as the schema's comments say."""
        self.assertEqual((valid("fromBinary", message), accepted(message)), (schema, relay))

    @given(conn_ids, json_values)
    @examples(500)
    def test_data_to_binaries(self, conn_id: str, frame: object) -> None:
        """What the relay makes of any frame is what the schema says, and is no close notice."""
        message = data_prefix(conn_id) + json.dumps(frame).encode() + SUFFIX
        self.assertTrue(valid("toBinary", message), message)
        self.assertFalse(valid("toBinary", message.replace(b'"conn_id"', b'"id"', 1)))

    @given(conn_ids, st.sampled_from(sorted(KNOWN)), st.sampled_from(list(WakeOutcome)))
    @examples(200)
    def test_other_messages(self, conn_id: str, code: int, outcome: WakeOutcome) -> None:
        """Close notices and results of wakes are what the schema says."""
        self.assertTrue(valid("toBinary", close_notice(conn_id, code)))
        self.assertTrue(valid("toBinary", push_result("wake-7", outcome)))

    @cases(
        {
            "both": ('{"conn_id":"client-a-00000000","frame":1,"close_code":1000}',),
            "neither": ('{"conn_id":"client-a-00000000"}',),
            "conn_id": ('{"conn_id":"client-a-0000000G","frame":1}',),
            "code": ('{"conn_id":"client-a-00000000","close_code":5000}',),
            "outcome": ('{"push_result":{"reply":"x","outcome":"lost"}}',),
            "array": ("[]",),
        }
    )
    def test_not_from_a_relay(self, message: str) -> None:
        """What a relay never sends."""
        self.assertFalse(valid("toBinary", message))


class PageTests(Cases):
    def test_messages(self) -> None:
        """Each message of the page is by the schema, or one that the relay refuses too."""
        turns = [turn for each in conversations() for turn in each if turn.is_message]
        received = [turn.what for turn in turns if turn.who == "daemon" and not turn.sends]
        sent = [turn.what for turn in turns if turn.who == "daemon" and turn.sends]
        self.assertGreater(len(received), 5)
        for message in received:
            self.assertTrue(valid("toBinary", message), message)
        refused = [message for message in sent if not valid("fromBinary", message)]
        self.assertEqual([message for message in sent if not accepted(message)], refused)
        self.assertEqual((len(refused), len(sent) > 4), (2, True))

    def test_limits(self) -> None:
        """The numbers of the page are the defaults."""
        limits = Limits()
        shown = {row[0]: row[1].replace(",", "") for row in table("what")}
        for row, numbers in {
            "a frame": [limits.max_message_bytes],
            "a daemon's message: a frame and its envelope": [
                limits.max_message_bytes + ENVELOPE_ALLOWANCE
            ],
            "phones for a server-id": [limits.max_phones],
            "connections from one address, or one /64 of IPv6": [
                limits.max_connections_per_address
            ],
            "new connections from one address": [limits.upgrade_burst, int(limits.upgrade_rate)],
            "complete headers of the handshake": [int(limits.header_timeout)],
            "what waits for one phone": [limits.outbox_bytes >> 20],
            "what waits for all peers of the relay": [limits.memory_budget >> 20],
            "what a phone sends while its daemon is away or slow": [limits.hold_bytes >> 20],
        }.items():
            self.assertEqual([*map(int, re.findall(r"\d+", shown[row]))], numbers, row)

    def test_links_to_the_schema(self) -> None:
        """The page names the schema's file."""
        self.assertIn("(envelope.schema.json)", PAGE)


@cache
def example_tables() -> dict[str, dict[Any, str]]:
    """Return what the examples do at each close code and status: the retry, by code and reason."""
    path = str(ROOT / "examples")
    sys.path.insert(0, path)
    try:
        import daemon
        import ends
        import phone
    finally:
        sys.path.remove(path)
    words = {
        ends.Retry.AT_ONCE: "at once",
        ends.Retry.BACKOFF: "backoff",
        ends.Retry.NEVER: "never",
    }
    tables: dict[str, Mapping[Any, tuple[ends.Retry, str]]] = {
        "daemon gets": {**ends.CLOSES, **daemon.CLOSES},
        "phone gets": {**ends.CLOSES, **phone.CLOSES},
        "status": ends.STATUSES,
    }
    return {
        name: {key: words[retry] for key, (retry, _) in rows.items()}
        for name, rows in tables.items()
    }


class TableTests(Cases):
    @cases({name.replace(" ", "_"): (name,) for name in ("daemon gets", "phone gets", "status")})
    def test_examples(self, name: str) -> None:
        """The examples do what the page's tables say, for each code and reason."""
        shown = {}
        for cell, retry, _ in table(name):
            named = re.findall("`([^`]+)`", cell)
            if named:
                code = int(named[0])
                shown[(code, named[1]) if len(named) > 1 else code] = retry
        self.assertEqual(shown, example_tables()[name])

    def test_every_code(self) -> None:
        """The tables have each code that a relay sends, and that the protocol defines."""
        sent = {cause.sends.code for cause in EndCause if cause.sends} | {1002, 1009}
        defined = {code for code in KNOWN if code > 3999}
        codes = {
            name: {int(row[0].split("`")[1]) for row in table(name) if "`" in row[0]}
            for name in ("daemon gets", "phone gets")
        }
        self.assertEqual(codes["phone gets"], (sent | defined) - DAEMONS_ONLY)
        self.assertEqual(codes["daemon gets"], (sent | defined) - PHONES_ONLY)

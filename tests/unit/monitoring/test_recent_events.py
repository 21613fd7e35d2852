"""Recent events: which are kept, how many, and that nobody is to be recognized in them."""

from __future__ import annotations

from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.events import FIELDS, Event, Level
from pyrycode_relay.id_hash import IdHash
from pyrycode_relay.monitoring.recent_events import KEPT, SHOWN, RecentEvents
from pyrycode_relay.protocol import probe_ids
from pyrycode_relay.protocol.close_codes import EndCause
from pyrycode_relay.push.provider import Failed, SendFault
from tests.unit.bench import Cases, examples


class RecentEventsTests(Cases):
    def setUp(self) -> None:
        self.now = 0.0
        self.events = RecentEvents(self.tick, IdHash().of)

    def tick(self) -> float:
        self.now += 1
        return self.now

    def labels(self) -> list[str]:
        return [entry.event for entry in self.events.entries()]

    def test_order(self) -> None:
        """The latest stands first."""
        self.events.saw(Event.STARTING, version="1")
        self.events.saw(Event.SERVER_EXPIRED, server_id="home")
        self.events.saw(Event.DRAINING, reason="x")
        self.assertEqual(self.labels(), ["draining", "server_expired", "starting"])

    def test_details(self) -> None:
        """A sentence of the relay's own stands beside the name, else its counts."""
        self.events.saw(Event.STARTING, version="1", capacity="room for 9")
        self.events.saw(Event.TLS_RELOADED, certificates="a.example")
        self.events.saw(Event.DRAINING, version="1", binaries=1, phones=2)
        self.events.saw(Event.DRAINED, version="1", aborted=3)
        self.assertEqual(
            [entry.reason for entry in self.events.entries()],
            ["3 aborted", "1 binaries, 2 phones", "a.example", "room for 9"],
        )

    def test_what_is_common(self) -> None:
        """Nothing below info is kept, nor what happens all day."""
        for event in Event:
            if event.level < Level.INFO:
                self.events.saw(event, server_id="home", reason="x")
        self.events.saw(Event.PHONE_REGISTERED, server_id="home")
        self.events.saw(Event.SERVER_CLAIMED, server_id="home")
        self.events.saw(Event.PHONE_UNREGISTERED, server_id="home", close_code=1000)
        self.assertEqual(self.labels(), [])
        self.events.saw(Event.PHONE_UNREGISTERED, server_id="home", close_code=1011)
        self.assertEqual(self.labels(), ["phone_unregistered"])

    def test_probes(self) -> None:
        """What a probe causes is not kept; what else happens under such an id is."""
        for event in (Event.SERVER_ID_CONFLICT, Event.SERVER_EXPIRED, Event.SERVER_ID_TAKEOVER):
            self.events.saw(event, server_id=f"{probe_ids.PREFIX}1", remote="192.0.2.1")
        self.assertEqual(self.labels(), ["server_id_takeover"])

    def test_repeats(self) -> None:
        """One thing that happens again and again is one entry, with a number and its last time."""
        for _ in range(3):
            self.events.saw(Event.PHONE_REGISTER_NO_SERVER, server_id="home", remote="192.0.2.1")
        [entry] = self.events.entries()
        self.assertEqual((entry.count, entry.time), (3, 3.0))

    def test_cause(self) -> None:
        """The reason of an event that has a cause is the cause's text."""
        cause = EndCause.PHONE_BACKLOG_FULL
        self.events.saw(Event.PHONE_UNREGISTERED, close_code=cause.close.code, reason=cause)
        [entry] = self.events.entries()
        self.assertEqual(entry.reason, cause.text)

    def test_push(self) -> None:
        """Of a wake that could not be sent the class is kept, and no word of the provider."""
        error = Failed(SendFault.UNAVAILABLE, ("503", "A_PROVIDERS_WORD"))
        self.events.saw(Event.PUSH_WAKE_FAILED, server_id="home", token_fp="0123abcd", err=error)
        self.events.saw(Event.PUSH_WAKE_SENT, server_id="home", token_fp="0123abcd")
        [entry] = self.events.entries()
        self.assertEqual(entry.reason, str(SendFault.UNAVAILABLE))

    def test_bounded(self) -> None:
        """A peer that causes one event with a thousand ids pushes out no other kind."""
        self.events.saw(Event.SERVER_EXPIRED, server_id="home")
        for number in range(1000):
            self.events.saw(Event.PHONE_REGISTER_NO_SERVER, server_id=f"guess-{number}")
        self.assertEqual(self.labels(), ["phone_register_no_server"] * KEPT + ["server_expired"])

    def test_pseudonyms(self) -> None:
        """A server-id has one hash within a process, and another in the next."""
        for each in ("home", "home", "office"):
            self.events.saw(Event.SERVER_EXPIRED, server_id=each)
        first = [entry.server for entry in self.events.entries()]
        self.assertEqual(len(set(first)), 2)
        self.assertEqual({len(each) for each in first}, {8})
        other = RecentEvents(self.tick, IdHash().of)
        other.saw(Event.SERVER_EXPIRED, server_id="home")
        self.assertNotIn(next(iter(other.entries())).server, first)

    @examples(100)
    @given(st.sampled_from(list(Event)), st.sampled_from(sorted(FIELDS - SHOWN)), st.text())
    def test_nobody_is_recognized(self, event: Event, field: str, text: str) -> None:
        """Whatever an event's field carries, but for the relay's own reason, is not kept."""
        secret = f"secret-{text}"
        self.events.saw(event, **{field: secret})
        for entry in self.events.entries():
            self.assertNotIn("secret-", str(asdict(entry)))

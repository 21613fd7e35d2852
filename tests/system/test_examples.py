"""The two example programs and a relay: three processes, and what a user sees of them."""

from __future__ import annotations

from tests.peers.waiting import eventually
from tests.system.harness import Child, Relay, SystemTestCase


def say(example: Child, line: str) -> None:
    """Type a line."""
    example.stdin.write(line.encode() + b"\n")
    example.stdin.flush()


class ExamplesTests(SystemTestCase):
    """``examples/daemon.py`` and ``examples/phone.py``."""

    def start(self) -> tuple[Relay, Child]:
        """Start a relay and the example daemon."""
        relay = self.relay()
        daemon = self.python("daemon.py", relay.url, "home")
        eventually("the daemon serves", lambda: relay.counts() == (1, 0))
        return relay, daemon

    def phone(self, relay: Relay) -> Child:
        """Start an example phone whose terminal is a pipe."""
        return self.python("phone.py", relay.url, "home", stdin=-1)

    def test_a_line_goes_there_and_back(self) -> None:
        """What is typed reaches the daemon, its answer is shown, and the end of one is told."""
        relay, daemon = self.start()
        phone = self.phone(relay)
        say(phone, "good morning, \N{SNOWMAN} and 'you'")
        eventually("the answer is shown", lambda: "\n" in phone.output())
        self.assertEqual(phone.output(), "GOOD MORNING, \N{SNOWMAN} AND 'YOU'\n")
        phone.stdin.close()
        self.assertEqual(phone.wait(), 0, phone.errors())
        eventually("the daemon hears of the end", lambda: "has gone (1000)" in daemon.output())
        conn_id = daemon.output().splitlines()[1].split()[0]
        self.assertRegex(conn_id, r"\Aclient-home-[0-9a-f]{8}\Z")
        self.assertEqual(
            daemon.output().splitlines(),
            [
                "serving home",
                f"{conn_id} says {'good morning, ☃ and ' + repr('you')!r}",
                f"{conn_id} has gone (1000)",
            ],
        )
        self.assertEqual(daemon.errors() + phone.errors(), "")

    def test_three_phones_at_once(self) -> None:
        """Each of three phones sees the answers to its own lines, in order, and no other's."""
        relay, daemon = self.start()
        phones = {name: self.phone(relay) for name in ("ann", "bob", "cat")}
        eventually("three phones are there", lambda: relay.counts() == (1, 3))
        for number in range(5):
            for name, phone in phones.items():
                say(phone, f"{name} {number}")
        for name, phone in phones.items():
            eventually("five answers are shown", lambda p=phone: p.output().count("\n") == 5)
            expected = [f"{name.upper()} {number}" for number in range(5)]
            self.assertEqual(phone.output().splitlines(), expected)
        self.assertEqual(daemon.errors(), "")

    def test_nobody_there(self) -> None:
        """Who comes before the daemon, or before the relay, is told so in a line, and no more."""
        relay = self.relay()
        phone = self.phone(relay)
        eventually("the phone is told", lambda: "no server with that id" in phone.errors())
        phone.stdin.close()
        phone.wait()
        self.assertEqual(phone.errors().count("\n"), 1, phone.errors())
        url = relay.url
        self.assertEqual(relay.stop(), 0)
        for name in ("daemon.py", "phone.py"):
            example = self.python(name, url, "home", stdin=-1)
            self.assertEqual(example.wait(), 1)
            self.assertRegex(example.errors(), r"\A" + url + r": .*\n\Z")

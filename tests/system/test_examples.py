"""The example programs and a relay: real processes, and what a user sees of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
from pathlib import Path

from tests.peers.waiting import eventually, soon
from tests.system.harness import (
    Child,
    Relay,
    SystemTestCase,
    Terminal,
    binary,
    receive,
    send,
)
from tests.system.harness import (
    phone as handset_of,
)
from tests.system.test_probe import answering
from tests.system.test_prometheus import free_port

NAMES = ("daemon", "phone")


def say(example: Child, line: str) -> None:
    """Type a line."""
    example.stdin.write(line.encode() + b"\n")
    example.stdin.flush()


def states(example: Child) -> list[str]:
    """Return what an example says of its connection, without the numbers that are random."""
    lines = (line.partition(": ")[2] for line in example.errors().splitlines())
    return [re.sub(r"waiting \d+\.\d s", "waiting", line) for line in lines]


class ExamplesCase(SystemTestCase):
    def example(self, name: str, url: str, **more: object) -> Child:
        """Start an example."""
        return self.python(f"{name}.py", url, "home", **{"stdin": -1, **more})

    def says(self, example: Child, text: str, times: int = 1) -> None:
        """Wait until an example has said something of its connection so often."""
        eventually(f"it says {text!r}", lambda: example.errors().count(text) >= times)

    def start(self, *options: str) -> tuple[Relay, Child]:
        """Start a relay and the example daemon."""
        relay = self.relay("--log-level=debug", *options)
        daemon = self.example("daemon", relay.url)
        eventually("the daemon serves", lambda: relay.counts()[0] == 1)
        return relay, daemon

    def answered(self, phone: Child, line: str) -> None:
        """Type a line and wait for the answer."""
        say(phone, line)
        eventually("the answer is shown", lambda: f"{line.upper()}\n" in phone.output())


class ConversationTests(ExamplesCase):
    """``examples/daemon.py`` and ``examples/phone.py`` with each other."""

    def test_a_line_goes_there_and_back(self) -> None:
        """What is typed reaches the daemon, its answer is shown, and each state is a line."""
        relay, daemon = self.start()
        phone = self.example("phone", relay.url)
        say(phone, "good morning, \N{SNOWMAN} and 'you'")
        phone.stdin.close()
        self.assertEqual(phone.wait(), 0, phone.errors())
        self.assertEqual(phone.output(), "GOOD MORNING, \N{SNOWMAN} AND 'YOU'\n")
        eventually("the daemon hears of the end", lambda: "has gone (1000)" in daemon.output())
        conn_id = daemon.output().split()[0]
        self.assertRegex(conn_id, r"\Aclient-home-[0-9a-f]{8}\Z")
        self.assertEqual(
            daemon.output().splitlines(),
            [
                f"{conn_id} says {'good morning, ☃ and ' + repr('you')!r}",
                f"{conn_id} has gone (1000)",
            ],
        )
        connecting = f"connecting to {relay.url}/v1/"
        self.assertEqual(states(phone), [f"{connecting}client", "connected", "closed: 1000 (done)"])
        self.assertEqual(states(daemon), [f"{connecting}server", "connected", "serving home"])

    def test_three_phones_at_once(self) -> None:
        """Each of three phones sees the answers to its own lines, in order, and no other's."""
        relay, _ = self.start()
        phones = {name: self.example("phone", relay.url) for name in ("ann", "bob", "cat")}
        eventually("three phones are there", lambda: relay.counts() == (1, 3))
        for number in range(5):
            for name, phone in phones.items():
                say(phone, f"{name} {number}")
        for name, phone in phones.items():
            eventually("five answers are shown", lambda p=phone: p.output().count("\n") == 5)
            expected = [f"{name.upper()} {number}" for number in range(5)]
            self.assertEqual(phone.output().splitlines(), expected)

    def test_an_answer_that_is_too_big(self) -> None:
        """A phone cannot end the daemon with a line whose answer is longer than itself."""
        relay, daemon = self.start()
        phone = self.example("phone", relay.url)
        # A letter of two bytes whose capital has three.
        say(phone, "\N{LATIN SMALL LETTER TURNED A}" * 131_000)
        self.assertEqual(phone.wait(), 1)
        self.assertIn("closed: 1009 (this client sent a message that is too big)", phone.errors())
        self.answered(self.example("phone", relay.url), "again")
        self.assertEqual(states(daemon)[1:], ["connected", "serving home"])

    def test_any_json(self) -> None:
        """Whatever JSON a phone sends, the daemon goes on."""
        relay, daemon = self.start()

        async def scenario() -> None:
            frames = ("9" * 5000, "[" * 880 + "]" * 880, r'"\ud800"', '{"a":1}', "1e999")
            for said, frame in enumerate(frames, 1):
                async with handset_of(relay, "home") as handset:
                    await handset.send(frame)
                    await soon(
                        "the daemon has it",
                        lambda said=said: daemon.output().count(" says ") == said,
                    )

        self.perform(scenario())
        self.answered(self.example("phone", relay.url), "still there")
        self.assertEqual(states(daemon)[1:], ["connected", "serving home"])


class EndTests(ExamplesCase):
    """What ends a connection, and what the examples do then."""

    def test_the_daemon_comes_later(self) -> None:
        """A phone without a daemon tries again, and then sends what was typed before."""
        relay = self.relay()
        phone = self.example("phone", relay.url)
        say(phone, "early")
        self.says(phone, "closed: 4404 no server with that id (the daemon is not connected)")
        self.says(phone, "before a retry: the daemon is not connected")
        self.example("daemon", relay.url)
        eventually("the answer is shown", lambda: phone.output() == "EARLY\n")

    def test_the_daemon_restarts(self) -> None:
        """A phone of a daemon that restarts is closed, and is back at once."""
        relay, daemon = self.start()
        phone = self.example("phone", relay.url)
        self.answered(phone, "one")
        daemon.kill()
        eventually("the grace begins", lambda: relay.counts() == (0, 1))
        self.example("daemon", relay.url)
        self.says(phone, "connected\n", times=2)
        self.answered(phone, "two")
        meaning = "the daemon is back, without a session"
        self.assertEqual(
            phone.errors().splitlines()[2:4],
            [
                f"phone: closed: 4404 binary reclaimed server-id ({meaning})",
                f"phone: waiting 0.0 s before a retry: {meaning}",
            ],
        )

    def test_kept_phones(self) -> None:
        """A phone that the relay keeps has its answer from the new daemon, and sees no close."""
        relay, daemon = self.start("--on-reclaim=keep")
        phone = self.example("phone", relay.url)
        self.answered(phone, "one")
        daemon.kill()
        eventually("the grace begins", lambda: relay.counts() == (0, 1))
        say(phone, "two")
        self.example("daemon", relay.url)
        eventually("the answer is shown", lambda: phone.output() == "ONE\nTWO\n")
        self.assertEqual(states(phone)[1:], ["connected"])

    def test_the_relay_restarts(self) -> None:
        """At a drain both say so, wait, find nobody, and go on when a relay is there again."""
        port = str(free_port())
        relay = self.relay(listen=f"127.0.0.1:{port}")
        examples = {name: self.example(name, relay.url) for name in NAMES}
        self.answered(examples["phone"], "one")
        self.assertEqual(relay.stop(), 0)
        for example in examples.values():
            self.says(example, "closed: 1001 shutting down (the relay shuts down or restarts)")
            self.says(example, "before a retry: the connection is refused; is the relay running?")
        self.relay(listen=f"127.0.0.1:{port}")
        self.answered(examples["phone"], "two")

    def test_conflict(self) -> None:
        """A second daemon is told that there is one, ends with 1, and never says that it serves."""
        relay, first = self.start()
        second = self.example("daemon", relay.url)
        self.assertEqual(second.wait(), 1)
        meaning = "another daemon has this server-id, and is alive"
        self.assertEqual(
            states(second)[1:],
            [
                "connected",
                f"closed: 4409 server-id already claimed ({meaning})",
                f"stopping, a retry cannot help: {meaning}",
            ],
        )
        self.answered(self.example("phone", relay.url), "still there")
        self.assertNotIn("closed", first.errors())

    def test_grace_and_its_end(self) -> None:
        """A phone without an answer says that the daemon may come back, then that it has not."""
        relay, daemon = self.start("--grace=6")
        phone = self.example("phone", relay.url)
        self.answered(phone, "one")
        daemon.kill()
        say(phone, "two")
        self.says(phone, "before a retry")
        self.assertEqual(
            states(phone)[2:5],
            [
                "no answer for 5 s; the daemon may be away, and come back",
                "closed: 1000 (the daemon has gone, and has not come back in time)",
                "waiting before a retry: the daemon has gone, and has not come back in time",
            ],
        )
        self.example("daemon", relay.url)
        eventually("the answer is shown", lambda: phone.output() == "ONE\nTWO\n")

    def test_no_answer_at_the_end(self) -> None:
        """A phone whose last lines have no answer says so in its exit status."""
        relay = self.relay()

        async def scenario() -> None:
            async with binary(relay, "home"):
                phone = self.example("phone", relay.url)
                say(phone, "anybody?")
                phone.stdin.close()
                self.assertEqual(await asyncio.to_thread(phone.wait), 3)

        self.perform(scenario())

    def test_directives(self) -> None:
        """What a daemon closes its phone with is told with its meaning; most of it is for good."""
        relay = self.relay()

        async def scenario() -> None:
            for code, status, meaning in (
                (4401, 1, "pair again"),
                (4421, 1, "begin a new one"),
                (4426, 1, "wants a newer app"),
                (4999, None, "this client does not know the code"),
            ):
                async with binary(relay, "home") as server:
                    phone = self.example("phone", relay.url)
                    say(phone, "hello")
                    conn_id = (await receive(server))["conn_id"]
                    await send(server, {"conn_id": conn_id, "close_code": code})
                    if status is None:
                        await asyncio.to_thread(self.says, phone, "before a retry")
                    else:
                        self.assertEqual(await asyncio.to_thread(phone.wait), status)
                    self.assertRegex(phone.errors(), rf"closed: {code} \(.*{meaning}")
                    phone.kill()

        self.perform(scenario())


class InterruptTests(ExamplesCase):
    """Ctrl-C on a terminal."""

    def terminal(self, name: str, url: str) -> tuple[Child, Terminal]:
        """Start an example on a terminal."""
        example, terminal = self.on_terminal(*self.interpreter(f"{name}.py"), url, "home")
        self.says(example, "connecting to")
        return example, terminal

    def test_connected(self) -> None:
        """Ctrl-C closes with 1000, at once, and ends with 130 and nothing more said."""
        relay, daemon = self.start()
        phone, terminal = self.terminal("phone", relay.url)
        self.says(phone, "connected")
        terminal.press(b"hello\n")
        eventually("the answer is shown", lambda: phone.output() == "HELLO\n")
        terminal.press(b"\x03")
        self.assertEqual(phone.wait(2), 130)
        eventually("the daemon hears of the end", lambda: "has gone (1000)" in daemon.output())
        self.assertEqual(states(phone)[1:], ["connected"])
        other, terminal = self.terminal("daemon", f"{relay.url}/")
        self.assertEqual(other.wait(), 1)
        daemon.signal(signal.SIGINT)
        self.assertEqual(daemon.wait(2), 130)
        eventually("the relay sees it", lambda: "binary_closed server_id=home" in relay.log())
        self.assertRegex(relay.log(), r"binary_closed .* close_code=1000 reason=\"closed by peer\"")
        third, terminal = self.terminal("daemon", relay.url)
        self.says(third, "connected")
        terminal.press(b"\x03")
        self.assertEqual(third.wait(2), 130)

    def test_waiting(self) -> None:
        """Ctrl-C ends a client that waits, and one whose relay does not answer."""
        url = f"ws://127.0.0.1:{free_port()}"
        for name in NAMES:
            example, terminal = self.terminal(name, url)
            self.says(example, "before a retry: the connection is refused")
            terminal.press(b"\x03")
            self.assertEqual(example.wait(2), 130)
            self.assertNotIn("Traceback", example.errors())


class RefusalTests(ExamplesCase):
    """A wrong command line, and everything before the upgrade."""

    def test_usage(self) -> None:
        """What cannot be is status 2 and a sentence, which shows no credential."""
        wrong = []
        for name in NAMES:
            for url, server_id in (
                ("http://127.0.0.1:8080", "home"),
                ("127.0.0.1:8080", "home"),
                ("ws://", "home"),
                ("ws://me:hunter2@127.0.0.1:port", "home"),
                ("ws://127.0.0.1:99999", "home"),
                ("ws://127.0.0.1/?a=b", "home"),
                ("ws://127.0.0.1/ /", "home"),
                ("ws://127.0.0.1", ""),
                ("ws://127.0.0.1", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
                ("ws://127.0.0.1", "a" * 257),
            ):
                wrong.append(self.python(f"{name}.py", url, server_id))
        for example in wrong:
            self.assertEqual(example.wait(), 2, example.process.args)
            self.assertRegex(example.errors(), r"error: .* (the URL of a relay is|1 to 256)")
            self.assertNotIn("Traceback", example.errors())
            self.assertNotIn("hunter2", example.errors())

    def test_help(self) -> None:
        """``--help`` has every exit status."""
        for name, statuses in (("daemon", "1 2 130"), ("phone", "0 3 1 2 130")):
            example = self.python(f"{name}.py", "--help")
            self.assertEqual(example.wait(), 0)
            listed = example.output().partition("exit statuses:\n")[2]
            self.assertEqual(re.findall(r"(?m)^  (\d+) ", listed), statuses.split())

    def test_answers(self) -> None:
        """Each HTTP status has its meaning: some are for good, and some say when to come back."""
        started: list[tuple[Child, str]] = []
        answers = contextlib.ExitStack()
        self.addCleanup(answers.close)
        for status, head, pattern in (
            (400, "", "stopping, .*: HTTP status 400, a header is missing"),
            (404, "", "stopping, .*: HTTP status 404, there is no relay"),
            (421, "", "stopping, .*: HTTP status 421, .* host name"),
            (301, "Location: ws://127.0.0.1:1/\r\n", "stopping, .*: HTTP status 301, not an"),
            (200, "", "stopping, .*: HTTP status 200, not an answer of a relay"),
            (401, "", r"waiting [01]\.\d s before a retry: HTTP status 401"),
            (403, "", r"waiting [01]\.\d s before a retry: HTTP status 403"),
            (429, "Retry-After: 6\r\n", r"waiting [67]\.\d s .*429, too many connections"),
            (503, "Retry-After: 50\r\n", r"waiting [56]\d\.\d s .*503, the relay is full"),
            (503, "Retry-After: 999999\r\n", r"waiting [01]\.\d s .*503"),
            (503, "Retry-After: soon\r\n", r"waiting [01]\.\d s .*503"),
            (502, "", r"waiting [01]\.\d s .*502, not an answer of a relay"),
        ):
            answer = f"HTTP/1.1 {status} x\r\n{head}Content-Length: 0\r\n\r\n".encode()
            url = answers.enter_context(answering(answer))
            started.append((self.example("phone" if status % 2 else "daemon", url), pattern))
        for example, pattern in started:
            eventually("it says what it does", lambda e=example: e.errors().count("\n") > 1)
            self.assertRegex(example.errors().splitlines()[1], pattern)
            if "stopping" in pattern:
                self.assertEqual(example.wait(), 1)
            example.kill()

    def test_no_websocket(self) -> None:
        """Bytes that are no HTTP are told, and a name that nobody has."""
        with answering(b"220 mail.test ESMTP\r\n") as url:
            self.says(self.example("phone", url), "a retry: the answer is not HTTP")
        self.says(self.example("daemon", "ws://relay.invalid"), "a retry: the host name cannot be")

    def test_tls(self) -> None:
        """TLS works with a certificate that is trusted; each way to fail is a sentence."""
        relay, roots = self.tls_relay("127.0.0.1")
        trusting = {"environment": {"SSL_CERT_FILE": str(roots)}}
        url = f"wss://127.0.0.1:{relay.port}"
        self.says(self.example("daemon", url, **trusting), "connected")
        self.says(self.example("daemon", url), "a retry: the certificate is refused: ")
        self.says(self.example("phone", relay.url), "if this port speaks TLS, the URL must begin")
        plain = self.relay("--header-timeout=0.5")
        wrong = self.example("phone", f"wss://127.0.0.1:{plain.port}")
        self.says(wrong, "before a retry: ")
        self.assertNotIn("Traceback", wrong.errors())

    def test_credentials_are_not_shown(self) -> None:
        """The user part of a URL goes to the relay, and to no line."""
        relay = self.relay()
        url = relay.url.replace("://", "://home:hunter2@")
        daemon = self.example("daemon", url)
        self.says(daemon, "connected")
        self.assertNotIn("hunter2", daemon.errors())
        self.assertNotIn("hunter2", json.dumps(relay.log()))


class SizeTests(ExamplesCase):
    def test_small(self) -> None:
        """The examples are for reading: a page or two each."""
        files = [*(Path(self.interpreter("phone.py")[-1]).parent).glob("*.py")]
        self.assertEqual(len(files), 4)
        for path in files:
            lines = path.read_text(encoding="utf-8").count("\n")
            self.assertLess(lines, 180, path.name)

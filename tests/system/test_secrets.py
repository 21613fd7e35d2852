"""What passes through a relay stays out of its log, whatever the peers do and however it logs."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import socket
import uuid
from typing import Any

from pyrycode_relay.events import FIELDS, Event
from tests import needs
from tests.fcm_server import SEND, TOKEN, FcmServer, error
from tests.peers.frames import BINARY, CLOSE, PING, TEXT, frame
from tests.peers.requests import phone_fields, upgrade_request
from tests.peers.waiting import eventually, soon
from tests.system.harness import BarePeer, Relay, SystemTestCase, dial, read_all

LINE_KEYS = FIELDS | {"time", "level", "event", "text", "traceback"}

_VALUE = r'(?:"(?:[^"\\]|\\.)*"|[^\s"]+)'
TEXT_LINE = re.compile(rf"(\S+) (debug|info|warn) (\w+)((?: \w+={_VALUE})*)")
TEXT_FIELD = re.compile(rf" (\w+)={_VALUE}")


class Secrets(dict[str, str]):
    """Unique words, and what each of them was used for."""

    def new(self, use: str) -> str:
        """Return a new word."""
        word = f"S{uuid.uuid4().hex}"
        self[word] = use
        return word

    def found_in(self, text: str) -> list[str]:
        """Return the uses of all words that stand in ``text``."""
        return [use for word, use in self.items() if word in text]


class Visit:
    """A round of peers that are served, refused, closed and cut off, all full of secrets."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.secrets = Secrets()
        self.shown: list[str] = []
        """What the relay has shown to peers, without the frames that it was to bring them."""

    def fields(self, use: str, more: dict[str, str | bytes]) -> dict[str, str | bytes]:
        """Return a phone's headers: a token, a user-agent and others of its own."""
        word = self.secrets.new
        own = {name: word(f"{name} of {use}") for name in ("User-Agent", "Cookie", "Origin")}
        own["Authorization"] = f"Basic {word(f'Authorization of {use}')}"
        return phone_fields("home", word(f"token of {use}")) | own | more

    def query(self, use: str) -> str:
        """Return a query string."""
        return f"?token={self.secrets.new(f'query of {use}')}"

    def phone(self, use: str, path: str = "/v1/client", **more: str | bytes) -> BarePeer:
        """Connect a phone that is upgraded; in the names of ``more``, underscores are hyphens."""
        changes = {name.replace("_", "-"): value for name, value in more.items()}
        return BarePeer(self.relay, path + self.query(use), self.fields(use, changes))

    def binary(self, use: str) -> BarePeer:
        """Connect a binary, which sends a credential, too."""
        fields = self.fields(use, {"X-Pyrycode-Version": "1.2.3"})
        return BarePeer(self.relay, "/v1/server" + self.query(use), fields)

    def refused(
        self,
        status: int,
        path: str,
        use: str,
        more: dict[str, str | bytes],
        connected: socket.socket | None = None,
    ) -> None:
        """See a phone's request refused, on a connection of its own or on an open one."""
        with connected or dial(self.relay.address) as sock:
            sock.sendall(upgrade_request(path + self.query(use), self.fields(use, more)))
            answer = read_all(sock).decode("latin-1")
        assert answer.startswith(f"HTTP/1.1 {status} "), (use, answer)
        self.shown.append(answer)

    def closed(self, code: int, peer: BarePeer, *messages: bytes) -> None:
        """Have a peer send messages, and see it closed with a code."""
        with peer:
            peer.send(b"".join(messages))
            got = peer.ending()
        assert got[0] == code, (code, got)
        self.shown.append(got[1])

    def requests(self) -> None:
        """Send requests that are refused before an upgrade."""
        word = self.secrets.new
        changes: tuple[tuple[str, dict[str, str | bytes]], ...] = (
            ("an empty server-id", {"X-Pyrycode-Server": ""}),
            ("a long server-id", {"X-Pyrycode-Server": word("long server-id") + "x" * 257}),
            ("a control byte", {"X-Note": f"{word('note')}\x0b"}),
            ("a second token", {"x-pyrycode-token": word("second token")}),
            ("a long token", {"X-Pyrycode-Token": word("long token") + "x" * 4096}),
            ("a hidden line", {"X-Pyrycode-Token": b"a\x85Host: " + word("hidden line").encode()}),
            ("an ill-named header", {word("header name") + " x": "1"}),
        )
        for use, more in changes:
            self.refused(400, "/v1/client", use, more)
        self.refused(400, "/v1/server", "a phone at the binaries' door", {})
        self.refused(404, f"/v1/client/{word('path')}", "an unknown path", {})
        self.refused(426, "/v1/client", "another version", {"sec-websocket-version": "8"})
        self.refused(400, "/v1/client", "a second key", {"sec-websocket-key": word("second key")})

    def closings(self) -> None:
        """Have phones of a binary closed for every reason that takes no time; and cut off."""
        word = self.secrets.new
        self.closed(4404, self.phone("no server", X_Pyrycode_Server="nobody"))
        self.closed(4404, self.phone("no server, v2", "/v2/client", X_Pyrycode_Server="nobody"))
        refused = f'"{word("text that is not JSON")}", "conn_id": 1'.encode()
        self.closed(1007, self.phone("not JSON"), frame(TEXT, refused))
        for opcode in (TEXT, BINARY):
            bad = word("text that is not UTF-8").encode() + b"\xff"
            self.closed(1007, self.phone("not UTF-8"), frame(opcode, b'"' + bad + b'"'))
        long = b'"' + word("long text").encode() + b"x" * 300_000 + b'"'
        self.closed(1009, self.phone("too long"), frame(TEXT, long))
        unmasked = frame(TEXT, f'"{word("unmasked text")}"'.encode(), masked=False)
        self.closed(1002, self.phone("a violation"), unmasked)
        reason = word("close reason").encode()
        farewell = frame(CLOSE, b"\x0f\xa1" + reason)
        with self.phone("a ping and a close") as peer:
            peer.send(frame(PING, word("ping").encode()) + farewell)
            list(peer.frames())
        with self.phone("cut off") as peer:
            peer.send(frame(TEXT, f'"{word("half a message")}"'.encode())[:-2])

    def conversation(self, server: BarePeer) -> None:
        """Have the binary and a phone talk, and the binary misbehave."""
        word = self.secrets.new
        coming = server.frames()
        with self.phone("talk", X_Pyrycode_Device_Name="a tablet") as handset:
            payload = word("a phone's payload")
            handset.send(frame(TEXT, json.dumps({payload: payload}).encode()))
            # Notices of phones closed before come first.
            envelope = next(text for _, text in coming if b'"frame"' in text).decode()
            self.shown.append(envelope.replace(payload, "-"))
            self.closed(4429, self.phone("a full house"))
            conn_id = json.loads(envelope)["conn_id"]
            for message in (
                {"conn_id": conn_id, "frame": word("a binary's payload"), word("key"): 1},
                {"conn_id": word("unknown conn_id"), "frame": word("a lost payload")},
                {"conn_id": {word("odd conn_id"): 1}, "frame": 1},
                {"conn_id": conn_id, "close_code": word("odd close code")},
                {"push_wake": {"platform": "fcm", "token": word("push token")}},
                {"push_wake": {"platform": "fcm", "token": word("refused push token")}},
                {"push_wake": {"platform": word("platform"), "token": word("lost push token")}},
                {"push_wake": {"token": word("malformed wake's token"), "reply": word("r") + "!"}},
                {"push_wake": word("malformed wake")},
                [word("an array")],
                {"conn_id": conn_id, "close_code": 4401, "frame": word("the last payload")},
            ):
                server.send(frame(TEXT, json.dumps(message).encode()))
            server.send(frame(TEXT, f"{word('garbage')} \\ud800".encode()))
            came = [each[1] for each in itertools.islice(handset.frames(), 3)]
            assert came[-1] == b"\x11\x31", came
        server.send(frame(PING))
        self.shown += [text.decode() for _, text in until_pong(coming)]
        self.closed(1002, server, frame(3, word("a violation of the binary").encode()))


def until_pong(coming: Any) -> list[tuple[int, bytes]]:
    """Return what comes before the next pong."""
    came = []
    for opcode, payload in coming:
        if opcode == 10:
            break
        came.append((opcode, payload))
    return came


class LogTests(SystemTestCase):
    """Everything at ``--log-level=debug``, in both formats."""

    def visited(self, *options: str) -> tuple[str, Visit]:
        """Run a relay through a visit; return its log."""
        patience = [f"--{name}-timeout=60" for name in ("close", "header", "drain")]
        relay = self.relay("--max-phones=1", "--log-level=debug", *patience, *options)
        visit = Visit(relay)
        with visit.binary("a binary") as server, dial(relay.address) as late:
            visit.requests()
            visit.closings()
            visit.conversation(server)
            with visit.phone("the end"):
                # One that is connected already, and asks when it is too late.
                relay.health()
                relay.signal(signal.SIGTERM)
                eventually("it drains", lambda: "draining" in relay.log())
                visit.refused(503, "/v1/client", "a late one", {}, late)
        self.assertEqual(relay.wait(), 0)
        log = relay.log()
        # What must not be found has to be looked for in the right place.
        for event in (
            Event.REQUEST_REFUSED,
            Event.SERVER_CLAIMED,
            Event.PHONE_REGISTER_NO_SERVER,
            Event.PHONE_REGISTER_AT_CAP,
            Event.PHONE_FRAME_REFUSED,
            Event.PHONE_UNREGISTERED,
            Event.BINARY_ENVELOPE_REFUSED,
            Event.BINARY_UNKNOWN_CONN_ID,
            Event.PUSH_WAKE_DROPPED,
            Event.SERVER_RELEASED,
            Event.DRAINED,
        ):
            self.assertIn(event.label, log)
        self.assertIn("a tablet", log)
        self.assertGreater(len(visit.secrets), 100)
        return log + relay.errors(), visit

    def check(self, log: str, visit: Visit) -> None:
        """See that no secret is in the log, nor in what the relay showed to anybody."""
        self.assertEqual(visit.secrets.found_in(log), [], "in the log")
        self.assertEqual(visit.secrets.found_in("\n".join(visit.shown)), [], "shown to a peer")

    def test_json(self) -> None:
        """Every line is a JSON object whose keys are on the closed list, without any secret."""
        log, visit = self.visited("--log-format=json")
        self.check(log, visit)
        for line in log.splitlines():
            entry = json.loads(line)
            self.assertLessEqual(set(entry), LINE_KEYS)
            self.assertIn(entry["level"], {"debug", "info", "warn"})
            self.assertRegex(entry["time"], r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00\Z")
            self.assertIsInstance(entry["event"], str)

    def test_text(self) -> None:
        """Every line of an event names only fields of the closed list, without any secret."""
        log, visit = self.visited("--log-format=text")
        self.check(log, visit)
        events = {event.label for event in Event}
        for line in log.splitlines():
            match = TEXT_LINE.fullmatch(line)
            if match is None:
                # Not an event of ours: it has none of their names.
                self.assertNotIn(line.split()[2], events)
            else:
                self.assertIn(match[3], events)
                self.assertLessEqual(set(TEXT_FIELD.findall(match[4])), FIELDS)

    def test_push(self) -> None:
        """The same with push: sends that succeed, fail and find no bearer, and what they bring."""
        needs.module("google.auth", "pyrycode-relay[push]")
        google = FcmServer(self.directory)
        self.addCleanup(google.close)
        google.next(TOKEN, {"status": 400, "body": '{"error":"hunter2"}'})
        google.next(SEND, {}, error(400, "INVALID_ARGUMENT"))
        log, visit = self.visited("--log-format=json", *google.options)
        self.check(log, visit)
        self.assertIn(Event.PUSH_WAKE_FAILED.label, log)
        for secret in ("hunter", "PRIVATE", str(google.account()["client_email"])):
            self.assertNotIn(secret, log)
        for line in log.splitlines():
            self.assertLessEqual(set(json.loads(line)), LINE_KEYS)

    def test_names_cannot_break_a_line(self) -> None:
        """Ids and device names with quotes, line ends in UTF-8 and the like stay in their line."""
        for style in ("text", "json"):
            relay = self.relay(f"--log-format={style}", "--log-level=debug")
            server_id = '" level="error" x\\" {event} %s'
            device = 'a\N{LINE SEPARATOR}b\N{NEXT LINE}c\N{RIGHT-TO-LEFT OVERRIDE}d" event=x {text}'
            fields = phone_fields(server_id) | {"X-Pyrycode-Device-Name": device.encode()}
            with (
                BarePeer(
                    relay,
                    "/v1/server",
                    {**phone_fields(server_id), "X-Pyrycode-Version": '{event} "1"'},
                ),
                BarePeer(relay, "/v1/client", fields),
            ):
                asyncio.run(soon("both are there", lambda r=relay: r.counts() == (1, 1)))
            lines = [line for line in relay.log().splitlines() if "_registered" in line]
            self.assertEqual(len(lines), 1, lines)
            if style == "json":
                entry = json.loads(lines[0])
                self.assertEqual(entry["server_id"], server_id)
                self.assertEqual(entry["device_name"], 'abcd" event=x {text}')
            else:
                match = TEXT_LINE.fullmatch(lines[0])
                assert match is not None, lines[0]
                names = TEXT_FIELD.findall(match[4])
                self.assertEqual(
                    names, ["server_id", "id_hash", "conn_id", "device_name", "remote"]
                )

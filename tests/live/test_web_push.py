"""Web Push: requests to a push service in another process, and the guard before them."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from time import time
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from pyrycode_relay.push.address_guard import Address, is_public
from pyrycode_relay.push.guarded_endpoint import GuardedEndpoint, Network
from pyrycode_relay.push.http_client import HttpClient, trust_root
from pyrycode_relay.push.provider import Failed, Outcome, SendFault, Sent
from pyrycode_relay.push.subscription import AllowedHosts
from pyrycode_relay.push.vapid import Vapid
from pyrycode_relay.push.web_push import WebPush
from tests.live.test_tokens import Tokens
from tests.peers.waiting import on_reactor
from tests.runners import clean_failure, forget_log
from tests.unit.push.test_vapid import claims
from tests.web_push_server import HOST, WebPushServer, answering, response

DEADLINE = 15.0
SUBJECT = "mailto:ops@example.org"
CREATED = response("201 Created", f"Location: https://{HOST}/m/message-1")


class Names:
    """A resolver with a script: the next answer for each look-up, the last one again and again."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.asked: list[str] = []
        self._answers = [[ip_address(each) for each in answer] for answer in answers]

    def __call__(self, name: str) -> Deferred[Sequence[Address]]:
        self.asked.append(name)
        return succeed(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])


def only(*addresses: str) -> Callable[[Address], bool]:
    """Return a guard that lets a few addresses through."""
    return {ip_address(each) for each in addresses}.__contains__


class WebPushTestCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="relay-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.server = WebPushServer(self.directory)
        self.addCleanup(self.server.close)
        self.vapid = Vapid(ec.generate_private_key(ec.SECP256R1()), SUBJECT, time)

    def provider(
        self,
        resolve: Callable[[str], Deferred[Sequence[Address]]] | None = None,
        allows: Callable[[Address], bool] | None = None,
        hosts: Sequence[str] = (),
        seconds: float = DEADLINE,
        authority: Path | None = None,
        network: Network | None = None,
    ) -> WebPush:
        """Return a provider; by default every name is the test's push service."""
        network = network or Network(
            resolve or Names(["127.0.0.1"]), allows or only("127.0.0.1"), self.server.port
        )
        connect = partial(GuardedEndpoint, reactor, network)
        trust = trust_root(authority or self.server.authority)
        client = HttpClient(reactor, trust, time, connect, timeout=seconds)
        provider = WebPush(client, self.vapid, AllowedHosts(hosts))
        self.addCleanup(lambda: Deferred.fromCoroutine(provider.close()))
        return provider

    async def send(self, url: str, **how: Any) -> Outcome:
        """Send one wake; afterwards no connection is left."""
        outcome = await self.provider(**how).send(url, 299.9)
        await self.closed()
        return outcome

    async def closed(self) -> None:
        """Wait until the service has no connection."""
        await on_reactor(
            "the connections end",
            lambda: self.server.ended == len(self.server.connections),
            DEADLINE,
        )

    async def fault(self, url: str, **how: Any) -> SendFault:
        """Return why a wake fails."""
        outcome = await self.send(url, **how)
        assert isinstance(outcome, Failed), outcome
        self.assertNotIn(url.partition("//")[2], f"{outcome} {outcome!r}")
        return outcome.fault


class RequestTests(WebPushTestCase):
    async def test_request(self) -> None:
        """A wake is a POST without a body, with the headers of RFC 8030 and RFC 8292."""
        self.assertEqual(await self.send(answering(CREATED)), Sent("message-1"))
        [request] = self.server.requests
        headers = request["headers"]
        self.assertEqual((request["method"], request["body"]), ("POST", ""))
        self.assertEqual(request["path"], answering(CREATED).removeprefix(f"https://{HOST}"))
        self.assertEqual(headers["host"], HOST)
        self.assertEqual(headers["content-length"], "0")
        self.assertEqual((headers["ttl"], headers["urgency"]), ("299", "high"))
        self.assertRegex(headers["topic"], r"\A[A-Za-z0-9_-]{1,32}\Z")
        found = claims(headers["authorization"])
        self.assertEqual((found["aud"], found["sub"]), (f"https://{HOST}", SUBJECT))
        self.assertLess(time(), float(str(found["exp"])))
        self.assertLess(float(str(found["exp"])), time() + 24 * 3600)

    async def test_nothing_is_kept(self) -> None:
        """Strangers choose the hosts, so no connection outlives its wake."""
        provider = self.provider()
        for _ in range(3):
            self.assertIsInstance(await provider.send(answering(CREATED), 300), Sent)
        await self.closed()
        self.assertEqual(len(self.server.connections), 3)

    async def test_one_topic(self) -> None:
        """All wakes of a subscription have one topic: a newer one replaces one that waits."""
        for _ in range(2):
            await self.send(answering(CREATED))
        first, second = (each["headers"]["topic"] for each in self.server.requests)
        self.assertEqual(first, second)

    async def test_success(self) -> None:
        """Every 2xx is a success; a message's name is taken only if it is fit for the log."""
        own = f"https://{HOST}/answer/secret"
        for status, location, name in (
            ("200 OK", None, ""),
            ("202 Accepted", "/m/0:15%25_a-b", "0:15%25_a-b"),
            ("204 No Content", "https://push.example/m/a b", ""),
            ("201 Created", "https://push.example/m/" + "a" * 257, ""),
            ("201 Created", "https://push.example/m/a?b", ""),
            ("201 Created", "https://push.example/m/", ""),
            ("201 Created", f"{own}/answer", ""),
        ):
            headers = [] if location is None else [f"Location: {location}"]
            outcome = await self.send(answering(response(status, *headers)))
            self.assertEqual(outcome, Sent(name), location)

    async def test_failures(self) -> None:
        """Each status has its fault, and only 404 and 410 are a dead token."""
        for status, fault in {
            "300 Multiple Choices": SendFault.REDIRECTED,
            "304 Not Modified": SendFault.REDIRECTED,
            "400 Bad Request": SendFault.BAD_REQUEST,
            "401 Unauthorized": SendFault.UNAUTHORIZED,
            "403 Forbidden": SendFault.UNAUTHORIZED,
            "404 Not Found": SendFault.UNREGISTERED,
            "405 Method Not Allowed": SendFault.REFUSED,
            "410 Gone": SendFault.UNREGISTERED,
            "413 Too Large": SendFault.BAD_REQUEST,
            "418 Teapot": SendFault.REFUSED,
            "429 Too Many Requests": SendFault.RATE_LIMITED,
            "500 Error": SendFault.UNAVAILABLE,
            "503 Unavailable": SendFault.UNAVAILABLE,
            "599 Odd": SendFault.UNAVAILABLE,
            "600 Odd": SendFault.MALFORMED,
        }.items():
            outcome = await self.send(answering(response(status, body="secret")))
            assert isinstance(outcome, Failed)
            self.assertEqual((outcome.fault, outcome.details), (fault, (status[:3],)), status)
            self.assertEqual(outcome.retryable, status[:3] in {"429", "503"}, status)

    async def test_retry_after(self) -> None:
        """A wait is in seconds or a date; one that is too long for a place is not waited for."""
        soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
        for text, least, most, retryable in (
            ("0", 0, 0, True),
            ("30", 30, 30, True),
            ("31", 31, 31, False),
            (soon, 1, 20, True),
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 0, True),
        ):
            outcome = await self.send(answering(response("429 Slow", f"Retry-After: {text}")))
            assert isinstance(outcome, Failed)
            assert outcome.retry_after is not None
            self.assertTrue(least <= outcome.retry_after <= most, (text, outcome.retry_after))
            self.assertEqual(outcome.retryable, retryable, text)
        for text in ("", "soon", "-1", "1.5", "9" * 400, "Thu, 99 Foo 1970 00:00:00 GMT"):
            outcome = await self.send(answering(response("503 Busy", f"Retry-After: {text}")))
            assert isinstance(outcome, Failed)
            self.assertEqual((outcome.retry_after, outcome.retryable), (None, True), text)

    async def test_redirects(self) -> None:
        """No redirect is followed, wherever it leads."""
        for status in ("301", "302", "303", "307", "308"):
            for location in (f"https://{HOST}/answer/eA", "http://127.0.0.1/", "/other"):
                answer = response(f"{status} Moved", f"Location: {location}")
                self.assertIs(await self.fault(answering(answer)), SendFault.REDIRECTED)
        self.assertEqual(len(self.server.connections), 15)


class MisdeedTests(WebPushTestCase):
    async def test_silent(self) -> None:
        """A service that does not answer costs the time-out."""
        self.assertIs(await self.fault(f"https://{HOST}/silent", seconds=0.5), SendFault.TIMEOUT)

    async def test_no_tls(self) -> None:
        """A service that accepts a connection and does not finish TLS costs the time-out; one that
        speaks something else is refused at once. Neither keeps a connection."""
        for said, fault in (
            (b"", SendFault.TIMEOUT),
            (b"\x16\x03\x03", SendFault.TIMEOUT),
            (b"\x16\x03\x03\x3f\xff\x02\xff\xff\xff", SendFault.TIMEOUT),
            (b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", SendFault.TLS),
            (b"\x15\x03\x03\x00\x02\x02\x28", SendFault.TLS),
        ):
            with socket.create_server(("127.0.0.1", 0)) as listening:
                listening.settimeout(DEADLINE)
                port = listening.getsockname()[1]
                network = Network(Names(["127.0.0.1"]), only("127.0.0.1"), port)
                talk = deferToThread(self.converse, listening, said)
                outcome = await self.provider(network=network, seconds=0.5).send(
                    f"https://{HOST}/a", 300
                )
                self.assertEqual(outcome, Failed(fault), said)
                await talk

    def converse(self, listening: socket.socket, said: bytes) -> None:
        """Accept a connection, say something, and read until the client has closed it."""
        with listening.accept()[0] as stream:
            stream.settimeout(DEADLINE)
            stream.sendall(said)
            with contextlib.suppress(ConnectionResetError):
                while stream.recv(65536):
                    pass

    async def test_half_an_answer(self) -> None:
        """So does one that stops within its headers."""
        url = answering(b"HTTP/1.1 201 Created\r\nLoca")
        self.assertIs(await self.fault(url, seconds=0.5), SendFault.TIMEOUT)

    async def test_endless_headers(self) -> None:
        """Headers without end are cut off."""
        self.assertIsInstance(await self.send(f"https://{HOST}/headers"), Failed)

    async def test_long_headers(self) -> None:
        """Headers of 12 KB are read, and more than 16 KiB are not."""
        self.assertEqual(await self.send(f"https://{HOST}/long/4000"), Sent(""))
        self.assertIs(await self.fault(f"https://{HOST}/long/6000"), SendFault.DISCONNECTED)

    async def test_endless_interim_answers(self) -> None:
        """So are answers that say that the answer is still to come."""
        self.assertIsInstance(await self.send(f"https://{HOST}/interim"), Failed)

    async def test_endless_body(self) -> None:
        """A body without end is cut off; the status was enough."""
        self.assertEqual(await self.send(f"https://{HOST}/body"), Sent(""))

    async def test_lost(self) -> None:
        """A connection that ends before the answer is a failure."""
        self.assertIs(await self.fault(f"https://{HOST}/lost"), SendFault.DISCONNECTED)

    async def test_malformed(self) -> None:
        """What is no HTTP is a failure."""
        for answer in (b"SSH-2.0-x\r\n\r\n", b"\0" * 100 + b"\r\n\r\n", b"HTTP/1.1 ten OK\r\n\r\n"):
            self.assertIs(await self.fault(answering(answer)), SendFault.MALFORMED, answer)

    async def test_odd_status(self) -> None:
        """So is a status that has not three digits: it would stand in the log."""
        for status in ("-429", "0", "99", "1000", "2" + "0" * 2000):
            outcome = await self.send(answering(response(f"{status} OK")))
            self.assertEqual(outcome, Failed(SendFault.MALFORMED), status)

    async def test_odd_answers(self) -> None:
        """Whatever an answer is, the wake has an outcome, and no error is logged."""
        for answer in (
            b"HTTP/1.0 201 Created\r\n\r\n",
            b"HTTP/9.9 201 Created\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 201\r\n\r\n",
            b"HTTP/1.1  201 Created\r\n\r\n",
            b"\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n",
            b"HTTP/1.1 201 Created\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 201 Created\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nabc",
            b"HTTP/1.1 201 Created\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 201 Created\r\nContent-Length: " + b"9" * 1000 + b"\r\n\r\nabc",
            b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\nHTTP/1.1 410 Gone\r\n\r\n",
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: gzip\r\n\r\nabc",
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n",
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 99 + b"\r\na",
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 2000,
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * 400,
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            b"HTTP/1.1 201 Created\r\nX\r\n\r\n",
            b"HTTP/1.1 201 Created\r\n folded: x\r\n\r\n",
            b"HTTP/1.1 201 Created\r\nX: \0\xff\r\nLocation: \xff\xfe\r\nRetry-After: \xff\r\n\r\n",
            b"HTTP/1.1 201 Created\nContent-Length: 0\n\n",
            b"x" * 2900,
        ):
            outcome = await self.send(answering(answer), seconds=0.3)
            self.assertIsInstance(outcome, (Sent, Failed), answer)
            self.assertEqual(self.flushLoggedErrors(), [], answer)

    async def test_cancelled(self) -> None:
        """A wake that is cancelled leaves nothing, whatever it waits for."""
        hanging: Deferred[Sequence[Address]] = Deferred()
        look_up = Deferred.fromCoroutine(
            self.provider(lambda _: hanging).send(f"https://{HOST}/a", 9)
        )
        answer = Deferred.fromCoroutine(self.provider().send(f"https://{HOST}/silent", 9))
        await on_reactor("the request arrives", lambda: self.server.requests, DEADLINE)
        for each in (look_up, answer):
            each.cancel()
            with self.assertRaises(CancelledError):
                await each
        await self.closed()

    async def test_slow_look_up(self) -> None:
        """The time-out includes the look-up."""
        hanging: Deferred[Sequence[Address]] = Deferred()
        fault = await self.fault(f"https://{HOST}/a", resolve=lambda _: hanging, seconds=0.2)
        self.assertIs(fault, SendFault.TIMEOUT)

    async def test_nobody_listens(self) -> None:
        """An address at which nobody listens cannot be reached."""
        self.server.close()
        outcome = await self.provider().send(f"https://{HOST}/a", 300)
        self.assertEqual(outcome, Failed(SendFault.UNREACHABLE))

    async def test_length(self) -> None:
        """Of a body, 4 KiB are read, however long it is."""
        network = Network(Names(["127.0.0.1"]), only("127.0.0.1"), self.server.port)
        connect = partial(GuardedEndpoint, reactor, network)
        trust = trust_root(self.server.authority)
        client = HttpClient(reactor, trust, time, connect, timeout=DEADLINE)
        answer = await client.post(f"https://{HOST}/body", {}, b"")
        self.assertEqual((answer.status, answer.body), (201, b"x" * 4096))
        await self.closed()


class TrustTests(WebPushTestCase):
    async def test_other_name(self) -> None:
        """The certificate has to be for the name in the URL, whatever the address is."""
        self.assertIs(await self.fault("https://other.example/a"), SendFault.TLS)
        self.assertEqual(self.server.requests, [])

    async def test_address(self) -> None:
        """Or for the address in the URL."""
        self.assertEqual(await self.send(answering(CREATED, "127.0.0.1")), Sent("message-1"))

    async def test_other_authority(self) -> None:
        """It has to be of an authority that is trusted."""
        other = self.directory / "other"
        other.mkdir()
        stranger = WebPushServer(other)
        self.addCleanup(stranger.close)
        fault = await self.fault(f"https://{HOST}/a", authority=stranger.authority)
        self.assertIs(fault, SendFault.TLS)
        self.assertEqual(self.server.requests, [])


class SecretTests(WebPushTestCase):
    async def test_no_url_is_left(self) -> None:
        """No subscription's URL is left in memory once its wake has an outcome."""
        self.patch(Failure, "cleanFailure", clean_failure())
        forget_log()
        provider = self.provider(seconds=0.5, hosts=(HOST, "other.example"))
        tokens = Tokens()
        answers = (
            answering(CREATED),
            answering(response("404 Not Found")),
            answering(b"nothing\n\n"),
        )
        roots = [
            *(*answers, *(f"https://{HOST}/{each}" for each in MISDEEDS)),
            *("https://other.example", "https://forbidden.example", f"http://{HOST}"),
        ]
        faults = set()
        for root in roots:
            outcome = await provider.send(f"{root}/{tokens.new()}", 300)
            faults.add(outcome.fault if isinstance(outcome, Failed) else None)
        self.assertEqual(
            faults,
            {
                *(None, SendFault.UNREGISTERED, SendFault.MALFORMED, SendFault.TIMEOUT),
                *(SendFault.DISCONNECTED, SendFault.TLS, SendFault.FORBIDDEN_HOST),
                SendFault.INVALID_TOKEN,
            },
        )
        await on_reactor("the connections are gone", lambda: not tokens.found(), DEADLINE)


MISDEEDS = ("silent", "headers", "interim", "body", "lost")

FORBIDDEN = (
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1"),
    *("169.254.169.254", "100.100.100.200", "168.63.129.16", "224.0.0.1", "255.255.255.255"),
    *("::1", "::", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1"),
    *("2002:7f00:1::1", "2001:0:7f00:1::1", "fe80::1", "fc00::1", "fec0::1", "ff02::1"),
)


class GuardTests(WebPushTestCase):
    """With the guard of a relay in use; the test's push service is on every address of this
    machine, at the port that connections go to."""

    async def test_names(self) -> None:
        """A name with a forbidden address is connected to nowhere, alone or among others."""
        for address in FORBIDDEN:
            for answer in ([address], ["192.0.2.1", address], [address, "8.8.8.8"]):
                fault = await self.fault(
                    f"https://{HOST}/a", resolve=Names(answer), allows=is_public
                )
                self.assertIs(fault, SendFault.FORBIDDEN_HOST, answer)
        self.assertEqual(self.server.connections, [])

    async def test_addresses(self) -> None:
        """A forbidden address in the URL is not connected to either, and nothing is looked up."""
        names = Names(["127.0.0.1"])
        for address in FORBIDDEN:
            host = f"[{address}]" if ":" in address else address
            for url in (f"https://{host}/a", f"https://{host}:443/a"):
                fault = await self.fault(url, resolve=names, allows=is_public)
                self.assertIs(fault, SendFault.FORBIDDEN_HOST, url)
        self.assertEqual((names.asked, self.server.connections), ([], []))

    async def test_changing_answers(self) -> None:
        """A name is looked up once: the address that was checked is the one connected to."""
        names = Names(["127.0.0.1"], ["127.0.0.2"])
        outcome = await self.send(answering(CREATED), resolve=names, allows=only("127.0.0.1"))
        self.assertEqual(outcome, Sent("message-1"))
        self.assertEqual((names.asked, self.server.connections), ([HOST], ["127.0.0.1"]))

    async def test_changing_answers_each_time(self) -> None:
        """Each wake is checked anew: an address that was good once is not remembered."""
        provider = self.provider(Names(["127.0.0.1"], ["127.0.0.2"]), only("127.0.0.1"))
        self.assertIsInstance(await provider.send(answering(CREATED), 300), Sent)
        outcome = await provider.send(answering(CREATED), 300)
        self.assertEqual(outcome, Failed(SendFault.FORBIDDEN_HOST))
        await self.closed()
        self.assertEqual(self.server.connections, ["127.0.0.1"])

    async def test_next_address(self) -> None:
        """If an address does not answer, the next that was checked is tried."""
        outcome = await self.send(
            answering(CREATED),
            resolve=Names(["::1", "127.0.0.1"]),
            allows=only("::1", "127.0.0.1"),
        )
        self.assertEqual(outcome, Sent("message-1"))

    async def test_no_address(self) -> None:
        """A name without an address cannot be reached."""
        self.assertIs(
            await self.fault(f"https://{HOST}/a", resolve=Names([])), SendFault.UNREACHABLE
        )

    async def test_odd_urls(self) -> None:
        """A URL that is odd is refused before anything is looked up."""
        names = Names(["127.0.0.1"])
        for url in (
            f"http://{HOST}/a",
            f"https://{HOST}:{self.server.port}/a",
            f"https://user@{HOST}/a",
            f"https://{HOST}@127.0.0.1/a",
            f"https://{HOST}\\@127.0.0.1/a",
            f"https://{HOST}./a",
            "https://localhost/a",
            "https://2130706433/a",
        ):
            self.assertIs(await self.fault(url, resolve=names), SendFault.INVALID_TOKEN, url)
        self.assertEqual((names.asked, self.server.connections), ([], []))

    async def test_allowed_hosts(self) -> None:
        """If hosts are named, others are not even looked up."""
        names = Names(["127.0.0.1"])
        hosts = (".push.example", "push.example.org")
        self.assertIs(
            await self.fault(f"https://{HOST}/a", resolve=names, hosts=hosts),
            SendFault.FORBIDDEN_HOST,
        )
        self.assertEqual((names.asked, self.server.connections), ([], []))
        outcome = await self.send(answering(CREATED), resolve=names, hosts=(*hosts, HOST))
        self.assertEqual(outcome, Sent("message-1"))

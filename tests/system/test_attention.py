"""What needs attention, in a real browser: each state is brought about, and the page says so.

Pictures of each state go where `Browser.shoot` puts them, at two widths, light and dark.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import signal
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from selenium.webdriver.common.keys import Keys

from pyrycode_relay.monitoring import thresholds
from tests.ca import Authority
from tests.peers.requests import Headers, binary_fields, phone_fields, upgrade_request
from tests.peers.waiting import DEADLINE, eventually
from tests.system.harness import (
    BarePeer,
    Relay,
    binary,
    ending,
    phone,
    receive,
    send,
    slow_phone,
)
from tests.system.test_status_page import ADMIN, BrowserTestCase, admin_port

HALF_A_SECOND = 0.5

_RATIOS = """
const light = (color) => {
  const parts = color.match(/[\\d.]+/g).slice(0, 3).map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const ground = (element) => {
  const color = getComputedStyle(element).backgroundColor;
  return /, 0\\)$/.test(color) && element.parentElement ? ground(element.parentElement) : color;
};
return [...document.querySelectorAll("header *, #attention *, .since *")]
  .filter((each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
  .filter((each) => each.checkVisibility())
  .map((each) => {
    const [one, other] = [light(getComputedStyle(each).color), light(ground(each))];
    return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  });
"""
"""The contrast of each text in the verdict, as WCAG 2.2 computes it."""

_ITEMS = """
return [...document.querySelectorAll("#attention li")].map((item) => ({
  kind: item.dataset.kind,
  severity: item.dataset.severity,
  text: item.innerText,
  since: item.querySelector("time").dateTime,
  advice: item.querySelector("details p").textContent,
}));
"""


def upgrade(relay: Relay, source: str, path: str, fields: Headers) -> socket.socket:
    """Ask for an upgrade from an address of the loopback; return the connection."""
    port = relay.port
    sock = socket.create_connection(("127.0.0.1", port), DEADLINE, source_address=(source, 0))
    sock.sendall(upgrade_request(path, fields))
    return sock


def status_of(sock: socket.socket) -> int:
    """Return the status of the answer."""
    return int(sock.recv(65536).split()[1])


class AttentionCase(BrowserTestCase):
    def look(self, relay: Relay) -> None:
        """Open a relay's page."""
        self.browser.prefer("light")
        self.browser.resize(1280, 1000)
        self.browser.open(f"http://127.0.0.1:{admin_port(relay)}/")
        self.browser.wait(
            "the page has data", lambda: self.browser.text("#started").endswith("UTC")
        )

    def items(self) -> list[dict[str, str]]:
        """Return what the page says needs attention, from top to bottom."""
        found: list[dict[str, str]] = self.browser.run(_ITEMS)
        return found

    def kinds(self) -> list[str]:
        return [each["kind"] for each in self.items()]

    def shows(self, *kinds: str) -> dict[str, dict[str, str]]:
        """Wait until the page shows just these kinds, in this order; return them by kind.

        A busy machine may also stop the relay, which is not what a test without it is about.
        """
        slow = {"stall", "lag"} - set(kinds)

        def found() -> bool:
            return [kind for kind in self.kinds() if kind not in slow] == [*kinds]

        eventually(f"{kinds} are shown", found)
        for item in self.items():
            self.assertRegex(item["text"], r"\bSince .*UTC \(\d+ ")
            self.assertRegex(item["text"], r"^(Act now|Look soon) ")
            self.assertTrue(item["advice"].endswith("."), item)
        return {each["kind"]: each for each in self.items()}

    def ground(self) -> str:
        """Return the color of the page's header."""
        script = "return getComputedStyle(document.querySelector('header')).backgroundColor"
        return str(self.browser.run(script))

    def looks(self, name: str) -> None:
        """Look at the page as it is on a desk and on a phone, by day and by night."""
        browser = self.browser
        for scheme, width in browser.each_look():
            top = browser.run(
                "window.scrollTo(0, 0);"
                "return document.querySelector('#attention').getBoundingClientRect().top"
            )
            self.assertLess(top, 200, "what needs attention does not come first")
            self.assertGreaterEqual(min(browser.run(_RATIOS)), 4.5, f"{scheme}: too faint")
            browser.shoot(f"attention-{name}-{scheme}-{width}")
        browser.prefer("light")
        browser.resize(1280, 1000)
        self.assertEqual(browser.complaints(), [])


class RefusalTests(AttentionCase):
    """One relay to which much happens at once."""

    def test_many(self) -> None:
        """Certificate, lag, backlog, 503, 429, 400 and conflicts: the worst first, with advice.

        The page is watched from when all is well, and its header changes color with the verdict.
        """
        chain, key = self.directory / "chain.pem", self.directory / "key.pem"
        issued = Authority().issue("relay.test", until=timedelta(hours=23, minutes=30))
        issued.store(chain, key)
        calm = self.relay(ADMIN)
        self.look(calm)
        self.shows()
        self.assertEqual(self.browser.text("#verdict"), "All well")
        well = self.ground()
        relay = self.relay(
            *(ADMIN, f"--tls-cert={chain}", f"--tls-key={key}", "--tls-listen=127.0.0.1:0"),
            *("--upgrade-rate=10", "--upgrade-burst=40", "--max-connections-per-address=12"),
            *("--outbox-bytes=100000", "--max-message-bytes=60000", "--send-buffer=4096"),
        )
        self.look(relay)
        self.shows("certificate_ends_now")
        urgent = self.ground()
        self.perform(self.backlog(relay))
        self.perform(self.conflicts(relay))
        self.flood(relay)
        self.stop_for(relay, thresholds.STALL + HALF_A_SECOND)
        items = self.shows(
            *("certificate_ends_now", "stall", "backlog_closes", "refused_at_limit"),
            *("rate_limited", "bad_requests", "conflicts"),
        )
        self.assertEqual(self.browser.text("#verdict"), "7 things need attention")
        self.assertIn("relay.test ends in 23 hours (", items["certificate_ends_now"]["text"])
        self.assertIn("stopped once for more than 1 s", items["stall"]["text"])
        self.assertIn("1 phone was closed", items["backlog_closes"]["text"])
        self.assertIn("1 connection over a limit got 503", items["refused_at_limit"]["text"])
        self.assertIn("(429)", items["rate_limited"]["text"])
        self.assertRegex(items["bad_requests"]["text"], r"3[45]\d upgrades were malformed \(400\)")
        self.assertIn("11 binaries found their server-id taken", items["conflicts"]["text"])
        self.assertNotEqual(well, urgent)
        self.looks("many")
        self.keyboard()

    async def backlog(self, relay: Relay) -> None:
        """Send a phone that reads nothing more than its outbox may hold."""
        async with binary(relay, "b") as server, slow_phone(relay, server) as (_, conn_id):
            frame = {"conn_id": conn_id, "frame": "x" * 50_000}
            for _ in range(20):
                await send(server, frame)
            while "close_code" not in await receive(server):
                pass

    async def conflicts(self, relay: Relay) -> None:
        """Claim a server-id that a live binary holds, one time more than is well."""
        async with binary(relay, "home"):
            for _ in range(thresholds.CONFLICTS + 1):
                async with binary(relay, "home") as rival:
                    self.assertEqual((await ending(rival))[0], 4409)

    def flood(self, relay: Relay) -> None:
        """Have one address exceed its rate, one its number, and many send bad requests."""
        with contextlib.ExitStack() as stack:
            answers = [
                status_of(
                    stack.enter_context(
                        upgrade(relay, "127.0.0.8", "/v1/server", binary_fields(f"{number}"))
                    )
                )
                for number in range(13)
            ]
        self.assertEqual(answers, [101] * 12 + [503])
        flood = int(thresholds.RATE_LIMITED * thresholds.RATE_WINDOW)
        self.assertGreater(self.many(relay, 429, flood + 50, ["127.0.0.9"]), flood)
        bad = int(thresholds.BAD_REQUESTS * thresholds.BAD_WINDOW) + 1
        addresses = [f"127.0.1.{number}" for number in range(1, 21)]
        self.assertEqual(self.many(relay, 400, bad, addresses), bad)

    def many(self, relay: Relay, status: int, count: int, addresses: Sequence[str]) -> int:
        """Send bad requests from these addresses in turn; return how many get this status."""
        found = 0
        for number in range(count):
            with upgrade(relay, addresses[number % len(addresses)], "/v1/client", {}) as sock:
                found += status_of(sock) == status
        return found

    def stop_for(self, relay: Relay, seconds: float) -> None:
        """Stop the relay's process for some time."""
        relay.signal(signal.SIGSTOP)
        time.sleep(seconds)  # the time is the point: the relay must miss its timers
        relay.signal(signal.SIGCONT)

    def keyboard(self) -> None:
        """The advice opens by keyboard, and stays open while the page changes."""
        browser = self.browser
        browser.run("document.activeElement.blur(); window.scrollTo(0, 0)")
        browser.press(Keys.TAB, Keys.TAB)
        self.assertEqual(browser.run("return document.activeElement.innerText"), "What to do")
        browser.press(Keys.ENTER)
        shown = "return document.querySelector('#attention details').open"
        browser.wait("the advice is shown", lambda: browser.run(shown))
        self.assertIn("section “The certificate”", browser.text("#attention li"))
        before = browser.text("#uptime")
        browser.wait("the page has changed", lambda: browser.text("#uptime") != before)
        self.assertTrue(browser.run(shown))
        self.assertEqual(browser.run("return document.activeElement.innerText"), "What to do")
        browser.shoot("attention-advice")


class RoomTests(AttentionCase):
    """Connections, files and memory beside their limits."""

    def test_connections(self) -> None:
        """First only the binaries' reserve is left, then nothing; and phones get 503."""
        relay = self.relay(ADMIN, "--max-connections=10", "--reserve-binaries=0.2")
        self.look(relay)
        with contextlib.ExitStack() as binaries, contextlib.ExitStack() as stack:
            binaries.enter_context(BarePeer(relay, "/v1/server", binary_fields("home")))
            for _ in range(8):
                stack.enter_context(BarePeer(relay, "/v1/client", phone_fields("home")))
            items = self.shows("reserve")
            self.assertIn(
                "Only the 1 place reserved for binaries is left", items["reserve"]["text"]
            )
            with upgrade(relay, "127.0.0.9", "/v1/client", phone_fields("home")) as refused:
                self.assertEqual(status_of(refused), 503)
            self.shows("reserve", "refused_at_limit")
            binaries.enter_context(BarePeer(relay, "/v1/server", binary_fields("office")))
            items = self.shows("connections", "refused_at_limit")
            self.assertIn("10 of 10 connections are taken", items["connections"]["text"])
            bad = "return document.querySelector('#room .bad')?.innerText ?? ''"
            self.browser.wait("it is marked", lambda: "10 of 10" in self.browser.run(bad))
            self.looks("connections")
            # The binaries stay: if they left, the page would say so once it has sampled them.
            stack.close()
            self.shows("refused_at_limit")

    def test_files(self) -> None:
        """Files run out while the relay runs: first nearly, then a connection is lost."""
        relay = self.relay(ADMIN)
        self.look(relay)
        with contextlib.ExitStack() as stack:
            for number in range(40):
                stack.enter_context(BarePeer(relay, "/v1/server", binary_fields(f"{number}")))
            used = int(
                self.browser.run(
                    "return fetch('/status.json').then((one) => one.json())"
                    ".then((data) => data.numbers.open_files)"
                )
            )
            before = resource.prlimit(relay.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, (used + 4, before[1]))
            items = self.shows("files")
            self.assertRegex(items["files"]["text"], rf"\d+ of {used + 4} files are open")
            for _ in range(8):
                sock = stack.enter_context(socket.socket())
                sock.connect(relay.address)
            eventually("a connection was lost", lambda: "accept_failed" in relay.log())
            resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, before)
            self.shows("accept_failures")
            self.looks("files")

    def test_queues(self) -> None:
        """Phones send while their daemon is away, until the memory for queues is nearly full."""
        relay = self.relay(
            *(ADMIN, "--memory-budget=1000000", "--hold-bytes=250000", "--on-reclaim=keep"),
            "--outbox-bytes=300000",
        )
        self.look(relay)
        self.perform(self.held(relay))

    async def held(self, relay: Relay) -> None:
        async with contextlib.AsyncExitStack() as stack:
            server = await binary(relay, "home")
            phones = [await stack.enter_async_context(phone(relay, "home")) for _ in range(4)]
            await server.close()
            for each in phones:
                await send(each, "x" * 210_000)
            items = await asyncio.to_thread(self.shows, "queues")
            self.assertRegex(items["queues"]["text"], r"Queues hold 82\d KiB of 977 KiB")
            await asyncio.to_thread(self.looks, "queues")


class CertificateTests(AttentionCase):
    def test_unreadable(self) -> None:
        """A file that cannot be read is named, and the finding goes when the file is mended."""
        chain, key = self.directory / "chain.pem", self.directory / "key.pem"
        issued = Authority().issue("relay.test").store(chain, key)
        tls = (f"--tls-cert={chain}", f"--tls-key={key}", "--tls-listen=127.0.0.1:0")
        relay = self.relay(ADMIN, *tls)
        self.look(relay)
        self.shows()
        key.write_text("<b>no key</b>", encoding="utf-8")
        relay.signal(signal.SIGHUP)
        text = self.shows("certificate_unreadable")["certificate_unreadable"]["text"]
        self.assertIn("Could not read a certificate.", text)
        self.assertIn(str(key), text)
        self.looks("unreadable")
        issued.store(chain, key)
        relay.signal(signal.SIGHUP)
        self.shows()

    def test_not_obtained(self) -> None:
        """Without a certificate, the page says why the CA gave none."""
        relay = Relay(
            self.directory,
            [
                *(ADMIN, "--insecure-listen=127.0.0.1:0", "--tls-listen=127.0.0.1:0"),
                *("--acme-listen=127.0.0.1:0", "--domain=relay.test"),
                *("--acme-directory=https://127.0.0.1:1/directory",),
                f"--cert-cache={self.directory / 'cache'}",
            ],
        )
        self.addCleanup(self._end, relay)
        eventually("the order failed", lambda: "acme_failed" in relay.log())
        self.look(relay)
        text = self.shows("certificate_missing")["certificate_missing"]["text"]
        self.assertIn("There is no certificate yet.", text)
        self.assertIn("the CA cannot be reached", text)
        self.assertIn("Could not obtain a certificate", self.browser.text("#event-list"))
        self.assertEqual(self.browser.text("#state"), "starting")
        self.looks("not-obtained")


class DrainTests(AttentionCase):
    def test_draining(self) -> None:
        """A relay that waits for a peer's close says that it drains."""
        relay = self.relay(ADMIN, "--drain-timeout=30", "--close-timeout=25")
        self.look(relay)
        with BarePeer(relay, "/v1/server", binary_fields("home")):
            relay.signal(signal.SIGTERM)
            self.shows("draining")
            self.assertEqual(self.browser.text("#state"), "draining")
            self.looks("draining")


class BusiestTests(AttentionCase):
    """Who is busy: by hash, or in clear, and never as markup."""

    EVIL = '<img/src=x onerror="document.body.remove()">'

    def table(self, name: str) -> list[list[str]]:
        rows: list[list[str]] = self.browser.run(
            "return [...document.querySelectorAll(arguments[0] + ' tr')]"
            ".map((row) => [...row.children].map((cell) => cell.innerText))",
            f"#busy-{name}",
        )
        return rows

    async def talk(self, relay: Relay, server_id: str, *looks: Any) -> None:
        """Have a phone talk while somebody looks."""
        async with (
            binary(relay, server_id),
            phone(relay, server_id, local_addr=("127.0.0.77", 0)) as handset,
        ):

            async def speak() -> None:
                while True:
                    await send(handset, "x" * 100)
                    await asyncio.sleep(0.02)

            talking = asyncio.create_task(speak())
            try:
                for look in looks:
                    await asyncio.to_thread(look)
            finally:
                talking.cancel()

    def test_hash(self) -> None:
        """The busiest has the hash that the log has, which the page tells for a server-id."""
        relay = self.relay(ADMIN)
        self.look(relay)

        def seen() -> None:
            logged = re.search(r"server_claimed server_id=home id_hash=(\w{8}) ", relay.log())
            assert logged is not None, relay.log()
            self.browser.wait("a row", lambda: self.table("ids")[0][0] == logged[1])
            [[_, phones, frames, size]] = self.table("ids")
            self.assertEqual(phones, "1")
            self.assertGreater(float(frames), 1)
            self.assertRegex(size, r"\d B|KiB")
            self.assertRegex(self.table("addresses")[0][0], r"\A[0-9a-f]{8}\Z")
            self.assertNotIn("127.0.0.77", self.browser.text("body"))
            self.browser.run("document.getElementById('hash-id').focus()")
            self.browser.press(*"home", Keys.ENTER)
            self.browser.wait("the hash", lambda: self.browser.text("#hash") == logged[1])
            found = "#busy-ids .found"
            self.browser.wait("it is marked", lambda: self.browser.text(found) == logged[1])
            self.browser.shoot("busiest-hash")

        self.perform(self.talk(relay, "home", seen))

    def test_clear(self) -> None:
        """With --status-ids the id and the address stand there, as text whatever they are."""
        relay = self.relay(ADMIN, "--status-ids")
        self.look(relay)

        def seen() -> None:
            self.browser.wait("a row", lambda: self.table("ids")[0][0] == self.EVIL)
            self.assertEqual(self.table("addresses")[0][0], "127.0.0.77")
            self.assertEqual(self.browser.run("return document.images.length"), 0)
            hidden = "return document.getElementById('hashes').hidden"
            self.assertTrue(self.browser.run(hidden))
            inside = "return document.documentElement.scrollWidth <= innerWidth"
            self.browser.resize(390, 1000)
            self.browser.wait("390 pixels show all", lambda: self.browser.run(inside))
            self.browser.run("document.getElementById('busy').scrollIntoView()")
            self.browser.shoot("busiest-clear-390")
            self.assertEqual(self.browser.complaints(), [])

        self.perform(self.talk(relay, self.EVIL, seen))

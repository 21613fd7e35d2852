"""The status page in a real browser, of a relay with traffic; and the metrics over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from typing import Any

from selenium.webdriver.common.keys import Keys
from websockets.asyncio.client import ClientConnection

from tests import needs
from tests.ca import Authority
from tests.fcm_server import SEND, FcmServer, error
from tests.peers.waiting import DEADLINE, eventually
from tests.system.browser import Browser
from tests.system.harness import (
    Relay,
    SystemTestCase,
    binary,
    echo,
    ending,
    phone,
    receive,
    round_trip,
    run_program,
    send,
)

ADMIN = "--admin-listen=127.0.0.1:0"
STRANGER = "127.0.0.77"
"""The address of a phone: the relay's own addresses are on the page, a peer's is not."""

_DRAWN = """
const root = getComputedStyle(document.documentElement);
const line = parseInt(root.getPropertyValue("--first").trim().slice(1), 16);
const color = [line >> 16, (line >> 8) & 255, line & 255];
return [...document.querySelectorAll(".plot")].every((plot) => {
  const canvas = plot.querySelector("canvas");
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let found = 0;
  for (let at = 0; at < data.length; at += 4) {
    found += data[at + 3] > 200 && color.every((each, of) => Math.abs(each - data[at + of]) < 32);
  }
  const empty = /nothing in the last hour/.test(plot.ariaLabel);
  return (empty || found > 5) && Math.abs(canvas.clientWidth - plot.clientWidth) < 2
    && (empty || /now .* between/.test(plot.ariaLabel));
})
"""
"""Whether all charts are as wide as their cards and have pixels of their first line's color.

A chart without data, such as the one of pings while all peers talk, says so in words."""


def admin_port(relay: Relay) -> int:
    """Return where a relay serves the operator's side."""
    found = re.search(r"admin_listening listen=127\.0\.0\.1:(\d+)", relay.log())
    assert found is not None, relay.log()
    return int(found[1])


async def talk(handset: ClientConnection) -> None:
    """Talk with an echoing binary without end."""
    trip = 0
    while True:
        await round_trip(handset, {"trip": trip})
        trip += 1
        await asyncio.sleep(0.01)


class BrowserTestCase(SystemTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.browser = Browser(self.directory)
        self.addCleanup(self.browser.close)


class StatusPageTests(BrowserTestCase):
    def shows(self, card: str) -> list[str]:
        """Return the values that a card shows, in its order."""
        values: Any = self.browser.run(
            "const card = [...document.querySelectorAll('.card')]"
            ".find((each) => each.querySelector('h3').innerText === arguments[0]);"
            "return card ? [...card.querySelectorAll('.value')].map((each) => each.innerText) : []",
            card,
        )
        return [str(each) for each in values]

    def test_page(self) -> None:
        """A person sees how the relay does, live, in a wide and a narrow window, light and dark.

        The page takes nothing from elsewhere, works by keyboard, shows nobody's id, and says so
        when the relay does not answer any more, and that it does again.
        """
        relay = self.relay(ADMIN)
        port = admin_port(relay)
        url = f"http://127.0.0.1:{port}/"
        self.perform(self.with_traffic(relay, url))
        self.outage(relay, port)
        self.assertEqual(self.refusals_of_strangers(port), 421)

    async def with_traffic(self, relay: Relay, url: str) -> None:
        async with (
            binary(relay, "a-very-own-id") as server,
            phone(relay, "a-very-own-id", local_addr=(STRANGER, 0)) as first,
        ):
            answering, talking = asyncio.create_task(echo(server)), asyncio.create_task(talk(first))
            try:
                async with phone(relay, "nobody-with-this-id") as lost:
                    self.assertEqual((await ending(lost))[0], 4404)
                await asyncio.to_thread(self.numbers, url)
                async with phone(relay, "a-very-own-id"):
                    await asyncio.to_thread(self.another_phone)
                await asyncio.to_thread(self.looks)
                await asyncio.to_thread(self.keyboard)
            finally:
                talking.cancel()
                answering.cancel()

    def numbers(self, url: str) -> None:
        browser = self.browser
        browser.prefer("light")
        browser.resize(1280, 1000)
        browser.open(url)
        browser.wait("the page has data", lambda: browser.text("#state") == "ready")
        self.assertEqual(self.shows("Connected"), ["1", "1"])
        browser.wait("frames go", lambda: "0" not in self.shows("Frames per second"))
        self.assertIn(
            "A phone asked for a server-id that nobody holds", browser.text("#event-list")
        )
        self.assertIn("phones whose server-id nobody holds (4404)", browser.text("#refusals"))
        self.assertIn("WebSockets", browser.text("#room"))
        self.assertRegex(browser.text(".since"), r"up \d+ s")
        source = str(browser.run("return document.documentElement.outerHTML"))
        for word in ("a-very-own-id", "nobody-with-this-id", "client-", STRANGER):
            self.assertNotIn(word, source)
        origins = browser.run(
            "return [...new Set(performance.getEntriesByType('resource')"
            ".map((each) => new URL(each.name).origin))]"
        )
        self.assertEqual(origins, [url.rstrip("/")], "the page takes something from elsewhere")
        self.assertEqual(browser.complaints(), [], "the policy, or a script, is broken")

    def another_phone(self) -> None:
        """The page changes by itself."""
        self.browser.wait("a second phone is shown", lambda: self.shows("Connected")[0] == "2")

    def looks(self) -> None:
        browser = self.browser
        grounds = set()
        for scheme in ("light", "dark"):
            browser.prefer(scheme)
            grounds.add(browser.run("return getComputedStyle(document.body).backgroundColor"))
            for name, width in (("wide", 1280), ("narrow", 360)):
                browser.resize(width, 1000)
                inside = "return document.documentElement.scrollWidth <= innerWidth"
                browser.wait(f"a {name} window shows all", lambda s=inside: browser.run(s))
                browser.wait("charts are drawn", self.drawn)
                browser.shoot(f"{scheme}-{name}")
        self.assertEqual(len(grounds), 2, "light and dark look the same")
        small = browser.run(
            "return [...document.querySelectorAll('main *')].filter((each) => each.innerText"
            " && parseFloat(getComputedStyle(each).fontSize) < 12).length"
        )
        self.assertEqual(small, 0, "text that is too small to read")

    def drawn(self) -> bool:
        """Whether each chart has its card's width and its line on it, and says in words what."""
        return bool(self.browser.run(_DRAWN))

    def keyboard(self) -> None:
        """Without a mouse, the tables that stand for the charts can be reached and opened."""
        browser = self.browser
        browser.run("document.activeElement.blur(); window.scrollTo(0, 0)")
        browser.press(Keys.TAB)
        self.assertEqual(browser.run("return document.activeElement.innerText"), "Skip to events")
        browser.press(Keys.TAB)
        self.assertEqual(browser.run("return document.activeElement.tagName"), "SUMMARY")
        outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
        self.assertEqual(outline, "solid", "the focus cannot be seen")
        browser.press(Keys.ENTER)
        rows = "return document.querySelectorAll('details[open] tbody tr').length"
        browser.wait("the table is open", lambda: browser.run(rows))
        self.assertIn("phones", browser.text("details[open] thead"))
        self.assertEqual(browser.complaints(), [])

    def outage(self, relay: Relay, port: int) -> None:
        browser = self.browser
        shown = browser.text("#started")
        self.assertEqual(relay.stop(), 0)
        browser.wait("the page notices", lambda: browser.text("#state") == "unreachable")
        self.assertRegex(
            browser.text("#verdict"),
            r"The relay does not answer\. Last update \d\d:\d\d:\d\d UTC\.",
        )
        self.assertEqual(browser.text("#started"), shown, "what was known is kept")
        browser.wait("its age grows", lambda: re.search(r"updated [2-9]", browser.text("#age")))
        browser.shoot("unreachable")
        self.relay(f"--admin-listen=127.0.0.1:{port}")
        browser.wait("the page notices", lambda: browser.text("#state") == "ready")
        self.assertNotIn("does not answer", browser.text("#verdict"))
        self.assertEqual(self.shows("Connected"), ["0", "0"])

    def refusals_of_strangers(self, port: int) -> int:
        """Return what a page of a foreign name that leads here gets to see."""
        self.browser.open(f"http://rebound.example:{port}/")
        self.assertIn("only to IP addresses and to localhost", self.browser.text("body"))
        return int(
            self.browser.run("return performance.getEntriesByType('navigation')[0].responseStatus")
        )


class PushPageTests(BrowserTestCase):
    """The page of a relay with push."""

    def setUp(self) -> None:
        super().setUp()
        needs.module("google.auth", "pyrycode-relay[push]")
        self.google = FcmServer(self.directory)
        self.addCleanup(self.google.close)

    def test_push(self) -> None:
        """The page shows sent wakes, failures, since when and why, and which provider is paused.

        Without push, there is nothing about it on the page.
        """
        self.browser.resize(1280, 1000)
        plain = self.relay(ADMIN)
        self.browser.open(f"http://127.0.0.1:{admin_port(plain)}/")
        self.browser.wait("the page has data", lambda: self.browser.text("#state") == "ready")
        self.assertFalse(self.is_shown())
        relay = self.relay(ADMIN, *self.google.options)
        self.browser.open(f"http://127.0.0.1:{admin_port(relay)}/")
        self.perform(self.wakes(relay))

    async def wakes(self, relay: Relay) -> None:
        async with binary(relay, "a-very-own-id") as server:

            async def wake() -> str:
                asked = {"platform": "fcm", "token": "device-hunter", "reply": "w"}
                await send(server, {"push_wake": asked})
                answer = await receive(server)
                return str(answer["push_result"]["outcome"])

            self.assertEqual(await wake(), "sent")
            await asyncio.to_thread(self.works)
            self.google.next(SEND, *[error(401, "UNAUTHENTICATED")] * 10)
            outcomes = [await wake() for _ in range(6)]
            self.assertEqual(outcomes, ["failed"] * 5 + ["dropped"])
            await asyncio.to_thread(self.fails)

    def is_shown(self) -> bool:
        """Whether the page has a section about push."""
        return bool(self.browser.run("return document.getElementById('push').checkVisibility()"))

    def row(self, name: str) -> str:
        """Return what stands beside a name in the list about push."""
        rows: Any = self.browser.run(
            "return [...document.querySelectorAll('#push-list dt')]"
            ".map((each) => [each.innerText, each.nextElementSibling.innerText.trim()])"
        )
        return str(dict(rows).get(name, ""))

    def works(self) -> None:
        self.browser.wait("a wake was sent", lambda: self.row("Sent").startswith("1 last "))
        self.assertTrue(self.is_shown())
        self.assertEqual(self.row("Failed"), "0")
        self.assertEqual(self.row("Provider fcm"), "in use")
        self.assertEqual(self.browser.text("#push-failure"), "")

    def fails(self) -> None:
        browser = self.browser
        browser.wait("wakes failed", lambda: self.row("Failed").startswith("5 last "))
        self.assertEqual(self.row("Refused"), "1 (1 at a limit)")
        self.assertEqual(self.row("Provider fcm"), "paused after failures")
        self.assertRegex(
            browser.text("#push-failure"),
            r"^Last failure: the provider does not accept the relay's credentials\. "
            r"No wake has been sent since \d\d:\d\d:\d\d UTC\.$",
        )
        finding = browser.text("#attention [data-kind=push_paused]")
        self.assertIn("Push wakes through fcm are paused after failures.", finding)
        self.assertIn("the provider does not accept the relay's credentials", finding)
        self.assertRegex(finding, r"Since \d\d:\d\d:\d\d UTC")
        events = browser.text("#event-list")
        self.assertIn("A push wake could not be sent (5 times)", events)
        self.assertIn("the provider does not accept the relay's credentials", events)
        source = str(browser.run("return document.documentElement.outerHTML"))
        for word in ("hunter", "a-very-own-id", "UNAUTHENTICATED"):
            self.assertNotIn(word, source)
        for scheme, width in browser.each_look():
            browser.run("document.getElementById('push').scrollIntoView({block: 'end'})")
            browser.shoot(f"push-{scheme}-{width}")
        self.assertEqual(browser.complaints(), [])


class MetricsTests(SystemTestCase):
    """The operator's side of a child process, asked by curl."""

    def curl(self, *arguments: str) -> str:
        run = run_program("curl", "--silent", "--show-error", *arguments)
        self.assertEqual(run.returncode, 0, run.stderr)
        return run.stdout

    def scrape(self, url: str) -> str:
        return self.curl(f"{url}/metrics")

    def test_scrape(self) -> None:
        """What Prometheus reads changes with what happens; the process's own numbers are right."""
        relay = self.relay(ADMIN)
        url = f"http://127.0.0.1:{admin_port(relay)}/metrics"

        async def scenario() -> None:
            async with binary(relay, "b") as server, phone(relay, "b") as handset:
                answering = asyncio.create_task(echo(server))
                await round_trip(handset, "there and back")
                text = await asyncio.to_thread(self.curl, url)
                for line in (
                    "pyrycode_relay_connected_phones 1.0",
                    'pyrycode_relay_frames_forwarded_total{direction="phone_to_binary"} 1.0',
                    'pyrycode_relay_frames_forwarded_total{direction="binary_to_phone"} 1.0',
                    'pyrycode_relay_upgrade_duration_seconds_count{leg="phone"} 1.0',
                ):
                    self.assertIn(line + "\n", text)
                answering.cancel()

        self.perform(scenario())
        found = re.search(r"^process_resident_memory_bytes (\S+)$", self.curl(url), re.MULTILINE)
        assert found is not None
        self.assertLess(abs(float(found[1]) / relay.rss() - 1), 0.2)

    def test_certificate(self) -> None:
        """With TLS there is when the certificate ends, and whether the last reading went well."""
        issued = Authority().issue("relay.test")
        certificate, key = self.directory / "chain.pem", self.directory / "key.pem"
        issued.store(certificate, key)
        tls = (f"--tls-cert={certificate}", f"--tls-key={key}", "--tls-listen=127.0.0.1:0")
        relay = self.relay(ADMIN, *tls)
        url = f"http://127.0.0.1:{admin_port(relay)}"

        def value(name: str) -> float:
            found = re.search(rf"^pyrycode_relay_certificate_{name} (\S+)$", self.scrape(url), re.M)
            assert found is not None, name
            return float(found[1])

        end = issued.chain[0].not_valid_after_utc.timestamp()
        self.assertEqual(value('not_after_seconds{name="relay.test"}'), end)
        self.assertEqual(value("reload_ok"), 1)
        self.assertLess(abs(value("reload_seconds") - time.time()), DEADLINE)
        shown = json.loads(self.curl(f"{url}/status.json"))["certificate"]
        self.assertEqual((shown["not_after"], shown["last_reload_ok"]), (end, True))
        key.write_text("no key any more", encoding="utf-8")
        relay.signal(signal.SIGHUP)
        eventually("the fault shows", lambda: value("reload_ok") == 0)
        self.assertEqual(value('not_after_seconds{name="relay.test"}'), end)

    def test_unix_socket(self) -> None:
        """It can be a UNIX socket, which needs no leave to be served on."""
        path = self.directory / "metrics"
        self.relay(f"--admin-listen=unix:{path}")
        text = self.curl("--unix-socket", str(path), "http://localhost/metrics")
        self.assertIn("pyrycode_relay_build_info", text)

    def test_off(self) -> None:
        """Nothing is served when the address is empty."""
        relay = self.relay("--admin-listen=")
        self.assertNotIn("admin_listening", relay.log())
        self.assertEqual(len(eventually("it listens", relay.addresses)), 1)

"""The operator's side: by which names it lets itself be called, and the words of its page."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.testing import MemoryReactorClock

from pyrycode_relay.config.settings import Settings
from pyrycode_relay.events import Event
from pyrycode_relay.monitoring.admin_site import is_local_host
from pyrycode_relay.monitoring.recent_events import RecentEvents
from pyrycode_relay.service import RelayService
from tests.unit.bench import Cases, cases, examples


class HostTests(Cases):
    @cases(
        {
            "name": ("localhost",),
            "port": ("localhost:9090",),
            "capitals": ("LocalHost:9090",),
            "below": ("relay.localhost:9090",),
            "ipv4": ("127.0.0.1:9090",),
            "bare_ipv4": ("127.0.0.1",),
            "another_ipv4": ("192.0.2.7:9090",),
            "ipv6": ("[::1]:9090",),
            "bare_ipv6": ("[::1]",),
        }
    )
    def test_local(self, host: str) -> None:
        """An address, and the one name that no foreign page can have, are let in."""
        self.assertTrue(is_local_host(host))

    @cases(
        {
            "none": ("",),
            "foreign": ("evil.example:9090",),
            "address_in_front": ("127.0.0.1.evil.example",),
            "localhost_in_front": ("localhost.evil.example:9090",),
            "user": ("localhost@evil.example",),
            "joined": ("evillocalhost",),
            "word_for_port": ("localhost:evil",),
            "two_ports": ("localhost:1:2",),
            "open_bracket": ("[::1",),
            "behind_bracket": ("[::1]evil.example",),
            "bare_colons": ("::1",),
            "trailing_dot": ("localhost.",),
            "list": ("localhost,evil.example",),
            "path": ("localhost/evil.example",),
        }
    )
    def test_foreign(self, host: str) -> None:
        """Everything else is not, least of all what only looks like it."""
        self.assertFalse(is_local_host(host))

    @examples(300)
    @given(st.text(max_size=30))
    def test_any_text(self, host: str) -> None:
        """Any text is a yes or a no, never an error; no dotted name with a letter is a yes."""
        local = is_local_host(host)
        name = host.strip().lower().partition(":")[0]
        if local and not name.startswith("[") and any(each.isalpha() for each in name):
            self.assertTrue(name == "localhost" or name.endswith(".localhost"))


class ChartLibraryTests(Cases):
    def test_version(self) -> None:
        """The version that the page is served with is the one that the documents name."""
        static = files("pyrycode_relay.monitoring").joinpath("static")
        script = static.joinpath("uPlot.iife.min.js").read_text(encoding="utf-8")
        found = re.match(r"/\*! https://github.com/leeoniya/uPlot \(v([\d.]+)\) \*/", script)
        assert found is not None
        page = (Path(__file__).parents[3] / "docs" / "architecture.md").read_text(encoding="utf-8")
        self.assertIn(f"uPlot {found[1]} ", page)
        self.assertIn("MIT License", static.joinpath("uPlot.LICENSE").read_text(encoding="utf-8"))


class WordTests(Cases):
    """The page has words for all that it is to show."""

    def known(self, table: str) -> set[str]:
        """Return the names in one of the page's tables of words."""
        script = files("pyrycode_relay.monitoring").joinpath("static", "words.js").read_text()
        block = script.partition(f"const {table} = {{")[2].partition("};")[0]
        return set(re.findall(r"^  (\w+): \"", block, re.MULTILINE))

    def test_events(self) -> None:
        """Each event that can be kept as notable has its words."""
        recent = RecentEvents(lambda: 0.0, str)
        for event in Event:
            recent.saw(event, close_code=1011)
        self.assertEqual({entry.event for entry in recent.entries()} - self.known("EVENTS"), set())
        self.assertLessEqual(self.known("EVENTS"), {event.label for event in Event})

    def test_refusals(self) -> None:
        """So has each kind of refusal."""
        service = RelayService(MemoryReactorClock(), Settings(("tcp:0",), admin_listen="x"), [])
        assert service.status is not None
        self.assertEqual(self.known("REFUSALS"), set(service.status.metrics.refusals()))

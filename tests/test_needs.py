"""A test that lacks something is skipped with a sentence, and fails in CI."""

from __future__ import annotations

import os
import re
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from twisted.trial.unittest import SkipTest

from tests import needs
from tests.unit.bench import Cases, cases

TESTS = Path(__file__).parent

SKIPS = re.compile(r"[sS]kipTest|\bskip(If|Unless|if)?\s*[(=]|importorskip|xfail|\btodo = ['\"]")
"""What both runners call a skip or an expected failure."""

MISSING: dict[str, tuple[Callable[[], object], str]] = {
    "program": (lambda: needs.program("no-such-program"), "no-such-program is not installed"),
    "programs": (lambda: needs.programs("sh", "no-such-program"), "no-such-program is not"),
    "root": (needs.root, "only root"),
    "namespaces": (needs.namespaces, "only root"),
    "ipv6": (needs.ipv6, "no IPv6"),
    "module": (lambda: needs.module("no_such_module", "it"), "install it"),
    "descriptors": (lambda: needs.descriptors(10**9), "needs 1000000000 open files"),
}


class NeedTests(Cases):
    def setUp(self) -> None:
        """Take everything away that a machine may lack."""
        self.patch(os, "geteuid", lambda: 10_001)
        self.patch(socket, "create_server", mock.Mock(side_effect=OSError))
        self.patch(resource, "getrlimit", lambda _: (256, 4096))

    @cases(MISSING)
    def test_skipped(self, need: Callable[[], object], sentence: str) -> None:
        """On a developer's machine, what is missing is a sentence."""
        with mock.patch.dict(os.environ, CI=""):
            self.assertIn(sentence, str(self.assertRaises(SkipTest, need)))

    @cases(MISSING)
    def test_fails_in_ci(self, need: Callable[[], object], sentence: str) -> None:
        """In CI it is a failure."""
        with mock.patch.dict(os.environ, CI="true"):
            self.assertIn(sentence, str(self.assertRaises(AssertionError, need)))

    def test_found(self) -> None:
        """A program that is there is returned with its path."""
        self.assertTrue(Path(needs.program("sh")).is_file())

    def test_soft_limit(self) -> None:
        """A soft limit below the number is raised, and one above it stays."""
        raised: list[object] = []
        self.patch(resource, "setrlimit", lambda *given: raised.append(given))
        needs.descriptors(200)
        self.assertEqual(raised, [])
        needs.descriptors(1000)
        self.assertEqual(raised, [(resource.RLIMIT_NOFILE, (1000, 4096))])


class SkipTests(Cases):
    def test_nothing_else_skips(self) -> None:
        """No other module of the tests skips anything: a test must not vanish from CI."""
        own = {TESTS / "needs.py", TESTS / "test_needs.py"}
        found = [
            f"{path.relative_to(TESTS)}: {line.strip()}"
            for path in sorted(set(TESTS.rglob("*.py")) - own)
            for line in path.read_text(encoding="utf-8").splitlines()
            if SKIPS.search(line)
        ]
        self.assertEqual(found, [])

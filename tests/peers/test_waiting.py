"""Each way to wait returns what comes, and fails with a sentence if nothing does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.peers.waiting import eventually, on_reactor, soon


def third_time() -> Callable[[], int]:
    """Return what is true when it is asked for the third time."""
    answers: Iterator[int] = iter((0, 0, 3))
    return lambda: next(answers)


class WaitingTests(SynchronousTestCase):
    def test_eventually(self) -> None:
        """A thread blocks until the condition holds."""
        self.assertEqual(eventually("it holds", third_time()), 3)

    def test_soon(self) -> None:
        """Other tasks run meanwhile."""
        seen: list[int] = []

        async def wait() -> int:
            asyncio.get_running_loop().call_soon(seen.append, 1)
            return await soon("it holds", lambda: len(seen))

        self.assertEqual(asyncio.run(wait()), 1)

    def test_deadline(self) -> None:
        """A condition that never holds is a failure, after at least one attempt."""
        asked: list[None] = []
        error = self.assertRaises(
            AssertionError, eventually, "it holds", lambda: asked.append(None), 0.0
        )
        self.assertEqual(str(error), "not within 0 s: it holds")
        self.assertEqual(len(asked), 1)


class ReactorTests(TestCase):
    async def test_on_reactor(self) -> None:
        """The reactor's calls run meanwhile."""
        from twisted.internet import reactor

        seen: list[int] = []
        reactor.callLater(0, seen.append, 1)
        self.assertEqual(await on_reactor("it holds", lambda: len(seen)), 1)

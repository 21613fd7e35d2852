"""What a scrape costs, alone and in a crowd."""

from __future__ import annotations

import time

from twisted.internet.testing import MemoryReactorClock

from pyrycode_relay.config.settings import Settings
from pyrycode_relay.registry.registry import Claimed
from pyrycode_relay.service import RelayService
from tests.unit.bench import Binary, Cases, Leg

BINARIES, PHONES = 500, 16


class CostTests(Cases):
    def cost(self, service: RelayService) -> float:
        """Return the seconds of CPU that a scrape takes, the best of several."""
        assert service.status is not None
        best = 1.0
        for _ in range(10):
            start = time.process_time()
            service.status.metrics.text()
            best = min(best, time.process_time() - start)
        return best

    def test_crowd(self) -> None:
        """A scrape of a relay with 8,000 phones costs little more than one of an empty relay.

        It is the same work but for sums over server-ids, so it is no matter of the
        machine.
        """
        service = RelayService(
            MemoryReactorClock(), Settings(("tcp:0",), admin_listen="127.0.0.1:0"), []
        )
        empty = self.cost(service)
        registry = service.context.registry
        for number in range(BINARIES):
            claimed = registry.claim(f"server-{number}", Binary())
            assert isinstance(claimed, Claimed)
            for _ in range(PHONES):
                registry.register(f"server-{number}", Leg())
        self.assertEqual(registry.phones, BINARIES * PHONES)
        self.assertLess(self.cost(service), 3 * empty)
        registry.close()

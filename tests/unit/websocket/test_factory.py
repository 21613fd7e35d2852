"""The factory: what its connections share, and what each of them has for itself."""

from __future__ import annotations

from random import Random
from types import FunctionType

from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

from pyrycode_relay.limits import Limits
from pyrycode_relay.registry.memory_budget import MemoryBudget
from pyrycode_relay.tally import LegTally
from pyrycode_relay.websocket.connection import RelayProtocol
from pyrycode_relay.websocket.factory import Environment, RelayFactory
from pyrycode_relay.websocket.poller import Poller
from tests.unit.bench import Cases

IMMUTABLE = (bool, bytes, float, int, str, FunctionType, type(None))

SHARED = {"allowedOrigins", "allowedOriginsPatterns", "send_queue", "trafficStats", "versions"}
"""What Autobahn would make for every connection, and could change. All connections share it: the
relay has no use for the queue of slow sending and for the statistics, and options never change."""


def factory() -> RelayFactory[RelayProtocol]:
    """Make a factory of connections that do nothing."""
    clock = Clock()
    environment = Environment(
        clock=clock,
        limits=Limits(),
        group=MemoryBudget(1, clock.seconds).phones,
        max_message_bytes=1000,
        random=Random(1),
        poller=Poller(MemoryReactorClock()),
        tally=LegTally(),
    )
    return RelayFactory(RelayProtocol, environment)


class FactoryTests(Cases):
    def test_settled(self) -> None:
        """The attributes that all connections share cannot change, or are known and unused."""
        common = {
            name: value for name, value in vars(factory().protocol).items() if name[:2] != "__"
        }
        changeable = {name for name, value in common.items() if not isinstance(value, IMMUTABLE)}
        self.assertEqual(changeable, SHARED)
        self.assertGreater(len(common), 50)

    def test_a_connection(self) -> None:
        """A connection has no dictionary: everything is in slots or on the class."""
        connection = factory().connect("/v1/client", {})
        self.assertIsInstance(connection, RelayProtocol)
        self.assertEqual(vars(connection), {})

    def test_each_factory_has_its_options(self) -> None:
        """The options of one factory are those of its connections, and of no others."""
        one, other = factory(), factory()
        other.protocol.maxMessagePayloadSize = 5
        self.assertEqual(one.connect("/", {}).maxMessagePayloadSize, 1000)
        self.assertFalse(hasattr(RelayProtocol, "maxFramePayloadSize"))

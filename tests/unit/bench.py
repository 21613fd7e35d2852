"""What the unit tests share: stand-ins for connections, tables of cases, numbers of examples."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pyrycode_relay.limits import Limits
from pyrycode_relay.protocol.close_codes import Close, EndCause
from pyrycode_relay.registry.drain_time import Pace
from pyrycode_relay.registry.memory_budget import MemoryBudget
from pyrycode_relay.registry.queues import Payload
from pyrycode_relay.registry.slot import Phone

Test = TypeVar("Test", bound=Callable[..., None])

FACTOR = float(os.environ.get("PYRYCODE_RELAY_TEST_EXAMPLES", "0.1"))
"""The share of its examples that each Hypothesis test tries: a tenth by default, so that the unit
tests take seconds; all of them in ``make test``, and twice as many in CI."""


def examples(count: int, **more: Any) -> settings:
    """Return Hypothesis settings for ``count`` examples, times `FACTOR`.

    No deadline, as machines differ; no database, as a run must not depend on the last one. In CI,
    Hypothesis itself takes a fixed seed and prints how to repeat a failure.
    """
    return settings(
        max_examples=max(1, int(count * FACTOR)),
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        **more,
    )


def cases(table: Mapping[str, tuple[Any, ...]]) -> Callable[[Test], Test]:
    """Have `Cases` make one test of the decorated one for each row: its name, its arguments."""

    def mark(test: Test) -> Test:
        test.table = table  # type: ignore[attr-defined]
        return test

    return mark


class Cases(SynchronousTestCase):
    """A test case whose tests may have tables of `cases`."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name, test in [*vars(cls).items()]:
            table = getattr(test, "table", None)
            if table is None:
                continue
            delattr(cls, name)
            if not table:
                raise ValueError(f"{name} has no cases")
            for case, arguments in table.items():
                if {*case} & {*"./"}:
                    raise ValueError(f"trial cannot find {case!r} by its name")
                setattr(cls, f"{name}__{case}", _with(test, arguments))


def _with(test: Callable[..., None], arguments: tuple[Any, ...]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(self: Cases) -> None:
        test(self, *arguments)

    # pytest would take the arguments of what is wrapped for fixtures.
    del run.__wrapped__
    del run.table  # type: ignore[attr-defined]
    return run


class Binary:
    """Stands in for a binary's connection: notes what it is sent.

    It takes ``room`` messages and then is not writable, like a transport whose buffer is full;
    None is no end of room.
    """

    def __init__(self, name: str = "binary", room: int | None = None) -> None:
        self.name = name
        self.remote = name
        self.room = room
        self.inbox: list[bytes] = []

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @property
    def writable(self) -> bool:
        return self.room is None or self.room > 0

    def send(self, *parts: Payload) -> None:
        if not self.writable:
            raise AssertionError("sent to a binary that takes no more")
        if self.room is not None:
            self.room -= 1
        self.inbox.append(b"".join(parts))

    def pace(self) -> Pace:
        return Pace()

    def close(self, cause: EndCause, *, flush: bool = True) -> None:
        raise AssertionError("the registry closes nobody")

    def probe(self, answered: Callable[[bool], None]) -> None:
        raise AssertionError("the registry probes nobody")


class Leg:
    """Stands in for a phone's connection: notes what is asked of it."""

    def __init__(self) -> None:
        self.reading = True
        self.traffic = 0
        self.shed = 0
        self.on_shed: Callable[[], None] = lambda: None
        self.delivered: list[bytes] = []
        self.finished: list[Close] = []

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def backlog_full(self) -> None:
        self.shed += 1
        self.on_shed()

    def deliver(self, frame: Payload) -> bool:
        self.delivered.append(bytes(memoryview(frame)))
        return True

    def close_after_queue(self, close: Close) -> None:
        self.finished.append(close)

    def close(self, cause: EndCause, *, flush: bool = True) -> None:
        raise AssertionError("the registry closes nobody")


def data(phone: Phone, frame: bytes) -> bytes:
    """Return the envelope that brings ``frame`` of ``phone`` to a binary."""
    return b'{"conn_id":"%s","frame":%s}' % (phone.conn_id.encode(), frame)


def notice(phone: Phone, code: int) -> bytes:
    """Return the close notice for ``phone``."""
    return b'{"conn_id":"%s","close_code":%d}' % (phone.conn_id.encode(), code)


def endless() -> MemoryBudget:
    """Return a memory budget that drops nothing."""
    return bounded(Limits().memory_budget)


def bounded(budget: int) -> MemoryBudget:
    """Return a memory budget of so many bytes, for which no time passes."""
    return MemoryBudget(budget, Clock().seconds)

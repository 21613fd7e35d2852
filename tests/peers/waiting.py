"""Waiting for something that happens soon: in a thread, in asyncio, and on Twisted's reactor.

A condition (``holds``) is called without arguments. In a loop, a lambda binds the loop's variables
as defaults.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar, cast

from twisted.internet.task import deferLater

T = TypeVar("T")

DEADLINE: Final = 30.0
"""Seconds after which what has not happened will not happen: far above any need, because machines
are slow at times."""

_PAUSE: Final = 0.01


def eventually(what: str, holds: Callable[..., T], deadline: float = DEADLINE) -> T:
    """Block until ``holds`` returns something true, and return it; fail at the deadline."""
    for _ in _attempts(what, deadline):
        if value := holds():
            break
        time.sleep(_PAUSE)
    return value


async def soon(what: str, holds: Callable[..., T], deadline: float = DEADLINE) -> T:
    """Do as `eventually`, and let other asyncio tasks run meanwhile."""
    for _ in _attempts(what, deadline):
        if value := holds():
            break
        await asyncio.sleep(_PAUSE)
    return value


async def on_reactor(what: str, holds: Callable[..., T], deadline: float = DEADLINE) -> T:
    """Do as `eventually`, and let the reactor run meanwhile."""
    from twisted.internet import reactor

    for _ in _attempts(what, deadline):
        if value := holds():
            break
        await deferLater(cast(Any, reactor), _PAUSE)
    return value


def _attempts(what: str, deadline: float) -> Iterator[None]:
    """Yield until the deadline has passed, then raise."""
    end = time.monotonic() + deadline
    yield
    while time.monotonic() < end:
        yield
    raise AssertionError(f"not within {deadline:g} s: {what}")

"""A bounded number of connections that have not sent their request yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from pyrycode_relay.addresses import limit_key

_SHARES: Final = 8
"""When the room is full, an address may hold this fraction of it without losing its oldest."""

T = TypeVar("T")


class WaitingRoom(Generic[T]):
    """At most ``places`` connections that wait; iterating yields the oldest first.

    When full, it drops the oldest connection, never the newcomer: real clients send their
    request at once. If the newcomer's address holds more than its share, the oldest of that
    address goes, so a flood from one address costs only that address.
    """

    def __init__(self, places: int) -> None:
        self.crowded_out = 0
        """How many connections were dropped so far."""
        self._places = places
        self._share = max(1, places // _SHARES)
        self._keys: dict[T, str] = {}
        self._by_key: dict[str, dict[T, None]] = {}

    def __iter__(self) -> Iterator[T]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def enter(self, connection: T, address: str) -> T | None:
        """Add a connection; return the one that it displaces, which has left the room."""
        key = limit_key(address)
        self._keys[connection] = key
        same_key = self._by_key.setdefault(key, {})
        same_key[connection] = None
        if len(self._keys) <= self._places:
            return None
        oldest = next(iter(same_key if len(same_key) > self._share else self._keys))
        self.leave(oldest)
        self.crowded_out += 1
        return oldest

    def leave(self, connection: T) -> None:
        """Remove a connection, if it is still here."""
        key = self._keys.pop(connection, None)
        if key is None:
            return
        same_key = self._by_key[key]
        del same_key[connection]
        if not same_key:
            del self._by_key[key]

"""The CA as the reactor's thread sees it: coroutines, and a challenge site to validate with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, MutableMapping, Set
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.defer import Deferred

from pyrycode_relay.acme.cache import CertCache, Issued
from pyrycode_relay.acme.client import AcmeError, Advice, Conversation


class Authority:
    """Obtains certificates from a CA, and puts them into use.

    Both coroutines raise `AcmeError`, `StartupError` if the account's key cannot be used, and
    `OSError` if the cache cannot be written.

    Args:
        converse: Begins a conversation with the CA, given the account's key as PEM.
        cache: Keeps the account's key and the certificates.
        challenges: The responses that the challenge site serves, by path.
        in_thread: Runs a blocking call.

    """

    def __init__(
        self,
        converse: Callable[[bytes], Conversation],
        cache: CertCache,
        challenges: MutableMapping[bytes, bytes],
        in_thread: Callable[[Callable[[], Any]], Deferred[Any]],
    ) -> None:
        self._converse = converse
        self._cache = cache
        self._challenges = challenges
        self._in_thread = in_thread
        self._conversation: Conversation | None = None
        self._stopped = False

    def current(self) -> Issued | None:
        """Return the certificate in use, or None if no readable one exists."""
        return self._cache.current()

    async def obtain(self, names: Set[str]) -> Issued:
        """Order a certificate for ``names`` with a new key, and put it into use."""
        # The key is on the disk before the order: otherwise a full disk would cost certificates.
        pair = await self._in_thread(self._cache.begin)
        try:
            chain = await self._order(names, pair.key)
            await self._in_thread(lambda: pair.complete(chain))
        finally:
            await self._in_thread(pair.discard)
        return Issued.of(chain, pair.key)

    async def advice(self, certificate: Issued) -> Advice:
        """Ask the CA when to renew a certificate."""
        async with self._conversing() as conversation:
            advice: Advice = await self._in_thread(lambda: conversation.advice(certificate))
        return advice

    def stop(self) -> None:
        """End the conversation, and begin no other. A call in a thread ends by itself."""
        self._stopped = True
        if self._conversation is not None:
            self._conversation.stop()

    async def _order(self, names: Set[str], key: bytes) -> bytes:
        async with self._conversing() as conversation:
            order = await self._in_thread(lambda: conversation.order(names, key))
            self._challenges.update(order.challenges)
            try:
                chain: bytes = await self._in_thread(lambda: conversation.complete(order))
            finally:
                for path in order.challenges:
                    self._challenges.pop(path, None)
        return chain

    @asynccontextmanager
    async def _conversing(self) -> AsyncIterator[Conversation]:
        key = await self._in_thread(self._cache.account_key)
        if self._stopped:
            raise AcmeError("the relay stops")
        self._conversation = self._converse(key)
        try:
            yield self._conversation
        finally:
            self._conversation = None

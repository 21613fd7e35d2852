"""A conversation with an ACME CA: account, order, http-01, and the certificate at its end.

Everything here blocks, and runs in a thread of its own; it shares nothing with the reactor's.
Sources: RFC 8555, and RFC 9773 for renewal information. The protocol itself is the ``acme``
library's; ours are the bounds: each answer has a size, each conversation a deadline.
"""

from __future__ import annotations

import datetime
import email.utils
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import josepy.errors
import requests
import requests.adapters
import urllib3.exceptions
from acme import crypto_util, errors, messages
from acme.challenges import HTTP01, KeyAuthorizationChallengeResponse
from acme.client import ClientNetwork, ClientV2
from josepy.jwa import ES256
from josepy.jwk import JWK

from pyrycode_relay import __version__
from pyrycode_relay.acme.cache import Issued
from pyrycode_relay.acme.schedule import REFUSED, UNREACHABLE

DEADLINE: Final = 300.0
"""Seconds for one conversation: a CA validates from several places and may queue an order."""

_SILENCE: Final = 30.0
"""Seconds a CA may say nothing while it is asked something."""
_LARGEST: Final = 1 << 20
"""Bytes of one answer: a chain has some thousands, a directory some hundreds."""
_NONCE_ROUNDS: Final = 5
"""Times a request is sent again, twice each by the library, because its nonce was refused:
nonces of a CA of several machines go stale often (RFC 8555, section 6.5)."""
_POLL: Final = 1.0
_SLOWEST_POLL: Final = 15.0
"""Seconds between looks at an order, growing, where the CA does not say."""

_LATE: Final = ("the CA did not answer in time", UNREACHABLE)
_NONSENSE: Final = ("the CA's answer is not what ACME allows", REFUSED)

_FAILURES: Final[Mapping[type[Exception], tuple[str, float]]] = {
    errors.TimeoutError: _LATE,
    requests.Timeout: _LATE,
    urllib3.exceptions.TimeoutError: _LATE,
    requests.exceptions.SSLError: (
        "the CA's own certificate cannot be verified; --acme-ca-file names whom to trust",
        REFUSED,
    ),
    requests.exceptions.ProxyError: ("the proxy to the CA does not work", UNREACHABLE),
    requests.ConnectionError: ("the CA cannot be reached", UNREACHABLE),
    urllib3.exceptions.ProtocolError: ("the CA's answer broke off", UNREACHABLE),
    errors.ClientError: ("the CA did not speak ACME", UNREACHABLE),
    # What a CA can say wrong is found all over the libraries.
    requests.RequestException: _NONSENSE,
    urllib3.exceptions.HTTPError: _NONSENSE,
    errors.Error: _NONSENSE,
    josepy.errors.Error: _NONSENSE,
    ValueError: _NONSENSE,
    LookupError: _NONSENSE,
    TypeError: _NONSENSE,
    AttributeError: _NONSENSE,
    OSError: ("--acme-ca-file cannot be read any more", REFUSED),
}
"""What the libraries raise, the special before the general, and what becomes of it."""

_AGAIN_SOON: Final = frozenset({"badNonce", "serverInternal"})
"""Problems that say nothing about the order and count against no limit."""


_Resource = TypeVar("_Resource", messages.Authorization, messages.Order)


class AcmeError(Exception):
    """An attempt that failed.

    ``reason`` is a sentence of our own, ``problem`` the CA's problem type where it gave a known
    one, ``first`` the wait that such a failure begins with (`renewal.retry_in`) and
    ``retry_after`` the seconds that the CA asked for.
    """

    def __init__(
        self, reason: str, problem: str = "", first: float = REFUSED, retry_after: float = 0.0
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.problem = problem
        self.first = first
        self.retry_after = retry_after


class _Adapter(requests.adapters.HTTPAdapter):
    """Sends requests, and bounds what requests itself would wait for and keep.

    ``left`` gives the seconds that are left; it raises when there are none.
    """

    def __init__(self, left: Callable[[], float]) -> None:
        super().__init__()
        self._left = left
        self.retry_after = 0.0
        """Seconds that the last answer asked us to wait."""

    def send(
        self, request: requests.PreparedRequest, *arguments: Any, **more: Any
    ) -> requests.Response:
        """Return an answer that is complete, and within its bounds of size and time."""
        self.retry_after = 0.0
        more |= {"stream": True, "timeout": min(_SILENCE, self._left())}
        response = super().send(request, *arguments, **more)
        body = b""
        # Not iter_content: it would wait for a part to be full, however slowly it comes.
        while part := response.raw.read1(65536):
            self._left()
            body += part
            if len(body) > _LARGEST:
                raise urllib3.exceptions.HTTPError("an answer that is too large")
        response._content = body
        response._content_consumed = True
        self.retry_after = _seconds(response.headers.get("Retry-After", ""))
        return response


class _Network(ClientNetwork):
    """The library's network with our adapter, and more patience for refused nonces."""

    def __init__(self, key: JWK, ca_file: Path | None, left: Callable[[], float]) -> None:
        super().__init__(
            key,
            alg=ES256,
            # requests takes a file of authorities in the same place.
            verify_ssl=cast(bool, True if ca_file is None else str(ca_file)),
            user_agent=f"pyrycode-relay/{__version__} acme-python",
        )
        self.adapter = _Adapter(left)
        # Nothing but https: not even where the CA points elsewhere.
        self.session.adapters.clear()
        self.session.mount("https://", self.adapter)
        self.session.headers["Accept-Encoding"] = "identity"

    def post(self, *arguments: Any, **more: Any) -> requests.Response:
        """Send a signed request; a nonce that is refused is exchanged and the request repeated."""
        for _ in range(_NONCE_ROUNDS - 1):
            try:
                return super().post(*arguments, **more)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return super().post(*arguments, **more)


@dataclass(frozen=True, slots=True)
class Order:
    """An order that waits for its challenges to be served.

    ``challenges`` are what the CA will fetch, by path.
    """

    names: frozenset[str]
    resource: messages.OrderResource
    key: bytes
    challenges: Mapping[bytes, bytes]
    answers: tuple[tuple[messages.ChallengeBody, KeyAuthorizationChallengeResponse], ...]


@dataclass(frozen=True, slots=True)
class Ca:
    """Which CA to talk to, and as whom.

    ``directory`` is its URL, ``email`` the account's contact or empty, ``ca_file`` a file of
    authorities to trust for the CA's own certificate, or None for the public ones.
    """

    directory: str
    email: str = ""
    ca_file: Path | None = None


class Conversation:
    """One conversation with a CA, by `DEADLINE` at the longest.

    Every method blocks and raises `AcmeError`. `stop` is for another thread, and ends the
    conversation at the CA's next word or silence.
    """

    def __init__(self, ca: Ca, account_key: bytes) -> None:
        self._ca = ca
        self._deadline = time.monotonic() + DEADLINE
        self._stopped = threading.Event()
        self._key = JWK.load(account_key)
        self._network = _Network(self._key, ca.ca_file, self._left)

    def stop(self) -> None:
        """End the conversation."""
        self._stopped.set()

    def order(self, names: Set[str], key: bytes) -> Order:
        """Order a certificate for ``names`` and a private key."""
        with self._plainly():
            client = self._registered()
            resource = client.new_order(crypto_util.make_csr(key, sorted(names)))
            served, answers = {}, []
            for authorization in resource.authorizations:
                if authorization.body.status == messages.STATUS_VALID:
                    continue
                challenge = _http_01(authorization.body)
                answer, content = challenge.response_and_validation(self._key)
                served[challenge.chall.path.encode()] = content.encode()
                answers.append((challenge, answer))
            return Order(frozenset(names), resource, key, served, tuple(answers))

    def complete(self, order: Order) -> bytes:
        """Have the challenges of ``order`` fetched; return the chain of the new certificate."""
        with self._plainly():
            client = ClientV2(self._directory(), self._network)
            for challenge, answer in order.answers:
                client.answer_challenge(challenge, answer)
            for authorization in order.resource.authorizations:
                body = self._outcome(
                    client, authorization.uri, messages.Authorization, {messages.STATUS_PENDING}
                )
                if body.status != messages.STATUS_VALID:
                    raise _invalid(body, order.names)
            url = order.resource.uri
            body = self._outcome(client, url, messages.Order, {messages.STATUS_PENDING})
            if body.status == messages.STATUS_READY:
                client.begin_finalization(order.resource)
                body = self._outcome(
                    client, url, messages.Order, {messages.STATUS_READY, messages.STATUS_PROCESSING}
                )
            if body.status != messages.STATUS_VALID or not body.certificate:
                problem = _known(body.error)
                raise AcmeError("the CA has given up the order", problem)
            chain: bytes = self._fetched(client, body.certificate).content
            certificate = Issued.of(chain, order.key)
        if not order.names <= certificate.names:
            raise AcmeError("the CA's certificate is not for the names that were ordered")
        return chain

    def advice(self, certificate: Issued) -> tuple[float | None, float]:
        """Return when the CA wants a certificate renewed, and when to ask again.

        Both in POSIX seconds; None where the CA does not say.
        """
        with self._plainly():
            client = ClientV2(self._directory(), self._network)
            moment, again = client.renewal_time(certificate.chain)
            # The library's second answer is without a zone, and means the local one.
            return (None if moment is None else moment.timestamp()), again.timestamp()

    def _left(self) -> float:
        """Return the seconds that are left."""
        left = self._deadline - time.monotonic()
        if self._stopped.is_set() or left <= 0:
            raise errors.TimeoutError
        return left

    def _directory(self) -> messages.Directory:
        return ClientV2.get_directory(self._ca.directory, self._network)

    def _registered(self) -> ClientV2:
        """Return a client with an account, which is made the first time."""
        client = ClientV2(self._directory(), self._network)
        if self._network.account is not None:
            return client
        contact = self._ca.email or None
        account = messages.NewRegistration.from_data(email=contact, terms_of_service_agreed=True)
        if client.external_account_required():
            raise AcmeError("the CA wants an account made elsewhere, which the relay cannot use")
        try:
            client.new_account(account)
        except errors.ConflictError as known:
            body = messages.Registration.from_data(email=contact)
            self._network.account = messages.RegistrationResource(uri=known.location, body=body)
            if contact:
                client.update_registration(self._network.account, body)
        return client

    def _fetched(self, client: ClientV2, url: str) -> requests.Response:
        # A POST of nothing, as RFC 8555 (6.3) wants what is to be read asked for.
        return self._network.post(url, None, new_nonce_url=client.directory["newNonce"])

    def _outcome(
        self,
        client: ClientV2,
        url: str,
        kind: type[_Resource],
        unfinished: set[messages.Status],
    ) -> _Resource:
        """Return a resource as it is when its status is none of ``unfinished`` any more."""
        pause = _POLL
        while True:
            body: _Resource = kind.from_json(self._fetched(client, url).json())
            if body.status not in unfinished:
                return body
            wait = max(pause, self._network.adapter.retry_after)
            self._stopped.wait(min(wait, self._left()))
            pause = min(pause * 1.5, _SLOWEST_POLL)

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Turn what the libraries raise into `AcmeError`, without a word of the network's."""
        try:
            yield
        except messages.Error as error:
            first = UNREACHABLE if error.code in _AGAIN_SOON else REFUSED
            raise self._failed("the CA has refused", _known(error), first) from None
        except tuple(_FAILURES) as error:
            reason, first = next(
                told for kind, told in _FAILURES.items() if isinstance(error, kind)
            )
            raise self._failed(reason, first=first) from None

    def _failed(self, reason: str, problem: str = "", first: float = REFUSED) -> AcmeError:
        return AcmeError(reason, problem, first, self._network.adapter.retry_after)


def _http_01(authorization: messages.Authorization) -> messages.ChallengeBody:
    for challenge in authorization.challenges:
        if isinstance(challenge.chall, HTTP01):
            return challenge
    raise AcmeError("the CA does not offer http-01")


def _invalid(authorization: messages.Authorization, names: Set[str]) -> AcmeError:
    """Return what became of a validation."""
    found = [each.error for each in authorization.challenges if each.error is not None]
    name = str(authorization.identifier.value).lower()
    # The name of our own settings, not what the CA writes.
    told = name if name in names else "a name"
    return AcmeError(f"the CA could not validate {told}", _known(found[0] if found else None))


def _known(error: messages.Error | None) -> str:
    """Return a problem's type if it is one of ACME's own, for any other is foreign text."""
    return f"{messages.ERROR_PREFIX}{error.code}" if error is not None and error.code else ""


def _seconds(retry_after: str) -> float:
    """Return the seconds that a Retry-After asks for; 0 for none, or none that can be read."""
    try:
        return float(int(retry_after))
    except OverflowError:
        return 0.0
    except ValueError:
        pass
    try:
        moment = email.utils.parsedate_to_datetime(retry_after)
        return (moment - datetime.datetime.now(datetime.UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return 0.0

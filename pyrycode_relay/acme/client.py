"""A conversation with an ACME CA: account, order, http-01, and the certificate at its end.

Everything here blocks. It runs in its own thread and shares nothing with the reactor's thread.
Sources: RFC 8555, and RFC 9773 for renewal information. The ``acme`` library speaks the protocol.
This module adds the bounds: on the size of each response, and on the time of each conversation.
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
"""Seconds for one conversation: a CA validates from several places, and may queue an order."""

SILENCE: Final = 30.0
"""Seconds without a byte from the CA before a request fails."""

_LARGEST: Final = 1 << 20
"""Largest response in bytes: a chain has some thousands, a directory some hundreds."""
_NONCE_ROUNDS: Final = 5
"""How often a request is sent because its nonce was refused; the library sends it twice each time.
Nonces often go stale if the CA consists of several machines (RFC 8555, section 6.5)."""
_POLL: Final = 1.0
_SLOWEST_POLL: Final = 15.0
"""Seconds between looks at an order, from the shortest to the longest, if the CA names none."""

_LATE: Final = ("the CA did not answer in time", UNREACHABLE)
_NONSENSE: Final = ("the CA's answer is not valid ACME", REFUSED)

_FAILURES: Final[Mapping[type[Exception], tuple[str, float]]] = {
    errors.TimeoutError: _LATE,
    requests.Timeout: _LATE,
    urllib3.exceptions.TimeoutError: _LATE,
    requests.exceptions.SSLError: (
        "the CA's own certificate cannot be verified; --acme-ca-file names the roots to trust",
        REFUSED,
    ),
    requests.exceptions.ProxyError: ("the proxy to the CA does not work", UNREACHABLE),
    requests.ConnectionError: ("the CA cannot be reached", UNREACHABLE),
    urllib3.exceptions.ProtocolError: ("the CA's answer broke off", UNREACHABLE),
    errors.ClientError: ("the CA's answer is not ACME", UNREACHABLE),
    # The libraries find mistakes of a CA in many places, and raise all these for them.
    requests.RequestException: _NONSENSE,
    urllib3.exceptions.HTTPError: _NONSENSE,
    errors.Error: _NONSENSE,
    josepy.errors.Error: _NONSENSE,
    ValueError: _NONSENSE,
    LookupError: _NONSENSE,
    TypeError: _NONSENSE,
    AttributeError: _NONSENSE,
    OSError: ("--acme-ca-file cannot be read", REFUSED),
}
"""Exceptions of the libraries, special ones before general ones: reason, and first wait."""

_AGAIN_SOON: Final = frozenset({"badNonce", "serverInternal"})
"""Problems of the CA that are not about the order and count against no limit."""


_Resource = TypeVar("_Resource", messages.Authorization, messages.Order)


class AcmeError(Exception):
    """An attempt that failed.

    Args:
        reason: A sentence of the relay's, without a word from the network.
        problem: The CA's problem type if it gave one that ACME defines, or empty.
        first_wait: Seconds to wait after the first failure of this kind; see `schedule.retry_in`.
        retry_after: Seconds that the CA asked for, or 0.

    """

    def __init__(
        self,
        reason: str,
        *,
        problem: str = "",
        first_wait: float = REFUSED,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.problem = problem
        self.first_wait = first_wait
        self.retry_after = retry_after


class _Adapter(requests.adapters.HTTPAdapter):
    """Sends requests, with bounds that the requests library lacks.

    ``left`` returns the seconds until the deadline, and raises an exception after it. ``silence``
    is the longest wait for a byte.
    """

    def __init__(self, left: Callable[[], float], *, silence: float) -> None:
        super().__init__()
        self._left = left
        self._silence = silence
        self.retry_after = 0.0
        """Seconds to wait, from the last response."""

    def send(
        self, request: requests.PreparedRequest, *arguments: Any, **more: Any
    ) -> requests.Response:
        """Return a complete response, within its bounds of size and time."""
        self.retry_after = 0.0
        more |= {"stream": True, "timeout": min(self._silence, self._left())}
        response = super().send(request, *arguments, **more)
        body = b""
        # Not iter_content, which waits until a part is full, however slowly it comes.
        while part := response.raw.read1(65536):
            self._left()
            body += part
            if len(body) > _LARGEST:
                raise urllib3.exceptions.HTTPError("the response is too large")
        response._content = body
        response._content_consumed = True
        self.retry_after = _seconds(response.headers.get("Retry-After", ""))
        return response


class _Network(ClientNetwork):
    """The library's network with `_Adapter`, and more patience for refused nonces."""

    def __init__(self, key: JWK, ca_file: Path | None, adapter: _Adapter) -> None:
        super().__init__(
            key,
            alg=ES256,
            # requests accepts a file of authorities in the same place.
            verify_ssl=cast(bool, True if ca_file is None else str(ca_file)),
            user_agent=f"pyrycode-relay/{__version__} acme-python",
        )
        self.adapter = adapter
        # Only https, even if the CA redirects to another scheme.
        self.session.adapters.clear()
        self.session.mount("https://", self.adapter)
        self.session.headers["Accept-Encoding"] = "identity"

    def post(self, *arguments: Any, **more: Any) -> requests.Response:
        """Send a signed request; if its nonce is refused, send it again with a new one."""
        for _ in range(_NONCE_ROUNDS - 1):
            try:
                return super().post(*arguments, **more)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return super().post(*arguments, **more)


@dataclass(frozen=True, slots=True)
class Order:
    """An order whose challenges must be served next.

    ``challenges`` are the responses that the CA will fetch, by path.
    """

    names: frozenset[str]
    resource: messages.OrderResource
    key: bytes
    challenges: Mapping[bytes, bytes]
    answers: tuple[tuple[messages.ChallengeBody, KeyAuthorizationChallengeResponse], ...]


@dataclass(frozen=True, slots=True)
class Ca:
    """A CA, and the relay's contact there.

    ``directory`` is the CA's URL, and ``email`` the account's contact or empty. ``ca_file`` has the
    roots to trust for the CA's own certificate; None means the public ones.
    """

    directory: str
    email: str = ""
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Advice:
    """The CA's renewal information for a certificate, in POSIX seconds."""

    renew_at: float | None
    """When to renew it; None if the CA does not say."""
    ask_again_at: float
    """When to ask again."""


class Conversation:
    """One conversation with a CA.

    Every method but `stop` blocks, and raises `AcmeError`. The conversation ends ``deadline``
    seconds after its start, or when the CA sends nothing for ``silence`` seconds.
    """

    def __init__(
        self,
        ca: Ca,
        account_key: bytes,
        *,
        deadline: float = DEADLINE,
        silence: float = SILENCE,
    ) -> None:
        self._ca = ca
        self._deadline = time.monotonic() + deadline
        self._stopped = threading.Event()
        self._key = JWK.load(account_key)
        self._network = _Network(self._key, ca.ca_file, _Adapter(self._left, silence=silence))

    def stop(self) -> None:
        """End the conversation from another thread, at the CA's next byte or silence."""
        self._stopped.set()

    def order(self, names: Set[str], key: bytes) -> Order:
        """Order a certificate for ``names`` and a private key."""
        with self._own_errors():
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
        """Let the CA fetch the challenges of ``order``; return the new certificate's chain."""
        with self._own_errors():
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
                raise AcmeError("the CA abandoned the order", problem=_known(body.error))
            chain: bytes = self._fetched(client, body.certificate).content
            certificate = Issued.of(chain, order.key)
        if not order.names <= certificate.names:
            raise AcmeError("the CA's certificate is not for the names that were ordered")
        return chain

    def advice(self, certificate: Issued) -> Advice:
        """Ask the CA when to renew a certificate."""
        with self._own_errors():
            client = ClientV2(self._directory(), self._network)
            moment, again = client.renewal_time(certificate.chain)
            # ``again`` has no time zone. The library means the local one.
            return Advice(None if moment is None else moment.timestamp(), again.timestamp())

    def _left(self) -> float:
        """Return the seconds that are left."""
        left = self._deadline - time.monotonic()
        if self._stopped.is_set() or left <= 0:
            raise errors.TimeoutError
        return left

    def _directory(self) -> messages.Directory:
        return ClientV2.get_directory(self._ca.directory, self._network)

    def _registered(self) -> ClientV2:
        """Return a client with an account, and create the account the first time."""
        client = ClientV2(self._directory(), self._network)
        if self._network.account is not None:
            return client
        contact = self._ca.email or None
        account = messages.NewRegistration.from_data(email=contact, terms_of_service_agreed=True)
        if client.external_account_required():
            raise AcmeError("the CA requires an account made elsewhere, which the relay cannot use")
        try:
            client.new_account(account)
        except errors.ConflictError as known:
            body = messages.Registration.from_data(email=contact)
            self._network.account = messages.RegistrationResource(uri=known.location, body=body)
            if contact:
                client.update_registration(self._network.account, body)
        return client

    def _fetched(self, client: ClientV2, url: str) -> requests.Response:
        # A POST without content, which is how RFC 8555 (6.3) reads.
        return self._network.post(url, None, new_nonce_url=client.directory["newNonce"])

    def _outcome(
        self,
        client: ClientV2,
        url: str,
        kind: type[_Resource],
        unfinished: set[messages.Status],
    ) -> _Resource:
        """Return a resource as soon as its status is no longer in ``unfinished``."""
        pause = _POLL
        while True:
            body: _Resource = kind.from_json(self._fetched(client, url).json())
            if body.status not in unfinished:
                return body
            wait = max(pause, self._network.adapter.retry_after)
            self._stopped.wait(min(wait, self._left()))
            pause = min(pause * 1.5, _SLOWEST_POLL)

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Turn the libraries' exceptions into `AcmeError`, without a word from the network."""
        try:
            yield
        except messages.Error as error:
            first_wait = UNREACHABLE if error.code in _AGAIN_SOON else REFUSED
            raise self._failed("the CA refused", first_wait, _known(error)) from None
        except tuple(_FAILURES) as error:
            reason, first_wait = next(
                failure for kind, failure in _FAILURES.items() if isinstance(error, kind)
            )
            raise self._failed(reason, first_wait) from None

    def _failed(self, reason: str, first_wait: float, problem: str = "") -> AcmeError:
        return AcmeError(
            reason,
            problem=problem,
            first_wait=first_wait,
            retry_after=self._network.adapter.retry_after,
        )


def _http_01(authorization: messages.Authorization) -> messages.ChallengeBody:
    for challenge in authorization.challenges:
        if isinstance(challenge.chall, HTTP01):
            return challenge
    raise AcmeError("the CA does not offer http-01")


def _invalid(authorization: messages.Authorization, names: Set[str]) -> AcmeError:
    """Return the error for a validation that failed."""
    found = [each.error for each in authorization.challenges if each.error is not None]
    name = str(authorization.identifier.value).lower()
    # Only a name from the settings may reach the log, not any text from the CA.
    shown = name if name in names else "a name"
    problem = _known(found[0] if found else None)
    return AcmeError(f"the CA could not validate {shown}", problem=problem)


def _known(error: messages.Error | None) -> str:
    """Return a problem's type if ACME defines it, or "": other types are foreign text."""
    return f"{messages.ERROR_PREFIX}{error.code}" if error is not None and error.code else ""


def _seconds(retry_after: str) -> float:
    """Return the seconds of a Retry-After header; 0 if it is empty or malformed."""
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

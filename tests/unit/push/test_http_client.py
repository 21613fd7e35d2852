"""What the client for HTTPS makes of headers, files and exceptions.

What it does with real servers is in ``tests/system/test_fcm.py``.
"""

from __future__ import annotations

from pathlib import Path

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import CancelledError
from twisted.internet.error import (
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
)
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed, ResponseNeverReceived

from pyrycode_relay.push import http_client
from pyrycode_relay.push.http_client import Answer, CallError, retry_after, trust_root
from pyrycode_relay.push.provider import SendFault
from pyrycode_relay.startup_error import StartupError
from tests import ca
from tests.unit.bench import Cases, cases

NOW = 784_111_777.0
"""RFC 9110's example: Sun, 06 Nov 1994 08:49:37 GMT."""


class HeaderTests(Cases):
    @cases(
        {
            "seconds": ("120", 120.0),
            "at_once": ("0", 0.0),
            "spaces": (" 7 ", 7.0),
            "date": ("Sun, 06 Nov 1994 08:50:37 GMT", 60.0),
            "past": ("Sun, 06 Nov 1994 08:48:37 GMT", 0.0),
            "old_form": ("Sunday, 06-Nov-94 08:50:37 GMT", 60.0),
            "oldest_form": ("Sun Nov  6 08:50:37 1994", 60.0),
            "nothing": ("", None),
            "negative": ("-1", None),
            "fraction": ("1.5", None),
            "endless": ("9" * 10, None),
            "words": ("tomorrow", None),
            "no_day": ("Sun, 99 Nov 1994 08:50:37 GMT", None),
            "far_year": ("Sun, 06 Nov 99999 08:50:37 GMT", None),
            "digits": ("\N{ARABIC-INDIC DIGIT ONE}", None),
        }
    )
    def test_retry_after(self, text: str, seconds: float | None) -> None:
        """Retry-After has seconds or a date; what it does not have is None."""
        self.assertEqual(retry_after(text, NOW), seconds)

    def test_success(self) -> None:
        """Any 2xx is success, and nothing else."""
        good = {status for status in range(100, 600) if Answer(status).is_success}
        self.assertEqual(good, set(range(200, 300)))

    def test_nothing_is_shown(self) -> None:
        """An answer does not show its body."""
        self.assertNotIn("hunter", repr(Answer(200, b"hunter")))


class TrustTests(Cases):
    def test_file(self) -> None:
        """A file has one authority or more."""
        path = Path(self.mktemp())
        path.write_bytes(ca.Authority().pem + ca.Authority().pem)
        self.assertIsNotNone(trust_root(path))
        self.assertIsNotNone(trust_root(None))

    def test_wrong_file(self) -> None:
        """A file without any is one sentence that names the option."""
        path = Path(self.mktemp())
        path.write_text("hunter")
        with self.assertRaises(StartupError) as raised:
            trust_root(path)
        self.assertIn("give --push-ca-file", str(raised.exception))
        self.assertNotIn("hunter", str(raised.exception))


class CauseTests(Cases):
    @cases(
        {
            "refused": (ConnectionRefusedError(), SendFault.UNREACHABLE),
            "name": (DNSLookupError(), SendFault.UNREACHABLE),
            "lost": (ResponseNeverReceived([Failure(ConnectionLost())]), SendFault.DISCONNECTED),
            "done": (ResponseFailed([Failure(ConnectionDone())]), SendFault.DISCONNECTED),
            "tls": (ResponseNeverReceived([Failure(SSL.Error())]), SendFault.TLS),
            "name_of_certificate": (
                ResponseNeverReceived([Failure(VerificationError(errors=[]))]),
                SendFault.TLS,
            ),
            "parser": (ResponseFailed([Failure(ValueError("hunter"))]), SendFault.MALFORMED),
            "nested": (
                ResponseFailed([Failure(ResponseNeverReceived([Failure(SSL.Error())]))]),
                SendFault.TLS,
            ),
        }
    )
    def test_fault(self, error: Exception, fault: SendFault) -> None:
        """Each exception of Agent's has its class."""
        self.assertIs(http_client._cause(error), fault)

    def test_cancelled(self) -> None:
        """A request that is cancelled is neither of them."""
        error = ResponseNeverReceived([Failure(CancelledError())])
        self.assertIsInstance(http_client._cause(error), CancelledError)

    def test_text(self) -> None:
        """What is raised has the class and nothing else."""
        self.assertEqual(str(CallError(SendFault.TLS)), str(SendFault.TLS))

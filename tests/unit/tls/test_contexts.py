"""OpenSSL contexts: what a client may shake hands with, and which certificate it gets."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

from OpenSSL import SSL

from pyrycode_relay.tls.certificate import Certificate, Pair
from pyrycode_relay.tls.contexts import NamedContexts, front, serving, words
from tests.ca import DAY, rsa_key
from tests.unit.bench import Cases, cases
from tests.unit.tls.handshake import AUTHORITY, Handshake, Refused, trusting

RSA = rsa_key()


def issue(*names: str, key: Any = None, until: timedelta = 60 * DAY) -> Certificate:
    """Return a new certificate for ``names``."""
    issued = AUTHORITY.issue(*names, key=key, until=until)
    return Certificate(
        Pair(Path("chain.pem"), Path("key.pem")),
        issued.chain,
        issued.key,
        frozenset(names),
        issued.chain[0].not_valid_before_utc.timestamp(),
        issued.chain[0].not_valid_after_utc.timestamp(),
    )


def shake(
    context: SSL.Context | None, name: str | None, client: ssl.SSLContext | None = None
) -> Handshake:
    """Shake hands with a context."""
    assert context is not None
    server = SSL.Connection(context, None)
    server.set_accept_state()
    return Handshake(server, name, client)


def old_client(ciphers: str) -> ssl.SSLContext:
    """Return the context of a client that speaks TLS 1.2 with these ciphers only."""
    client = trusting()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(ciphers)
    return client


class ServingTests(Cases):
    def setUp(self) -> None:
        self.certificate = issue("relay.example")
        self.context = serving([self.certificate])

    def test_chain(self) -> None:
        """A client that trusts the root alone verifies chain and name."""
        shaken = shake(self.context, "relay.example")
        self.assertEqual(shaken.certificate, self.certificate.chain[0])
        self.assertEqual(shaken.client.version(), "TLSv1.3")
        self.assertIsNone(shaken.client.compression())

    @cases(
        {
            "1_0": (ssl.TLSVersion.TLSv1, "PROTOCOL_VERSION"),
            "1_1": (ssl.TLSVersion.TLSv1_1, "PROTOCOL_VERSION"),
        }
    )
    def test_old_versions(self, version: ssl.TLSVersion, alert: str) -> None:
        """Versions before TLS 1.2 are refused."""
        client = trusting()
        client.set_ciphers("ALL:@SECLEVEL=0")
        client.minimum_version = client.maximum_version = version
        error = self.assertRaises(Refused, shake, self.context, "relay.example", client)
        self.assertIn(alert, str(error))

    def test_ciphers(self) -> None:
        """TLS 1.2 has ephemeral keys and AEAD, or is refused."""
        context = serving([issue("relay.example", key=RSA)])
        taken = (
            "ECDHE-RSA-AES128-GCM-SHA256 ECDHE-RSA-AES256-GCM-SHA384 ECDHE-RSA-CHACHA20-POLY1305"
        )
        refused = "AES128-GCM-SHA256 ECDHE-RSA-AES128-SHA256 AES256-SHA DHE-RSA-AES128-GCM-SHA256"
        for name in taken.split():
            shaken = shake(context, "relay.example", old_client(name))
            self.assertEqual(shaken.client.cipher()[0], name)  # type: ignore[index]
        for name in refused.split():
            self.assertRaises(Refused, shake, context, "relay.example", old_client(name))

    def test_preference(self) -> None:
        """The relay's own order decides between ciphers that both sides know."""
        context = serving([issue("relay.example", key=RSA)])
        client = old_client("ECDHE-RSA-CHACHA20-POLY1305:ECDHE-RSA-AES256-GCM-SHA384")
        shaken = shake(context, "relay.example", client)
        self.assertEqual(shaken.client.cipher()[0], "ECDHE-RSA-AES256-GCM-SHA384")  # type: ignore[index]

    def test_protocols(self) -> None:
        """ALPN is HTTP/1.1; a client that offers only others is refused."""
        for offered, chosen in (([], None), (["h2", "http/1.1"], "http/1.1")):
            client = trusting()
            client.set_alpn_protocols(offered)
            shaken = shake(self.context, "relay.example", client)
            self.assertEqual(shaken.client.selected_alpn_protocol(), chosen)
        client = trusting()
        client.set_alpn_protocols(["h2", "http/1.0"])
        error = self.assertRaises(Refused, shake, self.context, "relay.example", client)
        self.assertIn("NO_APPLICATION_PROTOCOL", str(error))

    def test_no_memory(self) -> None:
        """The relay remembers no session: all about it is in the client's ticket."""
        server = shake(self.context, "relay.example").server
        self.assertEqual(server.get_context().get_session_cache_mode(), SSL.SESS_CACHE_OFF)

    def test_side_by_side(self) -> None:
        """With an RSA and an ECDSA certificate for one name, each client gets what it can use."""
        old = issue("relay.example", key=RSA)
        for certificates in ([self.certificate, old], [old, self.certificate]):
            context = serving(certificates)
            shaken = shake(context, "relay.example")
            self.assertEqual(shaken.certificate, self.certificate.chain[0])
            client = old_client("ECDHE-RSA-AES128-GCM-SHA256")
            shaken = shake(context, "relay.example", client)
            self.assertEqual(shaken.certificate, old.chain[0])

    def test_weak_key(self) -> None:
        """OpenSSL says in its own words what it does not serve."""
        error = self.assertRaises(SSL.Error, serving, [issue("a.example", key=rsa_key(1024))])
        self.assertEqual(words(error), "ee key too small")

    def test_no_words(self) -> None:
        """An error without a text is a sentence too."""
        self.assertEqual(words(SSL.Error()), "an error without a name")


class FrontTests(Cases):
    def test_choice(self) -> None:
        """The context that is chosen by the name asked for continues the handshake."""
        certificate = issue("relay.example")
        asked = []

        def choose(connection: SSL.Connection) -> None:
            asked.append(connection.get_servername())
            connection.set_context(serving([certificate]))

        shaken = shake(front(choose), "relay.example")
        self.assertEqual(shaken.certificate, certificate.chain[0])
        shake(front(choose), None)
        self.assertEqual(asked, [b"relay.example", None])

    def test_no_choice(self) -> None:
        """Without a choice there is no certificate, and so no handshake."""
        self.assertRaises(Refused, shake, front(lambda _: None), "relay.example")


class NameTests(Cases):
    def served(
        self, certificates: list[Certificate], name: str, client: ssl.SSLContext | None = None
    ) -> Certificate:
        """Return the certificate that a client gets that asks for ``name``."""
        shaken = shake(NamedContexts(certificates).find(name), None, client)
        [found] = (each for each in certificates if each.chain[0] == shaken.certificate)
        return found

    def test_names(self) -> None:
        """The name asked for decides; wildcards come after whole names."""
        one = issue("one.example", "*.relay.example")
        two = issue("two.example", "b.relay.example")
        for name, expected in {
            "one.example": one,
            "two.example": two,
            "a.relay.example": one,
            "b.relay.example": two,
        }.items():
            self.assertIs(self.served([one, two], name), expected, name)

    def test_default(self) -> None:
        """An unknown name, and no name, get the first certificate."""
        first, second = issue("one.example"), issue("two.example")
        for name in ("", "three.example", "a.one.example"):
            self.assertIs(self.served([first, second], name), first, name)

    def test_default_of_another_type(self) -> None:
        """So do clients that need another type of key, if there is one for the same names."""
        first = issue("one.example")
        old = issue("one.example", key=RSA)
        other = issue("two.example", key=RSA)
        client = old_client("ECDHE-RSA-AES128-GCM-SHA256")
        self.assertIs(self.served([first, other, old], "", client), old)
        self.assertIs(self.served([first, other, old], ""), first)

    def test_the_later(self) -> None:
        """Among certificates with the same type of key for a name, the last to expire is served."""
        days = (5, 9, 7)
        certificates = [issue("relay.example", until=each * DAY) for each in days]
        self.assertIs(self.served(certificates, "relay.example"), certificates[1])

    def test_shared(self) -> None:
        """Names with the same certificates share a context."""
        names = NamedContexts([issue("one.example", "two.example")])
        self.assertIs(names.find("one.example"), names.find("two.example"))
        self.assertIs(names.find("one.example"), names.default)

    def test_nothing(self) -> None:
        """Without a certificate no name has a context."""
        names = NamedContexts([])
        self.assertEqual((names.find("one.example"), names.find("")), (None, None))

"""OpenSSL contexts: versions, ciphers, ALPN, session tickets, and the context for each name.

A connection begins on a *front* context, which has the keys of session tickets and no
certificate. It continues on the context for the name that the client asks for (SNI). So
certificates can change under an open listener, and sessions still resume.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, cast

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from pyrycode_relay.tls.certificate import Certificate, wildcard

TICKET_KEYS_LIFE: Final = 12 * 3600.0
"""Seconds after which tickets get new keys, and old tickets lead to a full handshake. An attacker
who steals the keys can decrypt only this much of what TLS 1.2 clients resumed."""

_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: ephemeral keys and AEAD."""
_CIPHERS_13: Final = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
_OPTIONS: Final = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
_SESSION_ID_CONTEXT: Final = b"pyrycode-relay"
_PROTOCOL: Final = b"http/1.1"


def front(choose: Callable[[SSL.Connection], None]) -> SSL.Context:
    """Return a context to begin on; ``choose`` is called when the client has sent a name or none.

    OpenSSL makes new ticket keys for each context.
    """
    context = _bare()
    context.set_tlsext_servername_callback(choose)
    return context


def serving(certificates: Iterable[Certificate]) -> SSL.Context:
    """Return a context that serves certificates, each with a key of another type.

    Raises `SSL.Error` if OpenSSL rejects one of them.
    """
    context = _bare()
    for certificate in certificates:
        # OpenSSL loads a chain for each of several certificates only from a file.
        file = os.memfd_create("chain", os.MFD_CLOEXEC)
        try:
            os.write(file, b"".join(each.public_bytes(Encoding.PEM) for each in certificate.chain))
            context.use_certificate_chain_file(f"/proc/self/fd/{file}")
        finally:
            os.close(file)
        context.use_privatekey(cast(Any, certificate.key))
        context.check_privatekey()
    return context


class NamedContexts:
    """A context for each name that ``certificates`` are for, and a default.

    The default serves the first certificate, and those of other key types for the same names.
    """

    def __init__(self, certificates: Sequence[Certificate]) -> None:
        made: dict[frozenset[int], SSL.Context] = {}

        def context(alternatives: Iterable[Certificate]) -> SSL.Context:
            served = _one_of_a_kind(alternatives)
            key = frozenset(map(id, served))
            if key not in made:
                made[key] = serving(served)
            return made[key]

        names = {name for each in certificates for name in each.names}
        self._by_name: Mapping[str, SSL.Context] = {
            name: context(each for each in certificates if name in each.names) for name in names
        }
        self.default: SSL.Context | None = None
        """None if there is no certificate."""
        if certificates:
            first = certificates[0]
            self.default = context(
                each for each in certificates if each is first or each.names & first.names
            )

    def find(self, name: str) -> SSL.Context | None:
        """Return the context for a name in lower case, or the default."""
        return self._by_name.get(name) or self._by_name.get(wildcard(name)) or self.default


def words(error: SSL.Error) -> str:
    """Return OpenSSL's text for an error. It is from OpenSSL's own table, not from the peer."""
    queue = error.args[0] if error.args else ()
    return str(queue[-1][2]) if queue else "an error without a name"


def _bare() -> SSL.Context:
    """Return a context with everything that contexts have in common, and no certificate."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(_OPTIONS)
    # An idle connection keeps no buffers: 34 KiB less.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_cipher_list(_CIPHERS)
    context.set_tls13_ciphersuites(_CIPHERS_13)
    # Clients keep their sessions, in tickets. The relay keeps none.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(_SESSION_ID_CONTEXT)
    context.set_timeout(int(TICKET_KEYS_LIFE))
    context.set_alpn_select_callback(_agree_on_protocol)
    return context


def _agree_on_protocol(_: SSL.Connection, offered: Sequence[bytes]) -> bytes:
    """Choose HTTP/1.1, or refuse the handshake of a client that offers only others (RFC 7301)."""
    if _PROTOCOL not in offered:
        raise SSL.Error([("SSL routines", "", "no application protocol")])
    return _PROTOCOL


def _one_of_a_kind(certificates: Iterable[Certificate]) -> list[Certificate]:
    """Return one certificate for each type of key: the one that expires last."""
    best: dict[object, Certificate] = {}
    for certificate in certificates:
        rival = best.get(certificate.kind)
        if rival is None or rival.not_after < certificate.not_after:
            best[certificate.kind] = certificate
    return [*best.values()]

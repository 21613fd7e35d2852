"""A handshake without sockets: Python's own ``ssl`` module against the relay's contexts."""

from __future__ import annotations

import ssl

from cryptography import x509
from OpenSSL import SSL

from tests.ca import Authority

AUTHORITY = Authority()


class Refused(Exception):
    """The relay has refused a handshake; the text is its alert's name."""


class Handshake:
    """A handshake of a client with ``server``, over memory, and one byte of data behind it."""

    def __init__(
        self,
        server: SSL.Connection,
        name: str | None,
        client: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        context = client or trusting()
        context.check_hostname = name is not None
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(incoming, outgoing, server_hostname=name, session=session)
        self.server = server
        done = failed = False
        while not done:
            try:
                self.client.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                # Newer alerts have a text and no reason.
                if "alert" in str(error).lower():
                    raise Refused(str(error).upper().replace(" ", "_")) from error
                raise
            if data := outgoing.read():
                self.server.bio_write(data)
            try:
                if not failed:
                    self.server.do_handshake()
            except SSL.WantReadError:
                pass
            except SSL.Error:
                failed = True
            try:
                while True:
                    incoming.write(self.server.bio_read(65536))
            except SSL.WantReadError:
                pass
        # Tickets follow the handshake.
        self.server.send(b"x")
        incoming.write(self.server.bio_read(65536))
        self.client.read(1)

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate that the client was served."""
        data = self.client.getpeercert(binary_form=True)
        assert data is not None
        return x509.load_der_x509_certificate(data)


def trusting() -> ssl.SSLContext:
    """Return a client's context that trusts the authority."""
    context = ssl.create_default_context(cadata=AUTHORITY.pem.decode())
    assert context.verify_mode is ssl.CERT_REQUIRED
    return context

"""TLS: which certificate a client gets, and certificates that change."""

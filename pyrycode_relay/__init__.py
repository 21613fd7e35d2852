"""A stateless WebSocket relay between phones and the pyry daemon."""

__version__ = "0.1.0"

"""Makes ``twistd pyrycode-relay`` known to Twisted's plugin system."""

from twisted.application.service import ServiceMaker

pyrycodeRelay = ServiceMaker(
    "pyrycode-relay",
    "pyrycode_relay.tap",
    "A WebSocket relay between phones and the pyry daemon.",
    "pyrycode-relay",
)

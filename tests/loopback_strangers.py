"""``twistd`` with a relay that takes 127.0.0.1 for the internet: for tests of Web Push.

    python loopback_strangers.py PORT TWISTD [ARGUMENT...]

Every name that a stranger gives is 127.0.0.1, at the port. No setting of a relay can do that.
"""

from __future__ import annotations

import sys
from functools import partial
from ipaddress import ip_address

from twisted.internet.defer import succeed
from twisted.scripts import twistd

from pyrycode_relay import tap
from pyrycode_relay.push.guarded_endpoint import Network
from pyrycode_relay.service import RelayService

LOOPBACK = ip_address("127.0.0.1")


class LoopbackRelay(RelayService):
    """A relay for which the internet is one service on this machine."""

    port = 0

    def strangers(self) -> Network:
        """Return a network of one address and one port."""
        return Network(lambda _: succeed([LOOPBACK]), lambda each: each == LOOPBACK, self.port)


if __name__ == "__main__":
    LoopbackRelay.port = int(sys.argv[1])
    sys.argv = sys.argv[2:]
    # twistd asks the module for its function.
    setattr(tap, "makeService", partial(tap.makeService, kind=LoopbackRelay))  # noqa: B010
    twistd.run()

"""An example daemon: print the lines of each phone, and send them back in capitals."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from connection import Client, command_line, run
from ends import Closes, Retry
from websockets.asyncio.client import ClientConnection

MAX_FRAME = 262_144
"""Bytes. The relay closes a binary that sends more, and a phone could provoke that."""

CLAIM_TIME = 10.0
"""Seconds. A claim has no answer but a close: while the relay asks another daemon for a sign of
life, it says nothing for at most this long."""

CLOSES: Closes = {
    4409: (Retry.NEVER, "another daemon has this server-id, and is alive"),
}


class Daemon:
    """Serves the phones of one server-id."""

    def __init__(self, url: str, server_id: str) -> None:
        headers = {"X-Pyrycode-Server": server_id, "X-Pyrycode-Version": "example"}
        self.client = Client("daemon", f"{url}/v1/server", headers, CLOSES)
        self.server_id = server_id
        self.serving = False

    async def serve(self, relay: ClientConnection) -> None:
        """Answer envelopes until the connection ends.

        There may be phones from before only if the relay runs with --on-reclaim=keep. By default
        the relay closes them with 4404, and they come back with another conn_id.
        """
        self.serving = False
        claimed = asyncio.get_running_loop().call_later(CLAIM_TIME, self.claimed)
        try:
            while True:
                message = await relay.recv()
                self.claimed()
                try:
                    answer = self.answer(json.loads(message))
                except (ValueError, RecursionError):
                    # A frame may be any JSON: a number of 5,000 digits, or 900 lists in each other.
                    print("somebody says what this daemon cannot read", flush=True)
                    continue
                if answer is not None:
                    await relay.send(answer)
        finally:
            claimed.cancel()

    def claimed(self) -> None:
        """Tell the user that the claim has succeeded: something came, or no 4409 did."""
        if not self.serving:
            self.serving = True
            self.client.say(f"serving {self.server_id}")

    def answer(self, envelope: dict[str, Any]) -> str | None:
        """Return the envelope with the answer to one, if it has one."""
        phone = envelope.get("conn_id")
        if phone is None:
            return None  # Not about a phone: the result of a push wake, or something new.
        if "frame" not in envelope:
            print(f"{phone} has gone ({envelope['close_code']})", flush=True)
            return None
        print(f"{phone} says {envelope['frame']!r}", flush=True)
        # A real daemon checks here who this is, and closes the phone with 4401 if in doubt.
        frame = json.dumps(str(envelope["frame"]).upper())
        if len(frame.encode()) > MAX_FRAME:
            return json.dumps({"conn_id": phone, "close_code": 1009})
        return f'{{"conn_id":{json.dumps(phone)},"frame":{frame}}}'


if __name__ == "__main__":
    given = command_line(__doc__, "")
    daemon = Daemon(given.url, given.server_id)
    sys.exit(run(daemon.client.run(daemon.serve)))

"""An example daemon: print the lines of each phone, and send them back in capitals."""

import argparse
import asyncio
import contextlib
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake


async def main(url: str, server_id: str) -> None:
    headers = {"X-Pyrycode-Server": server_id, "X-Pyrycode-Version": "example"}
    async with connect(f"{url}/v1/server", additional_headers=headers) as relay:
        print(f"serving {server_id}", flush=True)
        async for message in relay:
            envelope = json.loads(message)
            phone = envelope["conn_id"]
            if "frame" not in envelope:
                print(f"{phone} has gone ({envelope['close_code']})", flush=True)
                continue
            print(f"{phone} says {envelope['frame']!r}", flush=True)
            answer = {"conn_id": phone, "frame": str(envelope["frame"]).upper()}
            await relay.send(json.dumps(answer))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "url",
        nargs="?",
        default="ws://127.0.0.1:8080",
        help="URL of the relay. Default: %(default)s.",
    )
    options.add_argument(
        "server_id", nargs="?", default="demo", help="server-id to claim. Default: %(default)s."
    )
    given = options.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(main(given.url, given.server_id))
        except (ConnectionClosed, InvalidHandshake, OSError) as error:
            sys.exit(f"{given.url}: {error}")

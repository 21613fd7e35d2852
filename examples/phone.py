"""An example phone: send each line from the terminal, and print the answers."""

import argparse
import asyncio
import contextlib
import json
import sys

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake


async def show(relay: ClientConnection) -> None:
    try:
        async for message in relay:
            print(json.loads(message), flush=True)
    except ConnectionClosed as error:
        print(error, file=sys.stderr, flush=True)


async def main(url: str, server_id: str) -> None:
    headers = {
        "X-Pyrycode-Server": server_id,
        "X-Pyrycode-Token": "any value; the relay checks only that there is one",
        "X-Pyrycode-Device-Name": "example phone",
    }
    async with connect(f"{url}/v1/client", additional_headers=headers) as relay:
        showing = asyncio.create_task(show(relay))
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            if showing.done():
                break
            await relay.send(json.dumps(line.rstrip("\n")))
        # Wait for the last answers.
        await asyncio.wait([showing], timeout=1)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "url",
        nargs="?",
        default="ws://127.0.0.1:8080",
        help="URL of the relay. Default: %(default)s.",
    )
    options.add_argument(
        "server_id",
        nargs="?",
        default="demo",
        help="server-id to connect to. Default: %(default)s.",
    )
    given = options.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(main(given.url, given.server_id))
        except ConnectionClosed:
            sys.exit(1)  # `show` has printed the reason.
        except (InvalidHandshake, OSError) as error:
            sys.exit(f"{given.url}: {error}")

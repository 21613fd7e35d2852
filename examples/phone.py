"""A phone: sends each line from the terminal, and prints what comes.

    python examples/phone.py [URL] [SERVER_ID]
"""

import asyncio
import json
import sys

from websockets.asyncio.client import ClientConnection, connect


async def show(relay: ClientConnection) -> None:
    async for message in relay:
        print(json.loads(message), flush=True)


async def main(url: str, server_id: str) -> None:
    headers = {
        "X-Pyrycode-Server": server_id,
        "X-Pyrycode-Token": "any; the relay never looks at it",
        "X-Pyrycode-Device-Name": "example phone",
    }
    async with connect(f"{url}/v1/client", additional_headers=headers) as relay:
        showing = asyncio.create_task(show(relay))
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            await relay.send(json.dumps(line.rstrip("\n")))
        await asyncio.wait([showing], timeout=1)  # the last answers


if __name__ == "__main__":
    url, server_id = (sys.argv[1:] + ["ws://127.0.0.1:8080", "demo"][len(sys.argv) - 1 :])[:2]
    try:
        asyncio.run(main(url, server_id))
    except KeyboardInterrupt:
        pass

"""A daemon that answers every phone: prints who speaks, and sends the message back in capitals.

    python examples/daemon.py [URL] [SERVER_ID]
"""

import asyncio
import json
import sys

from websockets.asyncio.client import connect


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
    url, server_id = (sys.argv[1:] + ["ws://127.0.0.1:8080", "demo"][len(sys.argv) - 1 :])[:2]
    try:
        asyncio.run(main(url, server_id))
    except KeyboardInterrupt:
        pass

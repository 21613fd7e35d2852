"""An example phone: send each line from the terminal, and print the answers."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections import deque

from connection import Client, command_line, run
from ends import Closes, Retry
from websockets.asyncio.client import ClientConnection

PATIENCE = 5.0
"""Seconds to wait for an answer before the user is told, and at the end of the input."""

NO_ANSWER = 3

CLOSES: Closes = {
    1000: (Retry.BACKOFF, "the daemon has gone, and has not come back in time"),
    4401: (Retry.NEVER, "the daemon does not accept this phone's token: pair again"),
    4404: (Retry.BACKOFF, "the daemon is not connected"),
    (4404, "binary reclaimed server-id"): (Retry.AT_ONCE, "the daemon is back, without a session"),
    4421: (Retry.NEVER, "the daemon has no session for this phone: begin a new one"),
    4426: (Retry.NEVER, "the daemon wants a newer app"),
    4429: (Retry.BACKOFF, "the daemon has all the phones that it may have"),
}


class Phone:
    """Sends lines and shows their answers.

    A line is sent again on the next connection until it has an answer, so a daemon may get it
    twice. A real app numbers its requests, and the daemon ignores a number that it has had.
    """

    def __init__(self, url: str, server_id: str) -> None:
        headers = {
            "X-Pyrycode-Server": server_id,
            "X-Pyrycode-Token": "the daemon checks it; the relay only checks that there is one",
            "X-Pyrycode-Device-Name": "example phone",
        }
        self.client = Client("phone", f"{url}/v1/client", headers, CLOSES)
        self.unanswered: deque[str] = deque()
        self.answered = asyncio.Event()
        self.lines: asyncio.Queue[str | None] = asyncio.Queue()
        self.reminder: asyncio.TimerHandle | None = None

    async def run(self) -> int:
        """Send all lines, and return the exit status."""
        threading.Thread(
            target=read_lines, args=(asyncio.get_running_loop(), self.lines), daemon=True
        ).start()
        status = await self.client.run(self.converse)
        return NO_ANSWER if not status and self.unanswered else status

    async def converse(self, relay: ClientConnection) -> None:
        """Send and show until the input ends. Raises ``ConnectionClosed``."""
        tasks = {asyncio.create_task(self.send(relay)), asyncio.create_task(self.show(relay))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.remind(None)
            for task in tasks:
                task.cancel()
            # The task that did not end first ends the same way, or by this cancel.
            await asyncio.gather(*tasks, return_exceptions=True)

    async def send(self, relay: ClientConnection) -> None:
        """Send the lines that have no answer yet, and then each new one."""
        for unanswered in [*self.unanswered]:
            await relay.send(to_json(unanswered))
        self.remind(PATIENCE)
        while (line := await self.lines.get()) is not None:
            self.unanswered.append(line)
            await relay.send(to_json(line))
            self.remind(PATIENCE)
        self.lines.put_nowait(None)  # For the next connection, if this one breaks.
        while self.unanswered:
            self.answered.clear()
            try:
                await asyncio.wait_for(self.answered.wait(), PATIENCE)
            except TimeoutError:
                return

    async def show(self, relay: ClientConnection) -> None:
        """Print the answers. They come in the order of the lines."""
        while True:
            print(json.loads(await relay.recv()), flush=True)
            if self.unanswered:
                self.unanswered.popleft()
            self.answered.set()
            self.remind(PATIENCE)

    def remind(self, seconds: float | None) -> None:
        """Tell the user when a line has no answer for so long; None stops that.

        A phone is not told that its daemon has gone: the relay keeps it, and what it sends, for a
        grace of 30 s, in which most daemons come back.
        """
        if self.reminder is not None:
            self.reminder.cancel()
            self.reminder = None
        if seconds is not None and self.unanswered:
            text = f"no answer for {seconds:g} s; the daemon may be away, and come back"
            loop = asyncio.get_running_loop()
            self.reminder = loop.call_later(seconds, self.client.say, text)


def to_json(line: str) -> str:
    """Return a line as a frame: any JSON value of at most 262,144 bytes."""
    return json.dumps(line, ensure_ascii=False)


def read_lines(loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[str | None]) -> None:
    """Read lines in a thread: a read of a terminal cannot be interrupted.

    The file has no buffer, because Python could not end while a thread waits with a buffer's lock.
    """
    with open(0, "rb", buffering=0, closefd=False) as typed:
        for line in typed:
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            loop.call_soon_threadsafe(lines.put_nowait, text)
    loop.call_soon_threadsafe(lines.put_nowait, None)


if __name__ == "__main__":
    given = command_line(
        __doc__,
        "  0    the input has ended, and each line has an answer\n"
        f"  {NO_ANSWER}    the input has ended, and the last lines have no answer\n",
    )
    phone = Phone(given.url, given.server_id)
    sys.exit(run(phone.run()))

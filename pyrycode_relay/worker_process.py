"""The program of a worker: ``python -m pyrycode_relay.worker_process``, started by its parent."""

from __future__ import annotations

import os
import socket

from pyrycode_relay.placement.control import CONTROL_FD, read_seat


def main() -> None:
    """Run a worker; its parent has left the control socket at `CONTROL_FD`."""
    try:
        control = socket.socket(fileno=CONTROL_FD)
        control.set_inheritable(False)
        seat = read_seat(control)
    except (OSError, ValueError) as error:
        raise SystemExit(f"pyrycode-relay: only a relay starts its workers ({error}).") from error
    if "LISTEN_FDS" in os.environ:
        # Twisted looks the names of these sockets up, and the parent has passed the sockets on.
        os.environ["LISTEN_PID"] = str(os.getpid())
    from pyrycode_relay import tap  # noqa: PLC0415 - Twisted reads the environment when imported

    tap.run_worker(seat, control)


if __name__ == "__main__":
    main()

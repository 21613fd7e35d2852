"""``pyrycode-relay-webpush-key``: makes the relay's VAPID key, and prints its public half."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pyrycode_relay import __version__
from pyrycode_relay.push.vapid import Key, public_half, read_key
from pyrycode_relay.startup_error import StartupError

PROGRAM: Final = "pyrycode-relay-webpush-key"

_DESCRIPTION: Final = """\
Make the key by which the relay identifies itself to Web Push services (VAPID), for the
relay's --webpush-key. The last line of the output is its public half, as browsers and
UnifiedPush take it (applicationServerKey).
"""

_EPILOG: Final = f"""\
Subscriptions belong to a key, so a new key needs new subscriptions: keep a copy of the file.

exit statuses:
  0  the public half is printed
  1  the file exists already, or cannot be written or read
  2  a mistake on the command line

examples:
  once        {PROGRAM} /etc/pyrycode-relay/webpush.pem
  later       {PROGRAM} --show /etc/pyrycode-relay/webpush.pem
"""


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="PEM file to make, with permission for its owner alone (0600); an existing file is "
        "never overwritten",
    )
    parser.add_argument(
        "--show", action="store_true", help="print the public half of the key in an existing FILE"
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser


def make_key(path: Path) -> Key:
    """Make a key in a new file, which is there whole or not at all. Raises `StartupError`."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(fresh, "xb", opener=_for_owner) as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        # Unlike a renaming, a link never replaces a file.
        os.link(fresh, path)
        _sync(path.parent)
    except FileExistsError:
        raise StartupError(
            f"{path} exists already; give the name of a new file, or --show to print its public "
            "half."
        ) from None
    except OSError as error:
        raise StartupError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()
    return key


def _for_owner(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _sync(folder: Path) -> None:
    """Have the name of a new file survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = command_line().parse_args(arguments)
    path: Path = options.file
    try:
        key = read_key(path) if options.show else make_key(path)
    except StartupError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return 1
    sys.stdout.write(f"{public_half(key)}\n")
    return 0

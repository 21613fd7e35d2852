"""The help that the command prints: the whole of it, and a page with what most relays need."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

from pyrycode_relay.config.options import COMMAND_OPTIONS, OPTIONS, CommandOption, Option, sections

_WIDTH: Final = 80
_COLUMN: Final = 28
"""Characters before the second column of the short help."""

_PURPOSE: Final = "A WebSocket relay between phones and the pyry daemon."
_USAGE: Final = "Usage: pyrycode-relay [OPTIONS]"
_PLACES: Final = """\
Each option can also be set in the environment, as PYRYCODE_RELAY_ and its name in capitals with
underscores, and in a configuration file. The command line wins over the environment, and the
environment over the file. In the environment, spaces separate the values of an option that may be
given more than once.

Times are in seconds and may have fractions. Sizes are in bytes and may end in K, M or G. A switch
is off unless it is given.

twistd [TWISTD OPTIONS] pyrycode-relay [OPTIONS] runs the same relay, also as a daemon."""
_EXAMPLES: Final = (
    ("on this machine, to try it", "--insecure-listen=127.0.0.1:8080"),
    ("behind a proxy", "--insecure-listen=127.0.0.1:8080 --trusted-proxy=127.0.0.1"),
    ("with your certificate", "--tls-cert=fullchain.pem --tls-key=privkey.pem"),
    ("with one from Let's Encrypt", "--domain=relay.example.org --acme-email=ops@example.org"),
)

ESSENTIALS: Final = {
    "insecure-listen": "Serve ws: here, without encryption.",
    "domain": "Serve wss: for this name, by Let's Encrypt.",
    "tls-cert": "Serve wss: with this certificate chain.",
    "tls-key": "The private key of --tls-cert.",
    "trusted-proxy": "Proxy that may name its clients' addresses.",
    "upgrade-rate": "Connections a minute from one address; 0: no limit.",
    "admin-listen": "Status page and metrics; empty turns them off.",
    "production": "Refuse what is unsafe on the open internet.",
    "config": "Read a file; --example-config prints one.",
    "check-config": "Check and print the configuration, and exit.",
}
"""The options that an operator needs first, each with a sentence for the short help."""


def whole() -> Iterator[str]:
    """Yield the lines of the help with every option."""
    yield _USAGE
    yield ""
    for paragraph in (_PURPOSE, *_PLACES.split("\n\n")):
        yield from textwrap.wrap(paragraph, _WIDTH, break_on_hyphens=False)
        yield ""
    for title, options in sections():
        yield f"{title}:"
        yield ""
        for option in options:
            yield from _described(option, option.help)
            shown = [f"Example: --{option.name}={option.example}"] if option.example else []
            shown += [f"Default: {option.default}"] if _has_default(option) else []
            yield from (f"      {each}" for each in shown)
            yield ""
    yield "Only on the command line:"
    yield ""
    for each in COMMAND_OPTIONS:
        yield from _described(each, each.help)
        yield ""
    yield "  --version"
    yield "      Print the relay's version and exit."
    yield ""
    yield "  -h, --help"
    yield "      Print the most important options, or all of them, and exit."


def short() -> Iterator[str]:
    """Yield the lines of the help with the options that an operator needs first."""
    yield _USAGE
    yield ""
    yield _PURPOSE
    yield ""
    known: dict[str, Option | CommandOption] = {each.name: each for each in OPTIONS}
    known |= {each.name: each for each in COMMAND_OPTIONS}
    for name, text in ESSENTIALS.items():
        yield f"  {known[name].usage:<{_COLUMN - 2}}{text}"
    yield ""
    yield "Examples:"
    for purpose, options in _EXAMPLES:
        yield f"  {purpose}:"
        yield f"      pyrycode-relay {options}"
    yield ""
    yield "All options: pyrycode-relay --help"


def _described(option: Option | CommandOption, text: str) -> Iterator[str]:
    yield f"  {option.usage}"
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=" " * 6,
        subsequent_indent=" " * 6,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _has_default(option: Option) -> bool:
    return bool(option.default) and not option.is_switch

"""The table of settings, and the example configuration made from it."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from pyrycode_relay.config import toml_file
from pyrycode_relay.config.options import OPTIONS, Option, example
from pyrycode_relay.config.settings import Settings
from pyrycode_relay.config.values import (
    ADDRESS,
    ADDRESS_OR_NONE,
    ALLOWED_HOST,
    BYTES,
    BYTES_OR_NONE,
    COUNT,
    COUNT_OR_NONE,
    DIRECTORY,
    DOMAIN,
    EMAIL,
    FILE_OR_NONE,
    FORMAT,
    HTTPS,
    LEVEL,
    PATH,
    RATE,
    RECLAIM,
    SECONDS,
    SECRET,
    SHARE,
    SOURCE,
    SUBJECT,
    SWITCH,
    TLS_ADDRESS,
    WORKERS,
    Kind,
)
from pyrycode_relay.limits import Limits
from tests.unit.bench import Cases, cases

BY_NAME = {option.name: option for option in OPTIONS}

KINDS: dict[Kind, str] = {
    ADDRESS: "insecure-listen acme-listen",
    ADDRESS_OR_NONE: "admin-listen",
    TLS_ADDRESS: "tls-listen",
    SOURCE: "trusted-proxy",
    PATH: "tls-cert tls-key",
    DIRECTORY: "tls-dir cert-cache",
    FILE_OR_NONE: "acme-ca-file push-ca-file webpush-key",
    ALLOWED_HOST: "push-allow-host",
    SUBJECT: "webpush-subject",
    SECRET: "fcm-credentials",
    DOMAIN: "domain",
    HTTPS: "acme-directory fcm-endpoint",
    EMAIL: "acme-email",
    SECONDS: (
        "grace write-stall message-timeout heartbeat-interval heartbeat-timeout probe-timeout "
        "close-timeout header-timeout drain-timeout push-timeout worker-timeout worker-backoff"
    ),
    BYTES_OR_NONE: "send-buffer",
    BYTES: "max-message-bytes outbox-bytes hold-bytes memory-budget",
    COUNT_OR_NONE: "max-connections-per-address max-connections max-waiting",
    COUNT: "max-phones upgrade-burst",
    WORKERS: "workers",
    RATE: "upgrade-rate",
    SHARE: "reserve-binaries",
    RECLAIM: "on-reclaim",
    SWITCH: "proxy-protocol limits-dry-run production admin-allow-remote status-ids",
    FORMAT: "log-format",
    LEVEL: "log-level",
}
"""The options of each kind. Times are in seconds and budgets in bytes. A time or a budget of 0
would fail everything, so it is allowed only where it means something else."""

MANY = {
    *("insecure-listen", "tls-listen", "acme-listen", "trusted-proxy"),
    *("tls-cert", "tls-key", "tls-dir", "domain", "push-allow-host"),
}


class OptionTests(Cases):
    def test_names(self) -> None:
        """Each limit and each setting has an option of its name, and no two have the same."""
        names = {field.name for each in (Limits, Settings) for field in fields(each)}
        self.assertEqual({option.field for option in OPTIONS}, names - {"limits", "sources"})
        self.assertEqual(len(BY_NAME), len(OPTIONS))

    def test_kinds(self) -> None:
        """Each option has the kind of its unit."""
        expected = {name: kind for kind, names in KINDS.items() for name in names.split()}
        self.assertEqual({option.name: option.kind for option in OPTIONS}, expected)
        self.assertEqual({option.name for option in OPTIONS if option.many}, MANY)

    @cases({name: (option,) for name, option in BY_NAME.items()})
    def test_described(self, option: Option) -> None:
        """Each option has a help that is a sentence or more, and its own environment variable."""
        self.assertRegex(option.help, r"\A[A-Z].*\.\Z")
        variable = option.name.upper().replace("-", "_")
        self.assertEqual(option.variable, f"PYRYCODE_RELAY_{variable}")

    @cases({name: (option,) for name, option in BY_NAME.items() if not option.is_switch})
    def test_example(self, option: Option) -> None:
        """Each option with a value has an example: an allowed value, and not the default."""
        self.assertTrue(option.example)
        self.assertNotEqual(option.example, option.default)
        if option.kind is not FILE_OR_NONE:  # Its files must exist.
            option.kind.parse(option.example)

    def test_switches(self) -> None:
        """A switch is off unless it is given."""
        switches = [option for option in OPTIONS if option.is_switch]
        self.assertEqual({option.kind for option in switches}, {SWITCH})
        self.assertEqual({option.default_value for option in switches}, {False})

    @cases(
        {
            "switch": ("production", True, "true"),
            "number": ("grace", 2.5, "2.5"),
            "whole_number": ("max-phones", 16, "16"),
            "small_number": ("upgrade-rate", 0.00002, "2e-05"),
            "text": ("admin-listen", "", '""'),
            "word": ("log-format", False, '"text"'),
            "path_of_digits": ("cert-cache", Path("1" * 28), f'"{"1" * 28}"'),
            "path_of_a_few_digits": ("cert-cache", Path("-0"), '"-0"'),
            "path_like_a_fraction": ("tls-dir", (Path("1.5"), Path("1e+16")), '["1.5", "1e+16"]'),
            "path": ("cert-cache", Path("a b"), '"a b"'),
            "many": ("tls-dir", (Path("a"), Path("b")), '["a", "b"]'),
            "none_of_many": ("tls-dir", (), "[]"),
        }
    )
    def test_written(self, name: str, value: Any, expected: str) -> None:
        """A value is written as a configuration file has it."""
        self.assertEqual(BY_NAME[name].written(value), expected)


class DefaultTests(Cases):
    @cases({field.name: (field.name,) for field in fields(Limits)})
    def test_limit(self, name: str) -> None:
        """The default of a limit's option is the default of the limit."""
        option = BY_NAME[name.replace("_", "-")]
        self.assertEqual(option.default_value, getattr(Limits(), name))

    @cases(
        {field.name: (field.name,) for field in fields(Settings) if field.default is not MISSING}
    )
    def test_setting(self, name: str) -> None:
        """The default of any other option is the default of the setting."""
        self.assertEqual(BY_NAME[name.replace("_", "-")].default_value, getattr(Settings(), name))

    @cases({name: (option,) for name, option in BY_NAME.items()})
    def test_as_text(self, option: Option) -> None:
        """The text of a default is the one that its value is written as, but for addresses."""
        if option.kind is not ADDRESS_OR_NONE and not option.many:
            self.assertEqual(option.kind.show(option.default_value), option.default)


class ExampleTests(Cases):
    def test_every_setting(self) -> None:
        """The example names each setting, with its help; its values are the defaults."""
        text = "\n".join(example())
        given = [line for line in text.splitlines() if re.match(r"# [a-z-]+ = ", line)]
        file = toml_file.parse("example", "\n".join(line.removeprefix("# ") for line in given))
        self.assertEqual([*file.texts], [option.name for option in OPTIONS])
        for option in OPTIONS:
            values = [option.kind.parse(each) for each in file.texts[option.name]]
            written = option.written(values if option.many else values[0])
            self.assertEqual(written, option.written(option.default_value))
        plain = " ".join(text.replace("\n# ", " ").split())
        for option in OPTIONS:
            self.assertIn(" ".join(option.help.split()), plain)

    def test_commented(self) -> None:
        """As it is, the example sets nothing."""
        self.assertEqual(toml_file.parse("example", "\n".join(example())).texts, {})

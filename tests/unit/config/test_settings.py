"""Settings: names, units and defaults, where values come from, and how mistakes are told."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import serverFromString

from pyrycode_relay.config import toml_file
from pyrycode_relay.config.settings import (
    OPTIONS,
    Settings,
    endpoint_string,
    example,
)
from pyrycode_relay.events import Level
from pyrycode_relay.limits import Limits, OnReclaim
from pyrycode_relay.startup_error import StartupError
from tests.unit.bench import Cases, cases, examples

LISTEN = "insecure-listen"
LISTEN_VARIABLE = "PYRYCODE_RELAY_INSECURE_LISTEN"
HERE = ["127.0.0.1:0"]
PATHS = ("tls-cert", "tls-key", "tls-dir", "cert-cache")
GRAVE = ('unix:/a "b"', "unix:/a\\\\b", "unix:/ü#'\t\n\x7f", "unix:/\U0001f512")
"""Addresses with characters that mean something elsewhere."""
BY_NAME = {option.name: option for option in OPTIONS if option.name != LISTEN}
WORDS = [name for name in BY_NAME if name not in PATHS]
"""Options of which some texts are wrong by themselves; almost any text is a path."""
SECONDS = [
    "grace",
    "write-stall",
    "message-timeout",
    "heartbeat-interval",
    "heartbeat-timeout",
    "probe-timeout",
    "close-timeout",
    "header-timeout",
    "drain-timeout",
]
BYTES = ["max-message-bytes", "outbox-bytes", "hold-bytes", "memory-budget", "send-buffer"]


def read(**given: str) -> Settings:
    """Read settings from a command line with ``given`` options, and nothing else."""
    return read_from(HERE, {name.replace("_", "-"): text for name, text in given.items()}, {})


def read_from(
    listen: Sequence[str], given: Mapping[str, str], environment: Mapping[str, str]
) -> Settings:
    """Read settings from a command line with ``listen`` and ``given``, and an environment."""
    line = {name: [text] for name, text in given.items()}
    return Settings.read(line | ({LISTEN: listen} if listen else {}), environment)


class SettingsCase(Cases):
    def problems(
        self,
        given: dict[str, str],
        environment: dict[str, str] | None = None,
        listen: list[str] | None = None,
    ) -> tuple[str, ...]:
        """Return what is wrong with a configuration, which has to be refused."""
        error: StartupError = self.assertRaises(
            StartupError,
            read_from,
            HERE if listen is None else listen,
            given,
            environment or {},
        )
        self.assertEqual(str(error), "\n".join(error.problems))
        return error.problems


class OptionTests(SettingsCase):
    def test_defaults(self) -> None:
        """Nothing given is the contract's defaults, which stand in `Limits` too."""
        self.assertEqual(read().limits, Limits())
        self.assertEqual((read().log_format, read().log_level), (False, Level.INFO))

    def test_each_limit_can_be_set(self) -> None:
        """Each limit has an option of its name, and besides there are those of the log."""
        names = {field.name for each in (Limits, Settings) for field in fields(each)}
        self.assertEqual({option.field for option in OPTIONS}, names - {"limits", "sources"})
        self.assertEqual(len({option.name for option in OPTIONS}), len(OPTIONS))

    @cases({name: (name,) for name in BY_NAME})
    def test_told_apart(self, name: str) -> None:
        """Each option has a help that ends as a sentence, and its variable's name is its own."""
        option = BY_NAME[name]
        self.assertRegex(option.help, r"\A[A-Z].*\.\Z")
        self.assertEqual(option.variable, "PYRYCODE_RELAY_" + name.upper().replace("-", "_"))

    @cases({name: (name,) for name in SECONDS})
    def test_seconds(self, name: str) -> None:
        """Times are in seconds and may have fractions."""
        for text, value in (("0.5", 0.5), ("7", 7.0), ("86400", 86400.0), ("1e1", 10.0)):
            self.assertEqual(getattr(read(**{name: text}).limits, BY_NAME[name].field), value)

    @cases({name: (name,) for name in SECONDS})
    def test_no_seconds(self, name: str) -> None:
        """What is no time a relay could keep is refused."""
        for text in ("", "soon", "-1", "nan", "inf", "-inf", "86401", "30s", "1e400", "0x10"):
            [problem] = self.problems({name: text})
            self.assertIn(f"--{name} is {text!r}", problem)

    @cases({name: (name,) for name in SECONDS if name != "grace"})
    def test_no_time_at_all(self, name: str) -> None:
        """A time-out of 0 would fail everything, and is refused."""
        self.assertEqual(len(self.problems({name: "0"})), 1)

    def test_no_grace(self) -> None:
        """Grace alone may be 0."""
        self.assertEqual(read(grace="0").limits.grace, 0)

    @cases({name: (name,) for name in BYTES})
    def test_bytes(self, name: str) -> None:
        """Bytes may be given with a unit, in powers of 1024, whichever way it is spelt."""
        for text, value in (
            ("4096", 4096),
            ("64K", 65536),
            ("64k", 65536),
            ("2M", 2**21),
            ("2 MiB", 2**21),
            ("2mb", 2**21),
            ("1G", 2**30),
            (" 1024 ", 1024),
        ):
            self.assertEqual(getattr(read(**{name: text}).limits, BY_NAME[name].field), value)

    @cases({name: (name,) for name in BYTES})
    def test_no_bytes(self, name: str) -> None:
        """What is no number of bytes is refused."""
        for text in ("", "much", "-1", "1.5M", "1T", "K", "9" * 30, "9" * 5000, "1e3", "inf"):
            self.assertEqual(len(self.problems({name: text})), 1, text)

    @cases({name: (name,) for name in BYTES if name != "send-buffer"})
    def test_no_bytes_at_all(self, name: str) -> None:
        """A budget of 0 would let nothing through, and is refused."""
        self.assertEqual(len(self.problems({name: "0"})), 1)

    def test_kernels_own_buffer(self) -> None:
        """The send buffer alone may be 0."""
        self.assertEqual(read(send_buffer="0").limits.send_buffer, 0)

    def test_phones(self) -> None:
        """Phones are counted in whole numbers, from 1."""
        self.assertEqual(read(max_phones="1").limits.max_phones, 1)
        for text in ("0", "-1", "1.5", "many", "", "1000001", "9" * 5000):
            self.assertEqual(len(self.problems({"max-phones": text})), 1, text)

    def test_rate(self) -> None:
        """A rate may be a fraction or off, but none by which the next upgrade is never due."""
        for text, value in (("0", 0), ("0.01", 0.01), ("2.5", 2.5), ("1e3", 1000)):
            self.assertEqual(read(upgrade_rate=text).limits.upgrade_rate, value)
        for text in ("", "-1", "5e-324", "0.009", "nan", "inf", "1000001", "10/min"):
            self.assertEqual(len(self.problems({"upgrade-rate": text})), 1, text)

    def test_proxies(self) -> None:
        """A proxy is an address, a network or UNIX sockets, and there may be several."""
        self.assertEqual(read().trusted_proxy, ())
        variable = {"PYRYCODE_RELAY_TRUSTED_PROXY": "127.0.0.1 fd00::/8  unix"}
        sources = read_from(HERE, {}, variable).trusted_proxy
        self.assertEqual([str(each) for each in sources], ["127.0.0.1/32", "fd00::/8", "unix"])
        for text in ("10.0.0.1/8", "10.0.0.0/33", "localhost", "", "fe80::%eth0/64", "10"):
            self.assertEqual(len(self.problems({"trusted-proxy": text})), 1, text)

    def test_proxy_protocol(self) -> None:
        """A PROXY header counts from somebody, and is off until it is asked for."""
        self.assertFalse(read().proxy_protocol)
        self.assertTrue(read(proxy_protocol="yes", trusted_proxy="127.0.0.1").proxy_protocol)
        [problem] = self.problems({"proxy-protocol": "yes"})
        self.assertIn("--proxy-protocol is given and no proxy is trusted", problem)
        self.assertIn("--trusted-proxy=", problem)

    def test_proxy_protocol_in_the_wrong_place(self) -> None:
        """A listener that would look for the header above TLS, or take anybody's, is refused."""
        [problem] = self.problems({}, listen=["haproxy:tcp:80"])
        self.assertIn("--insecure-listen is 'haproxy:tcp:80'", problem)
        self.assertIn("--proxy-protocol", problem)
        given = {"proxy-protocol": "yes", "trusted-proxy": "127.0.0.1"}
        [problem] = self.problems(given, listen=["ssl:443", "tcp:80"])
        self.assertIn("--insecure-listen is 'ssl:443'", problem)

    def test_reclaim(self) -> None:
        """What happens on a reclaim is one of two words."""
        for policy in OnReclaim:
            self.assertIs(read(on_reclaim=policy.value).limits.on_reclaim, policy)
        for text in ("", "drop", "Evict"):
            self.assertEqual(
                self.problems({"on-reclaim": text}),
                (f"--on-reclaim is {text!r}; allowed: evict or keep.",),
            )

    def test_log(self) -> None:
        """The log is text or JSON, from one of four levels on."""
        self.assertTrue(read(log_format="json").log_format)
        self.assertFalse(read(log_format="text").log_format)
        for level in Level:
            self.assertIs(read(log_level=level.name.lower()).log_level, level)
        self.assertEqual(len(self.problems({"log-format": "xml", "log-level": "loud"})), 2)

    @examples(200)
    @given(st.sampled_from(WORDS), st.text(max_size=12))
    def test_any_text(self, name: str, text: str) -> None:
        """Any text for any option is a setting or one sentence, never another error."""
        try:
            read(**{name: text})
        except StartupError as error:
            self.assertEqual(len(error.problems), 1)
            self.assertIn(f"--{name} is ", error.problems[0])


class SourceTests(SettingsCase):
    def test_environment(self) -> None:
        """What the command line leaves out is taken from the environment."""
        environment = {"PYRYCODE_RELAY_GRACE": "5", "PYRYCODE_RELAY_ON_RECLAIM": "keep"}
        limits = read_from(HERE, {}, environment).limits
        self.assertEqual((limits.grace, limits.on_reclaim), (5, OnReclaim.KEEP))

    def test_command_line_wins(self) -> None:
        """What stands in both is the command line's, and the other is not even looked at."""
        environment = {"PYRYCODE_RELAY_GRACE": "nonsense"}
        self.assertEqual(read_from(HERE, {"grace": "7"}, environment).limits.grace, 7)

    def test_other_variables(self) -> None:
        """Other variables of the environment are nobody's business."""
        self.assertEqual(read_from(HERE, {}, {"GRACE": "x", "PATH": "/bin"}).limits, Limits())

    def test_all_at_once(self) -> None:
        """All mistakes are told together, each with the setting, the value and what is allowed."""
        problems = self.problems(
            {"grace": "soon", "max-phones": "0"},
            {"PYRYCODE_RELAY_HOLD_BYTES": "much"},
            ["127.0.0.1:http"],
        )
        self.assertEqual(len(problems), 4)
        self.assertEqual(
            problems[1:],
            (
                "--grace is 'soon'; allowed: a number of seconds from 0 to 86400.",
                "--max-phones is '0'; allowed: a whole number from 1 to 1000000.",
                (
                    "PYRYCODE_RELAY_HOLD_BYTES is 'much'; allowed: a number of bytes above 0, "
                    "such as 4096, 64K or 256M."
                ),
            ),
        )
        self.assertTrue(problems[0].startswith("--insecure-listen is '127.0.0.1:http'; "))

    def test_one_sentence_each(self) -> None:
        """Each mistake is one sentence on one line."""
        for problem in self.problems(dict.fromkeys(WORDS, "\n"), listen=["\n"]):
            self.assertEqual(len(problem.splitlines()), 1)
            self.assertTrue(problem.endswith("."))


class TLSTests(SettingsCase):
    def settings(self, **given: list[str]) -> Settings:
        """Read settings from a command line with nothing but ``given``."""
        return Settings.read({name.replace("_", "-"): texts for name, texts in given.items()}, {})

    def refused(self, **given: list[str]) -> tuple[str, ...]:
        """Return what is wrong with a command line."""
        error: StartupError = self.assertRaises(StartupError, self.settings, **given)
        return error.problems

    def test_default_address(self) -> None:
        """Whatever brings a certificate brings port 443, unless there is an address."""
        for line in (
            {"tls_cert": ["c"], "tls_key": ["k"]},
            {"tls_dir": ["d"]},
            {"domain": ["relay.example"]},
        ):
            self.assertEqual(self.settings(**line).tls_listen, (":443",))
            line["tls_listen"] = ["127.0.0.1:1", "[::1]:2"]
            self.assertEqual(self.settings(**line).tls_listen, ("127.0.0.1:1", "[::1]:2"))
        self.assertEqual(read().tls_listen, ())

    def test_pairs(self) -> None:
        """Certificates and keys stand in their order, and there is one for each other."""
        found = self.settings(tls_cert=["a", "b"], tls_key=["c", "d"])
        self.assertEqual(
            (found.tls_cert, found.tls_key), ((Path("a"), Path("b")), (Path("c"), Path("d")))
        )
        self.assertEqual(
            self.refused(tls_cert=["a", "b"], tls_key=["c"]),
            (
                (
                    "--tls-cert is given 2 times and --tls-key once; give one --tls-key for each "
                    "--tls-cert, in their order."
                ),
            ),
        )
        self.assertIn(
            "0 times and --tls-key once", self.refused(tls_key=["k"], insecure_listen=HERE)[0]
        )

    def test_no_certificate(self) -> None:
        """An address for TLS without anything to serve is a sentence."""
        [problem] = self.refused(tls_listen=["127.0.0.1:1"])
        self.assertIn("--tls-listen is '127.0.0.1:1' and there is no certificate; give ", problem)

    def test_tls_in_tls(self) -> None:
        """An endpoint that brings TLS along is no place for it."""
        [problem] = self.refused(tls_listen=["ssl:443"], tls_dir=["d"])
        self.assertIn("--tls-listen is 'ssl:443'; allowed: ", problem)

    def test_acme(self) -> None:
        """Names without certificate files mean ACME, and port 80 with it; files mean none."""
        found = self.settings(domain=["relay.example"])
        self.assertTrue(found.acme)
        self.assertEqual(found.acme_listen, (":80",))
        self.assertEqual(found.cert_cache, Path("~/.pyrycode-relay/certs"))
        self.assertTrue(found.acme_directory.startswith("https://acme-v02.api.letsencrypt.org/"))
        found = self.settings(domain=["relay.example"], acme_listen=["127.0.0.1:1", "[::1]:1"])
        self.assertEqual(found.acme_listen, ("127.0.0.1:1", "[::1]:1"))
        for files in ({"tls_dir": ["d"]}, {"tls_cert": ["c"], "tls_key": ["k"]}):
            found = self.settings(domain=["relay.example"], **files)
            self.assertFalse(found.acme)
            self.assertEqual(found.acme_listen, ())
            [problem] = self.refused(domain=["relay.example"], acme_listen=[":80"], **files)
            self.assertIn("--acme-listen is ':80' and no certificate comes from an ACME", problem)
        self.assertFalse(read().acme)

    def test_no_home(self) -> None:
        """A home that is not known is a mistake, but only of those who want it."""
        home = "~nobody-of-that-name/certs"
        [problem] = self.refused(domain=["relay.example"], cert_cache=[home])
        self.assertIn(f"--cert-cache is {home!r}", problem)
        self.assertEqual(read(cert_cache=home).cert_cache, Path(home))

    @cases(
        {
            "plain": ("acme_directory", "http://ca.example/dir"),
            "no_host": ("acme_directory", "https:///dir"),
            "password": ("acme_directory", "https://me:secret@ca.example/dir"),
            "port": ("acme_directory", "https://ca.example:65536/dir"),
            "space": ("acme_directory", "https://ca.example/d ir"),
            "line": ("acme_directory", "https://ca.example/dir\n"),
            "two_addresses": ("acme_email", "a@example.org,b@example.org"),
            "no_address": ("acme_email", "ops"),
            "header": ("acme_email", "a@example.org?subject=x"),
            "missing_file": ("acme_ca_file", "no-such-file.pem"),
            "folder": ("acme_ca_file", "/"),
            "long_name": ("acme_ca_file", "x" * 5000),
        }
    )
    def test_wrong_acme(self, name: str, text: str) -> None:
        """What no CA or account could be is refused."""
        [problem] = self.refused(domain=["relay.example"], **{name: [text]})
        self.assertIn(f"--{name.replace('_', '-')} is {text!r}; allowed: ", problem)

    def test_acme_account(self) -> None:
        """Addresses and URLs of the usual kinds are taken."""
        for text in ("ops@example.org", "first.last+relay@mail.example.org", ""):
            self.assertEqual(read(acme_email=text).acme_email, text)
        for text in ("https://ca.example/dir", "https://[::1]:14000/dir", "https://localhost:1/"):
            self.assertEqual(read(acme_directory=text).acme_directory, text)
        self.assertIsNone(read(acme_ca_file="").acme_ca_file)
        self.assertEqual(read(acme_ca_file=__file__).acme_ca_file, Path(__file__))

    def test_domains(self) -> None:
        """Names are DNS names, whatever the case; addresses and wildcards are none."""
        found = self.settings(domain=["Relay.Example.ORG", "localhost", "a-b.x1"])
        self.assertEqual(found.domain, ("relay.example.org", "localhost", "a-b.x1"))
        wrong = ["", ".", "a.", "-a", "a-", "*.a", "a b", "127.0.0.1", "[::1]", "a:443", "ä.org"]
        wrong += ["a" * 64, ".".join(["a" * 60] * 5), "a/b", "\u212a.org"]
        self.assertEqual(len(self.refused(domain=wrong)), len(wrong))


class MetricsListenTests(SettingsCase):
    def test_default(self) -> None:
        """Without a word it is a port of loopback; empty, it is off."""
        self.assertEqual(read().admin_listen, "127.0.0.1:9090")
        self.assertEqual(read(admin_listen="").admin_listen, "")
        self.assertFalse(read().admin_allow_remote)

    @cases(
        {
            "ipv4": ("127.0.0.1:9090",),
            "another": ("127.8.9.1:0",),
            "ipv6": ("[::1]:9090",),
            "unix": ("unix:/run/relay/metrics",),
            "tcp": ("tcp:9090:interface=127.0.0.1",),
            "tcp_ipv6": (r"tcp6:9090:interface=\:\:1",),
        }
    )
    def test_loopback(self, address: str) -> None:
        """Where nobody else can reach it, it needs no leave."""
        self.assertEqual(read(admin_listen=address).admin_listen, address)

    @cases(
        {
            "every": (":9090",),
            "every_ipv4": ("0.0.0.0:9090",),
            "every_ipv6": ("[::]:9090",),
            "mapped": ("[::ffff:192.0.2.7]:9090",),
            "own": ("192.0.2.7:9090",),
            "tcp": ("tcp:9090",),
            "tcp_own": ("tcp:9090:interface=192.0.2.7",),
            "twice": ("tcp:9090:interface=127.0.0.1:interface=192.0.2.7",),
        }
    )
    def test_remote(self, address: str) -> None:
        """Where others can, or might, it is a sentence with the fix; with leave, it is taken."""
        [problem] = self.problems({"admin-listen": address})
        self.assertIn(f"--admin-listen is {address!r}", problem)
        self.assertIn("--admin-allow-remote", problem)
        read(admin_listen=address, admin_allow_remote="yes")


class ListenTests(SettingsCase):
    @cases(
        {
            "port": (":8080", "", 8080),
            "ipv4": ("127.0.0.1:8080", "127.0.0.1", 8080),
            "ipv6": ("[::1]:8080", "::1", 8080),
            "any_ipv6": ("[::]:80", "::", 80),
            "any_port": ("127.0.0.1:0", "127.0.0.1", 0),
            "last_port": (":65535", "", 65535),
            "zeros": (":0080", "", 80),
        }
    )
    def test_short_form(self, address: str, interface: str, port: int) -> None:
        """An address in short form becomes a TCP endpoint for it, with a long backlog.

        Without a host it is every address: of IPv6 too, unless the machine has none.
        """
        endpoint = serverFromString(None, endpoint_string(address))
        self.assertIn(endpoint._interface, {interface} if interface else {"::", "0.0.0.0"})
        self.assertEqual((endpoint._port, endpoint._backlog), (port, 1024))

    @cases(
        {
            "tcp": ("tcp:8080",),
            "tcp_interface": ("tcp:8080:interface=127.0.0.1",),
            "unix": ("unix:/run/relay.sock:mode=660",),
        }
    )
    def test_endpoint_string(self, address: str) -> None:
        """Twisted's endpoint strings are taken as they are."""
        self.assertEqual(endpoint_string(address), address)

    @cases(
        {
            "empty": ("",),
            "bare_port": ("8080",),
            "word": ("here",),
            "name": ("localhost:8080",),
            "no_port": ("127.0.0.1:",),
            "no_port_at_all": (":",),
            "port_too_high": (":65536",),
            "huge_port": (":" + "9" * 5000,),
            "negative_port": (":-1",),
            "named_port": (":http",),
            "other_digits": (":٣",),
            "bare_ipv6": ("::1:8080",),
            "broken_ipv6": ("[::g]:8080",),
            "broken_ipv4": ("127.0.0.256:80",),
            "tcp_word": ("tcp:http-or-so",),
            "unknown_kind": ("carrier-pigeon:1",),
            "url": ("http://127.0.0.1:80",),
        }
    )
    def test_no_address(self, address: str) -> None:
        """What is no address is told with the value and with what is allowed."""
        [problem] = self.problems({}, listen=[address])
        self.assertIn(f"--{LISTEN} is {address!r}; ", problem)

    def test_several(self) -> None:
        """There may be several, kept in their order."""
        settings = read_from(["127.0.0.1:1", "tcp:2"], {}, {})
        self.assertEqual(len(settings.insecure_listen), 2)
        self.assertEqual(settings.insecure_listen[1], "tcp:2")

    def test_in_the_environment(self) -> None:
        """In the environment they are separated by spaces; a mistake is told with its variable."""
        settings = read_from([], {}, {LISTEN_VARIABLE: "tcp:1  tcp:2"})
        self.assertEqual(settings.insecure_listen, ("tcp:1", "tcp:2"))
        [problem] = self.problems({}, {LISTEN_VARIABLE: "tcp:1 nowhere"}, [])
        self.assertIn(f"{LISTEN_VARIABLE} is 'nowhere'; ", problem)

    def test_command_line_wins(self) -> None:
        """What the command line says stands in place of the environment's, not beside it."""
        settings = read_from(["tcp:1"], {}, {LISTEN_VARIABLE: "tcp:2"})
        self.assertEqual(settings.insecure_listen, ("tcp:1",))

    @cases({"not_given": ({},), "empty": ({LISTEN_VARIABLE: " "},)})
    def test_nothing_to_listen_on(self, environment: dict[str, str]) -> None:
        """Without an address there is nothing to do, and a sentence that says how to give one."""
        [problem] = self.problems({}, environment, [])
        self.assertIn("--insecure-listen=", problem)

    @examples(100)
    @given(st.text(max_size=12))
    def test_any_text(self, address: str) -> None:
        """Any text is an address or a sentence, never another error."""
        try:
            settings = read_from([address], {}, {})
        except StartupError as error:
            self.assertEqual(len(error.problems), 1)
        else:
            serverFromString(None, endpoint_string(settings.insecure_listen[0]))


def shown(settings: Settings) -> dict[str, str]:
    """Return the settings as they are written; of an address that is its long form."""
    return {option.name: option.written(settings.value(option)) for option in OPTIONS}


class PrintedTests(SettingsCase):
    def test_what_is_printed_can_be_given(self) -> None:
        """The settings as printed are what one would give to get them."""
        changed = {
            "grace": "12.5",
            "on-reclaim": "keep",
            "max-phones": "3",
            "hold-bytes": "2M",
            "send-buffer": "0",
            "proxy-protocol": "yes",
            "trusted-proxy": "10.0.0.0/8",
            "log-format": "json",
            "log-level": "warn",
        }
        for options in ({}, changed):
            settings = read_from([":8080", "unix:/run/relay"], options, {})
            printed = toml_file.parse("printed", "\n".join(settings.lines()))
            self.assertEqual(set(printed.texts), {option.name for option in OPTIONS})
            again = Settings.read({}, {}, printed)
            self.assertEqual(shown(again), shown(settings))
            self.assertEqual(again.limits, settings.limits)
            self.assertEqual(set(again.sources.values()), {"printed"})

    @examples(50)
    @given(st.floats(0.001, 86400), st.floats(0, 0.9), st.lists(st.sampled_from(GRAVE), max_size=3))
    def test_any_value_can_be_given(self, time: float, share: float, listen: list[str]) -> None:
        """No digit of a number is lost, nor a character of a path, however odd."""
        given = {"write-stall": repr(time), "reserve-binaries": repr(share)}
        settings = read_from([*listen, "tcp:80"], given, {})
        printed = toml_file.parse("printed", "\n".join(settings.lines()))
        again = Settings.read({}, {}, printed)
        self.assertEqual(shown(again), shown(settings))
        self.assertEqual((again.limits.write_stall, again.limits.reserve_binaries), (time, share))

    def test_where_it_comes_from(self) -> None:
        """Each line says where its value was found."""
        file = toml_file.parse("/etc/r.toml", "grace = 1\nmax-phones = 2\nwrite-stall = 3")
        environment = {"PYRYCODE_RELAY_MAX_PHONES": "4", "PYRYCODE_RELAY_WRITE_STALL": "5"}
        settings = Settings.read({"write-stall": ["6"], LISTEN: [":1"]}, environment, file)
        found = {}
        for line in settings.lines():
            name, _, rest = line.partition(" = ")
            value, _, source = rest.partition("  # ")
            found[name] = (value.strip(), source)
        self.assertEqual(found["grace"], ("1", "/etc/r.toml"))
        self.assertEqual(found["max-phones"], ("4", "PYRYCODE_RELAY_MAX_PHONES"))
        self.assertEqual(found["write-stall"], ("6", "--write-stall"))
        self.assertEqual(found["hold-bytes"], ("1048576", "default"))


class FileTests(SettingsCase):
    """What a configuration file may say."""

    def from_file(self, text: str) -> Settings:
        """Read settings from a file alone, which listens if it says nothing about it."""
        if LISTEN not in text:
            text = f'{LISTEN} = ["127.0.0.1:0"]\n{text}'
        return Settings.read({}, {}, toml_file.parse("relay.toml", text))

    def wrong(self, text: str) -> str:
        """Return what is wrong with a file, which has one mistake."""
        error = self.assertRaises(StartupError, self.from_file, text)
        [problem] = error.problems
        return str(problem)

    def test_kinds(self) -> None:
        """Numbers, text and lists are read as on the command line; underscores are dashes."""
        settings = self.from_file(
            'insecure-listen = [":80", "unix:/run/my relay"]\ngrace = 2.5\nmax_phones = 3\n'
            'hold-bytes = "64K"\nmemory_budget = 1_048_576\nlimits-dry-run = true\n'
            'on-reclaim = "keep"\nproduction = false\nupgrade-rate = 0.5'
        )
        limits = settings.limits
        self.assertEqual(settings.insecure_listen, (":80", "unix:/run/my relay"))
        self.assertEqual((limits.grace, limits.max_phones, limits.hold_bytes), (2.5, 3, 65536))
        self.assertEqual((limits.memory_budget, limits.limits_dry_run), (2**20, True))
        self.assertEqual((limits.upgrade_rate, settings.production), (0.5, False))

    def test_one_of_many(self) -> None:
        """Where several are possible one may stand without a list, and none as an empty one."""
        self.assertEqual(self.from_file('insecure-listen = ":80"').insecure_listen, (":80",))
        self.assertIn("Nothing to listen on", self.wrong("insecure-listen = []"))

    def test_order(self) -> None:
        """The environment wins over the file, and the command line over both; unread is unread."""
        file = toml_file.parse("f", 'grace = "nonsense"\nmax-phones = "nonsense"')
        environment = {"PYRYCODE_RELAY_GRACE": "5", "PYRYCODE_RELAY_MAX_PHONES": "nonsense"}
        limits = Settings.read({LISTEN: [":1"], "max-phones": ["2"]}, environment, file).limits
        self.assertEqual((limits.grace, limits.max_phones), (5, 2))

    @cases(
        {
            "near": ("max-phone = 3", "did you mean max-phones?"),
            "underscores": ("hold_byte = 3", "did you mean hold-bytes?"),
            "capitals": ("Grace = 3", "did you mean grace?"),
            "far": ("zzz = 3", "--help names them all."),
        }
    )
    def test_unknown(self, text: str, hint: str) -> None:
        """What is no setting is refused, with the nearest that is one."""
        name = text.partition(" ")[0].replace("_", "-")
        self.assertEqual(self.wrong(text), f"relay.toml: {name} is no setting; {hint}")

    @cases(
        {
            "text": ('grace = "soon"', "'soon'; allowed: a number of seconds"),
            "huge": (f"grace = {'9' * 100}", "'too large a number'; allowed: "),
            "hex": (f"grace = 0x{'f' * 9000}", "'too large a number'; allowed: "),
            "endless": ("grace = inf", "'inf'; allowed: "),
            "switch": ("grace = true", "'yes'; allowed: "),
        }
    )
    def test_wrong_value(self, text: str, rest: str) -> None:
        """A wrong value is one sentence with the file, the setting and what is allowed."""
        self.assertIn(f"relay.toml: grace is {rest}", self.wrong(text))

    def test_list_for_one(self) -> None:
        """A list is refused where there is one value, be it of one."""
        self.assertEqual(
            self.wrong("grace = [3]"), "relay.toml: grace is a list, and takes one value."
        )

    def test_all_at_once(self) -> None:
        """All mistakes of all places are told together."""
        file = toml_file.parse("f", 'grace = "x"\nnothing = 1\nwrite-stall = [1, 2]')
        error = self.assertRaises(
            StartupError, Settings.read, {}, {"PYRYCODE_RELAY_HOLD_BYTES": "x"}, file
        )
        self.assertEqual(len(error.problems), 5, error.problems)


class ExampleTests(SettingsCase):
    def test_every_setting(self) -> None:
        """The example names every setting, with its help; its defaults are the defaults."""
        text = "\n".join(example())
        given = [line for line in text.splitlines() if re.match(r"# [a-z-]+ = ", line)]
        file = toml_file.parse("example", "\n".join(line.removeprefix("# ") for line in given))
        self.assertEqual([*file.texts], [option.name for option in OPTIONS])
        self.assertEqual(shown(Settings.read({LISTEN: HERE}, {}, file)), shown(read()))
        plain = " ".join(text.replace("\n# ", " ").split())
        for option in OPTIONS:
            self.assertIn(" ".join(option.help.split()), plain)

    def test_commented(self) -> None:
        """As it is it says nothing."""
        self.assertEqual(toml_file.parse("example", "\n".join(example())).texts, {})

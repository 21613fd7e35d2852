"""The settings: where their values come from, and how mistakes are reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.config import toml_file, values
from pyrycode_relay.config.options import OPTIONS
from pyrycode_relay.config.settings import Settings
from pyrycode_relay.config.values import PATH
from pyrycode_relay.events import Level
from pyrycode_relay.limits import Limits, OnReclaim
from pyrycode_relay.startup_error import StartupError
from tests.unit.bench import Cases, cases, examples
from tests.unit.config.test_listen import MACHINE, NETWORK, UNKNOWN

LISTEN = "insecure-listen"
LISTEN_VARIABLE = "PYRYCODE_RELAY_INSECURE_LISTEN"
HERE = ["127.0.0.1:0"]
GRAVE = ('unix:/a "b"', "unix:/a\\\\b", "unix:/ü#'\t\n\x7f", "unix:/\U0001f512")
"""Addresses with characters that mean something elsewhere."""
WORDS = [option.name for option in OPTIONS if option.kind is not PATH and option.name != LISTEN]
"""The options that refuse some texts; almost any text is a path."""

OTHER_VALUES = {
    "workers": "auto",
    "worker-timeout": "20",
    "worker-backoff": "60",
    "proxy-protocol": "yes",
    "trusted-proxy": "10.0.0.0/8",
    "tls-listen": "[::1]:443",
    "tls-cert": "other.pem",
    "tls-key": "other.key",
    "tls-dir": "certs",
    "domain": "relay.example",
    "acme-listen": "127.0.0.1:80",
    "acme-directory": "https://ca.example/dir",
    "acme-email": "ops@example.org",
    "acme-ca-file": __file__,
    "cert-cache": "cache",
    "grace": "1.5",
    "on-reclaim": "keep",
    "max-phones": "3",
    "max-message-bytes": "1K",
    "outbox-bytes": "2M",
    "hold-bytes": "3K",
    "memory-budget": "128M",
    "send-buffer": "0",
    "write-stall": "2.5",
    "message-timeout": "3.5",
    "heartbeat-interval": "4.5",
    "heartbeat-timeout": "5.5",
    "probe-timeout": "6.5",
    "close-timeout": "7.5",
    "header-timeout": "8.5",
    "drain-timeout": "9.5",
    "upgrade-rate": "0",
    "upgrade-burst": "7",
    "max-connections-per-address": "8",
    "max-connections": "9",
    "max-waiting": "10",
    "reserve-binaries": "0.5",
    "limits-dry-run": "yes",
    "fcm-credentials": "account.json",
    "fcm-endpoint": "https://fcm.example",
    "webpush-key": __file__,
    "webpush-subject": "mailto:ops@example.org",
    "push-allow-host": ".push.example",
    "push-ca-file": __file__,
    "push-timeout": "11.5",
    "production": "yes",
    "status-ids": "yes",
    "admin-listen": "",
    "admin-allow-remote": "yes",
    "log-format": "json",
    "log-level": "warn",
}
"""For each option a text that is not its default."""
_WEB_PUSH = {"webpush-key": [values.__file__], "webpush-subject": ["https://example.org/"]}
WITH = {
    "proxy-protocol": {"trusted-proxy": ["127.0.0.1"]},
    "tls-listen": {"tls-dir": ["certs"]},
    "tls-cert": {"tls-cert": ["c"], "tls-key": ["k"]},
    "tls-key": {"tls-cert": ["c"], "tls-key": ["k"]},
    "acme-listen": {"domain": ["relay.example"]},
    **dict.fromkeys(("webpush-key", "webpush-subject", "push-allow-host"), _WEB_PUSH),
}
"""What an option needs beside it."""


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
        """Return the mistakes of a configuration, which has to be refused."""
        error: StartupError = self.assertRaises(
            StartupError,
            read_from,
            HERE if listen is None else listen,
            given,
            environment or {},
        )
        self.assertEqual(str(error), "\n".join(error.problems))
        return error.problems


class ValueTests(SettingsCase):
    def test_defaults(self) -> None:
        """Without a value, each setting has its default."""
        settings = read()
        self.assertEqual(settings, Settings(insecure_listen=(*HERE,)))
        self.assertEqual(settings.limits, Limits())
        self.assertEqual((settings.log_format, settings.log_level), (False, Level.INFO))

    @cases({option.name: (option.name,) for option in OPTIONS if option.name != LISTEN})
    def test_set(self, name: str) -> None:
        """Each option sets the value of its name, and no other."""
        [option] = [each for each in OPTIONS if each.name == name]
        line = {LISTEN: HERE} | WITH.get(name, {})
        before = Settings.read(line, {})
        after = Settings.read(line | {name: [OTHER_VALUES[name]]}, {})
        value = option.kind.parse(OTHER_VALUES[name])
        self.assertEqual(after.value(option), (value,) if option.many else value)
        changed = {each.name for each in OPTIONS if before.value(each) != after.value(each)}
        implied = {"tls-dir": {"tls-listen"}, "domain": {"tls-listen", "acme-listen"}}
        self.assertEqual(changed, {name} | implied.get(name, set()))

    def test_proxies(self) -> None:
        """There may be several proxies, separated by spaces in the environment."""
        self.assertEqual(read().trusted_proxy, ())
        variable = {"PYRYCODE_RELAY_TRUSTED_PROXY": "127.0.0.1 fd00::/8  unix"}
        sources = read_from(HERE, {}, variable).trusted_proxy
        self.assertEqual([str(each) for each in sources], ["127.0.0.1/32", "fd00::/8", "unix"])

    def test_proxy_protocol(self) -> None:
        """A PROXY header counts only from a trusted proxy."""
        self.assertFalse(read().proxy_protocol)
        self.assertTrue(read(proxy_protocol="yes", trusted_proxy="127.0.0.1").proxy_protocol)
        [problem] = self.problems({"proxy-protocol": "yes"})
        self.assertIn("--proxy-protocol is given, but no proxy is trusted", problem)
        self.assertIn("--trusted-proxy=", problem)

    def test_proxy_protocol_in_the_wrong_place(self) -> None:
        """A listener is refused if it expects the header inside TLS, or from anybody."""
        [problem] = self.problems({}, listen=["haproxy:tcp:80"])
        self.assertIn("--insecure-listen is 'haproxy:tcp:80'", problem)
        self.assertIn("--proxy-protocol", problem)
        given = {"proxy-protocol": "yes", "trusted-proxy": "127.0.0.1"}
        [problem] = self.problems(given, listen=["ssl:443", "tcp:80"])
        self.assertIn("--insecure-listen is 'ssl:443'", problem)

    def test_words(self) -> None:
        """A word that is not one of the values is refused with the values."""
        for text in ("", "drop", "Evict"):
            self.assertEqual(
                self.problems({"on-reclaim": text}),
                (f"--on-reclaim is {text!r}; allowed: evict or keep.",),
            )
        self.assertEqual(len(self.problems({"log-format": "xml", "log-level": "loud"})), 2)

    @examples(200)
    @given(st.sampled_from(WORDS), st.text(max_size=12))
    def test_any_text(self, name: str, text: str) -> None:
        """Any text of any option is a setting or one sentence, never another error."""
        try:
            read(**{name: text})
        except StartupError as error:
            self.assertEqual(len(error.problems), 1)
            self.assertIn(f"--{name} is ", error.problems[0])


class SourceTests(SettingsCase):
    def test_environment(self) -> None:
        """The environment has the values that the command line does not."""
        environment = {"PYRYCODE_RELAY_GRACE": "5", "PYRYCODE_RELAY_ON_RECLAIM": "keep"}
        limits = read_from(HERE, {}, environment).limits
        self.assertEqual((limits.grace, limits.on_reclaim), (5, OnReclaim.KEEP))

    def test_command_line_wins(self) -> None:
        """The command line wins, and the environment is then not even parsed."""
        environment = {"PYRYCODE_RELAY_GRACE": "nonsense"}
        self.assertEqual(read_from(HERE, {"grace": "7"}, environment).limits.grace, 7)

    def test_other_variables(self) -> None:
        """Other variables of the environment do not matter."""
        self.assertEqual(read_from(HERE, {}, {"GRACE": "x", "PATH": "/bin"}).limits, Limits())

    def test_all_at_once(self) -> None:
        """All mistakes are reported together, each with setting, value and what is allowed."""
        problems = self.problems(
            {"grace": "soon", "max-phones": "0"},
            {"PYRYCODE_RELAY_HOLD_BYTES": "much"},
            ["127.0.0.1:http"],
        )
        self.assertEqual(len(problems), 4)
        self.assertEqual(
            problems[1:],
            (
                "--grace is 'soon'; allowed: a number of seconds above 0, up to 86400.",
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
        """Return the mistakes of a command line."""
        error: StartupError = self.assertRaises(StartupError, self.settings, **given)
        return error.problems

    def test_default_address(self) -> None:
        """A source of certificates implies port 443, unless there is an address."""
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
        """Certificates and keys belong together in their order, one of each."""
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
        """An address for TLS without a certificate is a sentence."""
        [problem] = self.refused(tls_listen=["127.0.0.1:1"])
        self.assertIn("--tls-listen is '127.0.0.1:1', but there is no certificate; give ", problem)

    def test_tls_in_tls(self) -> None:
        """An endpoint that has TLS itself is refused."""
        [problem] = self.refused(tls_listen=["ssl:443"], tls_dir=["d"])
        self.assertIn("--tls-listen is 'ssl:443'; allowed: ", problem)

    def test_acme(self) -> None:
        """Names without certificate files imply ACME and its port 80; files exclude both."""
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
            self.assertIn("--acme-listen is ':80', but no certificate comes from an ACME", problem)
        self.assertFalse(read().acme)

    def test_no_home(self) -> None:
        """An unknown home directory is a mistake, but only if it is needed."""
        home = "~nobody-of-that-name/certs"
        [problem] = self.refused(domain=["relay.example"], cert_cache=[home])
        self.assertIn(f"--cert-cache is {home!r}", problem)
        self.assertEqual(read(cert_cache=home).cert_cache, Path(home))

    def test_wrong_acme(self) -> None:
        """A mistake in an ACME setting is one sentence with the setting and the value."""
        for name, text in (
            ("acme_directory", "http://ca.example/dir"),
            ("acme_email", "ops"),
            ("acme_ca_file", "no-such-file.pem"),
        ):
            [problem] = self.refused(domain=["relay.example"], **{name: [text]})
            self.assertIn(f"--{name.replace('_', '-')} is {text!r}; allowed: ", problem)

    def test_domains(self) -> None:
        """Each name that is no DNS name is a sentence; the others are in lower case."""
        found = self.settings(domain=["Relay.Example.ORG", "localhost"])
        self.assertEqual(found.domain, ("relay.example.org", "localhost"))
        self.assertEqual(len(self.refused(domain=["*.a", "relay.example", "127.0.0.1"])), 2)


class WebPushTests(SettingsCase):
    def test_given(self) -> None:
        """With a key and a subject, wakes can be sent; hosts are in lower case."""
        more = {"push-allow-host": ["Push.Example", ".Example.ORG"]}
        found = Settings.read({LISTEN: HERE} | _WEB_PUSH | more, {})
        self.assertTrue(found.push)
        self.assertEqual(found.push_allow_host, ("push.example", ".example.org"))
        self.assertFalse(read().push)

    def test_alone(self) -> None:
        """A key needs a subject, and the others need a key."""
        [problem] = self.problems({"webpush-key": __file__})
        self.assertIn("--webpush-key is given without --webpush-subject", problem)
        [problem] = self.problems({"webpush-subject": "mailto:ops@example.org"})
        self.assertIn("--webpush-subject is 'mailto:ops@example.org', but Web Push is", problem)
        [problem] = self.problems({"push-allow-host": ".example"})
        self.assertIn("--push-allow-host is '.example', but Web Push is off", problem)


class AdminListenTests(SettingsCase):
    def test_default(self) -> None:
        """By default it is a port of loopback; empty, it is off."""
        self.assertEqual(read().admin_listen, "127.0.0.1:9090")
        self.assertEqual(read(admin_listen="").admin_listen, "")
        self.assertFalse(read().admin_allow_remote)

    @cases({name: (address,) for name, address in MACHINE.items()})
    def test_this_machine(self, address: str) -> None:
        """An address that only this machine reaches needs no permission."""
        self.assertEqual(read(admin_listen=address).admin_listen, address)

    @cases({name: (address,) for name, address in (NETWORK | UNKNOWN).items()})
    def test_remote(self, address: str) -> None:
        """An address that others may reach is a sentence with the fix, unless permitted."""
        [problem] = self.problems({"admin-listen": address})
        self.assertIn(f"--admin-listen is {address!r}", problem)
        self.assertIn("--admin-allow-remote", problem)
        read(admin_listen=address, admin_allow_remote="yes")


class ListenTests(SettingsCase):
    def test_no_address(self) -> None:
        """A text that is no address is reported with the setting and what is allowed."""
        for address in ("", "here", ":65536", "carrier-pigeon:1"):
            [problem] = self.problems({}, listen=[address])
            self.assertIn(f"--{LISTEN} is {address!r}; allowed: ", problem)

    def test_several(self) -> None:
        """There may be several, and their order stays."""
        settings = read_from(["127.0.0.1:1", "tcp:2"], {}, {})
        self.assertEqual(len(settings.insecure_listen), 2)
        self.assertEqual(settings.insecure_listen[1], "tcp:2")

    def test_in_the_environment(self) -> None:
        """The environment separates them by spaces; a mistake is reported with its variable."""
        settings = read_from([], {}, {LISTEN_VARIABLE: "tcp:1  tcp:2"})
        self.assertEqual(settings.insecure_listen, ("tcp:1", "tcp:2"))
        [problem] = self.problems({}, {LISTEN_VARIABLE: "tcp:1 nowhere"}, [])
        self.assertIn(f"{LISTEN_VARIABLE} is 'nowhere'; ", problem)

    def test_command_line_wins(self) -> None:
        """The command line replaces the environment's addresses; they are not merged."""
        settings = read_from(["tcp:1"], {}, {LISTEN_VARIABLE: "tcp:2"})
        self.assertEqual(settings.insecure_listen, ("tcp:1",))

    @cases({"not_given": ({},), "empty": ({LISTEN_VARIABLE: " "},)})
    def test_nothing_to_listen_on(self, environment: dict[str, str]) -> None:
        """Without an address the relay does not start; the sentence says how to give one."""
        [problem] = self.problems({}, environment, [])
        self.assertIn("--insecure-listen=", problem)


def shown(settings: Settings) -> dict[str, str]:
    """Return the settings as they are written, addresses in their long form."""
    return {option.name: option.written(settings.value(option)) for option in OPTIONS}


class PrintedTests(SettingsCase):
    def test_what_is_printed_can_be_given(self) -> None:
        """The printed settings are a file that gives the same settings."""
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
        """No digit of a number and no character of a path is lost."""
        given = {"write-stall": repr(time), "reserve-binaries": repr(share)}
        settings = read_from([*listen, "tcp:80"], given, {})
        printed = toml_file.parse("printed", "\n".join(settings.lines()))
        again = Settings.read({}, {}, printed)
        self.assertEqual(shown(again), shown(settings))
        self.assertEqual((again.limits.write_stall, again.limits.reserve_binaries), (time, share))

    def test_secrets(self) -> None:
        """A secret that is a text is neither printed nor shown; the place of a file is."""
        environment = {"PYRYCODE_RELAY_FCM_CREDENTIALS": '{"private_key": "hunter2"}'}
        settings = read_from([":1"], {}, environment)
        self.assertTrue(settings.push)
        lines = "\n".join(settings.lines())
        self.assertNotIn("hunter", lines + repr(settings))
        self.assertIn("# fcm-credentials is given, and not shown", lines)
        self.assertNotIn("fcm-credentials", toml_file.parse("printed", lines).texts)
        settings = read_from([":1"], {"fcm-credentials": "/run/fcm.json"}, environment)
        self.assertIn('fcm-credentials = "/run/fcm.json"', "\n".join(settings.lines()))

    def test_where_it_comes_from(self) -> None:
        """Each line has the place of its value."""
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
    """A configuration file as a source of settings."""

    def from_file(self, text: str) -> Settings:
        """Read settings from a file alone, with a listener if it has none."""
        if LISTEN not in text:
            text = f'{LISTEN} = ["127.0.0.1:0"]\n{text}'
        return Settings.read({}, {}, toml_file.parse("relay.toml", text))

    def wrong(self, text: str) -> str:
        """Return the mistake of a file that has one."""
        error = self.assertRaises(StartupError, self.from_file, text)
        [problem] = error.problems
        return str(problem)

    def test_kinds(self) -> None:
        """Numbers, text and lists are read as on the command line; underscores are dashes."""
        settings = self.from_file(
            'insecure-listen = [":80", "unix:/run/my relay"]\ngrace = 2.5\nmax_phones = 3\n'
            'hold-bytes = "64K"\nmemory_budget = 134_217_728\nlimits-dry-run = true\n'
            'on-reclaim = "keep"\nproduction = false\nupgrade-rate = 0.5'
        )
        limits = settings.limits
        self.assertEqual(settings.insecure_listen, (":80", "unix:/run/my relay"))
        self.assertEqual((limits.grace, limits.max_phones, limits.hold_bytes), (2.5, 3, 65536))
        self.assertEqual((limits.memory_budget, limits.limits_dry_run), (2**27, True))
        self.assertEqual((limits.upgrade_rate, settings.production), (0.5, False))

    def test_one_of_many(self) -> None:
        """A single value needs no list; an empty list sets no value."""
        self.assertEqual(self.from_file('insecure-listen = ":80"').insecure_listen, (":80",))
        self.assertIn("Nothing to listen on", self.wrong("insecure-listen = []"))

    def test_order(self) -> None:
        """The environment wins over the file, and the command line over both."""
        file = toml_file.parse("f", 'grace = "nonsense"\nmax-phones = "nonsense"')
        environment = {"PYRYCODE_RELAY_GRACE": "5", "PYRYCODE_RELAY_MAX_PHONES": "nonsense"}
        limits = Settings.read({LISTEN: [":1"], "max-phones": ["2"]}, environment, file).limits
        self.assertEqual((limits.grace, limits.max_phones), (5, 2))

    @cases(
        {
            "near": ("max-phone = 3", "did you mean max-phones?"),
            "underscores": ("hold_byte = 3", "did you mean hold-bytes?"),
            "capitals": ("Grace = 3", "did you mean grace?"),
            "far": ("zzz = 3", "--help lists them all."),
        }
    )
    def test_unknown(self, text: str, hint: str) -> None:
        """An unknown setting is refused, with a suggestion."""
        name = text.partition(" ")[0].replace("_", "-")
        self.assertEqual(self.wrong(text), f"relay.toml: {name} is not a setting; {hint}")

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
        """A list is refused for a setting with one value, even a list of one."""
        self.assertEqual(self.wrong("grace = [3]"), "relay.toml: grace is a list; give one value.")

    def test_all_at_once(self) -> None:
        """The mistakes of all places are reported together."""
        file = toml_file.parse("f", 'grace = "x"\nnothing = 1\nwrite-stall = [1, 2]')
        error = self.assertRaises(
            StartupError, Settings.read, {}, {"PYRYCODE_RELAY_HOLD_BYTES": "x"}, file
        )
        self.assertEqual(len(error.problems), 5, error.problems)

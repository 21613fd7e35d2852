"""The settings that a relay runs with: where their values come from, and what contradicts.

The command line wins over the environment, and the environment over the configuration file. All
mistakes of a configuration are reported together.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

from pyrycode_relay import addresses
from pyrycode_relay.config import limit_checks
from pyrycode_relay.config.listen import Reach, reach
from pyrycode_relay.config.options import (
    ENVIRONMENT_PREFIX,
    OPTIONS,
    Option,
    suggestion,
)
from pyrycode_relay.config.toml_file import ConfigFile
from pyrycode_relay.config.values import AUTO, MOST_WORKERS, Secret
from pyrycode_relay.events import Level
from pyrycode_relay.limits import Limits
from pyrycode_relay.startup_error import StartupError

_BY_NAME: Final = {option.name: option for option in OPTIONS}
_DEFAULTS: Final = {option.name: option.default_value for option in OPTIONS}
_DEFAULT: Final = "default"
"""The source of a value that is not given anywhere."""
_VARIABLES: Final = {option.variable for option in OPTIONS} | {f"{ENVIRONMENT_PREFIX}CONFIG"}
_OF_KUBERNETES: Final = re.compile(
    r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)"
    r"(?:_(?:PROTO|PORT|ADDR))?)?)"
)
"""What follows the prefix in the variables that Kubernetes sets for a service named pyrycode-relay
or pyrycode-relay-NAME."""
_TLS_PORT: Final = ":443"
_ACME_PORT: Final = ":80"
_LISTENERS: Final = ("insecure-listen", "tls-listen", "tls-cert", "tls-dir", "domain")
"""The options of which one is enough to have a listener for WebSockets."""
_NOWHERE: Final = (
    "Nothing to listen on; give --domain, or --tls-cert and --tls-key, or --insecure-listen=:8080 "
    "or another address."
)


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration. Each field has the value of the `Option` of its name.

    The options that bound something are in ``limits``. ``sources`` has the place of each option's
    value, by the option's name.
    """

    insecure_listen: tuple[str, ...] = _DEFAULTS["insecure-listen"]
    """Addresses as they were given, for `listen.endpoint_string`."""
    proxy_protocol: bool = _DEFAULTS["proxy-protocol"]
    trusted_proxy: tuple[addresses.Source, ...] = _DEFAULTS["trusted-proxy"]
    tls_listen: tuple[str, ...] = _DEFAULTS["tls-listen"]
    tls_cert: tuple[Path, ...] = _DEFAULTS["tls-cert"]
    tls_key: tuple[Path, ...] = _DEFAULTS["tls-key"]
    """The keys of ``tls_cert``, in the same order."""
    tls_dir: tuple[Path, ...] = _DEFAULTS["tls-dir"]
    domain: tuple[str, ...] = _DEFAULTS["domain"]
    """DNS names in lower case."""
    acme_listen: tuple[str, ...] = _DEFAULTS["acme-listen"]
    acme_directory: str = _DEFAULTS["acme-directory"]
    acme_email: str = _DEFAULTS["acme-email"]
    acme_ca_file: Path | None = _DEFAULTS["acme-ca-file"]
    cert_cache: Path = _DEFAULTS["cert-cache"]
    """As it was given: a ~ is expanded where the path is used."""
    fcm_credentials: Secret | None = _DEFAULTS["fcm-credentials"]
    fcm_endpoint: str = _DEFAULTS["fcm-endpoint"]
    webpush_key: Path | None = _DEFAULTS["webpush-key"]
    webpush_subject: str = _DEFAULTS["webpush-subject"]
    push_allow_host: tuple[str, ...] = _DEFAULTS["push-allow-host"]
    """Hosts in lower case, as `AllowedHosts` has them; none means any."""
    push_ca_file: Path | None = _DEFAULTS["push-ca-file"]
    push_timeout: float = _DEFAULTS["push-timeout"]
    limits: Limits = dataclasses.field(default_factory=Limits)
    workers: int = _DEFAULTS["workers"]
    """As it was given; see `worker_count`."""
    production: bool = _DEFAULTS["production"]
    admin_listen: str = _DEFAULTS["admin-listen"]
    """The address as it was given; empty means no listener."""
    admin_allow_remote: bool = _DEFAULTS["admin-allow-remote"]
    status_ids: bool = _DEFAULTS["status-ids"]
    log_format: bool = _DEFAULTS["log-format"]
    """Whether the log is JSON."""
    log_level: Level = _DEFAULTS["log-level"]
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    @classmethod
    def read(
        cls,
        given: Mapping[str, Sequence[str]],
        environment: Mapping[str, str],
        file: ConfigFile = ConfigFile(),  # noqa: B008 - it is frozen
    ) -> Settings:
        """Read the settings from the command line, the environment and a file.

        ``given`` has the texts of the command line by the name of their option, in their order.

        Raises:
            StartupError: Has all mistakes.

        """
        places = _Places(given, environment, file)
        problems = [*_unknown_variables(environment), *_misplaced(file)]
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for option in OPTIONS:
            place = places.of(option)
            sources[option.name] = place.source
            found = [*place.values(option, problems)]
            values[option.field] = tuple(found) if option.many else found and found[-1]
        if problems:
            if not any(places.of(_BY_NAME[name]).texts for name in _LISTENERS):
                problems.append(_NOWHERE)
            raise StartupError(*problems)
        bounds = {field.name: values.pop(field.name) for field in dataclasses.fields(Limits)}
        settings = cls(limits=Limits(**bounds), sources=sources, **values)._with_default_ports()
        if problems := [*_contradictions(settings)]:
            raise StartupError(*problems)
        return settings

    @property
    def has_certificates(self) -> bool:
        """Whether there is a source of certificates."""
        return bool(self.tls_cert or self.tls_dir or self.domain)

    @property
    def acme(self) -> bool:
        """Whether the certificate comes from an ACME CA."""
        return bool(self.domain) and not self.tls_cert and not self.tls_dir

    @property
    def worker_count(self) -> int:
        """How many processes serve the relay."""
        if self.workers == AUTO:
            return min(MOST_WORKERS, len(os.sched_getaffinity(0)))
        return self.workers

    @property
    def push(self) -> bool:
        """Whether push wakes can be sent."""
        return self.fcm_credentials is not None or self.webpush_key is not None

    def value(self, option: Option) -> Any:
        """Return the value of ``option``."""
        holder = self if hasattr(self, option.field) else self.limits
        return getattr(holder, option.field)

    def lines(self) -> Iterator[str]:
        """Yield a line for each setting, with the place of its value.

        Together the lines are a configuration file with the same settings, but without a secret
        that is given as a text.
        """
        for option in OPTIONS:
            value = self.value(option)
            line = f"{option.name} = {option.written(value)}"
            if isinstance(value, Secret) and value.path is None:
                line = f"# {option.name} is given, and not shown"
            yield f"{line:<40}  # {self.sources.get(option.name, _DEFAULT)}"

    def _with_default_ports(self) -> Settings:
        """Return the settings with the ports that follow from a certificate."""
        ports = {}
        if self.has_certificates and not self.tls_listen:
            ports["tls_listen"] = (_TLS_PORT,)
        if self.acme and not self.acme_listen:
            ports["acme_listen"] = (_ACME_PORT,)
        return dataclasses.replace(self, **ports)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an option's value stands: ``source`` for the operator, ``name`` for a mistake."""

    source: str
    name: str
    texts: Sequence[str]

    def values(self, option: Option, problems: list[str]) -> Iterator[Any]:
        """Yield the values that are allowed; add a problem for each that is not."""
        for text in self.texts:
            try:
                yield option.kind.parse(text)
            except (ValueError, KeyError, OverflowError):
                problems.append(f"{self.name} is {text!r}; allowed: {option.kind.allowed}.")


@dataclass(frozen=True, slots=True)
class _Places:
    """The places where a setting can stand."""

    given: Mapping[str, Sequence[str]]
    environment: Mapping[str, str]
    file: ConfigFile

    def of(self, option: Option) -> _Place:
        """Return the place of an option's value; the first of these places wins."""
        name, variable = option.name, option.variable
        if name in self.given:
            return _Place(f"--{name}", f"--{name}", self.given[name])
        if variable in self.environment:
            return _Place(variable, variable, option.split(self.environment[variable]))
        if name in self.file.texts:
            return _Place(self.file.path, f"{self.file.path}: {name}", self.file.texts[name])
        return _Place(_DEFAULT, f"--{name}", option.split(option.default))


def _unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each environment variable that looks like a setting and is none."""
    for variable in sorted(environment):
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name == variable or variable in _VARIABLES or _OF_KUBERNETES.fullmatch(name):
            continue
        shown = variable if variable.isprintable() else ascii(variable)
        yield f"{shown} is not a setting; {suggestion(variable, _VARIABLES)}"


def _misplaced(file: ConfigFile) -> Iterator[str]:
    """Yield the mistakes of a configuration file that do not depend on a value."""
    for name in file.texts:
        if name not in _BY_NAME:
            yield f"{file.path}: {name} is not a setting; {suggestion(name, _BY_NAME)}"
        elif name in file.lists and not _BY_NAME[name].many:
            yield f"{file.path}: {name} is a list; give one value."


def _contradictions(settings: Settings) -> Iterator[str]:
    """Yield the mistakes of settings that are each allowed alone."""
    return chain(
        limit_checks.contradictions(settings.limits),
        _wrong_listeners(settings),
        _wrong_proxies(settings),
        _wrong_certificates(settings),
        _wrong_admin(settings),
        _wrong_acme(settings),
        _wrong_push(settings),
    )


def _wrong_listeners(settings: Settings) -> Iterator[str]:
    if not settings.insecure_listen and not settings.tls_listen:
        yield _NOWHERE
    given = [("insecure", each) for each in settings.insecure_listen]
    given += [("tls", each) for each in settings.tls_listen]
    for name, address in given:
        kind = address.partition(":")[0].lower()
        if kind == "haproxy":
            yield (
                f"--{name}-listen is {address!r}, which accepts a PROXY header from anybody; give "
                "the address without haproxy:, --proxy-protocol and --trusted-proxy."
            )
        if kind == "ssl" and settings.worker_count > 1:
            yield (
                f"--insecure-listen is {address!r}, which several workers cannot share; give "
                "--tls-listen instead, or --workers=1."
            )
        if kind == "ssl" and settings.proxy_protocol:
            yield (
                f"--insecure-listen is {address!r}, where a PROXY header would be inside TLS; "
                "with --proxy-protocol give --tls-listen instead."
            )


def _wrong_proxies(settings: Settings) -> Iterator[str]:
    if settings.proxy_protocol and not settings.trusted_proxy:
        yield (
            "--proxy-protocol is given, but no proxy is trusted; name the proxies, as in "
            "--trusted-proxy=10.0.0.0/8."
        )


def _wrong_certificates(settings: Settings) -> Iterator[str]:
    if len(settings.tls_cert) != len(settings.tls_key):
        yield (
            f"--tls-cert is given {_times(settings.tls_cert)} and --tls-key "
            f"{_times(settings.tls_key)}; give one --tls-key for each --tls-cert, in their order."
        )
    if settings.tls_listen and not settings.has_certificates:
        yield (
            f"--tls-listen is {settings.tls_listen[0]!r}, but there is no certificate; give "
            "--tls-cert and --tls-key, --tls-dir, or --domain."
        )


def _wrong_admin(settings: Settings) -> Iterator[str]:
    address = settings.admin_listen
    if address and not settings.admin_allow_remote and reach(address) is not Reach.MACHINE:
        yield (
            f"--admin-listen is {address!r}, which other machines may reach; give 127.0.0.1:9090, "
            "or --admin-allow-remote to permit it."
        )


def _wrong_acme(settings: Settings) -> Iterator[str]:
    if settings.acme_listen and not settings.acme:
        yield (
            f"--acme-listen is {settings.acme_listen[0]!r}, but no certificate comes from an ACME "
            "CA; leave it out, or give --domain without --tls-cert and --tls-dir."
        )
    if settings.acme:
        try:
            settings.cert_cache.expanduser()
        except RuntimeError:
            yield (
                f"--cert-cache is {str(settings.cert_cache)!r}, and that home directory is "
                "unknown; give an absolute path, such as /var/lib/pyrycode-relay/certs."
            )


def _wrong_push(settings: Settings) -> Iterator[str]:
    if settings.webpush_key is not None and not settings.webpush_subject:
        yield (
            "--webpush-key is given without --webpush-subject; say how the operators of Web Push "
            "services can reach you, as in --webpush-subject=mailto:ops@example.org."
        )
    if settings.webpush_key is None:
        for name, value in (
            ("webpush-subject", settings.webpush_subject),
            ("push-allow-host", " ".join(settings.push_allow_host)),
        ):
            if value:
                yield (
                    f"--{name} is {value!r}, but Web Push is off; leave it out, or give "
                    "--webpush-key, made by pyrycode-relay-webpush-key."
                )


def _times(values: Sequence[object]) -> str:
    return "once" if len(values) == 1 else f"{len(values)} times"

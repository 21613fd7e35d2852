"""The conditions that need attention: pure functions of the relay's numbers.

`thresholds` has every number that a condition compares with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple

from pyrycode_relay.monitoring import thresholds as at
from pyrycode_relay.monitoring.kinds import Kind

_MAX_TEXT: Final = 200
"""Maximum characters of a text that is not the relay's own, such as a certificate's name."""
_NAMES_SHOWN: Final = 3
_ALL_IS_WELL: Final = "closed"
"""The state of a push breaker that lets everything through."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A condition that holds now.

    ``value`` is the number that is compared, and ``limit`` what it is compared with.
    """

    kind: Kind
    text: str
    """A sentence for a person, without its full stop."""
    value: float = 0
    limit: float = 0
    subject: str = ""
    """The certificate's names, or the push platform; otherwise empty."""
    reason: str = ""
    """Why, in the relay's words; may be empty."""
    since: float | None = None
    """When it began, in seconds since 1970; None if only the moment of the finding is known."""


class Counted(NamedTuple):
    """Numbers whose recent course matters: all but ``binaries`` only grow."""

    binaries: int = 0
    timers: int = 0
    """Timers whose lag was measured."""
    timers_late: int = 0
    """Those of them that were later than `thresholds.LAG`."""
    timers_stalled: int = 0
    """Those that were later than `thresholds.STALL`."""
    phones_connected: int = 0
    rate_limited: int = 0
    refused_at_limit: int = 0
    bad_requests: int = 0
    conflicts: int = 0
    probed: int = 0
    """Connections that a probe makes to have them refused."""
    backlog_closes: int = 0
    queues_shed: int = 0
    heartbeat_timeouts: int = 0
    accept_failures: int = 0
    push_failed: int = 0
    push_tried: int = 0
    push_over_limit: int = 0


@dataclass(frozen=True, slots=True)
class Failing:
    """Something that has failed and has not worked since."""

    reason: str
    since: float
    """In seconds since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """The certificates that are served."""

    not_after: Mapping[str, float]
    """When the certificate of each name ends, in seconds since 1970."""
    ready: bool = True
    """Whether there is any."""
    problems: tuple[str, ...] = ()
    """Why some cannot be read."""
    order: Failing | None = None
    """The last order to the CA, if it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The relay's numbers at one moment."""

    now: float
    """In seconds since 1970."""
    counted: Counted = field(default_factory=Counted)
    draining: bool = False
    phones: int = 0
    binaries_connected: int = 0
    """WebSockets of binaries, those without a claim included."""
    websockets: int = 0
    websockets_max: int = 0
    websockets_reserved: int = 0
    open_files: int = 0
    open_files_max: int = 0
    resident_bytes: int = 0
    memory_limit: int = 0
    """0 if it is unknown."""
    queue_bytes: int = 0
    queue_bytes_budget: int = 0
    certificates: CertificateFacts | None = None
    breakers: Mapping[str, str] = field(default_factory=dict)
    push: Failing | None = None
    """The last push wake, if it failed."""


@dataclass(frozen=True, slots=True)
class Past:
    """How the counted numbers have changed."""

    increase: Callable[[str, float], int]
    """Returns by how much a number has grown in so many seconds."""
    usual_binaries: float = 0
    """The `thresholds.BINARIES_QUANTILE` of the binaries in `thresholds.BINARIES_WINDOW`."""


def find(facts: Facts, past: Past) -> Iterator[Finding]:
    """Yield what needs attention, in any order."""
    if facts.draining:
        yield Finding(Kind.DRAINING, "The relay is draining", subject="")
    if facts.certificates is not None:
        yield from _certificates(facts.now, facts.certificates)
    yield from _limits(facts)
    yield from _event_loop(past)
    yield from _refusals(past)
    yield from _peers(facts, past)
    yield from _push(facts, past)


def _certificates(now: float, facts: CertificateFacts) -> Iterator[Finding]:
    if not facts.ready:
        why = facts.order.reason if facts.order else "; ".join(facts.problems)
        text = "There is no certificate yet"
        yield Finding(Kind.CERTIFICATE_MISSING, text, reason=_cut(why))
    elif facts.order is not None:
        yield Finding(
            Kind.CERTIFICATE_NOT_OBTAINED,
            "Could not obtain a certificate",
            reason=_cut(facts.order.reason),
            since=facts.order.since,
        )
    if facts.problems and facts.ready:
        yield Finding(
            Kind.CERTIFICATE_UNREADABLE,
            "Could not read a certificate",
            value=len(facts.problems),
            reason=_cut("; ".join(facts.problems)),
        )
    end = min(facts.not_after.values(), default=None)
    if end is None or end - now >= at.CERTIFICATE_SOON:
        return
    names = [name for name, not_after in facts.not_after.items() if not_after == end]
    subject = _cut(", ".join(sorted(names)[:_NAMES_SHOWN]))
    if len(names) > _NAMES_SHOWN:
        subject += f" and {len(names) - _NAMES_SHOWN} more"
    urgent = end - now < at.CERTIFICATE_NOW
    limit = at.CERTIFICATE_NOW if urgent else at.CERTIFICATE_SOON
    verb = f"ends in {_span(end - now)}" if end > now else f"ended {_span(now - end)} ago"
    moment = datetime.fromtimestamp(end, UTC)
    yield Finding(
        Kind.CERTIFICATE_ENDS_NOW if urgent else Kind.CERTIFICATE_ENDS,
        f"The certificate of {subject} {verb} ({moment:%-d %B %Y %H:%M} UTC)",
        value=end - now,
        limit=limit,
        subject=subject,
        since=end - limit,
    )


def _limits(facts: Facts) -> Iterator[Finding]:
    free = facts.websockets_max - facts.websockets
    reserved = max(0, facts.websockets_reserved - facts.binaries_connected)
    if facts.websockets > at.CONNECTIONS_SHARE * facts.websockets_max:
        yield Finding(
            Kind.CONNECTIONS,
            f"{facts.websockets} of {facts.websockets_max} connections are taken",
            facts.websockets,
            facts.websockets_max,
        )
    if reserved and free <= reserved:
        yield Finding(
            Kind.RESERVE,
            f"Only the {_count(free, 'place')} reserved for binaries "
            f"{'is' if free == 1 else 'are'} left",
            free,
            reserved,
        )
    if facts.open_files > at.FILES_SHARE * facts.open_files_max:
        yield Finding(
            Kind.FILES,
            f"{facts.open_files} of {facts.open_files_max} files are open",
            facts.open_files,
            facts.open_files_max,
        )
    if facts.memory_limit and facts.resident_bytes > at.MEMORY_SHARE * facts.memory_limit:
        yield Finding(
            Kind.MEMORY,
            f"The process uses {_size(facts.resident_bytes)} of {_size(facts.memory_limit)}",
            facts.resident_bytes,
            facts.memory_limit,
        )
    if facts.queue_bytes > at.QUEUES_SHARE * facts.queue_bytes_budget:
        yield Finding(
            Kind.QUEUES,
            f"Queues hold {_size(facts.queue_bytes)} of {_size(facts.queue_bytes_budget)}",
            facts.queue_bytes,
            facts.queue_bytes_budget,
        )


def _event_loop(past: Past) -> Iterator[Finding]:
    beats = past.increase("timers", at.LAG_WINDOW)
    late = past.increase("timers_late", at.LAG_WINDOW)
    stalls = past.increase("timers_stalled", at.LAG_WINDOW)
    if stalls:
        yield Finding(
            Kind.STALL,
            f"In the last {_span(at.LAG_WINDOW)}, the event loop stopped {_times(stalls)} for more "
            f"than {at.STALL:g} s",
            stalls,
            at.STALL,
        )
    if beats >= at.LEAST_BEATS and late > at.LATE_SHARE * beats:
        yield Finding(
            Kind.LAG,
            f"In the last {_span(at.LAG_WINDOW)}, {late} of {beats} timers were late",
            late / beats,
            at.LATE_SHARE,
            reason=f"by more than {at.LAG * 1000:g} ms, which people notice",
        )


class _Counter(NamedTuple):
    """A number that needs attention if it grows by more than ``limit`` in ``window`` seconds."""

    kind: Kind
    name: str
    limit: float
    window: float
    words: str
    """What is counted, in the singular and in the plural, with a bar between the two."""


_COUNTERS: Final = (
    _Counter(
        Kind.ACCEPT_FAILURES,
        "accept_failures",
        at.ACCEPT_FAILURES,
        at.ACCEPT_WINDOW,
        "connection could not be accepted|connections could not be accepted",
    ),
    _Counter(
        Kind.BACKLOG_CLOSES,
        "backlog_closes",
        at.BACKLOG_CLOSES,
        at.BACKLOG_WINDOW,
        "phone was closed because its backlog was full|"
        "phones were closed because their backlogs were full",
    ),
    _Counter(
        Kind.SHED,
        "queues_shed",
        at.SHED,
        at.SHED_WINDOW,
        "queue was dropped to save memory|queues were dropped to save memory",
    ),
    _Counter(
        Kind.REFUSED_AT_LIMIT,
        "refused_at_limit",
        at.REFUSED_AT_LIMIT,
        at.REFUSED_WINDOW,
        "connection over a limit got 503|connections over a limit got 503",
    ),
    _Counter(
        Kind.RATE_LIMITED,
        "rate_limited",
        at.RATE_LIMITED * at.RATE_WINDOW,
        at.RATE_WINDOW,
        "upgrade was over its address's rate (429)|upgrades were over their address's rate (429)",
    ),
    _Counter(
        Kind.BAD_REQUESTS,
        "bad_requests",
        at.BAD_REQUESTS * at.BAD_WINDOW,
        at.BAD_WINDOW,
        "upgrade was malformed (400)|upgrades were malformed (400)",
    ),
    _Counter(
        Kind.CONFLICTS,
        "conflicts",
        at.CONFLICTS,
        at.CONFLICTS_WINDOW,
        "binary found its server-id taken (4409)|binaries found their server-id taken (4409)",
    ),
    _Counter(
        Kind.PROBES,
        "probed",
        at.PROBES * at.PROBES_WINDOW,
        at.PROBES_WINDOW,
        "connection used a probe's server-id|connections used a probe's server-id",
    ),
    _Counter(
        Kind.RECONNECTS,
        "phones_connected",
        at.RECONNECTS * at.RECONNECTS_WINDOW,
        at.RECONNECTS_WINDOW,
        "phone connected|phones connected",
    ),
    _Counter(
        Kind.PUSH_REFUSED,
        "push_over_limit",
        at.PUSH_REFUSED,
        at.PUSH_WINDOW,
        "push wake was refused at a limit|push wakes were refused at a limit",
    ),
)


def _refusals(past: Past) -> Iterator[Finding]:
    for kind, name, limit, window, words in _COUNTERS:
        count = past.increase(name, window)
        if count > limit:
            singular, _, plural = words.partition("|")
            what = singular if count == 1 else plural
            text = f"In the last {_span(window)}, {count} {what}"
            yield Finding(kind, text, count, limit)


def _peers(facts: Facts, past: Past) -> Iterator[Finding]:
    binaries, usual = facts.counted.binaries, past.usual_binaries
    if binaries < at.BINARIES_SHARE * usual:
        text = f"{binaries} of {usual:.0f} binaries are left"
        yield Finding(Kind.BINARIES_GONE, text, binaries, at.BINARIES_SHARE * usual)
    ended = past.increase("heartbeat_timeouts", at.HEARTBEATS_WINDOW)
    limit = at.HEARTBEATS_SHARE * facts.websockets
    if facts.websockets > at.HEARTBEATS_LEAST and ended > limit:
        window = _span(at.HEARTBEATS_WINDOW)
        text = f"In the last {window}, {ended} peers vanished without a close"
        yield Finding(Kind.HEARTBEATS, text, ended, limit)


def _push(facts: Facts, past: Past) -> Iterator[Finding]:
    reason = facts.push.reason if facts.push else ""
    since = facts.push.since if facts.push else None
    for platform, state in facts.breakers.items():
        if state != _ALL_IS_WELL:
            text = f"Push wakes through {platform} are paused after failures"
            yield Finding(
                Kind.PUSH_PAUSED, text, subject=platform, reason=_cut(reason), since=since
            )
    failed = past.increase("push_failed", at.PUSH_WINDOW)
    tried = past.increase("push_tried", at.PUSH_WINDOW)
    if tried > at.PUSH_LEAST and failed > at.PUSH_FAILED_SHARE * tried:
        text = f"In the last {_span(at.PUSH_WINDOW)}, {failed} of {tried} push wakes failed"
        yield Finding(Kind.PUSH_FAILS, text, failed, at.PUSH_FAILED_SHARE * tried, reason=reason)


# Words


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _span(seconds: float) -> str:
    if seconds < 2 * 3600:
        return _count(max(1, int(seconds // 60)), "minute")
    if seconds < 2 * at.DAY:
        return _count(int(seconds // 3600), "hour")
    return _count(int(seconds // at.DAY), "day")


def _size(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"

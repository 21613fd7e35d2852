"""Which numbers need attention: each condition on both sides of its threshold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pyrycode_relay.monitoring import thresholds as at
from pyrycode_relay.monitoring.findings import (
    CertificateFacts,
    Counted,
    Facts,
    Failing,
    Finding,
    Past,
    find,
)
from pyrycode_relay.monitoring.kinds import Kind
from tests.unit.bench import Cases, cases

NOW = 1_800_000_000.0
WELL = Facts(
    now=NOW,
    counted=Counted(binaries=10),
    websockets=60,
    websockets_max=100,
    websockets_reserved=10,
    binaries_connected=10,
    open_files=80,
    open_files_max=100,
    resident_bytes=80,
    memory_limit=100,
    queue_bytes=70,
    queue_bytes_budget=100,
    certificates=CertificateFacts(not_after={"a.example": NOW + 30 * at.DAY}),
    breakers={"fcm": "closed"},
)


def found(facts: Facts = WELL, usual_binaries: float = 10, **increases: int) -> dict[Kind, Finding]:
    """Return what needs attention if the counted numbers have grown by ``increases``."""
    past = Past(lambda name, _: increases.get(name, 0), usual_binaries)
    return {each.kind: each for each in find(facts, past)}


def certificates(**more: Any) -> Facts:
    """Return the facts of a relay with these certificates."""
    known: dict[str, Any] = {"not_after": {"a.example": NOW + 30 * at.DAY}}
    return replace(WELL, certificates=CertificateFacts(**{**known, **more}))


LIMITS = {
    "connections": ({"websockets": 90}, {"websockets": 91}, Kind.CONNECTIONS),
    "files": ({"open_files": 90}, {"open_files": 91}, Kind.FILES),
    "memory": ({"resident_bytes": 90}, {"resident_bytes": 91}, Kind.MEMORY),
    "queues": ({"queue_bytes": 80}, {"queue_bytes": 81}, Kind.QUEUES),
    "reserve": (
        {"websockets": 89, "binaries_connected": 0},
        {"websockets": 90, "binaries_connected": 0},
        Kind.RESERVE,
    ),
    "draining": ({}, {"draining": True}, Kind.DRAINING),
    "breaker": ({}, {"breakers": {"fcm": "half_open"}}, Kind.PUSH_PAUSED),
}

COUNTS = {
    "accept_failures": (0, Kind.ACCEPT_FAILURES),
    "backlog_closes": (0, Kind.BACKLOG_CLOSES),
    "queues_shed": (0, Kind.SHED),
    "refused_at_limit": (0, Kind.REFUSED_AT_LIMIT),
    "rate_limited": (300, Kind.RATE_LIMITED),
    "bad_requests": (300, Kind.BAD_REQUESTS),
    "conflicts": (10, Kind.CONFLICTS),
    "probed": (300, Kind.PROBES),
    "phones_connected": (3000, Kind.RECONNECTS),
    "push_over_limit": (30, Kind.PUSH_REFUSED),
    "timers_stalled": (0, Kind.STALL),
}


class FindingTests(Cases):
    def test_well(self) -> None:
        """A relay in order needs nothing; nor does one that has just started."""
        self.assertEqual(found(), {})
        self.assertEqual(found(Facts(now=NOW), usual_binaries=0), {})

    @cases(LIMITS)
    def test_limit(self, below: dict[str, Any], above: dict[str, Any], kind: Kind) -> None:
        """A number at its threshold is well, and one above it is found."""
        self.assertEqual(set(found(replace(WELL, **below))), set())
        self.assertEqual(set(found(replace(WELL, **above))), {kind})

    @cases({name: (name, *row) for name, row in COUNTS.items()})
    def test_count(self, name: str, limit: int, kind: Kind) -> None:
        """So it is with a number that has grown within its window."""
        self.assertEqual(found(WELL, **{name: limit}), {})
        finding = found(WELL, **{name: limit + 1})[kind]
        self.assertEqual(finding.value, limit + 1)
        self.assertRegex(finding.text, r"^In the last \d+ minutes?, ")

    def test_one_and_many(self) -> None:
        """The words agree with the number."""
        self.assertEqual(
            found(backlog_closes=1)[Kind.BACKLOG_CLOSES].text,
            "In the last 10 minutes, 1 phone was closed because its backlog was full",
        )
        self.assertIn("2 phones were closed", found(backlog_closes=2)[Kind.BACKLOG_CLOSES].text)

    def test_lag(self) -> None:
        """The 99th percentile of the lag counts, once there are enough timers for one."""
        self.assertEqual(found(timers=600, timers_late=6), {})
        self.assertEqual(set(found(timers=600, timers_late=7)), {Kind.LAG})
        self.assertEqual(found(timers=99, timers_late=50), {})

    def test_unknown_memory(self) -> None:
        """If the limit is unknown, memory is never beside it."""
        self.assertEqual(found(replace(WELL, memory_limit=0)), {})

    def test_no_reserve(self) -> None:
        """A relay that keeps no places for binaries has no such finding, even when it is full."""
        full = replace(WELL, websockets=100, websockets_reserved=0)
        self.assertEqual(set(found(full)), {Kind.CONNECTIONS})

    def test_peers(self) -> None:
        """Half of the binaries gone; a fifth of the connections ended by heartbeat."""
        self.assertEqual(found(usual_binaries=20), {})
        self.assertEqual(set(found(usual_binaries=21)), {Kind.BINARIES_GONE})
        self.assertEqual(found(heartbeat_timeouts=12), {})
        self.assertEqual(set(found(heartbeat_timeouts=13)), {Kind.HEARTBEATS})
        few = replace(WELL, websockets=50)
        self.assertEqual(found(few, heartbeat_timeouts=50), {})

    def test_push(self) -> None:
        """More than a fifth of enough wakes failed; a pause says since when, and why."""
        self.assertEqual(found(push_tried=10, push_failed=10), {})
        self.assertEqual(found(push_tried=20, push_failed=4), {})
        self.assertEqual(set(found(push_tried=20, push_failed=5)), {Kind.PUSH_FAILS})
        failing = Failing("the provider is unavailable", NOW - 60)
        paused = found(replace(WELL, breakers={"fcm": "open"}, push=failing))[Kind.PUSH_PAUSED]
        self.assertEqual((paused.subject, paused.since), ("fcm", NOW - 60))
        self.assertEqual(paused.reason, "the provider is unavailable")


class CertificateTests(Cases):
    @cases(
        {
            "far": (7 * at.DAY, None, ""),
            "soon": (7 * at.DAY - 1, Kind.CERTIFICATE_ENDS, "ends in 6 days"),
            "tomorrow": (at.DAY, Kind.CERTIFICATE_ENDS, "ends in 24 hours"),
            "today": (at.DAY - 1, Kind.CERTIFICATE_ENDS_NOW, "ends in 23 hours"),
            "past": (-120, Kind.CERTIFICATE_ENDS_NOW, "ended 2 minutes ago"),
        }
    )
    def test_end(self, left: float, kind: Kind | None, words: str) -> None:
        """A certificate's end is found a week before, and again a day before."""
        findings = found(certificates(not_after={"a.example": NOW + left, "b.example": NOW + 1e8}))
        self.assertEqual(set(findings), {kind} if kind else set())
        for finding in findings.values():
            self.assertIn(f"The certificate of a.example {words} (", finding.text)
            self.assertEqual(finding.subject, "a.example")
            assert finding.since is not None
            self.assertLessEqual(finding.since, NOW)

    def test_names(self) -> None:
        """Of many names, the first three stand there."""
        ends = dict.fromkeys((f"{letter}.example" for letter in "dcbae"), NOW)
        subject = found(certificates(not_after=ends))[Kind.CERTIFICATE_ENDS_NOW].subject
        self.assertEqual(subject, "a.example, b.example, c.example and 2 more")

    def test_none(self) -> None:
        """Without a certificate, the reason of the failed order stands there."""
        order = Failing("the CA cannot be reached", NOW - 5)
        [finding] = found(certificates(not_after={}, ready=False, order=order)).values()
        self.assertEqual(finding.kind, Kind.CERTIFICATE_MISSING)
        self.assertEqual(finding.reason, "the CA cannot be reached")

    def test_problems(self) -> None:
        """A file that cannot be read and an order that failed are found beside each other."""
        order = Failing("x" * 500, NOW - 5)
        findings = found(certificates(problems=("--tls-cert: no PEM",), order=order))
        self.assertEqual(
            set(findings), {Kind.CERTIFICATE_UNREADABLE, Kind.CERTIFICATE_NOT_OBTAINED}
        )
        self.assertEqual(findings[Kind.CERTIFICATE_UNREADABLE].reason, "--tls-cert: no PEM")
        self.assertEqual(findings[Kind.CERTIFICATE_NOT_OBTAINED].since, NOW - 5)
        self.assertEqual(len(findings[Kind.CERTIFICATE_NOT_OBTAINED].reason), 200)

"""What a probe found: its steps, its verdict, and how both are shown to people and to machines."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

_NAMES_SHOWN: Final = 8
"""Names of a certificate that people are shown; there may be hundreds, and JSON has them all."""


class Status(enum.IntEnum):
    """The exit statuses. They are part of the interface: scripts branch on them."""

    WORKS = 0
    MISBEHAVES = 1
    USAGE = 2
    UNREACHABLE = 3
    TLS = 4
    NO_RELAY = 5
    BUSY = 6
    TIMEOUT = 7


MEANINGS: Final = {
    Status.WORKS: "the relay works",
    Status.MISBEHAVES: "a relay answers, but not as it must",
    Status.USAGE: "the command line is wrong",
    Status.UNREACHABLE: "no such name, refused, or no way there",
    Status.TLS: "TLS fails, or the certificate is not good (enough)",
    Status.NO_RELAY: "what answers is no relay, or does not serve this host name",
    Status.BUSY: "the relay refuses for now: draining, full, or too many tries (503, 429)",
    Status.TIMEOUT: "not finished within --timeout",
}


class ProbeError(Exception):
    """Why a probe failed: a status, and a sentence for whoever reads it."""

    def __init__(self, status: Status, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass
class Step:
    """One thing that was tried: its name, how long it took in milliseconds, and what it showed."""

    name: str
    started: float
    ms: float | None = None
    found: dict[str, Any] = field(default_factory=dict)


class Report:
    """A probe's course. ``seconds`` is the clock."""

    def __init__(self, target: str, seconds: Callable[[], float]) -> None:
        self.target = target
        self.steps: list[Step] = []
        self.problem: ProbeError | None = None
        self._seconds = seconds

    def begin(self, name: str) -> None:
        """Begin a step; the one before it went well."""
        self.end()
        self.steps.append(Step(name, self._seconds()))

    def found(self, **found: Any) -> None:
        """Note what the step at hand shows."""
        self.steps[-1].found.update(found)

    def end(self) -> None:
        """End the step at hand: it went well."""
        if self.steps and self.steps[-1].ms is None:
            self.steps[-1].ms = round((self._seconds() - self.steps[-1].started) * 1000, 3)

    def fail(self, problem: ProbeError) -> None:
        """Take note that the step at hand failed, and with it the probe."""
        self.problem = problem

    @property
    def status(self) -> Status:
        """The exit status."""
        return Status.WORKS if self.problem is None else self.problem.status

    def as_json(self) -> str:
        """Return one JSON object, for machines; durations are in milliseconds."""
        steps: Mapping[str, object] = {
            step.name: {"ok": step.ms is not None, "ms": step.ms, **step.found}
            for step in self.steps
        }
        return json.dumps(
            {
                "target": self.target,
                "ok": self.problem is None,
                "status": int(self.status),
                "problem": None if self.problem is None else str(self.problem),
                "steps": steps,
            },
            indent=2,
        )

    def as_text(self) -> str:
        """Return the report for people."""
        lines = [self.target, ""]
        for step in self.steps:
            lines += self._rows(step)
        if self.problem is None:
            lines += ["", "The relay works."]
        return "\n".join(lines)

    def _rows(self, step: Step) -> Iterator[str]:
        name = step.name.replace("_", " ")
        if step.ms is None:
            yield f"FAIL  {name:<13} {self.problem}"
        else:
            yield f"ok    {name:<13} {_HEADLINES[step.name](step.found):<40} {step.ms:>9.1f} ms"
        for label, value in _DETAILS.get(step.name, _nothing)(step.found):
            yield f"      {'':<13} {label:<9} {value}"


def _closed(found: Mapping[str, Any]) -> str:
    return f"closed {found['code']} {found['reason']}"


_HEADLINES: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "dns": lambda found: ", ".join(found["addresses"]),
    "tcp": lambda found: str(found["address"]),
    "tls": lambda found: f"{found['version']}, {'verified' if found['verified'] else 'UNVERIFIED'}",
    "upgrade": lambda _: "101 for a binary",
    "second_claim": _closed,
    "unknown_id": _closed,
    "phone": lambda _: "101 for a phone",
    "round_trips": lambda found: f"{found['count']}, each frame byte for byte",
    "close_notice": lambda found: f"{found['code']} told to the binary",
}
"""What the line of each step says, from what it found. These are all steps there are."""


def _nothing(_: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ()


def _failed_addresses(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from (("but not", each) for each in found.get("failed", ()))


def _certificate(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "cipher" in found:
        yield "cipher", found["cipher"]
    if "issuer" in found:
        yield "issuer", found["issuer"]
        names = found["names"]
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        yield "names", (", ".join(names[:_NAMES_SHOWN]) or "none") + more
        yield "until", f"{found['not_after']}, {found['days_left']} days left"


def _percentiles(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if found.get("count"):
        shown = (f"{name} {found[f'{name}_ms']:.1f}" for name in PERCENTILES)
        yield "ms", ", ".join(shown)


_DETAILS: Final[Mapping[str, Callable[[Mapping[str, Any]], Iterator[tuple[str, str]]]]] = {
    "tcp": _failed_addresses,
    "tls": _certificate,
    "round_trips": _percentiles,
}
"""The further lines of a step, as label and value."""

PERCENTILES: Final = {"min": 0, "p50": 50, "p90": 90, "p99": 99, "max": 100}
"""What is shown of the round trips' durations: of 100 in order, the one up to which so many are."""


def percentiles(durations: Sequence[float]) -> dict[str, float]:
    """Return the `PERCENTILES` of durations (at least one), by nearest rank: all were measured."""
    ordered = sorted(durations)
    return {
        f"{name}_ms": round(ordered[max(0, -(-len(ordered) * percent // 100) - 1)], 3)
        for name, percent in PERCENTILES.items()
    }


def printable(text: str) -> str:
    """Return what a peer sent, fit for a terminal: no control characters, not too long."""
    return "".join(each if each.isprintable() else "?" for each in text[:200])

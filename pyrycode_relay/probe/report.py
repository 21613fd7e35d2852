"""The report of a probe: its steps and its verdict, as text and as JSON."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

_CLEAR_LINE: Final = "\r\x1b[K"
_NAMES_SHOWN: Final = 8
"""Maximum names of a certificate in the text. There may be hundreds; JSON has all of them."""


class Status(enum.IntEnum):
    """The exit statuses. Scripts depend on the numbers."""

    WORKS = 0
    MISBEHAVES = 1
    USAGE = 2
    UNREACHABLE = 3
    TLS = 4
    NO_RELAY = 5
    BUSY = 6
    TIMEOUT = 7
    NOT_WOKEN = 8
    INTERRUPTED = 130
    """128 and the number of SIGINT, as shells have it."""


MEANINGS: Final = {
    Status.WORKS: "the relay works",
    Status.MISBEHAVES: "a relay answers, but wrongly",
    Status.USAGE: "the command line is wrong",
    Status.UNREACHABLE: "the name does not exist, the connection was refused, or there is no route",
    Status.TLS: "TLS fails, or the certificate is invalid or has fewer days left than --min-days",
    Status.NO_RELAY: "the server is not a relay, or does not serve this host name",
    Status.BUSY: "the relay refuses for now: it drains, is full, or limits the rate (503, 429)",
    Status.TIMEOUT: "not finished within --timeout",
    Status.NOT_WOKEN: "the relay works, but has not sent the push wake of --wake",
    Status.INTERRUPTED: "interrupted by Ctrl-C",
}


class ProbeError(Exception):
    """A probe failed. Carries the exit status and one sentence for the report."""

    def __init__(self, status: Status, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass
class Step:
    """One step of a probe."""

    name: str
    started: float
    ms: float | None = None
    """Duration in milliseconds; None until the step has succeeded."""
    found: dict[str, Any] = field(default_factory=dict)
    """Results, by their names in JSON."""


def _nobody() -> None:
    """Tell nobody about a change."""


class Report:
    """The steps of a probe, and its problem if it failed.

    Args:
        target: The URL of the relay.
        seconds: The clock.
        planned: The names of all steps, in their order.

    """

    def __init__(
        self, target: str, seconds: Callable[[], float], planned: Sequence[str] = ()
    ) -> None:
        self.target = target
        self.changed: Callable[[], None] = _nobody
        """Called when a step begins or ends."""
        self._planned = planned
        self.steps: list[Step] = []
        self.problem: ProbeError | None = None
        self._seconds = seconds

    def begin(self, name: str) -> None:
        """Begin a step. The previous step has succeeded."""
        self.end()
        self.steps.append(Step(name, self._seconds()))
        self.changed()

    def found(self, **found: Any) -> None:
        """Add results to the current step."""
        self.steps[-1].found.update(found)

    def end(self) -> None:
        """End the current step, which has succeeded."""
        if self.steps and self.steps[-1].ms is None:
            self.steps[-1].ms = round((self._seconds() - self.steps[-1].started) * 1000, 3)
            self.changed()

    def fail(self, problem: ProbeError) -> None:
        """End the probe: the current step has failed."""
        self.problem = problem

    @property
    def not_done(self) -> list[str]:
        """The names of the steps that did not begin."""
        begun = {step.name for step in self.steps}
        return [name for name in self._planned if name not in begun]

    @property
    def status(self) -> Status:
        """The exit status."""
        return Status.WORKS if self.problem is None else self.problem.status

    def as_json(self) -> str:
        """Return the report as a JSON object. Durations are in milliseconds."""
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
                "not_done": self.not_done,
            },
            indent=2,
        )

    def as_text(self) -> str:
        """Return the report as text for people."""
        lines = [self.target, ""]
        for step in self.steps:
            lines += self.rows(step)
        return "\n".join([*lines, *self.verdict()])

    def verdict(self) -> Iterator[str]:
        """Yield the lines below the steps."""
        if self.problem is None:
            yield from ("", "The relay works.")
        elif self.not_done:
            yield from ("", f"Not tested: {', '.join(map(_in_words, self.not_done))}.")

    def rows(self, step: Step) -> Iterator[str]:
        """Yield the lines of a step that has ended, or in which the probe failed."""
        name = _in_words(step.name)
        if step.ms is None:
            yield f"FAIL  {name:<13} {self.problem}"
        else:
            yield f"ok    {name:<13} {_HEADLINES[step.name](step.found):<40} {step.ms:>9.1f} ms"
        for label, value in _DETAILS.get(step.name, _nothing)(step.found):
            yield f"      {'':<13} {label:<9} {value}"


def _in_words(name: str) -> str:
    return name.replace("_", " ")


class Screen:
    """Shows a report on a terminal as it grows: each step when it ends, and the current one.

    The text that is left at the end is `Report.as_text`.
    """

    def __init__(self, report: Report, output: TextIO) -> None:
        self._report = report
        self._output = output
        self._shown = 0
        self._output.write(f"{report.target}\n\n")

    def update(self) -> None:
        """Show what is new."""
        steps = self._report.steps
        self._output.write(_CLEAR_LINE)
        while self._shown < len(steps) and steps[self._shown].ms is not None:
            self._write(self._report.rows(steps[self._shown]))
            self._shown += 1
        if self._shown < len(steps):
            self._output.write(f"...   {_in_words(steps[self._shown].name)}")
        self._output.flush()

    def finish(self) -> None:
        """Show the step that failed, if one did, and the verdict."""
        self._output.write(_CLEAR_LINE)
        for step in self._report.steps[self._shown :]:
            self._write(self._report.rows(step))
        self._write(self._report.verdict())
        self._output.flush()

    def _write(self, lines: Iterable[str]) -> None:
        self._output.writelines(f"{line}\n" for line in lines)


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
    "round_trips": lambda found: f"{found['count']}, every frame unchanged",
    "close_notice": lambda found: f"{found['code']} sent to the binary",
    "wake": lambda found: f"{found['outcome']} by {found['platform']}",
}
"""The result that the text shows for each step. The table has every step."""


def _nothing(_: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ()


def _failed_addresses(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from (("failed", each) for each in found.get("failed", ()))


def _certificate(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "cipher" in found:
        yield "cipher", found["cipher"]
    if "issuer" in found:
        yield "issuer", found["issuer"]
        names = found["names"]
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        yield "names", (", ".join(names[:_NAMES_SHOWN]) or "none") + more
        yield "expires", f"{found['not_after']}, {found['days_left']} days left"


def _percentiles(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if found.get("count"):
        shown = (f"{name} {found[f'{name}_ms']:.1f}" for name in PERCENTILES)
        yield "ms", ", ".join(shown)


_DETAILS: Final[Mapping[str, Callable[[Mapping[str, Any]], Iterator[tuple[str, str]]]]] = {
    "tcp": _failed_addresses,
    "tls": _certificate,
    "round_trips": _percentiles,
}
"""Further lines of a step, as label and value."""

PERCENTILES: Final = {"min": 0, "p50": 50, "p90": 90, "p99": 99, "max": 100}
"""Percentiles of the round trips' durations, by name."""


def percentiles(durations: Sequence[float]) -> dict[str, float]:
    """Return the `PERCENTILES` of one or more durations.

    They are nearest ranks, so each value was measured.
    """
    ordered = sorted(durations)
    return {
        f"{name}_ms": round(ordered[max(0, -(-len(ordered) * percent // 100) - 1)], 3)
        for name, percent in PERCENTILES.items()
    }


def printable(text: str) -> str:
    """Return a peer's text for a terminal: at most 200 characters, unprintable ones as ``?``."""
    return "".join(each if each.isprintable() else "?" for each in text[:200])

"""The parts of a relay that the monitoring reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pyrycode_relay.http.admission import Admission
from pyrycode_relay.id_hash import IdHash
from pyrycode_relay.listeners import Listeners
from pyrycode_relay.monitoring.busiest import Talker
from pyrycode_relay.registry.memory_budget import MemoryBudget
from pyrycode_relay.registry.registry import Registry
from pyrycode_relay.tally import Tally
from pyrycode_relay.tls.store import Certificates


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """The numbers of push."""

    faults: Sequence[str]
    """The labels of all classes of failures."""
    breakers: Callable[[], Mapping[str, str]]
    """Returns the state of each platform's breaker: ``closed``, ``open`` or ``half_open``."""
    under_way: Callable[[], int]
    """Returns the number of wakes without an outcome yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitored:
    """The sources of the numbers; each is read when it is needed."""

    registry: Registry
    memory_budget: MemoryBudget
    tally: Tally
    admission: Admission
    certificates: Certificates | None
    """None if nothing is served over TLS."""
    push: Push | None = None
    """None if push is off."""
    state: Callable[[], str]
    """Returns ``starting``, ``ready`` or ``draining``."""
    talkers: Sequence[Collection[Talker]] = ()
    """The sets of the phones' connections."""
    listeners: Sequence[Listeners] = ()
    id_hash: IdHash = field(default_factory=IdHash)
    """Makes what stands for server-ids and addresses."""
    ids_in_clear: bool = False
    """Whether the status page shows server-ids and addresses themselves."""
    crowded_out: Callable[[], int]
    """Returns how many connections without a request were dropped for newer ones."""
    log_lines_dropped: Callable[[], int]
    """Returns how many lines of the log were dropped."""
    seconds: Callable[[], float]
    """Returns the time of the relay's own clock, in seconds."""
    wall: Callable[[], float]
    """Returns the time in seconds since 1970."""

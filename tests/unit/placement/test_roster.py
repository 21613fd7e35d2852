"""Which processes run: single cases, and any history at all against the rules of supervision."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pyrycode_relay.placement.roster import START_TIMEOUT, Act, Roster, Step, Trouble
from tests.unit.bench import Cases, examples

WORKERS = 3
TIMEOUT = 10.0
LONGEST = 30.0
LEAVE = 20.0


def roster(workers: int = WORKERS) -> Roster:
    """Return the roster of a relay."""
    return Roster(workers, timeout=TIMEOUT, longest_delay=LONGEST, leave_timeout=LEAVE)


def acts(steps: list[Step]) -> list[tuple[Act, int]]:
    """Return what is to be done, and to which process."""
    return [(step.act, step.process) for step in steps]


class StartTests(Cases):
    """The first processes."""

    def test_start(self) -> None:
        """Each worker gets a process, which serves as soon as it can."""
        own = roster()
        started = own.start(0.0)
        self.assertEqual([(Act.START, 1), (Act.START, 2), (Act.START, 3)], acts(started))
        self.assertEqual([(Act.SERVE, 2)], acts(own.ready(2, 1.0)))
        self.assertFalse(own.complete)
        own.ready(1, 1.0)
        own.ready(3, 1.0)
        self.assertTrue(own.complete)

    def test_late(self) -> None:
        """A process that is not ready in time is killed, and killed again if that fails."""
        own = roster(1)
        own.start(0.0)
        self.assertEqual([], own.tick(START_TIMEOUT - 0.1))
        for now in (START_TIMEOUT, 2 * START_TIMEOUT):
            self.assertEqual([Step(Act.KILL, 1, 0, Trouble.LATE)], own.tick(now))


class RestartTests(Cases):
    """Processes that end, or hang."""

    def setUp(self) -> None:
        self.roster = roster(1)
        self.roster.start(0.0)
        self.roster.ready(1, 0.0)

    def end(self, number: int, now: float) -> float:
        """Let a process end; return after how many seconds the next one is started, and serves."""
        self.roster.ended(number, now)
        waited = 0.0
        while not (steps := self.roster.tick(now + waited)):
            waited += 0.25
        self.assertEqual([(Act.START, number + 1)], acts(steps))
        self.roster.ready(number + 1, now + waited)
        return waited

    def test_backoff(self) -> None:
        """The first restart comes at once, each further one later, up to a bound."""
        waits = [self.end(number, 0.0) for number in range(1, 12)]
        self.assertEqual([0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30], waits)
        self.assertEqual([11], self.roster.restarts)

    def test_long_service(self) -> None:
        """A process that has served for the longest delay is restarted at once."""
        for number in range(1, 5):
            self.end(number, 0.0)
        served_since = self.roster.processes[5].since
        self.assertEqual(0, self.end(5, served_since + LONGEST))

    def test_silence(self) -> None:
        """A process that gives no sign of life is killed."""
        self.roster.heard(1, 5.0)
        self.assertEqual([], self.roster.tick(14.9))
        self.assertEqual([Step(Act.KILL, 1, 0, Trouble.HUNG)], self.roster.tick(15.0))

    def test_forgiven(self) -> None:
        """The time in which the parent itself was stopped does not count."""
        self.roster.forgive(60.0)
        self.assertEqual([], self.roster.tick(69.9))


class ReplacementTests(Cases):
    """New processes for old ones."""

    def setUp(self) -> None:
        self.roster = roster(2)
        self.roster.start(0.0)
        self.roster.ready(1, 0.0)
        self.roster.ready(2, 0.0)

    def test_one_by_one(self) -> None:
        """A successor serves once its predecessor has moved; the next is started after its end."""
        own = self.roster
        self.assertEqual([(Act.START, 3)], acts(own.replace(1.0)))
        self.assertEqual([(Act.MOVE, 1)], acts(own.ready(3, 2.0)))
        self.assertEqual([(Act.SERVE, 3)], acts(own.moved(1, 2.0)))
        self.assertEqual([(Act.START, 4)], acts(own.ended(1, 3.0)))
        self.assertEqual([(Act.MOVE, 2)], acts(own.ready(4, 4.0)))
        self.assertEqual([(Act.SERVE, 4)], acts(own.moved(2, 4.0)))
        self.assertTrue(own.replacing)
        self.assertEqual([], own.ended(2, 5.0))
        self.assertFalse(own.replacing)
        self.assertTrue(own.complete)
        self.assertEqual([0, 0], own.restarts)

    def test_successor_fails(self) -> None:
        """If a new process ends before it serves, the old ones go on."""
        own = self.roster
        own.replace(1.0)
        self.assertEqual([], own.ended(3, 2.0))
        self.assertTrue(own.gave_up)
        self.assertFalse(own.replacing)
        self.assertTrue(own.complete)

    def test_old_dies_before_it_has_moved(self) -> None:
        """A successor that is ready then serves at once."""
        own = self.roster
        own.replace(1.0)
        own.ready(3, 2.0)
        self.assertEqual([(Act.SERVE, 3), (Act.START, 4)], acts(own.ended(1, 2.0)))

    def test_old_dies_before_the_successor_is_ready(self) -> None:
        """The successor is then the worker's only process; nobody else is started for it."""
        own = self.roster
        own.replace(1.0)
        self.assertEqual([(Act.START, 4)], acts(own.ended(1, 1.0)))
        self.assertEqual([], own.tick(1.0))
        self.assertEqual([(Act.SERVE, 3)], acts(own.ready(3, 2.0)))

    def test_slow_to_leave(self) -> None:
        """An old process that does not end in time is killed."""
        own = self.roster
        own.replace(1.0)
        own.ready(3, 2.0)
        own.moved(1, 2.0)
        own.heard(2, 21.0)
        own.heard(3, 21.0)
        self.assertEqual([Step(Act.KILL, 1, 0, Trouble.NOT_GONE)], own.tick(2.0 + LEAVE))


class StopTests(Cases):
    """The end."""

    def test_stop(self) -> None:
        """All drain, whatever they did, and nobody is started again."""
        own = roster(2)
        own.start(0.0)
        own.ready(1, 0.0)
        self.assertEqual([(Act.DRAIN, 1), (Act.DRAIN, 2)], acts(own.stop(1.0)))
        self.assertEqual([], own.ended(1, 2.0))
        self.assertEqual([], own.ended(2, 2.0))
        self.assertEqual([], own.tick(99.0))
        self.assertEqual([], own.replace(99.0))


class Histories(RuleBasedStateMachine):
    """Processes that are ready, silent, move and end in any order.

    The machine is the parent and the processes: it carries out every step, and notes who serves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.roster = roster()
        self.now = 0.0
        self.running: dict[int, int] = {}
        """The index of each process that runs."""
        self.ready: set[int] = set()
        self.serving: set[int] = set()
        """Those that were told to serve, and not to move or to drain."""
        self.leaving: set[int] = set()
        self.quiet = False
        self.do(self.roster.start(self.now))

    def do(self, steps: list[Step]) -> None:
        """Carry out steps."""
        for step in steps:
            if step.act is Act.START:
                assert step.process not in self.running
                assert not self.roster.stopping
                self.running[step.process] = step.index
                continue
            assert self.running[step.process] == step.index
            if step.act is Act.SERVE:
                assert step.process in self.ready
                self.serving.add(step.process)
            elif step.act is Act.KILL:
                self.gone(step.process)
            else:
                self.serving.discard(step.process)
                self.leaving.add(step.process)

    def gone(self, number: int) -> None:
        """Let a process end."""
        del self.running[number]
        self.ready.discard(number)
        self.serving.discard(number)
        self.leaving.discard(number)
        self.do(self.roster.ended(number, self.now))

    def pick(self, data: st.DataObject, among: set[int]) -> int:
        """Draw a process."""
        return data.draw(st.sampled_from(sorted(among)))

    @precondition(lambda self: set(self.running) - self.ready)
    @rule(data=st.data())
    def becomes_ready(self, data: st.DataObject) -> None:
        number = self.pick(data, set(self.running) - self.ready)
        self.ready.add(number)
        self.do(self.roster.ready(number, self.now))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        self.gone(self.pick(data, set(self.running)))

    @precondition(lambda self: self.leaving)
    @rule(data=st.data())
    def has_moved(self, data: st.DataObject) -> None:
        self.do(self.roster.moved(self.pick(data, self.leaving), self.now))

    @rule(seconds=st.floats(0.0, 40.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for number in self.running:
            self.roster.heard(number, self.now)
        self.do(self.roster.tick(self.now))

    @rule()
    def silence(self) -> None:
        self.now += TIMEOUT
        self.do(self.roster.tick(self.now))

    @rule()
    def replaces(self) -> None:
        self.do(self.roster.replace(self.now))

    @precondition(lambda self: len(self.running) > 1)
    @rule()
    def stops(self) -> None:
        if not self.roster.stopping:
            self.do(self.roster.stop(self.now))

    @invariant()
    def one_serves(self) -> None:
        """No two processes of a worker serve at the same time."""
        indexes = [self.running[each] for each in self.serving]
        assert len(indexes) == len(set(indexes)), self.serving

    @invariant()
    def the_roster_is_right(self) -> None:
        """The roster knows exactly the processes that run."""
        assert {p.number: p.index for p in self.roster.processes.values()} == self.running

    @invariant()
    def few_processes(self) -> None:
        """A worker has at most one that starts or serves, a successor, and one that leaves."""
        for index in range(WORKERS):
            assert sum(each == index for each in self.running.values()) <= 3

    def teardown(self) -> None:
        """Once nothing goes wrong any longer, every worker serves, or all have ended."""
        for _ in range(400):
            if self.roster.stopping:
                for number in [*self.running]:
                    self.gone(number)
                break
            for number in sorted(set(self.running) - self.ready):
                self.ready.add(number)
                self.do(self.roster.ready(number, self.now))
            for number in sorted(self.leaving):
                self.do(self.roster.moved(number, self.now))
                self.gone(number)
            self.time_passes(1.0)
        if self.roster.stopping:
            assert not self.running
        else:
            assert self.roster.complete
            assert not self.roster.replacing
            assert len(self.serving) == WORKERS == len(self.running)


class HistoryTests(Cases):
    """Any history at all."""

    def test_histories(self) -> None:
        """Supervision keeps its rules whatever processes do, and recovers."""
        run_state_machine_as_test(Histories, settings=examples(300, stateful_step_count=40))

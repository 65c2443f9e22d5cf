# SPDX-License-Identifier: GPL-2.0-or-later
"""How far a guest runs that is under somebody's control, and when it is told that it has stopped.

Whoever executes (a CPU, a whole computer) asks before each slice how many instructions may follow,
and says afterwards how many there were. Unicorn counts them and stops between any two, so a stop
is exact wherever it comes. Everything that is to happen at a stop happens there, while the
emulator executes nothing.

Instructions are counted from where the outermost call began. So a place in a run is a number, and
going back is running anew up to a number: a guest's runs are equal, as long as nothing comes in
from outside.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from emulator.budget import Limits
from emulator.stops import Ended, Event, Past, Resume, Seat, Why

_CHUNK = 1_000_000  # instructions between looks at the time, and at who wants the guest to stop
_BACK = (Resume.STEP_BACK, Resume.CONTINUE_BACK, Resume.GO_BACK)
# Instructions before where it was, from where it is likely to be run anew once more.
_NEAR = (1 << 21, 1 << 17, 1 << 12, 1 << 6)
_EXCEPTIONS = 64
_REPEATED = 1 << 20  # times that an instruction repeats itself without a break, at the most
_POLL = 0.02  # seconds between those


@attrs.define
class _Step:
    """A step under way: from where."""

    level: int
    count: int
    pc: int


@attrs.define
class _Goal:
    """Where a run that is made anew is to get.

    Parameters
    ----------
    count
        The place.
    why, accesses
        What is told there.
    order
        Who asked for it.
    """

    count: int
    why: Why
    accesses: tuple[Any, ...] = ()
    order: Resume = Resume.GO_BACK


@attrs.define
class _Search:
    """A run that is made anew up to where it was, to find the last place before that."""

    count: int
    order: Resume
    start: int  # from where
    repeated: int | None = None  # an instruction that repeats itself: when did it begin?
    found: list[tuple[int, Why, tuple[Any, ...], int]] = attrs.field(factory=list)


class Governor:
    """Decides how far a guest runs.

    Parameters
    ----------
    tell
        Called at each stop; returns how to go on.
    repeated
        Returns of an instruction's bytes which register counts how often it repeats itself, empty
        where none says it; None for one that does not.
    limits
        Whose time does not pass while somebody thinks.
    """

    def __init__(
        self,
        tell: Callable[[Event], Resume],
        repeated: Callable[[bytes], str | None],
        limits: Limits,
    ) -> None:
        self._handler, self._repeated, self._limits = tell, repeated, limits
        self.breakpoints: dict[int, bool] = {}  # address -> whether it repeats itself
        self._marked: set[int] = set()  # those that nobody asked for
        self.mark: Callable[[int], object] = lambda _address: None  # lets a breakpoint be met
        self.accesses: list[Any] = []  # noted since the last stop
        self.poll: Callable[[], bool] | None = None
        self.aim = 0
        self.past: Past | None = None
        self.count = 0
        self.level = 0  # runs that are under way, one inside the other
        self.run = 0  # number of the innermost of them
        self._runs = 0
        self.blind = 0  # nobody is told of what runs now
        self.asked = False  # to stop
        self.seat: Seat | None = None
        self.differs = ""  # why a run that is made anew is not the same
        self.serial = 0  # of what came in from outside
        self.happening: tuple[str, int | None] = "", None  # what that was last, and where
        # Exceptions of late: instructions before the one that raised it, and its address.
        self.exceptions: deque[tuple[int, int]] = deque(maxlen=_EXCEPTIONS)
        self._entering = False
        self._detached = False
        self._told: tuple[int, int] | None = None  # where somebody was told of last: count, pc
        self._step: _Step | None = None
        self._goal: _Goal | None = None
        self._search: _Search | None = None
        self._polled = 0.0
        self._seen: dict[int, tuple[int, ...]] = {}  # count -> registers at a stop
        self._edits: list[tuple[int, Callable[[], object]]] = []  # what handlers changed, and when
        self._again = 0.0  # when a run that is made anew began
        self._failed: BaseException | None = None  # somebody was told of it
        self._made: list[Callable[[], object]] = []  # edits, by a run that is made anew

    # Runs -----------------------------------------------------------------------------------------

    def begin(self, *, entering: bool = True) -> None:
        """Let a call from outside begin, or the next part of one."""
        self.restart()
        self.accesses.clear()
        self._seen.clear()
        self._edits.clear()
        self._entering = entering and not self._detached
        self.differs = ""
        self._goal = self._search = None
        if self.past is not None:
            self.past.begin()

    def restart(self) -> None:
        """Let it begin anew."""
        self.count = 0
        self.exceptions.clear()
        self.accesses.clear()
        self._told = self._step = self._failed = None
        self._entering = False

    @contextmanager
    def deeper(self) -> Iterator[None]:
        """Let a run be inside of another one, or the first."""
        around = self.enter()
        try:
            yield
        finally:
            self.leave(around)

    def enter(self) -> tuple[Seat | None, int]:
        """Let such a run begin; what it returns is for `leave`."""
        around = self.seat, self.run
        self.level += 1
        self._runs += 1
        self.run = self._runs
        return around

    def leave(self, around: tuple[Seat | None, int]) -> None:
        """Let it end."""
        self.level -= 1
        self.seat, self.run = around

    @contextmanager
    def blindly(self) -> Iterator[None]:
        """Let nobody be told of what runs meanwhile."""
        self.blind += 1
        try:
            yield
        finally:
            self.blind -= 1

    @property
    def replays(self) -> bool:
        """Whether what runs has run before: it may take what time it takes."""
        return self._goal is not None or self._search is not None

    def happened(self, what: str, address: int | None = None) -> None:
        """Take note of something that a run made anew would do once more, or not at all."""
        self.serial += 1
        self.happening = what, address

    # Slices ---------------------------------------------------------------------------------------

    def allow(self, seat: Seat) -> int:
        """Tell what is to be told before the next instruction; return how many may follow.

        Afterwards the program counter may be another.
        """
        if self.blind:
            return _CHUNK
        self.seat = seat
        if self.past is not None:
            self.past.pass_by(seat)
        while True:
            if self.replays:
                left = self._anew(seat)
                if left:
                    return left
                continue
            event = self._due(seat)
            if event is None:
                return self._most(seat)
            self._tell(seat, event)

    def reaches(self, address: int, now: int) -> bool:
        """Return whether the guest is to stop at a breakpoint, which it has just come to.

        Parameters
        ----------
        now
            Instructions before this one.
        """
        if (
            self.blind
            or self._detached
            or self._goal is not None
            or address not in self.breakpoints
        ):
            return False
        if self._told is not None and self._told[1] == address:
            if self._told[0] == now:
                return False
            if self.breakpoints.get(address, False) and self._told[0] == now - 1:
                self._told = now, address  # it is still the same one
                return False
        if self._search is not None:
            self._told = now, address
            if now < self._search.count:
                self._search.found.append((now, Why.BREAKPOINT, (), address))
            return False
        return True

    def touched(self, access: object, now: int) -> bool:
        """Take note of an access of watched memory; return whether the run is to end after it.

        Parameters
        ----------
        now
            Instructions before the one that accesses.
        """
        if self.blind or self._detached or self._goal is not None:
            return False
        if self._search is not None:
            if now < self._search.count:
                self._search.found.append((now, Why.WATCHPOINT, (access,), 0))
            return False
        self.accesses.append(access)
        return True

    def set_breakpoint(self, address: int, code: bytes) -> None:
        """Stop at an instruction, whose bytes are given."""
        self.breakpoints[address] = self._repeated(code) is not None

    def _due(self, seat: Seat) -> Event | None:
        """Return what is to be told now."""
        pc, step = seat.pc, self._step
        if self._detached:
            self.accesses.clear()
            return None
        if self._entering:
            self._entering = False
            return Event(why=Why.ENTRY, pc=pc, count=self.count)
        if self.accesses:
            return self._watched(pc)
        if pc in self.breakpoints and self._arrives(pc):
            return Event(why=Why.BREAKPOINT, pc=pc, count=self.count)
        if step is not None and self.level <= step.level and self.count > step.count:
            within = pc == step.pc and self._repeated(seat.code(pc, 16)) is not None
            if not within:
                return Event(why=Why.STEP, pc=pc, count=self.count)
        if self.asked or self._poll():
            self.asked = False
            return Event(why=Why.INTERRUPTED, pc=pc, count=self.count)
        return None

    def _watched(self, pc: int) -> Event:
        found = tuple(self.accesses)
        self.accesses.clear()
        return Event(why=Why.WATCHPOINT, pc=pc, count=self.count, accesses=found)

    def _arrives(self, pc: int) -> bool:
        """Return whether it has just come to a breakpoint: it was not told of that yet."""
        if self._told is None or self._told[1] != pc:
            return True
        before = self._told[0]
        if self.breakpoints[pc] and before == self.count - 1:
            self._told = self.count, pc
            return False
        return before != self.count

    def _most(self, seat: Seat) -> int:
        """Return how many instructions may follow before somebody must be asked."""
        step = self._step
        if step is None or self.level > step.level:
            return _CHUNK
        counter = self._repeated(seat.code(seat.pc, 16))
        # No more than its repetitions; the last may only find that there are no more.
        return max(1, min(seat.get(counter), _CHUNK)) if counter else 1

    def _poll(self) -> bool:
        if self.poll is None:
            return False
        now = time.monotonic()
        if now - self._polled < _POLL:
            return False
        self._polled = now
        return self.poll()

    # Stops ----------------------------------------------------------------------------------------

    def returned(self, seat: Seat, result: int) -> None:
        """Tell that the call from outside has returned."""
        if self.blind or self.level != 1:
            return
        self.seat = seat
        if self.replays:
            if self._search is not None and self.count == self._search.count:
                self._anew(seat)
            else:
                self._lost(seat, f"it returned at instruction {self.count}")
            if self.replays:
                return
        while not self._detached:
            if self.accesses:
                event = self._watched(seat.pc)
            else:
                event = Event(why=Why.RETURNED, pc=seat.pc, count=self.count, result=result)
            self._tell(seat, event)
            if event.why is Why.RETURNED or self.replays:
                return

    def knows(self, fault: Exception) -> bool:
        """Return whether somebody was told of a fault."""
        return self._failed is fault

    def failed(self, seat: Seat, fault: Exception) -> None:
        """Tell of what comes out of the call if it goes on."""
        if self.blind or self._detached or self._failed is fault:
            return
        self.seat, self._failed = seat, fault
        if self.replays:
            self._lost(seat, str(fault))
        self.accesses.clear()
        self._tell(seat, Event(why=Why.FAULT, pc=seat.pc, count=self.count, fault=fault))

    def _tell(self, seat: Seat, event: Event) -> None:
        """Let the handler think, and do what it says."""
        while True:
            self._step = None if event.why is Why.ENTRY else self._kept()
            self._told = self.count, event.pc
            self._seen.setdefault(self.count, (event.pc, *seat.general()))
            with self.blindly(), self._apart():
                resume = self._handler(event)
            self._told = self.count, seat.pc
            self._polled = time.monotonic()
            if resume not in _BACK:
                break
            refused = self._back(seat, resume, event)
            if refused is None:
                return
            event = refused
        if resume is Resume.STEP:
            self._step = _Step(self.level, self.count, seat.pc)
        elif resume is Resume.DETACH:
            self._detached = True
            self._step = None
        elif resume is Resume.END:
            raise Ended
        elif resume is not Resume.CONTINUE:
            raise TypeError(f"a handler of control returns a Resume, not {resume!r}")

    def _kept(self) -> _Step | None:
        """Return the step that goes on after a stop inside of a Python function that it is over."""
        step = self._step
        return step if step is not None and step.level < self.level else None

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Let no time pass for the guest meanwhile."""
        chain, budget = [], self._limits.budget
        while True:
            chain.append((budget, budget.deadline))
            budget.deadline = None
            if budget.whole is None:
                break
            budget = budget.whole
        before = time.monotonic()
        try:
            yield
        finally:
            away = time.monotonic() - before
            for each, deadline in chain:
                each.deadline = None if deadline is None else deadline + away

    def edited(self, change: Callable[[], object]) -> None:
        """Make a change that a handler asks for, and again whenever the guest gets here again."""
        change()
        if not self.replays and self.level:
            self._edits.append((self.count, change))

    # Going back -----------------------------------------------------------------------------------

    @property
    def history(self) -> str:
        """Why there is no going back; empty: there is."""
        if self.past is None:
            return "nothing of before is kept"
        if self.differs:
            return self.differs
        if self.seat is None:
            return "no call is under way"
        reached, reason = self.past.reach()
        return reason if reached >= self.count else ""

    def _back(self, seat: Seat, order: Resume, event: Event) -> Event | None:
        """Go back, and return None; or what is to be told instead."""
        if self.past is None or self.differs:
            return attrs.evolve(event, why=Why.BEGINNING, reason=self.history)
        reached, reason = self.past.reach()
        if reached >= self.count or (order is Resume.GO_BACK and self.aim < reached):
            return attrs.evolve(event, why=Why.BEGINNING, reason=reason)
        if order is Resume.GO_BACK and self.aim >= self.count:
            reason = f"{self.aim} is not before {self.count}"
            return attrs.evolve(event, why=Why.BEGINNING, reason=reason)
        here = self.count
        last = self.aim if order is Resume.GO_BACK else here - 1
        self._search = _Search(here, order, self.past.before(last))
        self._rewind(seat, last)
        return None

    def _rewind(self, seat: Seat, count: int) -> None:
        """Go back to the last place before a count, or to it, that all is known of."""
        assert self.past is not None
        self._again = self._again or time.monotonic()
        self._told = self._step = self._failed = None
        self.accesses.clear()
        self._made.clear()
        self.past.back(seat, count)
        self._forget_exceptions()

    def _forget_exceptions(self) -> None:
        """Forget those that have not come yet."""
        while self.exceptions and self.exceptions[-1][0] >= self.count:
            self.exceptions.pop()

    def _anew(self, seat: Seat) -> int:
        """Return how many instructions may follow of a run that is made anew; 0: it is there."""
        goal, search = self._goal, self._search
        until = goal.count if goal is not None else search.count if search is not None else 0
        here = self.count >= until or bool(until - self.count == 1 and goal and seat.late())
        self._compare(seat)
        following = until
        if search is not None and self.past is not None:
            near = [until - each for each in _NEAR]
            if self.count in near:
                self.past.keep(seat)
            following = min((each for each in near if each > self.count), default=until)
        for count, change in self._edits:
            if self.count < count < until:
                following = min(following, count)
            elif count == self.count and change not in self._made and not (here and search):
                self._made.append(change)
                change()
        if not here:
            return min(following - self.count, _CHUNK)
        if goal is not None:
            self._come(seat, goal)
        else:
            assert search is not None
            self._searched(seat, search)
        return 0

    def _come(self, seat: Seat, goal: _Goal) -> None:
        """Be where it was to be gone back to, unless that is the middle of an instruction."""
        within = self._repeated(seat.code(seat.pc, 16)) is not None
        if goal.order is not Resume.STEP_BACK or not within:
            self._arrive(seat, goal)
            return
        assert self.past is not None
        start = self.past.before(max(goal.count - _REPEATED, 0))
        search = _Search(goal.count + 1, Resume.STEP_BACK, start, seat.pc)
        self._goal, self._search = None, search
        if seat.pc not in self.breakpoints:
            self.breakpoints[seat.pc] = True
            self._marked.add(seat.pc)
            self.mark(seat.pc)
        self._rewind(seat, start)

    def _compare(self, seat: Seat) -> None:
        """Note where a run that is made anew is not what it was."""
        seen = self._seen.get(self.count)
        if seen is not None and not self.differs and seen != (seat.pc, *seat.general()):
            self.differs = f"the call ran anew, and otherwise: at instruction {self.count}"

    def _lost(self, seat: Seat, how: str) -> None:
        """Give up a run that did not come to where it was."""
        self.differs = f"the call ran anew, and otherwise: {how}"
        self._arrive(seat, _Goal(self.count, Why.BEGINNING))

    def _searched(self, seat: Seat, search: _Search) -> None:
        """Decide where to go, now that all of the way is known."""
        assert self.past is not None
        reached, _ = self.past.reach()
        if self.differs:
            self._arrive(seat, _Goal(self.count, Why.BEGINNING))
            return
        goal = _Goal(reached, Why.BEGINNING)
        if search.order is Resume.GO_BACK:
            goal = _Goal(self.aim, Why.STEP)
        elif search.repeated is not None:
            begins = [each[0] for each in search.found if each[3] == search.repeated]
            goal = _Goal(max(begins, default=search.count - 1), Why.STEP)
        elif search.order is Resume.STEP_BACK:
            goal = _Goal(search.count - 1, Why.STEP, order=search.order)
        elif not search.found and search.start > reached:
            last = search.start - 1
            self._search = _Search(search.start, search.order, self.past.before(last))
            self._rewind(seat, last)
            return
        elif search.found:
            last = max(each[0] for each in search.found)
            here = [each for each in search.found if each[0] == last]
            why = min((each[1] for each in here), key=[Why.WATCHPOINT, Why.BREAKPOINT].index)
            accesses = tuple(access for each in here for access in each[2])
            goal = _Goal(last, why, accesses)
        self._search, self._goal = None, goal
        self._rewind(seat, goal.count)

    def _arrive(self, seat: Seat, goal: _Goal) -> None:
        """Tell that it is back."""
        self._goal = self._search = None
        for address in self._marked:
            self.breakpoints.pop(address, None)
        self._marked.clear()
        self._edits = [each for each in self._edits if each[0] <= self.count]
        self._seen = {at: seen for at, seen in self._seen.items() if at <= self.count}
        away, self._again = time.monotonic() - self._again, 0.0
        budget = self._limits.budget
        while True:
            if budget.deadline is not None:
                budget.deadline += away
            if budget.whole is None:
                break
            budget = budget.whole
        reason = self.differs
        if goal.why is Why.BEGINNING and not reason and self.past is not None:
            reason = self.past.reach()[1]
        self._tell(
            seat,
            Event(
                why=goal.why,
                pc=seat.pc,
                count=self.count,
                accesses=goal.accesses,
                reason=reason,
            ),
        )

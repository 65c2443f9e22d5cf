# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces of a booted kernel and its modules: calls of functions, nested as they were made.

A breakpoint stands before each function's first instruction; at a call, one is put where the
function will return to. A return belongs to the call whose return address lay at the same
place of a stack: a kernel switches tasks at any time, and each has a stack of its own. So calls
nest by stack; what an interrupt calls on a stack of its own stands outermost. Nothing in the
guest's memory changes.

What a call costs (6.12, all three architectures): 10 to 30 microseconds, and 25 to 60 with
`on_entry` or `on_exit`, for which the emulator's run ends. The emulator compares each address that
it tells of with all others, so 1900 functions make it 70 (and take 0.1 s to begin): at most `MOST`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import attrs

from allocator.types import ADDRESS_MASK
from emulator.boards.breaks import Break
from kernels.booted.guest import Guest
from kernels.tracing import CallTrace, OnCall, PatchRefused, TracedCall, TraceSite
from machine.booted.functions import Function

ORDER = 1  # of breakpoints: behind the kernel's watchers, before what goes elsewhere
MOST = 2000  # functions traced at a time
_THREAD_SIZE = 0x4000  # THREAD_SIZE of all three architectures, where no symbols tell it
_STACKS = (
    ("__start_init_stack", "__end_init_stack"),  # since 6.11
    ("__start_init_task", "__end_init_task"),
)
_ENDS = ("do_exit",)  # where a task leaves its stack for good


@attrs.define(eq=False)
class _Frame:
    """A call that has not returned: where the stack will be then, and where it returns to."""

    call: TracedCall | None
    place: int
    returns: int


class Trace(CallTrace):
    """Functions being traced, until `stop`; a context manager. Made by `Machine.trace`."""

    def __init__(
        self,
        traces: Traces,
        functions: dict[int, Function],
        *,
        limit: int,
        on_entry: OnCall | None,
        on_exit: OnCall | None,
    ) -> None:
        sites = {
            at: TraceSite(each.owner, each.name, each.address, at) for at, each in functions.items()
        }
        super().__init__(sites, limit=limit, on_entry=on_entry, on_exit=on_exit)
        self._traces = traces
        self.functions = functions
        self.breaks: dict[int, Break] = {}  # where functions begin
        self.returns: dict[int, Break] = {}  # where they return to
        self.stacks: dict[int, list[_Frame]] = {}

    @property
    def inside(self) -> bool:
        """Whether the emulator need not stop for it."""
        return self.on_entry is None and self.on_exit is None

    def stop(self) -> None:
        """Trace no more; a second time does nothing."""
        self._traces.stop(self)


class Traces:
    """The traces of one machine.

    Parameters
    ----------
    guest
        The kernel.
    is_text
        Whether code may be executed at an address.
    """

    def __init__(self, guest: Guest, is_text: Callable[[int], bool]) -> None:
        self._guest = guest
        self._board = guest.board
        self._is_text = is_text
        calling = guest.arch.runs.calling
        self._arguments = self._board.reader(calling.arguments)
        self._result = self._board.number(calling.result)
        self._pushed = 8 if calling.link is None else 0
        self._active: list[Trace] = []
        self._ends: dict[int, Break] = {}
        self._stack_size = next(
            (
                guest.symbols[end] - guest.symbols[start]
                for start, end in _STACKS
                if start in guest.symbols and end in guest.symbols
            ),
            _THREAD_SIZE,
        )
        guest.on_return.append(self._returned)
        guest.on_given_up.append(self._given_up)

    @property
    def all(self) -> list[Trace]:
        """Those that have not been stopped."""
        return list(self._active)

    def start(
        self,
        pattern: str,
        functions: Iterable[Function],
        *,
        limit: int,
        on_entry: OnCall | None,
        on_exit: OnCall | None,
    ) -> Trace:
        """Trace functions until `Trace.stop`.

        Raises
        ------
        PatchRefused
            They are too many.
        """
        wanted = {each.address: each for each in functions}
        others = sum(len(trace.breaks) for trace in self._active)
        if len(wanted) + others > MOST:
            reason = f"{len(wanted)} functions match, and at most {MOST - others} can be traced"
            raise PatchRefused("trace", 0, pattern, reason, "name fewer")
        trace = Trace(self, wanted, limit=limit, on_entry=on_entry, on_exit=on_exit)
        if not self._active:
            for name in _ENDS:
                if name in self._guest.symbols:
                    at = self._guest.symbols[name]
                    made = self._board.break_at(at, self._left_for_good, inside=True)
                    self._ends[at] = made
        self._active.append(trace)
        for at, function in wanted.items():
            trace.breaks[at] = self._board.break_at(
                at,
                partial(self._entered, trace, function),
                inside=trace.inside,
                order=ORDER,
                outside=f"a trace of {pattern} notes it",
            )
        return trace

    def stop(self, trace: Trace) -> None:
        """End a trace; a second time does nothing."""
        if trace not in self._active:
            return
        self._active.remove(trace)
        for breaks in (trace.breaks, trace.returns):
            for at, made in breaks.items():
                self._board.no_break_at(at, made)
            breaks.clear()
        trace.stacks.clear()
        if not self._active:
            for at, made in self._ends.items():
                self._board.no_break_at(at, made)
            self._ends.clear()

    def forget(self) -> None:
        """Forget the calls under way: the machine is another now."""
        for trace in self._active:
            trace.stacks.clear()

    # What is seen ------------------------------------------------------------------------------

    def _entered(self, trace: Trace, function: Function) -> None:
        if self._guest.apart or not function.there:
            return
        returns = self._guest.return_address()
        place = self._board.sp + self._pushed & ADDRESS_MASK
        frames = trace.stacks.setdefault(place // self._stack_size, [])
        tail = bool(frames) and (frames[-1].place, frames[-1].returns) == (place, returns)
        # Frames below this one are of calls that never returned; one at the same place is
        # alive only if it called this function as the last thing it did.
        while frames and (frames[-1].place < place or (frames[-1].place == place and not tail)):
            frames.pop()
        call = None
        if trace.recorded < trace.limit:
            site = trace.sites[function.address]
            call = TracedCall(site, self._arguments(), returns)
            above = next((f.call for f in reversed(frames) if f.call is not None), None)
            (trace.calls if above is None else above.children).append(call)
            trace.recorded += 1
        else:
            trace.dropped += 1
        frames.append(_Frame(call, place, returns))
        if returns not in trace.returns and returns != self._guest.trap and self._is_text(returns):
            trace.returns[returns] = self._board.break_at(
                returns, partial(self._left, trace, returns), inside=trace.inside, order=ORDER
            )
        if call is not None and trace.on_entry is not None:
            trace.on_entry(call)

    def _left(self, trace: Trace, returns: int) -> None:
        place = self._board.sp
        frames = trace.stacks.get(place // self._stack_size)
        if not frames:
            return
        while frames and frames[-1].place < place:
            frames.pop()
        done = []
        while frames and (frames[-1].place, frames[-1].returns) == (place, returns):
            done.append(frames.pop().call)
        if not done:
            return
        result = self._board.get_number(self._result)
        for call in done:
            if call is not None:
                call.result = result
                if trace.on_exit is not None:
                    trace.on_exit(call)

    def _returned(self) -> None:
        """Note that a call from outside has returned."""
        for trace in tuple(self._active):
            self._left(trace, self._guest.trap)

    def _given_up(self, sp: int) -> None:
        """Forget the calls that were made by one from outside that never returns."""
        for trace in self._active:
            frames = trace.stacks.get(sp // self._stack_size, [])
            while frames and frames[-1].place <= sp + self._pushed:
                frames.pop()

    def _left_for_good(self) -> None:
        """Forget the calls of a task that ends."""
        key = self._board.sp // self._stack_size
        for trace in self._active:
            trace.stacks.pop(key, None)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions of a booted kernel or its modules that do something else: a constant, Python, another.

Nothing in the guest's memory changes. A breakpoint stands before the function's first
instruction; whoever calls it, kernel code too, gets what the stub returns. Of several for one
function the latest counts.

What a call costs (6.12, all three architectures, beside the 20 to 35 microseconds of a call from
Python): up to 10 microseconds for another function and 25 for a constant, for which the emulator
runs on; 10 to 30 for Python, for which its run ends.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

from emulator.boards.breaks import Break
from emulator.faults import BadCall
from kernels.booted.guest import Guest
from kernels.prototypes import Prototype
from kernels.tracing import UntilStopped
from machine.booted.functions import Spot

ORDER = 2  # of breakpoints: who only looks on comes first
_REGISTERS = 6  # that a callback with *args is given where nothing says what it takes


class Stub(UntilStopped):
    """A function that another behaviour stands in for, until `remove`; a context manager.

    Made by `Machine.stub`; `calls` counts how often it was called.
    """

    def __init__(self, redirects: Redirects, spot: Spot, decide: Callable[[], int | None]) -> None:
        self._redirects = redirects
        self.spot = spot
        self._decide = decide
        self.calls = 0

    @property
    def name(self) -> str:
        """The function's name."""
        return self.spot.function.name

    @property
    def address(self) -> int:
        """Where the function begins."""
        return self.spot.address

    def reached(self) -> int | None:
        """Do what stands in for the function; return where to go on."""
        self.calls += 1
        return self._decide()

    def remove(self) -> None:
        """Let the function be itself again; a second time does nothing."""
        self._redirects.remove(self)

    stop = remove


class Replacement(UntilStopped):
    """Functions that are replaced, until `stop`; a context manager. Made by `Machine.replace`."""

    def __init__(self, stubs: list[Stub], targets: list[Spot]) -> None:
        self.pairs = list(zip(stubs, targets, strict=True))
        self._calls = 0

    @property
    def stands(self) -> bool:
        """Whether it has not been stopped."""
        return bool(self.pairs)

    @property
    def calls(self) -> int:
        """How often one of them was called."""
        return self._calls + sum(stub.calls for stub, _ in self.pairs)

    def stop(self) -> None:
        """Let the functions be themselves again; a second time does nothing."""
        self._calls = self.calls
        for stub, _ in self.pairs:
            stub.remove()
        self.pairs = []


class Redirects:
    """The functions of one machine that do something else.

    Parameters
    ----------
    guest
        The kernel.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._calling = guest.arch.runs.calling
        self._arguments = [guest.board.number(name) for name in self._calling.arguments]
        self._stubs: dict[int, list[tuple[Stub, bool]]] = {}  # by address, the latest last
        self._breaks: dict[int, Break] = {}

    @property
    def stubs(self) -> list[Stub]:
        """Those that are there."""
        return [stub for stubs in self._stubs.values() for stub, _ in stubs]

    # Making ------------------------------------------------------------------------------------

    def constant(self, spot: Spot, value: int, prototype: Prototype | None) -> Stub:
        """Let a function return a number."""
        image = self._result(spot, prototype, value)
        guest = self._guest

        def decide() -> int:
            return guest.return_from(guest.return_address(), image)

        return self._add(Stub(self, spot, decide), inside=True)

    def python(
        self,
        spot: Spot,
        function: Callable[..., int | None],
        prototype: Prototype | None,
        *,
        stated: bool,
    ) -> Stub:
        """Let a Python function answer calls of a function.

        Parameters
        ----------
        prototype
            What the function takes; None: that is not known.
        stated
            Whether somebody wants it to be given all of that; else it is given what it takes.

        Raises
        ------
        BadCall
            It takes more.
        """
        guest, count = self._guest, _positional(function)
        if prototype is not None and not stated and count is not None:
            has = len(prototype.params) + prototype.variadic + prototype.indirect
            if count > has:
                reason = f"has {has} parameters by the kernel's types, the stub takes {count}"
                raise BadCall(spot.where, reason, "give the prototype, if they are wrong")
        most = None if stated else count

        def decide() -> int:
            returns = guest.return_address()
            if prototype is None:
                wanted = range(_REGISTERS if count is None else count)
                args: list[object] = [slot for slot, _ in zip(self.slots(), wanted, strict=False)]
            else:
                args = self._typed(prototype)[:most]
            result = function(*args)
            return guest.return_from(returns, self._result(spot, prototype, result))

        return self._add(Stub(self, spot, decide), inside=False)

    def another(self, spot: Spot, target: Spot) -> Stub:
        """Let calls of a function go to another."""
        if spot.address == target.address:
            raise BadCall(spot.where, "cannot be replaced by itself")
        return self._add(Stub(self, spot, lambda: target.address), inside=True)

    def _add(self, stub: Stub, *, inside: bool) -> Stub:
        self._stubs.setdefault(stub.address, []).append((stub, inside))
        self._rearm(stub.address)
        return stub

    def remove(self, stub: Stub) -> None:
        """Take one away; a second time does nothing."""
        stubs = self._stubs.get(stub.address, [])
        left = [pair for pair in stubs if pair[0] is not stub]
        if len(left) == len(stubs):
            return
        self._stubs[stub.address] = left
        self._rearm(stub.address)

    def _rearm(self, address: int) -> None:
        """Let one breakpoint stand for all of an address."""
        board, stubs = self._guest.board, self._stubs[address]
        before = self._breaks.pop(address, None)
        if stubs:
            inside = all(inside for _, inside in stubs)
            outside = "" if inside else f"a stub of {stubs[-1][0].name} is Python"
            self._breaks[address] = board.break_at(
                address,
                lambda: self._reached(address),
                inside=inside,
                order=ORDER,
                outside=outside,
            )
        else:
            del self._stubs[address]
        if before is not None:
            board.no_break_at(address, before)

    def _reached(self, address: int) -> int | None:
        if self._guest.apart:
            return None
        for stub, _ in reversed(self._stubs.get(address, ())):
            if stub.spot.function.there:
                return stub.reached()
        return None

    # Registers ---------------------------------------------------------------------------------

    def slots(self) -> Iterator[int]:
        """Yield the argument slots of a function that has just been entered."""
        board, guest = self._guest.board, self._guest
        stack = board.sp + (8 if self._calling.link is None else 0)
        for number in self._arguments:
            yield board.get_number(number)
        while True:
            yield guest.word(stack)
            stack += 8

    def _typed(self, prototype: Prototype) -> list[object]:
        """Return the arguments by their types; what `...` stands for as an iterator of slots."""
        slots = self.slots()
        args: list[object] = []
        if prototype.indirect:
            hidden = self._calling.indirect
            args.append(self._guest.board.get(hidden) if hidden else next(slots))
        args += [param.type.from_register(next(slots)) for param in prototype.params]
        if prototype.variadic:
            args.append(slots)
        return args

    def _result(self, spot: Spot, prototype: Prototype | None, value: object) -> int:
        """Return what the result register is to hold."""
        if value is None:
            value = 0
        if not isinstance(value, int):
            raise BadCall(spot.where, f"its stub returned {type(value).__name__}, not an int")
        if prototype is None or not prototype.result.size:
            return value
        sign_extend_32 = self._calling.sign_extend_32
        return prototype.result.to_register(value, sign_extend_32=sign_extend_32)


def _positional(callback: Callable[..., object]) -> int | None:
    """Return how many arguments a callback takes; None: as many as there are."""
    parameters = inspect.signature(callback).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls of guest functions: on which CPU, on which stack, one inside the other.

CPUs never run at the same time: one runs while nobody lets another one run (`Calls.on`), so
that any interleaving of several can be made, and made again. What a function is given and
returns here is what registers hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import attrs

from allocator import KernelMemory
from allocator.types import ADDRESS_MASK, KIB, align_down
from archs import Arch
from emulator import process
from emulator.budget import Limits
from emulator.cpu import Cpu
from emulator.faults import BadCall, Fault, FaultKind, Stop

STACK_SIZE = 16 * KIB  # THREAD_SIZE of 64-bit kernels, where a page has no more
NESTING = 32  # calls into the guest from kernel functions that the guest called
RED_ZONE = 256


def stack_size(page: int) -> int:
    """Return the bytes of a kernel stack where a page has `page` (THREAD_SIZE)."""
    return max(STACK_SIZE, page)


class Parked(Exception):
    """The function under way waits; its context was saved, and others run now."""


class Serving(Protocol):
    """What a kernel is told of calls."""

    cpu: Cpu  # that it runs on now
    function: str  # of the kernel that the guest is in; empty between calls


class Teller(Protocol):
    """Who says what became of calls."""

    def where(self, address: int) -> str:
        """Return what lies at an address, for messages."""
        ...

    def explain(self, stop: Stop) -> Fault:
        """Return why the guest stopped, for a person."""
        ...

    def attribute(self, fault: Fault, address: int) -> None:
        """Say of a fault in the function at `address` what it may come from."""
        ...

    def taken(self) -> int:
        """Return how many things were taken and have to be given back by now."""
        ...

    def left(self, fault: Fault, address: int, since: int) -> None:
        """Note that the function at `address` stopped, with what it took after `since`."""
        ...


@attrs.define
class CallStack:
    """The stack of a CPU, and how deep calls nest on it."""

    cpu: Cpu
    start: int
    top: int  # where a call's return address goes, and the frame that this is in
    top_frame: int
    banks: dict[int, Callable[[list[int]], None]] = attrs.field(factory=dict)
    depth: int = 0
    entry: int = 0  # where the innermost function began; 0 where none is under way


class Calls:
    """Runs guest functions on the CPUs of one machine.

    Parameters
    ----------
    arch
        How functions are called.
    memory
        Where stacks are.
    cpus
        CPU 0 is the one to begin with.
    limits
        What may be executed, of all CPUs together.
    begin
        Sets the CPU under way up for a call from outside.

    `attach` is called once before the first call.
    """

    serving: Serving
    return_address: int  # where a function returns to that was called from outside
    teller: Teller
    stacks: tuple[CallStack, ...]
    stack: CallStack  # that of the CPU that runs now

    def __init__(
        self,
        arch: Arch,
        memory: KernelMemory,
        cpus: Sequence[Cpu],
        limits: Limits,
        begin: Callable[[], object],
    ) -> None:
        self._calling = arch.runs.calling
        self._dialect = arch.link.dialect
        self._unsaved = arch.runs.emulation.unsaved
        self._unsaved_values = tuple(self._unsaved.values())
        self._memory = memory
        self._stack_size = stack_size(memory.page_size)
        self._cpus = tuple(cpus)
        self._begin = begin
        self._return = b""
        self._stopper: Cpu | None = None
        self.limits = limits

    def attach(self, serving: Serving, return_address: int, teller: Teller) -> None:
        """Let calls run in a kernel and return there, and `teller` say what became of them."""
        self.serving, self.return_address, self.teller = serving, return_address, teller
        self.stacks = tuple(self._new_stack(each) for each in self._cpus)
        self.stack = self.stacks[0]
        self._return = self._dialect.pack(return_address)

    def _new_stack(self, cpu: Cpu) -> CallStack:
        stack = self._memory.vmalloc(self._stack_size)
        top = stack + self._stack_size - self._dialect.word
        found = self._memory.translate(top)
        assert found is not None
        return CallStack(cpu, stack, top, found.address)

    # CPUs ------------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """How many guest functions are under way on this CPU, one called from the other."""
        return self.stack.depth

    @contextmanager
    def on(self, number: int) -> Iterator[Cpu]:
        """Be on CPU `number` meanwhile: calls run there, flushes of one CPU's TLB are its own.

        BadCall when there is no such CPU, or when stop_machine() holds it.
        """
        if not 0 <= number < len(self.stacks):
            raise BadCall("cpu", f"no CPU {number}; there are 0 to {len(self.stacks) - 1}")
        before = self.stack.cpu.number
        if self._stopper is not None and number != self._stopper.number:
            raise BadCall("cpu", f"CPU {number} waits in stop_machine()")
        self._be(number)
        try:
            yield self.stack.cpu
        finally:
            self._be(before)

    def _be(self, number: int) -> None:
        self.stack = self.stacks[number]
        self.serving.cpu = self.stack.cpu
        self._memory.this_cpu = number

    @contextmanager
    def stop_machine(self) -> Iterator[None]:
        """Let no CPU but this one run meanwhile."""
        outer, self._stopper = self._stopper, self.stack.cpu
        try:
            yield
        finally:
            self._stopper = outer

    # Calls -----------------------------------------------------------------------------------

    def run(self, address: int, slots: Sequence[int]) -> int:
        """Run a guest function; inside another run, on the rest of its stack.

        Raises
        ------
        Fault
            The guest stopped.
        """
        stack = self.stack
        if not stack.depth:
            since = self.teller.taken()
            try:
                return self._enter(address, slots)
            except Fault as fault:
                self.teller.left(fault, address, since)
                raise
        if stack.depth >= NESTING:
            pc = stack.cpu.read(self._calling.program_counter)
            where = self.teller.where(pc)
            raise Fault(FaultKind.PANIC, pc, where, reason="callbacks nest too deep")
        context = stack.cpu.context()
        try:
            return self._enter(address, slots)
        finally:
            stack.cpu.restore(context)

    def nested(self, address: int, *args: int) -> int:
        """Call back into the guest from a kernel function that the guest called."""
        slots = [a & ADDRESS_MASK for a in args]
        if self.limits.depth:
            return self.run(address, slots)
        with self.limits.whole():
            return self.run(address, slots)

    def aside(self, stack: int, address: int, slots: list[int], context: Any) -> int:
        """Run a guest function on a stack of its own, or go on with one that was put aside.

        `Parked` passes: the function waits, and is gone on with later.
        """
        cpu = self.stack.cpu
        outer = cpu.context()
        try:
            if context is None:
                return self._enter(address, slots, stack)
            cpu.restore(context)
            return self._proceed(cpu.read(self._calling.program_counter))
        finally:
            cpu.restore(outer)

    def occupy(self, slots: Sequence[int]) -> Callable[[], None]:
        """Set this idle CPU up for a call that others step; return what ends it."""
        stack = self.stack
        self._prepare(slots)
        stack.depth = 1

        def end() -> None:
            stack.depth = 0
            stack.cpu.reset(fully=True)

        return end

    def _enter(self, address: int, slots: Sequence[int], stack: int | None = None) -> int:
        if process.box is not None:
            process.box.call(self.stack.depth, address, self.teller.where)
        self._prepare(slots, stack)
        return self._proceed(address)

    def _proceed(self, address: int) -> int:
        """Let the CPU run from `address` until the function under way returns."""
        stack, serving = self.stack, self.serving
        cpu, end = stack.cpu, self.return_address
        # What a kernel function calls back is the guest's own code again.
        inside, serving.function = serving.function, ""
        outer, stack.entry = stack.entry, address
        stack.depth += 1
        failed = True
        try:
            cpu.run(address, end, instructions=None, seconds=None)
            failed = False
        except Stop as stop:
            fault = stop.fault or self.teller.explain(stop)
            self.teller.attribute(fault, address)
            raise fault from None
        except Parked:
            failed = False
            raise
        except Fault as fault:  # of a kernel function that the guest called
            self.teller.attribute(fault, address)
            raise
        finally:
            stack.depth -= 1
            stack.entry = outer
            serving.function = inside
            if failed and not stack.depth:
                cpu.reset(fully=True)
        return cpu.read(self._calling.result)

    def _prepare(self, slots: Sequence[int], pointer: int | None = None) -> None:
        """Set this CPU's registers and stack as a call with these arguments does.

        On its own stack, unless a stack pointer is given.
        """
        calling, stack = self._calling, self.stack
        cpu = stack.cpu
        if not stack.depth:
            self._begin()
        if pointer is not None:
            stack_pointer = pointer
        elif stack.depth:
            stack_pointer = cpu.read(calling.stack_pointer) - RED_ZONE
        else:
            stack_pointer = stack.start + self._stack_size
        count = len(slots)
        if count > len(calling.arguments):
            count = len(calling.arguments)
            extra = b"".join(map(self._dialect.pack, slots[count:]))
            stack_pointer = align_down(stack_pointer - len(extra), 16)
            self._memory.write(stack_pointer, extra)
        elif stack.depth or pointer is not None:
            stack_pointer = align_down(stack_pointer, 16)
        last = self.return_address
        if calling.link is None:
            last = stack_pointer = stack_pointer - self._dialect.word
            if stack_pointer == stack.top:  # so often that looking it up would show
                self._memory.physical.write(stack.top_frame, self._return)
            else:
                self._memory.write(stack_pointer, self._return)
        bank = stack.banks.get(count)
        if bank is None:
            names = (calling.stack_pointer, *calling.arguments[:count])
            bank = stack.banks[count] = cpu.bank((*names, calling.link or names[0], *self._unsaved))
        bank([stack_pointer, *slots[:count], last, *self._unsaved_values])

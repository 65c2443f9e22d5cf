# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls from Python: arguments and results as a C programmer means them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from operator import index
from typing import SupportsIndex, TypeGuard

from allocator import KernelMemory
from allocator.types import ADDRESS_MASK, size_text
from archs import Arch
from emulator.budget import DEFAULT, one_budget
from emulator.calls import Calls
from emulator.cpu import Cpu
from emulator.faults import BadCall
from kernels.modelled.api.sched import idle
from kernels.modelled.kernel import Kernel
from machine.arguments import Argument, Out, result_type
from machine.thread import Thread

STACKED = 64  # arguments that a call may have on the stack
_one_budget = one_budget(lambda caller: caller.limits)


class Caller:
    """Calls guest functions from outside.

    Parameters
    ----------
    arch, memory, kernel
        What is called, and where arguments lie.
    calls
        Runs functions.

    `threads` are the calls that are stepped, by CPU.
    """

    def __init__(self, arch: Arch, memory: KernelMemory, kernel: Kernel, calls: Calls) -> None:
        self._calling = arch.runs.calling
        self._memory = memory
        self._kernel = kernel
        self._calls = calls
        self.limits = calls.limits
        self.threads: dict[int, Thread] = {}
        # Told what is called from outside; what it returns is called when that has returned.
        self.around: Callable[[int], Callable[[], object]] | None = None

    def call(
        self,
        address: int,
        *args: Argument,
        instructions: int | None = DEFAULT,
        seconds: float | None = DEFAULT,
        returns: str = "u64",
        cpu: int | None = None,
    ) -> int:
        """Call the guest function at `address`, on CPU number `cpu`; see `Module.call`."""
        kind = result_type(returns)
        self._check(address, args)
        limits, calls = self.limits, self._calls
        entered = limits.enter(*limits.given(instructions, seconds))
        if self.around is not None and not calls.stack.depth:
            returned = self.around(address)
        else:
            returned = _nothing
        try:
            if cpu is None and _are_slots(args):
                raw = calls.run(address, args)
                if self._kernel.work_pending and not calls.stack.depth:
                    self.idle()
                returned()
                return kind.from_register(raw)
            with ExitStack() as buffers:
                if cpu is not None:
                    buffers.enter_context(calls.on(cpu))
                slots = [self._slot(value, buffers) for value in args]
                raw = calls.run(address, slots)
                for value, slot in zip(args, slots, strict=True):
                    if isinstance(value, Out):
                        value.data = self._memory.read(slot, len(value)) if len(value) else b""
                if self._kernel.work_pending and not calls.stack.depth:
                    self.idle()
            returned()
            return kind.from_register(raw)
        finally:
            limits.leave(entered)

    def start(self, address: int, *args: Argument, cpu: int, returns: str = "u64") -> Thread:
        """Prepare a call on an idle CPU, to be run by steps; see `Machine.start`."""
        kind = result_type(returns)
        self._check(address, args)
        with ExitStack() as buffers, self._calls.on(cpu) as on:
            if self._calls.stack.depth:
                raise BadCall("start", f"CPU {cpu} is busy")
            end = self._calls.occupy([self._slot(value, buffers) for value in args])
            release = buffers.pop_all()

        def ended() -> None:
            end()
            del self.threads[cpu]
            release.close()

        thread = Thread(self._calls, on, address, kind, on_end=ended)
        self.threads[cpu] = thread
        return thread

    def running(self) -> Iterator[tuple[Cpu, int | None]]:
        """Yield the CPUs that are in a call, and the address at which those that wait do."""
        for stack in self._calls.stacks:
            if stack.depth:
                thread = self.threads.get(stack.cpu.number)
                yield stack.cpu, None if thread is None else thread.pc

    @_one_budget
    def idle(self) -> None:
        """Run what is due and nobody waits for; see `Machine.idle`."""
        idle(self._kernel)

    def alloc(self, contents: bytes | int) -> int:
        """Return the address of guest memory that holds `contents`, or that many zeros."""
        size = contents if isinstance(contents, int) else len(contents)
        if size < 0:
            raise BadCall("alloc", f"{size} bytes")
        address = self._kernel.alloc(max(size, 1))
        if not address:
            raise BadCall(
                "alloc",
                f"no {size:#x} bytes of guest memory",
                f"its limit is {size_text(self._kernel.heap.limit)} (--heap-limit, heap_limit=)",
            )
        if not isinstance(contents, int) and contents:
            self._memory.write(address, bytes(contents))
        return address

    def free(self, address: int) -> None:
        """Free what `alloc` returned."""
        _check_address("free", address)
        if not self._kernel.free(address):
            raise BadCall("free", f"{address:#x} is not an allocation")

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes of guest memory; AccessError where it is not readable."""
        _check_address("read", address)
        if size < 0:
            raise BadCall("read", f"{size} bytes")
        return self._memory.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Store `data` in guest memory; AccessError where it is not writable."""
        _check_address("write", address)
        self._memory.write(address, data)

    def _check(self, address: int, args: Sequence[Argument]) -> None:
        """Refuse what is no call of a guest function; BadCall."""
        if type(address) is not int or not 0 <= address <= ADDRESS_MASK:
            _check_address("call", address)
        count = len(args)
        if count > len(self._calling.arguments):
            most = len(self._calling.arguments) + STACKED
            if count > most:
                raise BadCall("call", f"{count} arguments, more than {most}")
        if count and address in self._kernel.stubs:
            prototype = self._kernel.prototype_at(address)
            if prototype is not None and not prototype.variadic:
                takes = len(prototype.params)
                # Where a structure is returned, its address comes first, unless it has a register.
                hidden = prototype.indirect and self._calling.indirect is None
                if count <= takes + hidden:
                    return
                reason = f"takes {takes} argument{'s' * (takes != 1)}, not {count}"
                raise BadCall(prototype.name, reason)

    def _slot(self, value: Argument, buffers: ExitStack) -> int:
        """Return the 64-bit slot of an argument; memory for it lives as long as `buffers`."""
        if isinstance(value, SupportsIndex):
            number = index(value)
            if not -(1 << 63) <= number <= ADDRESS_MASK:
                raise BadCall("call", f"argument {number:#x} does not fit 64 bits")
            return number & ADDRESS_MASK
        if isinstance(value, str):
            data = value.encode() + b"\0"
        elif isinstance(value, Out):
            data = bytes(len(value))
        elif isinstance(value, bytes | bytearray):
            data = bytes(value)
        else:
            raise BadCall(
                "call", f"cannot pass {type(value).__name__}: a number, bytes, str, a view or Out"
            )
        address = self.alloc(data)
        # Not `self.free`: the function may have taken the buffer and freed it (kfree does).
        buffers.callback(self._kernel.free, address)
        return address


def _nothing() -> None:
    """Look at nothing."""


def _are_slots(args: Sequence[Argument]) -> TypeGuard[Sequence[int]]:
    """Return whether there is nothing to convert: arguments are as registers hold them."""
    for value in args:  # noqa: SIM110 -- in half the time of all()
        if type(value) is not int or not 0 <= value <= ADDRESS_MASK:
            return False
    return True


def _check_address(operation: str, value: object) -> None:
    """Refuse what is no address, such as a name; BadCall."""
    if isinstance(value, str):
        hint = "Module.call and Module.symbols take names"
        raise BadCall(operation, f"{value!r} is a name, not an address", hint)
    try:
        address = index(value)  # type: ignore[arg-type] # what is no number is refused
    except TypeError:
        raise BadCall(operation, f"{type(value).__name__} is no address: an int is") from None
    if not 0 <= address <= ADDRESS_MASK:
        raise BadCall(operation, f"{address:#x} is not in the address space")

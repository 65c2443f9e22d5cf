# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls of a booted kernel's functions, and its memory.

They run as its first process, in the system call that it stands in, on its kernel stack, with
interrupts allowed: what sleeps sleeps, others run meanwhile, and time passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import attrs

from allocator.types import ADDRESS_MASK
from emulator.boards.board import Halt
from emulator.budget import DEFAULT, Limits
from kernels.booted.starting import Started
from kernels.errors import MAX_ERRNO

GFP_KERNEL, GFP_ZERO = 0xCC0, 0x100  # include/linux/gfp_types.h, the same since 4.18
_DEEPEST = 8  # calls inside of others, on one stack of 16 KiB
_STACK = 0x8000  # bytes within which the process' stack is told from others
_LARGE = 1 << 20  # bytes from which memory need not be contiguous
_ALIGN = 16
_FRAME = 256  # bytes that a function may use below its stack pointer, and no less
_READ_WRITE, _PRIVATE_ANONYMOUS_POPULATED = 3, 0x8022  # uapi/asm-generic/mman-common.h

_PUT_OFF = "task_work_run"
_PLAIN = "sys_{}"  # a system call that takes its arguments itself

# Functions by the names that they have had, newest first.
_ALLOC = ("__kmalloc_noprof", "__kmalloc")
_ALLOC_LARGE = ("vzalloc_noprof", "vzalloc")


@attrs.define(auto_exc=True)
class Ended(Exception):
    """A call did not come back.

    Parameters
    ----------
    halt
        Why the machine stopped.
    pc
        Where.
    reason
        What else is known.
    """

    halt: Halt
    pc: int
    reason: str = ""


class Guest:
    """A kernel that can be called.

    Parameters
    ----------
    started
        Where it stands.
    symbols
        Its functions and variables by name.
    """

    def __init__(self, started: Started, symbols: Mapping[str, int]) -> None:
        self.board = started.board
        self.arch = started.board.arch
        self.symbols = symbols
        self.trap = started.place.trap
        self.base = self.board.sp & -_ALIGN
        self.depth = 0
        self.inside = 0  # number of the call under way; 0: none
        self.apart = False  # whether what is called now is for the machine's own needs
        self.calls = 0  # that were begun so far
        # Told of what is called from outside, when a call has returned, and of the stack of one
        # that never will.
        self.on_enter: list[Callable[[int], object]] = []
        self.on_return: list[Callable[[], object]] = []
        self.on_given_up: list[Callable[[int], object]] = []
        # Who has it under control: begins calls from outside, and says what a failure is.
        self.conduct: Callable[[int, Callable[[], int]], int] | None = None
        self.describe: Callable[[Ended], Exception] | None = None
        self._standing = self.board.uc.context_save()
        self._below: int | None = None  # where the next call's stack begins, if not there
        self.limits = Limits()  # of calls from outside that say nothing themselves
        calling = self.arch.runs.calling
        self._registers = [self.board.number(name) for name in calling.arguments]
        self._result = self.board.number(calling.result)
        self._link = None if calling.link is None else self.board.number(calling.link)

    # Names --------------------------------------------------------------------------------------

    def find(self, names: Sequence[str]) -> int:
        """Return the address of the first of several names that the kernel has; LookupError."""
        for name in names:
            if name in self.symbols:
                return self.symbols[name]
        raise LookupError(f"the kernel has no {' or '.join(names)}")

    # Calls --------------------------------------------------------------------------------------

    def call(
        self,
        address: int,
        args: Sequence[int] = (),
        *,
        instructions: int | None = DEFAULT,
        seconds: float | None = DEFAULT,
    ) -> int:
        """Return what a function leaves in the result register.

        Parameters
        ----------
        address
            The function.
        args
            64-bit slots.
        instructions, seconds
            What it may take; None: anything. By default what `limits` says, or what the call
            around it has left.

        Raises
        ------
        Ended
            It did not return.

        What a breakpoint's handler raises comes out of the call, which then never returns.
        """
        governor = self.board.governor
        if governor is None:
            return self._call(address, args, instructions, seconds)
        with governor.deeper():
            if self.apart:
                with governor.blindly():
                    return self._call(address, args, instructions, seconds)
            if self.depth or governor.blind or self.conduct is None:
                return self._call(address, args, instructions, seconds)
            call = partial(self._call, address, args, instructions, seconds)
            return self.conduct(address, call)

    def _call(
        self, address: int, args: Sequence[int], instructions: int | None, seconds: float | None
    ) -> int:
        board = self.board
        if board.broken:
            raise Ended(Halt.BROKEN, board.pc, f"{board.broken}; restore a snapshot")
        if self.depth >= _DEEPEST:
            reason = f"calls from handlers nest deeper than {_DEEPEST}: one calls what leads to it"
            raise Ended(Halt.STUCK, board.pc, reason)
        if not self.depth:
            for enter in self.on_enter:
                enter(address)
        outer = self._saved() if self.depth else None
        below, self._below = self._below, None
        sp = self._top() if below is None else below
        stacked = args[len(self._registers) :]
        sp -= (8 * len(stacked) + _ALIGN - 1) & -_ALIGN
        if stacked:
            data = b"".join((slot & ADDRESS_MASK).to_bytes(8, "little") for slot in stacked)
            board.write(sp, data)
        if self._link is None:
            sp -= 8
            board.write(sp, self.trap.to_bytes(8, "little"))
        else:
            board.set_number(self._link, self.trap)
        for number, slot in zip(self._registers, args, strict=False):
            board.set_number(number, slot & ADDRESS_MASK)
        board.sp = sp
        board.pc = address
        returns = sp + (8 if self._link is None else 0)
        self.depth += 1
        self.calls += 1
        around, self.inside = self.inside, self.calls
        limits = self.limits
        budget = limits.enter(*limits.given(instructions, seconds))
        try:
            result = self._run(returns)
        except BaseException as error:
            for give_up in self.on_given_up:
                give_up(sp)
            if outer is None and not isinstance(error, Ended):
                self.give_up(f"{type(error).__name__} was raised in the middle of another task")
            elif outer is not None and not board.broken:
                outer()
            raise
        finally:
            limits.leave(budget)
            self.depth -= 1
            self.inside = around
            self._below = below
        if outer is not None:
            outer()
        return result

    def _run(self, returns: int) -> int:
        """Run until a call returns, with the stack where it must be then; its result."""
        board, governor = self.board, self.board.governor
        while True:
            halt = board.run(self.trap, budget=self.limits.budget)
            if halt is not Halt.RETURNED:
                ended = Ended(halt, board.pc, board.broken)
                if governor is not None and self.describe is not None:
                    governor.failed(board, self.describe(ended))
                    if governor.replays:
                        continue
                raise ended
            if board.sp != returns:
                board.broken = "a call from a handler waits, and the one around it has returned"
                raise Ended(Halt.BROKEN, board.pc, board.broken)
            if governor is not None:
                governor.returned(board, board.get_number(self._result))
                if governor.replays or board.pc != self.trap:
                    continue
            break
        result = board.get_number(self._result)
        for tell in self.on_return:
            tell()
        return result

    def on_own_stack(self) -> bool:
        """Return whether the process runs, and not another task or an interrupt."""
        return abs(self.base - self.board.sp) < _STACK

    def give_up(self, otherwise: str) -> None:
        """Let the process be where it stood, though a call has not returned.

        Where it does not run now, nothing can be given up: the machine can only go back, and says
        `otherwise` why.
        """
        if self.on_own_stack():
            self.board.give_up(self._standing)
        else:
            self.board.broken = otherwise

    def standing(self, names: Sequence[str]) -> list[int]:
        """Return registers as they are where the process stands, between calls; "" gives 0."""
        engine = self.board.uc
        now = engine.context_save()
        engine.context_restore(self._standing)
        try:
            return [self.board.get(name) if name else 0 for name in names]
        finally:
            engine.context_restore(now)

    def return_address(self) -> int:
        """Return where the function returns to that has just been entered."""
        if self._link is None:
            return self.word(self.board.sp)
        return self.board.get_number(self._link)

    def return_from(self, address: int, result: int) -> int:
        """Let the function that has just been entered return at once; where to go on."""
        if self._link is None:
            self.board.sp += 8
        self.board.set_number(self._result, result & ADDRESS_MASK)
        return address

    def _saved(self) -> Callable[[], None]:
        """Return what sets the registers to what they are now."""
        context = self.board.uc.context_save()
        return lambda: self.board.uc.context_restore(context)

    def call_by_name(self, names: Sequence[str], *args: int) -> int:
        """Return the result of the first of several functions that the kernel has."""
        return self.call(self.find(names), args)

    # System calls -------------------------------------------------------------------------------

    def system_call(self, name: str, *args: int) -> int:
        """Return the result of a system call of the first process, negative for an errno.

        LookupError where the kernel has no such system call.
        """
        boot = self.arch.boots
        spelt = {form.format(name): form for form in boot.system_calls}
        address = self.find(tuple(spelt))
        if next(form for each, form in spelt.items() if each in self.symbols) == _PLAIN:
            return self._left(signed(self.call(address, args)))
        registers = bytearray(boot.registers_size)
        for places, value in zip(boot.system_call_arguments, args, strict=False):
            for at in places:
                registers[at : at + 8] = (value & ADDRESS_MASK).to_bytes(8, "little")
        with self.stacked(bytes(registers)) as at:
            return self._left(signed(self.call(address, (at,))))

    def _left(self, result: int) -> int:
        """Do what is put off until the process leaves the kernel, as it never does.

        Files that were closed are let go then (fs/file_table.c, fput(); until 6.6 by close(2), too).
        """
        if _PUT_OFF in self.symbols and not self.depth:
            with self.unwatched():
                self.call(self.symbols[_PUT_OFF])
        return result

    @contextmanager
    def stacked(self, data: bytes) -> Iterator[int]:
        """Give bytes on the process' stack, for a while."""
        before = self._below
        self._below = ((self._top() if before is None else before) - len(data)) & -_ALIGN
        try:
            self.board.write(self._below, data)
            yield self._below
        finally:
            self._below = before

    def _top(self) -> int:
        """Return where a call's stack may begin: below what runs, where something does."""
        return (self.board.sp & -_ALIGN) - _FRAME if self.depth else self.base

    # Memory -------------------------------------------------------------------------------------

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Let nobody look at or change what is called meanwhile: it is not what a user called."""
        before, self.apart = self.apart, True
        try:
            yield
        finally:
            self.apart = before

    def alloc(self, size: int) -> int:
        """Return the address of zeroed memory (kmalloc, or vmalloc where it is large), or 0."""
        with self.unwatched():
            if size >= _LARGE:
                return self.call_by_name(_ALLOC_LARGE, size)
            return self.call_by_name(_ALLOC, size, GFP_KERNEL | GFP_ZERO)

    def free(self, address: int) -> None:
        """Free it."""
        with self.unwatched():
            self.call_by_name(("kvfree",), address)

    def user(self, size: int) -> int:
        """Return the address of user memory of the process: zeroed, there, to be written."""
        with self.unwatched():
            found = self.call_by_name(
                ("vm_mmap",), 0, 0, size, _READ_WRITE, _PRIVATE_ANONYMOUS_POPULATED, 0
            )
        if is_error(found):
            raise MemoryError(f"no {size:#x} bytes of user memory: {signed(found)}")
        return found

    def free_user(self, address: int, size: int) -> None:
        """Give user memory back."""
        with self.unwatched():
            self.call_by_name(("vm_munmap",), address, size)

    def string(self, address: int, limit: int = 4096) -> str:
        """Return the text at an address."""
        data = bytearray()
        while len(data) < limit:
            piece = self.board.read(address + len(data), 64 - address % 64 if not data else 64)
            end = piece.find(0)
            if end >= 0:
                return (data + piece[:end]).decode("utf-8", "backslashreplace")
            data += piece
        return data.decode("utf-8", "backslashreplace")

    def word(self, address: int, size: int = 8) -> int:
        """Return a little-endian word."""
        return int.from_bytes(self.board.read(address, size), "little")


def signed(value: int) -> int:
    """Return a 64-bit slot as a signed number."""
    return value - (value >> 63 << 64)


def is_error(value: int) -> bool:
    """Return whether a pointer or length is an errno (include/linux/err.h)."""
    return value >= (1 << 64) - MAX_ERRNO

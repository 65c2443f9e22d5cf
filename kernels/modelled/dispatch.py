# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls from the guest: what stands behind a stub, called with what the registers hold."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import attrs

from allocator import AccessError, AllocationError
from allocator.errors import ExecmemError
from allocator.plugins import said
from allocator.types import ADDRESS_MASK
from archs.layouts import NotKnown
from emulator.faults import Fault, FaultKind
from kernels.modelled.access import Access
from kernels.modelled.costs import Costs
from kernels.modelled.image import SLOT
from kernels.modelled.printk import WARNING, Printk
from kernels.modelled.services import Services
from kernels.modelled.serving import Serving
from kernels.modelled.symtab import KernelStub, Symtab, Unknown
from kernels.prototypes import CType

# What a handler may trip over when the guest's arguments are absurd.
_TRIPPED = (
    *(ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError),
    *(ValueError, struct.error, zlib.error),
)
UNSIGNED_LONG = CType(size=8, signed=False, pointer=False, text="unsigned long")


@attrs.define
class _Variadic:
    """The variadic arguments of a call: registers left over, then the stack."""

    slots: Iterator[int]

    def next(self) -> int:
        """Return the next slot."""
        return next(self.slots)


class Dispatch:
    """Serves the calls of kernel functions.

    Parameters
    ----------
    kernel
        What entries of the table are called with.
    symbols, access, costs, serving, printk
        What stands behind stubs; the guest's stack; what counts the work; who is told that
        a function is under way; what is told of unknown ones.
    """

    def __init__(
        self,
        kernel: Services,
        symbols: Symtab,
        *,
        access: Access,
        costs: Costs,
        serving: Serving,
        printk: Printk,
    ) -> None:
        self._kernel = kernel
        self._calling = kernel.arch.runs.calling
        self._symbols = symbols
        self._start = symbols.stubs.start
        self._stubs = symbols.slots
        self._word = access.word
        self._costs = costs
        self._serving = serving
        self._printk = printk
        for cpu in kernel.cpus:
            cpu.on_execute(symbols.stubs.start, symbols.stubs.end, self._execute)
            cpu.on_fetch = self._called_variable

    def _execute(self, address: int) -> None:
        index, offset = divmod(address - self._start, SLOT)
        if offset:
            return  # behind the return instruction: a trap follows
        if index >= len(self._stubs):
            raise Fault(FaultKind.FETCH, address, f"{address:#x}", address=address)
        stub = self._stubs[index]
        calls, serving, costs = self._symbols.calls, self._serving, self._costs
        calls[stub.name] = calls.get(stub.name, 0) + 1
        outer, serving.function = serving.function, stub.name
        held = costs.held = costs.held if outer else 0
        if serving.entered is not None:
            serving.entered(stub.name)
        try:
            self._serve(stub, address)
        finally:
            serving.function, costs.held = outer, held

    def _serve(self, stub: KernelStub, address: int) -> None:
        """Do what stands behind a stub, and set the result."""
        calling = self._calling
        if stub.callback is not None:
            count = stub.parameters
            result = stub.callback(
                *(value for value, _ in zip(self._arguments(), range(count), strict=False))
            )
            kind = UNSIGNED_LONG
        elif stub.function is not None:
            prototype = stub.function.prototype
            slots = self._arguments()
            args: list[object] = []
            if prototype.indirect:
                hidden = calling.indirect
                args.append(self._serving.cpu.read(hidden) if hidden else next(slots))
            args += [p.type.from_register(next(slots)) for p in prototype.params]
            if prototype.variadic:
                args.append(_Variadic(slots))
            try:
                result = stub.function.handler(self._kernel, *args)
            except AccessError as error:
                raise self._serving.access_fault(error, f"{stub.name}()") from None
            except AllocationError as error:
                hint = "there is more with Machine(memory=BYTES)"
                self._costs.overflow(f"{stub.name}(): {error}", hint)
            except NotKnown as error:
                raise self._not_known(error, address) from None
            except ExecmemError:
                raise
            except Exception as error:
                ours = stub.function.ours
                if stub.supplied or (ours and not isinstance(error, _TRIPPED)):
                    raise  # a handler of the caller's own; a fault of execmem's
                # The arguments are the guest's: what a handler makes of absurd ones is its fault.
                reason = f"{stub.name}() with arguments that make no sense: {error!r}"
                if not ours:
                    reason = f"{stub.name}() of {stub.function.handler.__module__}: {said(error)}"
                caller = self._serving.caller()
                raise Fault(FaultKind.PANIC, address, caller, reason=reason) from error
            kind = prototype.result
        elif stub.lacking is not None:
            raise self._not_known(stub.lacking, address)
        elif self._symbols.lenient:
            self._log_unknown(stub.name)
            result, kind = 0, UNSIGNED_LONG
        else:
            raise Fault(
                FaultKind.UNKNOWN_SYMBOL,
                address,
                self._serving.caller(),
                reason=f"'{stub.name}'",
                hint=f"supply it with --stub {stub.name}[=VALUE]",
                symbol=stub.name,
            )
        if kind.size:
            image = kind.to_register(result or 0, sign_extend_32=calling.sign_extend_32)
            self._serving.cpu.write(calling.result, image)

    def _not_known(self, error: NotKnown, address: int) -> Fault:
        kind, caller = FaultKind.UNKNOWN_STRUCTURE, self._serving.caller()
        return Fault(kind, address, caller, reason=error.what, hint=error.hint)

    def _arguments(self) -> Iterator[int]:
        """Yield the argument slots of the call being executed: registers, then the stack."""
        calling, read = self._calling, self._serving.cpu.read
        for name in calling.arguments:
            yield read(name) & ADDRESS_MASK
        stack = read(calling.stack_pointer) + (8 if calling.link is None else 0)
        while True:
            yield self._word(stack)
            stack += 8

    def _log_unknown(self, name: str) -> None:
        """Say that an unknown function was called: once, or each time with its arguments."""
        if self._symbols.unknown is Unknown.TRACE:
            count = range(len(self._calling.arguments))
            args = ", ".join(
                f"{value:#x}" for value, _ in zip(self._arguments(), count, strict=False)
            )
        elif self._symbols.calls[name] == 1:
            args = "..."
        else:
            return
        text = f"unknown {name}({args}) = 0, called from {self._serving.caller()}"
        self._printk.say(WARNING, text, loading=False)

    def _called_variable(self, address: int) -> int | None:
        """Let a call of what could have been a variable return 0; None: it is not one."""
        name = self._symbols.zeros_at(address)
        if name is None:
            return None
        self._symbols.calls[name] = self._symbols.calls.get(name, 0) + 1
        self._log_unknown(name)
        calling, cpu = self._calling, self._serving.cpu
        back = self._serving.return_to()
        if calling.link is None:
            cpu.write(calling.stack_pointer, cpu.read(calling.stack_pointer) + 8)
        cpu.write(calling.result, 0)
        return back

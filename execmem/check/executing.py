# SPDX-License-Identifier: GPL-2.0-or-later
"""Linked objects executed: a CPU, the sections at their addresses, a stack, and nothing else.

Where the guest leaves its sections, it arrives at a symbol (which may return a value), or it
stops, and the reason is told. It is done by this process, or by one behind a fence (`behind`).
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import attrs

from allocator import KernelMemory, PhysicalMemory, Prot
from allocator.errors import ExecmemError
from allocator.types import ADDRESS_MASK, MIB, PAGE_SIZE, align_down
from archs import Arch
from archs import arch as arch_by_name
from emulator.cpu import Cpu
from emulator.faults import FaultKind, Stop
from execmem.check.placing import Told
from execmem.check.subject import Subject
from execmem.worker.fence import Fence
from execmem.worker.jobs import Worker

INSTRUCTIONS = 1_000_000  # of one call
FEW = 64  # of one probe
MOST_PAGES = 8192  # that sections may take
_MEMORY = 512 * MIB  # of a process behind a fence, beside what it starts with
_SECONDS = 60.0  # that it may take for one thing

T = TypeVar("T")
R = TypeVar("R")


@attrs.frozen
class Ran:
    """How a call ended.

    Parameters
    ----------
    value
        What the function returned; None where it did not.
    arrived
        The symbol that it went to, where it did not return.
    executed
        Addresses of the first byte of every instruction.
    reason
        Why it stopped; empty where it returned or arrived.
    """

    value: int | None = None
    arrived: str = ""
    executed: frozenset[int] = frozenset()
    reason: str = ""


class CannotRun(ExecmemError):
    """A case cannot be executed where it lies, or on this architecture at all."""


@attrs.frozen
class Laid:
    """Sections at their addresses, as data that another process can be given.

    Parameters
    ----------
    arch
        Name of the architecture.
    pages
        Address, whether it executes, and what stands where in it.
    """

    arch: str
    pages: Sequence[tuple[int, bool, Sequence[tuple[int, bytes]]]]

    @classmethod
    def of(cls, subject: Subject) -> Laid:
        """Return the sections of linked objects; CannotRun where nothing of them is executed."""
        arch = subject.arch
        if arch.run is None or arch.load is None:
            raise CannotRun(f"{arch.name} has no level 'run': nothing of it is executed")
        pages: dict[int, tuple[bool, list[tuple[int, bytes]]]] = {}
        for one in subject.objects:
            for index, start in one.addresses.items():
                section = one.planned.view.sections[index]
                size = one.planned.layout.size_of(section)
                held = one.linked.sections.get(index)
                data = bytes(held) if held is not None else bytes(size)
                for page in range(align_down(start, PAGE_SIZE), start + len(data), PAGE_SIZE):
                    first, last = max(page, start), min(page + PAGE_SIZE, start + len(data))
                    runs, pieces = pages.get(page, (False, []))
                    pieces.append((first, data[first - start : last - start]))
                    runs = runs or section.executable or _is_plt(arch, section.name)
                    pages[page] = runs, pieces
        if len(pages) > MOST_PAGES:
            raise CannotRun(f"the sections take over {MOST_PAGES} pages")
        return cls(arch.name, [(page, *found) for page, found in sorted(pages.items())])


@attrs.frozen
class _Call:
    """A function to call.

    Parameters
    ----------
    landings
        Where it may arrive: address -> the symbol, and what that returns.
    """

    laid: Laid
    landings: Mapping[int, tuple[str, int | None]]
    function: int
    arguments: Sequence[int]

    def do(self) -> Ran:
        """Return how it ended."""
        arch = arch_by_name(self.laid.arch)
        with _cpu(arch, self.laid) as (cpu, memory, end, top):
            calling = arch.runs.calling
            arrived: list[str] = []

            def landed(at: int) -> int | None:
                if at not in self.landings:
                    return None
                name, returns = self.landings[at]
                if returns is None:
                    arrived.append(name)
                    return None
                cpu.write(calling.result, returns)
                if calling.link is not None:
                    return cpu.read(calling.link)
                pointer, word = cpu.read(calling.stack_pointer), arch.link.dialect.word
                cpu.write(calling.stack_pointer, pointer + word)
                return int.from_bytes(memory.read(pointer, word), arch.link.dialect.order)

            executed: set[int] = set()
            cpu.on_fetch = landed
            cpu.on_trap = landed
            stop_noting = cpu.each_instruction(executed.add)
            if len(self.arguments) > len(calling.arguments):
                raise CannotRun(f"at most {len(calling.arguments)} arguments")
            for register, argument in zip(calling.arguments, self.arguments, strict=False):
                cpu.write(register, argument & ADDRESS_MASK)
            _return_to(arch, cpu, memory, end, top)
            try:
                cpu.run(self.function, end, instructions=INSTRUCTIONS, seconds=None)
            except Stop as stop:
                if arrived:
                    return Ran(arrived=arrived[-1], executed=frozenset(executed))
                return Ran(executed=frozenset(executed), reason=_why(stop))
            finally:
                stop_noting()
            return Ran(value=cpu.read(calling.result), executed=frozenset(executed))


@attrs.frozen
class _Probes:
    """Code to execute, piece by piece: where each begins, and the register that is asked for then."""

    laid: Laid
    probes: Sequence[tuple[int, str]]

    def do(self) -> list[Ran]:
        """Return how each ended."""
        arch = arch_by_name(self.laid.arch)
        with _cpu(arch, self.laid) as (cpu, memory, end, top):

            def run(start: int, register: str) -> Ran:
                _return_to(arch, cpu, memory, end, top)
                try:
                    cpu.run(start, end, instructions=FEW, seconds=None)
                except Stop as stop:
                    if not register and stop.kind in (FaultKind.FETCH, FaultKind.TRAP):
                        return Ran(value=stop.pc)
                    return Ran(reason=_why(stop))
                return Ran(value=cpu.read(register)) if register else Ran(reason="it returns")

            return [run(*each) for each in self.probes]


def call(
    subject: Subject, symbols: Mapping[str, Told], function: int, arguments: Sequence[int]
) -> Ran:
    """Call a function of linked objects and return how it ended.

    CannotRun where the architecture has no level run, or the places cannot be mapped.
    """
    landings = {told.value: (name, told.returns) for name, told in symbols.items()}
    (found,) = _done(_Call(Laid.of(subject), landings, function, arguments))
    return found


def execute(subject: Subject, probes: Sequence[tuple[int, str]]) -> Sequence[Ran]:
    """Execute code of linked objects, piece by piece; CannotRun as `call`.

    Parameters
    ----------
    probes
        The address where each begins, and the register that is asked for at its end, which is the
        value of what comes of it (none: the address at which the guest arrives).
    """
    return _done(_Probes(Laid.of(subject), probes))


# Behind a fence --------------------------------------------------------------------------------

# By process: who is forked makes one of its own.
_workers: dict[int, Worker] = {}


def behind() -> Fence:
    """Let guest code be executed by a process behind a fence from now on; return what that gave up."""
    worker = _workers.get(os.getpid())
    if worker is None:
        worker = Worker(_answer, memory=_MEMORY, seconds=_SECONDS, fenced=True)
        _workers[os.getpid()] = worker
        atexit.register(worker.close)
        worker.give(None)
        worker.result()
    assert worker.fence is not None
    return worker.fence


def apart(function: Callable[[T], R]) -> Callable[[T], R]:
    """Return a function that executes guest code in other processes as it is executed in this one."""
    return _Behind(function) if _workers else function


@attrs.frozen
class _Behind(Generic[T, R]):
    """A function whose guest code is executed behind a fence, in whichever process it is called."""

    function: Callable[[T], R]

    def __call__(self, item: T) -> R:
        """Return what the function returns."""
        behind()
        return self.function(item)


def _answer(work: _Call | _Probes | None) -> Any:
    """Return what came of something, as JSON has it."""
    if work is None:
        return []
    try:
        return [attrs.asdict(ran) | {"executed": sorted(ran.executed)} for ran in _here(work)]
    except CannotRun as error:
        return str(error)


def _here(work: _Call | _Probes) -> Sequence[Ran]:
    return [work.do()] if isinstance(work, _Call) else work.do()


def _done(work: _Call | _Probes) -> Sequence[Ran]:
    worker = _workers.get(os.getpid())
    if worker is None:
        return _here(work)
    worker.give(work)
    found, reason = worker.result()
    if isinstance(found, str):
        raise CannotRun(found)
    wanted = 1 if isinstance(work, _Call) else len(work.probes)
    if not reason:
        with suppress(TypeError, ValueError, KeyError):  # nobody knows who says it
            told = [_ran(each) for each in found]
            if len(told) == wanted:
                return told
        reason = "no answer of a worker"
    return [Ran(reason=reason)] * wanted


def _ran(told: Any) -> Ran:
    value, arrived, executed, reason = (
        told[name] for name in ("value", "arrived", "executed", "reason")
    )
    if not (value is None or type(value) is int) or not all(type(at) is int for at in executed):
        raise TypeError("a number is none")
    return Ran(value=value, arrived=str(arrived), executed=frozenset(executed), reason=str(reason))


# The CPU ----------------------------------------------------------------------------------------


def _why(stop: Stop) -> str:
    where = f" of {stop.address:#x}" if stop.address is not None else ""
    return f"{stop.kind.value}{where} at {stop.pc:#x}"


def _return_to(arch: Arch, cpu: Cpu, memory: KernelMemory, end: int, top: int) -> None:
    """Give a function its stack, and let it return to an address."""
    calling = arch.runs.calling
    stack = top
    if calling.link is None:
        stack = top - arch.link.dialect.word
        memory.write(stack, arch.link.dialect.pack(end))
    else:
        cpu.write(calling.link, end)
    cpu.write(calling.stack_pointer, stack)


@contextmanager
def _cpu(arch: Arch, laid: Laid) -> Iterator[tuple[Cpu, KernelMemory, int, int]]:
    """Yield a CPU over memory with the sections, where a call returns to, and its stack."""
    memory = KernelMemory(PhysicalMemory(64 * MIB), arch.loads.address_map())
    cpu: Cpu | None = None
    try:
        for page, runs, pieces in laid.pages:
            memory.populate(page, PAGE_SIZE, Prot.RW, pattern=arch.loads.trap if runs else b"\0")
            for at, data in pieces:
                memory.write(at, data)
            if runs:
                memory.set_memory_rox(page, PAGE_SIZE)
        end = memory.vmalloc(PAGE_SIZE, prot=Prot.RX) + PAGE_SIZE // 2
        stack = memory.vmalloc(4 * PAGE_SIZE) + 4 * PAGE_SIZE - 64
        cpu = Cpu(arch, memory)
        yield cpu, memory, end, stack
    except ExecmemError as error:
        if isinstance(error, (CannotRun, Stop)):
            raise
        raise CannotRun(f"the sections cannot be mapped where they are: {error}") from None
    finally:
        if cpu is not None:
            cpu.close()


def _is_plt(arch: Arch, name: str) -> bool:
    return arch.plt is not None and name in (arch.plt.section, arch.plt.init_section)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Linked objects executed: a CPU, the sections at their addresses, a stack, and nothing else.

Where the guest leaves its sections, it arrives at a symbol (which may return a value), or it
stops, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs

from allocator import KernelMemory, PhysicalMemory, Prot
from allocator.errors import ExecmemError
from allocator.types import ADDRESS_MASK, MIB, PAGE_SIZE, align_down
from archs import Arch
from emulator.cpu import Cpu
from emulator.faults import FaultKind, Stop
from execmem.check.placing import Told
from execmem.check.subject import Subject

INSTRUCTIONS = 1_000_000  # of one call
FEW = 64  # of one probe
MOST_PAGES = 8192  # that sections may take


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


def call(
    subject: Subject, symbols: Mapping[str, Told], function: int, arguments: Sequence[int]
) -> Ran:
    """Call a function of linked objects and return how it ended.

    CannotRun where the architecture has no level run, or the places cannot be mapped.
    """
    arch = subject.arch
    if arch.run is None or arch.load is None:
        raise CannotRun(f"{arch.name} has no level 'run': nothing of it is executed")
    with _cpu(arch, subject) as (cpu, memory, end, top):
        calling = arch.runs.calling
        landings = {told.value: name for name, told in symbols.items()}
        arrived: list[str] = []

        def landed(at: int) -> int | None:
            name = landings.get(at)
            if name is None:
                return None
            told = symbols[name]
            if told.returns is None:
                arrived.append(name)
                return None
            cpu.write(calling.result, told.returns)
            if calling.link is not None:
                return cpu.read(calling.link)
            pointer, word = cpu.read(calling.stack_pointer), arch.link.dialect.word
            cpu.write(calling.stack_pointer, pointer + word)
            return int.from_bytes(memory.read(pointer, word), arch.link.dialect.order)

        executed: set[int] = set()
        cpu.on_fetch = landed
        cpu.on_trap = landed
        stop_noting = cpu.each_instruction(executed.add)
        if len(arguments) > len(calling.arguments):
            raise CannotRun(f"at most {len(calling.arguments)} arguments")
        for register, argument in zip(calling.arguments, arguments, strict=False):
            cpu.write(register, argument & ADDRESS_MASK)
        stack = top
        if calling.link is None:
            stack = top - arch.link.dialect.word
            memory.write(stack, arch.link.dialect.pack(end))
        else:
            cpu.write(calling.link, end)
        cpu.write(calling.stack_pointer, stack)
        try:
            cpu.run(function, end, instructions=INSTRUCTIONS, seconds=None)
        except Stop as stop:
            if arrived:
                return Ran(arrived=arrived[-1], executed=frozenset(executed))
            where = f" of {stop.address:#x}" if stop.address is not None else ""
            reason = f"{stop.kind.value}{where} at {stop.pc:#x}"
            return Ran(executed=frozenset(executed), reason=reason)
        finally:
            stop_noting()
        return Ran(value=cpu.read(calling.result), executed=frozenset(executed))


@contextmanager
def bench(subject: Subject) -> Iterator[Callable[[int, str], Ran]]:
    """Yield what executes code of linked objects, as often as one likes.

    It takes the address where the code begins, and the register that is asked for at the end (none:
    the address at which the guest arrives), which is the value of what it returns. CannotRun as
    `call`.
    """
    arch = subject.arch
    if arch.run is None or arch.load is None:
        raise CannotRun(f"{arch.name} has no level 'run': nothing of it is executed")
    with _cpu(arch, subject) as (cpu, memory, end, top):
        calling = arch.runs.calling

        def run(start: int, register: str) -> Ran:
            if calling.link is None:
                memory.write(top - arch.link.dialect.word, arch.link.dialect.pack(end))
                cpu.write(calling.stack_pointer, top - arch.link.dialect.word)
            else:
                cpu.write(calling.link, end)
                cpu.write(calling.stack_pointer, top)
            try:
                cpu.run(start, end, instructions=FEW, seconds=None)
            except Stop as stop:
                if not register and stop.kind in (FaultKind.FETCH, FaultKind.TRAP):
                    return Ran(value=stop.pc)
                where = f" of {stop.address:#x}" if stop.address is not None else ""
                return Ran(reason=f"{stop.kind.value}{where} at {stop.pc:#x}")
            return Ran(value=cpu.read(register)) if register else Ran(reason="it returns")

        yield run


@contextmanager
def _cpu(arch: Arch, subject: Subject) -> Iterator[tuple[Cpu, KernelMemory, int, int]]:
    """Yield a CPU over memory with the sections, where a call returns to, and its stack."""
    memory = KernelMemory(PhysicalMemory(64 * MIB), arch.loads.address_map())
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
    cpu: Cpu | None = None
    try:
        for page, (runs, pieces) in sorted(pages.items()):
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

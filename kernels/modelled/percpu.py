# SPDX-License-Identifier: GPL-2.0-or-later
"""Each CPU's memory and the task that runs on it, and the registers that lead to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from allocator import AllocationError, IntervalSet, KernelMemory
from allocator.types import ADDRESS_MASK, KIB, Interval, align_up
from archs import Anchor, Arch
from emulator.cpu import Cpu
from kernels.modelled.image import NEEDED
from kernels.modelled.serving import Serving
from kernels.modelled.structs import struct

PERCPU_SIZE = 256 * KIB
PERCPU_STATIC = 64 * KIB
TASK_SIZE = 16 * KIB
Canary: TypeAlias = tuple[Anchor, int]  # what a register leads to, and the distance from there
THREAD_INFO = TASK_SIZE - 4 * KIB  # from a task, where it is apart from that
CANARY = 0x5AFE_C0DE_0BAD_F00D & ~0xFF  # the lowest byte is 0, as the kernel's is

for _name in ("task_struct", "fixed_percpu_data"):  # where an architecture may have it
    struct(_name, "stack_canary")


class PerCpu:
    """Per-cpu memory and tasks.

    A per-cpu symbol is a place in the image (or counts from 0, where a segment register adds
    the rest); adding the CPU's offset gives its copy.

    Parameters
    ----------
    arch, memory, cpus
        What the kernel runs on.
    serving
        Knows the CPU that the kernel is on now.
    image
        Where the kernel image begins.
    canary
        Where compiled code reads the stack protector's canary.

    `boot_tasks` are each CPU's own.
    """

    def __init__(
        self,
        arch: Arch,
        memory: KernelMemory,
        cpus: Sequence[Cpu],
        serving: Serving,
        image: int,
        canary: Canary | None,
    ) -> None:
        self._canary = canary
        self._arch = arch
        self._memory = memory
        self._cpus = tuple(cpus)
        self._serving = serving
        emulation = arch.runs.emulation
        base = 0 if emulation.percpu_from_zero else image + NEEDED - PERCPU_SIZE
        self.offsets: list[int] = []
        self._tasks: list[int] = []
        for cpu in self._cpus:
            area = self._room(cpu.number)
            task = memory.alloc_pages(_order(TASK_SIZE, memory))
            self.offsets.append((area - base) & ADDRESS_MASK)
            self._tasks.append(task)
            anchors = {
                Anchor.PERCPU: self.offsets[-1],
                Anchor.CURRENT: task,
                Anchor.THREAD_INFO: task + THREAD_INFO,
                Anchor.IMAGE: image,
            }
            self._fill_thread_info(task, cpu.number)
            for name, anchor in emulation.anchors.items():
                cpu.write(name, anchors[anchor])
            if canary is not None:
                anchor, offset = canary
                memory.write(anchors[anchor] + offset, CANARY.to_bytes(8, "little"))
        self.boot_tasks = tuple(self._tasks)
        self._dynamic = Interval(base + PERCPU_STATIC, base + PERCPU_SIZE)
        self._static = base + 4 * KIB
        self._free = IntervalSet([self._dynamic])
        self._live: dict[int, Interval] = {}
        self._variables: dict[str, int] = {}

    def _room(self, number: int) -> int:
        """Return memory for a CPU's copies, with nothing where other symbols would have theirs.

        What is taken for a per-cpu variable and is none lies somewhere else in the image: the
        CPU's offset leads from there below the copies, and must not lead to memory.
        """
        if self._arch.runs.emulation.percpu_from_zero:  # 2 GiB below the direct map
            return self._memory.alloc_pages(_order(PERCPU_SIZE, self._memory))
        start = self._memory.address_map.vmalloc.end - (2 * number + 1) * NEEDED
        room = Interval(start, start + PERCPU_SIZE)
        return self._memory.vmalloc(PERCPU_SIZE, within=room, guard=False)

    # Memory --------------------------------------------------------------------------------

    @property
    def offset(self) -> int:
        """What leads from a per-cpu symbol to this CPU's copy of it."""
        return self.offsets[self._serving.cpu.number]

    def address(self, base: int) -> int:
        """Return the address of this CPU's copy of a per-cpu symbol."""
        return (base + self.offset) & ADDRESS_MASK

    def on_each(self) -> Iterator[None]:
        """Be on one CPU after the other, and finally on this one again."""
        before = self._serving.cpu
        try:
            for cpu in self._cpus:
                self._serving.cpu = cpu
                yield
        finally:
            self._serving.cpu = before

    def alloc(self, size: int, align: int) -> int:
        """Return the symbol base of `size` per-cpu bytes, zeroed; AllocationError without room."""
        found = self._free.find(size, alignment=max(align, 8))
        if found is None:
            raise AllocationError("per-cpu memory", size, (self._dynamic,), "no room left")
        taken = Interval(found, found + align_up(size, 8))
        self._free.remove(taken)
        self._live[found] = taken
        for _ in self.on_each():
            self._memory.fill(self.address(found), taken.size, b"\0")
        return found

    def free(self, base: int) -> None:
        """Give per-cpu memory back."""
        self._free.add(self._live.pop(base))

    def write(self, base: int, contents: bytes) -> None:
        """Store the initial contents of a per-cpu section, in each CPU's copy."""
        for _ in self.on_each():
            self._memory.write(self.address(base), contents)

    def place(self, name: str, size: int) -> int:
        """Return the symbol base of a variable of the kernel's own."""
        base, self._static = self._static, self._static + size
        self._variables[name] = base
        return base

    def mark(self) -> int:
        """Return what `roll_back` goes back to."""
        return self._static

    def roll_back(self, mark: int) -> None:
        """Forget the variables that came after `mark`."""
        self._static = mark
        self._variables = {name: base for name, base in self._variables.items() if base < mark}

    # Tasks ---------------------------------------------------------------------------------

    @property
    def current(self) -> int:
        """Address of the task that runs on this CPU."""
        return self._tasks[self._serving.cpu.number]

    def new_task(self) -> int:
        """Return a task_struct, zeroed but for what compilers read of it."""
        task = self._memory.alloc_pages(_order(TASK_SIZE, self._memory))
        self._memory.fill(task, TASK_SIZE, b"\0")
        match self._canary:
            case (Anchor.CURRENT, offset):
                self._memory.write(task + offset, CANARY.to_bytes(8, "little"))
        self._fill_thread_info(task, self._serving.cpu.number)
        return task

    def _fill_thread_info(self, task: int, number: int) -> None:
        """Let a thread_info that is apart from its task lead there, and say on which CPU it is."""
        members = self._arch.runs.emulation.thread_info
        if members:
            start = task + THREAD_INFO
            self._memory.write(start + members["task"], task.to_bytes(8, "little"))
            self._memory.write(start + members["cpu"], number.to_bytes(4, "little"))

    @contextmanager
    def running(self, task: int) -> Iterator[None]:
        """Let `task` be current meanwhile."""
        number = self._serving.cpu.number
        before, self._tasks[number] = self._tasks[number], task
        self._show_current()
        try:
            yield
        finally:
            self._tasks[number] = before
            self._show_current()

    def reset_cpu(self) -> None:
        """Give this CPU the registers of a kernel thread that nobody has used yet."""
        cpu = self._serving.cpu
        cpu.reset()
        if self._tasks[cpu.number] != self.boot_tasks[cpu.number]:
            self._show_current()

    def _show_current(self) -> None:
        """Put the current task where code looks for it: a register, or a per-cpu variable."""
        emulation = self._arch.runs.emulation
        for name, anchor in emulation.anchors.items():
            if anchor is Anchor.CURRENT:
                self._serving.cpu.write(name, self.current)
            elif anchor is Anchor.THREAD_INFO:
                self._serving.cpu.write(name, self.current + THREAD_INFO)
        for name in emulation.current_variables:
            if name in self._variables:
                address = self.address(self._variables[name])
                self._memory.write(address, self.current.to_bytes(8, "little"))


def _order(size: int, memory: KernelMemory) -> int:
    """Return the order of the least run of pages that has so many bytes (get_order)."""
    return (align_up(size, memory.page_size) // memory.page_size - 1).bit_length()

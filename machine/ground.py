# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a machine whose kernel is Python, for those who look on; where it calls Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from allocator import KernelMemory
from archs import Arch
from emulator.blocks import Blocks
from emulator.cpu import Cpu
from emulator.faults import BadCall
from emulator.watching import Range
from kernels.modelled.kernel import Kernel
from kernels.modelled.serving import Serving
from loader.elfview import ElfView
from loader.loaded import LoadedModule, LoadedSection
from machine.memorytrace import refused, sections_of


class ModelledGround:
    """Memory that guest code touches, and kernel functions that are Python.

    Parameters
    ----------
    arch, memory, cpus
        The machine's.
    serving
        Says in which kernel function the guest is.
    loaded
        The modules, by name.
    """

    def __init__(
        self,
        arch: Arch,
        memory: KernelMemory,
        cpus: Sequence[Cpu],
        serving: Serving,
        loaded: Mapping[str, LoadedModule],
    ) -> None:
        self.arch, self._loaded = arch, loaded
        self._memory, self._cpus, self._serving = memory, tuple(cpus), serving
        self._asking = False
        self.order: str = arch.link.dialect.order

    def frame(self, address: int) -> int | None:
        """Return the physical address of a virtual one; None where nothing is mapped."""
        found = self._memory.translate(address)
        return None if found is None else found.address

    def read(self, physical: int, size: int) -> bytes:
        """Return bytes of physical memory."""
        return bytes(self._memory.physical.view[physical : physical + size])

    def function(self) -> str:
        """Return the kernel function that makes the access; empty: guest code."""
        return self._serving.function

    def note_blocks(self, without: range) -> Sequence[Blocks]:
        """Note what is executed from now on, on each CPU; BadCall in the middle of code."""
        try:
            return tuple(cpu.note_blocks(without) for cpu in self._cpus)
        except RuntimeError as error:
            raise BadCall("coverage", str(error), "begin before the call") from None

    def text(self) -> range:
        """Return nothing: the kernel is Python."""
        return range(0)

    def modules(self) -> Mapping[str, tuple[ElfView, Mapping[int, LoadedSection]]]:
        """Return file and sections of the modules that are loaded, by name."""
        return {name: (each.view, each.sections) for name, each in self._loaded.items()}

    def each_access(
        self, callback: Callable[[int, int, int, bytes | None], object]
    ) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
        """Return what begins, what pauses and what ends telling of every access."""
        try:
            made = [cpu.watching.each(callback, self.order) for cpu in self._cpus]
        except RuntimeError as error:
            raise refused(error) from None
        begin, pause, end = zip(*made, strict=True)
        return partial(_all, begin), partial(_all, pause), partial(_all, end)

    def linear(self) -> int:
        """Return the address of physical 0 in the direct map."""
        return self._memory.direct_map.start

    def stack(self) -> int:
        """Return the stack pointer."""
        return self._serving.cpu.read(self.arch.runs.calling.stack_pointer)

    def sections(self) -> Mapping[int, tuple[int, str]]:
        """Return address -> size and `module:section` of what is loaded."""
        return sections_of(self._loaded)

    def attach(self, watched: Range) -> Callable[[], None]:
        """Let a range be told of accesses; BadCall in the middle of code that would not tell."""
        if not all(cpu.watching.ready for cpu in self._cpus):
            raise BadCall("watch", "code that is under way would not tell", "begin before the call")
        for cpu in self._cpus:
            cpu.watching.add(watched)

        def told(physical: int, size: int, data: bytes | None) -> None:
            if self._asking:
                return
            if self._serving.function:
                self._asking = True
                try:
                    pc = self._serving.return_to()
                finally:
                    self._asking = False
                watched.touched(pc, physical, size, data)
            elif data is not None:
                watched.stored(physical, data)

        end = self._memory.physical.observe(told)

        def detach() -> None:
            end()
            for cpu in self._cpus:
                cpu.watching.remove(watched)

        return detach


def _all(steps: Sequence[Callable[[], None]]) -> None:
    for step in steps:
        step()


class ModelledLanding:
    """Addresses of kernel functions that are functions of Python.

    Parameters
    ----------
    kernel
        The kernel, which has a name for each.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._free: list[str] = []
        self._names: dict[int, str] = {}

    def land(self, answer: Callable[[Iterator[int]], int], count: int) -> int:
        """Return an address at which Python answers."""
        name = self._free.pop() if self._free else f"callback_{len(self._names)} of Python"
        self._kernel.supply(name, _taking(count, lambda *slots: answer(iter(slots))))
        address = self._kernel.address(name)
        self._names[address] = name
        return address

    def leave(self, address: int) -> None:
        """Let an address answer no more."""
        name = self._names[address]

        def gone() -> int:
            raise BadCall(name, "the guest calls a function of Python that was freed")

        self._kernel.supply(name, gone)
        self._free.append(name)


def _taking(count: int, function: Callable[..., int]) -> Callable[..., int]:
    """Return a function that says that it takes so many arguments."""
    kind = inspect.Parameter.POSITIONAL_ONLY
    names = [inspect.Parameter(f"argument{number}", kind) for number in range(count)]
    function.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]  # inspect's own
    return function

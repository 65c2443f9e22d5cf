# SPDX-License-Identifier: GPL-2.0-or-later
"""A crash dump as a machine: what `Machine(core=FILE, kernel=IMAGE)` is.

What was in memory can be looked at, and functions be called that ask nothing of the rest of a
computer: there is no time, no process and no hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from archs import Arch
from archs import arch as arch_by_name
from emulator.budget import DEFAULT
from emulator.faults import BadCall, Fault, FaultKind
from emulator.paging import Lacking
from kernels.booted import ringbuffer
from kernels.booted.dumps import ARENA, HEAP, Dumped, open_dump
from kernels.log import LogLine
from loader.errors import BadKernel
from loader.files import ModuleFile
from loader.kernel.find import read_kernel
from loader.kernel.image import KernelImage
from machine.arguments import Argument
from machine.booted.dumping import save_core
from machine.booted.functions import VMLINUX
from machine.booted.machine import BootedMachine
from machine.booted.resident import resident_modules
from machine.cores import CoreFile
from machine.types import Types

_ALIGN, _HEADER = 16, 32
_SLEEPS = ("__schedule", "schedule_timeout", "wait_for_completion")
_CHOSEN = "the kernel has chosen it for the CPU that it ran on, and the emulated one lacks it"
# What every oops comes to, and a panic.
_DIES = ("oops_enter", "panic", "vpanic")


class DumpedMachine(BootedMachine):
    """A kernel in a dump of its memory, with the modules that it had loaded.

    Parameters
    ----------
    core
        An ELF core of the kernel: `Machine.core` writes one, QEMU's `dump-guest-memory`, kdump.
    kernel
        Its image, or a package or tree that has it.
    arch
        What it must be for; None: the kernel tells it.
    cpu
        The CPU's model; "": the one that has most instructions, as a kernel has chosen its own for
        the CPU that it ran on.

    Raises
    ------
    BadCore
        It cannot be read, or is of another kernel.
    BadKernel
        There is no such kernel, or it cannot be read.
    """

    def __init__(
        self,
        arch: str | Arch | None = None,
        *,
        core: str | Path,
        kernel: str | Path | KernelImage | None = None,
        modelled: bool = False,
        cpu: str = "",
        **options: object,
    ) -> None:
        if modelled:
            raise TypeError("modelled=True: that is a ModelledMachine")
        for name in options:
            raise BadCall("Machine", f"{name}: a machine out of a dump has no such parameter")
        if kernel is None:
            hint = "kernel=IMAGE: symbols and types are in no dump"
            raise BadCall("Machine", f"{core}: name the image of its kernel", hint)
        image = kernel if isinstance(kernel, KernelImage) else read_kernel(kernel)
        wanted = arch if isinstance(arch, Arch) or arch is None else arch_by_name(arch)
        if wanted is not None and wanted is not image.arch:
            reason = f"is for {image.arch.name}, not for {wanted.name}"
            raise BadKernel(image.name, "architecture", reason)
        self.dump: Dumped = open_dump(core, image, cpu=cpu)
        standing = self.dump.standing
        self._why = ""
        self._hold(standing, None)
        types = standing.types
        own = {} if types is None else {VMLINUX: types}
        self.own_types = Types(self, lambda: own, "the kernel has no types")
        for name in _SLEEPS:
            self._break(name, "it waits for something, and in a dump nothing happens")
        for name in _DIES:
            self._break(name, "")
        self._modules.update((each.name, each) for each in resident_modules(self))

    def _break(self, name: str, why: str) -> None:
        """End a call that comes to a function."""
        address = self.kernel.symbols.get(name)
        if address is None:
            return

        def met() -> None:
            self._why = why or self._died()
            self.kernel.board.stop_here()

        self.kernel.board.break_at(address, met)

    def _died(self) -> str:
        """Return what the kernel was about to report."""
        number, pc, address = self.kernel.board.excepted
        if not pc:
            return "the kernel panics"
        at = "" if address is None else f", of {address:#x}"
        return f"the kernel found something wrong: exception {number}{at}"

    def _where(self, address: int) -> str:
        return self.symbolize(address) or f"{address:#x}"

    @property
    def models(self) -> str:
        """What answers modules."""
        return f"Linux {self.kernel.release}, as it was dumped"

    @property
    def cpus(self) -> tuple[Mapping[str, int], ...]:
        """The registers of each CPU as it was dumped, by name (NT_PRSTATUS)."""
        names = self.arch.runs.gregset
        return tuple(
            {name: value for name, value in zip(names, values, strict=True) if name}
            for values in self.dump.core.registers(len(names))
        )

    @property
    def lacks(self) -> tuple[str, ...]:
        """What is not known of the kernel, by name, and what would make it known."""
        found = []
        if not self.dump.facts:
            found.append(
                "the log: the dump has no VMCOREINFO, neither as a note nor in the memory"
                " (CONFIG_VMCORE_INFO)"
            )
        symbols = self.kernel.symbols
        if "modules" not in symbols:
            found.append(
                "modules: the symbol 'modules' is not among the kernel's (CONFIG_KALLSYMS_ALL)"
            )
        elif self.kernel.standing.types is None:
            found.append("modules: the kernel has no types (CONFIG_DEBUG_INFO_BTF)")
        return tuple(found)

    # Calls --------------------------------------------------------------------------------------

    def call(
        self,
        address: int,
        *args: Argument,
        instructions: int | None = DEFAULT,
        seconds: float | None = DEFAULT,
        returns: str = "u64",
    ) -> int:
        """Call the guest function at `address`, with interrupts off; see `BootedMachine.call`.

        Raises
        ------
        Fault
            It came to a page that the dump lacks, waits, or the kernel found something wrong.
        """
        self._why, self.kernel.board.excepted = "", (0, 0, None)
        try:
            return super().call(
                address, *args, instructions=instructions, seconds=seconds, returns=returns
            )
        except Lacking as lacking:
            pc = self.kernel.board.excepted[1] or address
            raise Fault(
                kind=FaultKind.LACKING,
                pc=pc,
                where=self._where(pc),
                reason=str(lacking),
                hint="makedumpfile -d 0 leaves nothing out",
            ) from None
        except Fault as fault:
            if not self._why:
                raise
            number, pc, _ = self.kernel.board.excepted
            undefined = bool(pc) and number == self.kernel.board.undefined and not self._traps(pc)
            raise Fault(
                kind=FaultKind.INSTRUCTION if undefined else FaultKind.CHECK,
                pc=pc or fault.pc,
                where=self._where(pc) if pc else fault.where,
                instruction=self.disassemble(pc) if pc else "",
                reason=self._why,
                hint=_CHOSEN if undefined else "",
            ) from None

    def _traps(self, pc: int) -> bool:
        """Return whether an instruction is one that code of the kernel ends in: BUG() and the like."""
        try:
            before, code = self.kernel.board.read(pc - 16, 16), self.kernel.board.read(pc, 16)
        except LookupError:
            return False
        return self.arch.runs.emulation.trap(before, code) is not None

    # Memory -------------------------------------------------------------------------------------

    # What is allocated lies in memory that was added: the kernel's own allocators may be in the
    # middle of something. Before each block stands how long it is, where the one before is, and
    # whether it is free; the first two words tell the end, and the last block.

    def _word(self, at: int) -> int:
        return int.from_bytes(self.kernel.board.read(at, 8), "little")

    def _set_word(self, at: int, value: int) -> None:
        self.kernel.board.write(at, value.to_bytes(8, "little"))

    def alloc(self, contents: bytes | int) -> int:
        """Return the address of memory beside the dump's that holds `contents`, or that many zeros."""
        size = contents if isinstance(contents, int) else len(contents)
        if size < 0:
            raise BadCall("alloc", f"{size} bytes")
        heap, end = self.dump.arena + HEAP, self.dump.arena + ARENA
        at = self._word(heap) or heap + _HEADER
        after = at + _HEADER + max(size, 1) + (-max(size, 1)) % _ALIGN
        if after > end:
            raise BadCall("alloc", f"no {size:#x} bytes beside the dump's: {ARENA:#x} in all")
        data = bytes(size) if isinstance(contents, int) else bytes(contents)
        self._set_word(at, size)
        self._set_word(at + 8, self._word(heap + 8))
        self._set_word(at + 16, 1)
        self.kernel.board.write(at + _HEADER, data.ljust(after - at - _HEADER, b"\0"))
        self._set_word(heap, after)
        self._set_word(heap + 8, at)
        return at + _HEADER

    def free(self, address: int) -> None:
        """Free what `alloc` returned."""
        heap, at = self.dump.arena + HEAP, address - _HEADER
        last = self._word(heap + 8)
        if not heap < at <= last or self._word(at + 16) != 1:
            raise BadCall("free", f"{address:#x} is nothing that was allocated here")
        self._set_word(at + 16, 0)
        while last and not self._word(last + 16):
            self._set_word(heap, last)
            last = self._word(last + 8)
            self._set_word(heap + 8, last)

    # What a dump has not ------------------------------------------------------------------------

    def _refuse(self, what: str, why: str) -> NoReturn:
        hint = "Machine(kernel=IMAGE) boots the kernel"
        raise BadCall(what, f"{why}: it is a dump of Linux {self.kernel.release}", hint)

    def load(
        self, module: str | Path | bytes | ModuleFile, /, *, init: bool = True, **params: object
    ) -> NoReturn:
        """Refuse to load a module: no process goes on here."""
        del module, init, params
        self._refuse("load", "no process goes on here")

    def insert(self, file: ModuleFile, params: Mapping[str, object] | None = None) -> NoReturn:
        """Refuse to load a module: no process goes on here."""
        del file, params
        self._refuse("load", "no process goes on here")

    def unload(self, module: Any, *, force: bool = False) -> NoReturn:
        """Refuse to take a module out: no process goes on here."""
        del force
        self._refuse("unload", f"{module.name}: no process goes on here")

    def request(self, name: str) -> bool:
        """Return that nothing can be loaded."""
        del name
        return False

    def user(self, contents: bytes | int) -> NoReturn:
        """Refuse user memory: there is no process that it would be of."""
        del contents
        self._refuse("user", "there is no process whose memory it would be")

    def sleep(self, seconds: float) -> NoReturn:
        """Refuse to let time pass: there is none."""
        del seconds
        self._refuse("sleep", "there is no time here")

    def save(self, path: str | Path) -> NoReturn:
        """Refuse to write the machine to a file of its own: the dump is one."""
        del path
        self._refuse("save", "Machine.core writes it")

    # As a file ----------------------------------------------------------------------------------

    def core(
        self, path: str | Path, *, on_progress: Callable[[int, int], object] | None = None
    ) -> CoreFile:
        """Write a core of what is here now; see `BootedMachine.core`.

        Its segments have virtual addresses, whatever the dump's have, and its CPUs are where they
        were. What the dump lacks, the core lacks.
        """
        return save_core(path, self.kernel, on_progress, self.dump)

    # Looking ------------------------------------------------------------------------------------

    @property
    def log(self) -> list[LogLine]:
        """The kernel log, out of its ring buffer.

        Raises
        ------
        BadCall
            The kernel does not tell where that is, or the dump lacks it.
        """
        try:
            return ringbuffer.lines(self.dump.facts, self.kernel.board.read)
        except ringbuffer.Unknown as unknown:
            told = f"the kernel does not tell where {unknown} is (VMCOREINFO)"
            raise BadCall("log", told) from None
        except (LookupError, IndexError) as error:
            raise BadCall("log", str(error)) from None

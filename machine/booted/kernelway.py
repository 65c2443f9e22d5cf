# SPDX-License-Identifier: GPL-2.0-or-later
"""Probes and traces in the kernel's own way: its kprobes and its ftrace, asked for in tracefs.

Here the guest's text does change: text_poke writes the site, and what a probe takes the place of
is copied to a slot, which comes from the same allocator of executable memory as modules do. Site,
slot and trampoline can be read while they are there. All of it is in the guest, so a snapshot
holds it and going back takes it away.

Documentation/trace/kprobetrace.rst, ftrace.rst; struct kprobe of include/linux/kprobes.h.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count

import attrs

from emulator.faults import BadCall
from kernels.booted.kernel import BootedKernel
from kernels.tracing import PatchRefused, UntilStopped
from loader.btf_records import Kind
from machine.booted.files import File, FileError
from machine.booted.functions import Function, Functions, Spot

_ROOT = "/sys/kernel/tracing"
_GROUP = "execmem"
_WINDOW = 48  # bytes from a function's entry, or an instruction: where its site lies
_SLOT = 32  # bytes of a slot, and no less
# Where struct kprobe has its copy of the instruction, by architecture and version.
_COPIES = ("ainsn.insn", "ainsn.api.insn", "ainsn.xol_insn", "ainsn.api.xol_insn")
_DETOURS = ("optinsn.insn",)
_OPTIMIZED = 4  # KPROBE_FLAG_OPTIMIZED
_TRAMPOLINE = re.compile(r"tramp: (?:0x)?([0-9a-f]{8,16})")


@attrs.frozen
class Code:
    """Code in the guest.

    Parameters
    ----------
    address
        Where.
    data
        What is there.
    before
        What was there before; None: that does not matter.
    lines
        It, disassembled.
    """

    address: int
    data: bytes = attrs.field(repr=bytes.hex)
    before: bytes | None = None
    lines: tuple[str, ...] = ()


class KernelProbe(UntilStopped):
    """A kprobe of the kernel's, until `stop`; a context manager. Made by `Machine.kernel_probe`.

    `site` is the text that the kernel has changed for it, `slot` where it has the instruction
    that was there (None: it needs none, as a probe of ftrace's does, or the kernel has no
    types), `detour` what the site jumps to, where the kernel has optimised the probe.
    """

    def __init__(self, way: KernelWay, spot: Spot, event: str, site: Code) -> None:
        self._way = way
        self.spot = spot
        self.event = event
        self.site = site
        self._stands = True

    @property
    def address(self) -> int:
        """Where it is."""
        return self.spot.address

    @property
    def slot(self) -> Code | None:
        """Where the kernel has the instruction that was there."""
        return self._way.copied(self.address, _COPIES, "kprobe") if self._stands else None

    @property
    def detour(self) -> Code | None:
        """What the site jumps to, where the probe is optimised."""
        return self._way.copied(self.address, _DETOURS, "optimized_kprobe")

    @property
    def lines(self) -> list[str]:
        """What the trace buffer holds of it, oldest first."""
        return [line for line in self._way.buffer() if f" {self.event}: " in line]

    @property
    def count(self) -> int:
        """How many hits the trace buffer holds."""
        return len(self.lines)

    def stop(self) -> None:
        """Take the probe away; a second time does nothing, nor after going back to before it."""
        if self._stands:
            self._stands = False
            self._way.remove(self)

    remove = stop


class KernelTrace(UntilStopped):
    """Functions that the kernel's ftrace traces, until `stop`. Made by `Machine.kernel_trace`.

    `sites` is the text that the kernel has changed, by function (a pointer in front of a function
    may have changed, too: CALL_OPS of arm64 and riscv64); `trampoline` what it calls,
    where the kernel tells (x86-64: a copy of ftrace_caller from the allocator of executable
    memory).
    """

    def __init__(self, way: KernelWay, sites: dict[str, Code], trampoline: Code | None) -> None:
        self._way = way
        self.sites = sites
        self.trampoline = trampoline
        self._stands = True

    @property
    def lines(self) -> list[str]:
        """What the trace buffer holds of them, oldest first: `function <-caller`."""
        return [
            line for line in self._way.buffer() if any(f" {name} <-" in line for name in self.sites)
        ]

    def stop(self) -> None:
        """Trace no more; a second time does nothing."""
        if self._stands:
            self._stands = False
            self._way.end()


class KernelWay:
    """The tracefs of a machine.

    Parameters
    ----------
    kernel
        The kernel.
    functions
        Its functions and those of its modules.
    read
        Returns guest memory.
    open_file
        Opens a file of the guest.
    disassemble
        Returns the instruction at an address as text.
    """

    def __init__(
        self,
        kernel: BootedKernel,
        functions: Functions,
        read: Callable[[int, int], bytes],
        open_file: Callable[[str, int], File],
        disassemble: Callable[[int], str],
    ) -> None:
        self._kernel = kernel
        self._functions = functions
        self._read = read
        self._open = open_file
        self._disassemble = disassemble
        patching = kernel.arch.patching
        assert patching is not None  # else nothing is interposed either (`interposing.py`)
        self._decode = patching.kprobes.decode
        self._numbers = count(1)
        self._traced: KernelTrace | None = None

    # Files --------------------------------------------------------------------------------------

    def _ready(self, what: str, where: str, name: str, option: str) -> None:
        """Let tracefs be there; PatchRefused where the kernel has none, or not what is asked."""
        try:
            self._open(f"{_ROOT}/{name}", os.O_RDONLY).close()
        except FileError:
            pass
        else:
            return
        self._open("/proc/mounts", os.O_RDONLY).close()  # mounts /sys, too
        with self._kernel.watched():
            result = self._mount()
        if -result not in (0, errno.EBUSY):
            reason = "the kernel is built without CONFIG_FTRACE (tracefs)"
            raise PatchRefused(what, 0, where, reason)
        try:
            self._open(f"{_ROOT}/{name}", os.O_RDONLY).close()
        except FileError:
            reason = f"the kernel is built without {option}: {_ROOT}/{name} is not there"
            raise PatchRefused(what, 0, where, reason) from None

    def _mount(self) -> int:
        guest = self._kernel.guest
        words = (b"tracefs\0", _ROOT.encode() + b"\0")
        at = guest.user(0x1000)
        try:
            guest.board.write(at, words[0])
            guest.board.write(at + 0x100, words[1])
            return guest.system_call("mount", at, at + 0x100, at, 0, 0)
        finally:
            guest.free_user(at, 0x1000)

    def _write(self, name: str, text: str, flags: int = 0) -> None:
        with self._open(f"{_ROOT}/{name}", os.O_WRONLY | flags) as file:
            file.write(text.encode())

    def _text(self, name: str) -> str:
        with self._open(f"{_ROOT}/{name}", os.O_RDONLY) as file:
            return file.read_all().decode("utf-8", "backslashreplace")

    def buffer(self) -> list[str]:
        """Return the lines of the trace buffer; what reading it calls is not traced."""
        with suppress(FileError):  # until 5.8 it pauses anyhow
            self._write("options/pause-on-trace", "1")
        try:
            return [line for line in self._text("trace").splitlines() if line[:1] != "#"]
        except FileError:
            return []  # it is from before that was there

    # Kprobes ------------------------------------------------------------------------------------

    def probe(self, place: int | str, fetch: str) -> KernelProbe:
        """Put a kprobe at a place; see `BootedMachine.kernel_probe`."""
        spot = self._functions.spot("probe", place)
        self._ready("probe", spot.where, "kprobe_events", "CONFIG_KPROBE_EVENTS")
        if "\n" in fetch or ";" in fetch:
            raise BadCall("probe", f"fetch={fetch!r}: more than one probe's")
        event = f"p{next(self._numbers)}"
        function = spot.function
        module = "" if function.module is None else f"{function.module.name}:"
        where = f"{module}{function.name}+{spot.address - function.address}"
        code = self._window(spot.address)
        try:
            self._write("kprobe_events", f"p:{_GROUP}/{event} {where} {fetch}\n", os.O_APPEND)
            self._write(f"events/{_GROUP}/{event}/enable", "1")
        except FileError as error:
            raise PatchRefused("probe", spot.address, spot.where, self._said(error)) from None
        return KernelProbe(self, spot, event, self._site(spot.address, code))

    def _said(self, error: FileError) -> str:
        """Return what the kernel says of what it has refused."""
        try:
            lines = [line for line in self._text("error_log").splitlines() if "error:" in line]
        except FileError:
            lines = []
        why = lines[-1].partition("error: ")[2] if lines else ""
        return f"the kernel refuses it: -{error.error}{f' ({why})' if why else ''}"

    def remove(self, probe: KernelProbe) -> None:
        """Take a kprobe away."""
        try:
            self._write(f"events/{_GROUP}/{probe.event}/enable", "0")
            self._write("kprobe_events", f"-:{_GROUP}/{probe.event}\n", os.O_APPEND)
        except FileError:
            return  # the machine has gone back to before it

    def copied(self, address: int, members: Sequence[str], structure: str) -> Code | None:
        """Return what a member of a probe's structure points to; None where nothing does."""
        types, guest = self._kernel.standing.types, self._kernel.guest
        outer = None if types is None else types.find(structure, Kind.STRUCT)
        if types is None or outer is None or "get_kprobe" not in guest.symbols:
            return None
        with self._kernel.watched(), guest.unwatched():
            probe = guest.call_by_name(("get_kprobe",), address)
        flags = types.place(outer.number, "flags" if structure == "kprobe" else "kp.flags")
        if not probe or flags is None:
            return None
        if structure != "kprobe" and not guest.word(probe + flags.bytes, 4) & _OPTIMIZED:
            return None
        for member in members:
            place = types.place(outer.number, member)
            at = 0 if place is None else guest.word(probe + place.bytes)
            if at:
                return self._code(at, _SLOT)
        return None

    # Ftrace -------------------------------------------------------------------------------------

    def trace(self, patterns: Sequence[str]) -> KernelTrace:
        """Trace functions; see `BootedMachine.kernel_trace`."""
        title = ", ".join(patterns)
        if self._traced is not None and self._traced._stands:  # noqa: SLF001 -- its own object
            raise PatchRefused("trace", 0, title, "ftrace traces already", "stop that first")
        found: dict[str, Function] = {}
        for pattern in patterns:
            found |= {each.name: each for each in self._functions.matching(pattern)}
        self._ready("trace", title, "set_ftrace_filter", "CONFIG_FUNCTION_TRACER")
        before = {name: self._window(found[name].address) for name in found}
        self._write("set_ftrace_filter", "\n", os.O_TRUNC)
        wanted = [name for name in found if self._filtered(name)]
        if not wanted:  # with no filter all functions were traced
            raise PatchRefused("trace", 0, title, "none of its functions is compiled for ftrace")
        self._write("current_tracer", "function")
        sites = {name: self._site(found[name].address, before[name]) for name in wanted}
        told = _TRAMPOLINE.search(self._text("enabled_functions"))
        trampoline = self._code(int(told[1], 16), _SLOT) if told else None
        self._traced = KernelTrace(self, sites, trampoline)
        return self._traced

    def _filtered(self, name: str) -> bool:
        """Let ftrace have a function; False where it is not compiled for that."""
        try:
            self._write("set_ftrace_filter", f"{name}\n", os.O_APPEND)  # it takes one a time
        except FileError:
            return False
        return True

    def end(self) -> None:
        """Trace nothing."""
        self._traced = None
        try:
            self._write("current_tracer", "nop")
            self._write("set_ftrace_filter", "\n", os.O_TRUNC)
        except FileError:
            return  # the machine has gone back to before it

    # Code ---------------------------------------------------------------------------------------

    def _window(self, address: int) -> bytes:
        """Return what stands at a place and behind it."""
        return self._read(address, _WINDOW)

    def _site(self, address: int, before: bytes) -> Code:
        """Return the instructions that have changed behind a place; none where none has."""
        after = self._window(address)
        changed = [at for at in range(len(before)) if before[at] != after[at]]
        if not changed:
            return Code(address, b"", b"")
        first = 0
        while first + (size := self._size(before, address, first)) <= changed[0]:
            first += size
        last = first
        while last <= changed[-1]:
            last += self._size(after, address, last)
        found = self._code(address + first, last - first)
        return attrs.evolve(found, before=before[first:last])

    def _size(self, code: bytes, address: int, at: int) -> int:
        """Return the bytes of an instruction; 1 where there is none."""
        return self._decode(code[at : at + 16].ljust(16, b"\0"), address + at).size or 1

    def _code(self, address: int, size: int) -> Code:
        lines, at = [], address
        data = self._read(address, size)
        while at < address + size:
            length = self._decode(data[at - address :].ljust(16, b"\0"), at).size
            if not length:
                break
            lines.append(self._disassemble(at))
            at += length
        return Code(address, data, None, tuple(lines))


class Kernelwise:
    """A machine that watches in its kernel's own way."""

    _way: KernelWay

    def kernel_probe(self, place: int | str, *, fetch: str = "") -> KernelProbe:
        """Let the kernel itself put a kprobe at an instruction, which changes its text.

        Parameters
        ----------
        place
            As for `probe`.
        fetch
            What the trace buffer shall hold of each hit: `arg=$arg1 %ax`, as kprobetrace has it.

        Raises
        ------
        BadCall, PatchRefused
            There is no such place, the kernel does not allow it, or is built without.
        """
        return self._way.probe(place, fetch)

    def kernel_trace(self, pattern: str, *more: str) -> KernelTrace:
        """Let the kernel's ftrace trace functions, which changes their text; one at a time.

        Parameters
        ----------
        pattern, more
            As for `trace`; of those that match, the ones that are compiled for it.

        Raises
        ------
        BadCall, PatchRefused
            None is, ftrace traces already, or the kernel is built without it.
        """
        return self._way.trace((pattern, *more))

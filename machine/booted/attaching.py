# SPDX-License-Identifier: GPL-2.0-or-later
"""Kprobes and ftrace users of a booted kernel, by the number: what executable memory each one takes.

They are registered as a module of the kernel would (register_kprobe(), register_ftrace_function()), at
the entries of system calls, and call nothing. struct kprobe of include/linux/kprobes.h, struct
ftrace_ops of include/linux/ftrace.h.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

from emulator.faults import BadCall
from kernels.booted.guest import signed
from kernels.booted.kernel import BootedKernel
from kernels.errors import errno_name
from loader.btf_records import Kind

_ENTRY = 9  # bytes behind which no site of ftrace is
_LONGEST = 16  # bytes of an instruction
_ROUNDS = 16  # instructions of a function that are asked for
# Where struct kprobe has its copy of the instruction, by architecture and version.
_COPIES = ("ainsn.insn", "ainsn.api.insn", "ainsn.xol_insn", "ainsn.api.xol_insn")
_CACHES = ("kprobe_insn_slots", "kprobe_optinsn_slots")
_NOTHING = "ftrace_stub"  # what is called: it returns at once


@attrs.frozen(kw_only=True)
class Attached:
    """What is registered.

    Parameters
    ----------
    structure
        Address of its struct kprobe or struct ftrace_ops.
    place
        The address that is probed or traced.
    code, size
        Its slot or its trampoline, and bytes of it (0: not told).
    detour
        What an optimised probe would jump to; 0: it has none.
    traces
        Whether it is ftrace's.
    """

    structure: int
    place: int
    code: int
    size: int
    detour: int = 0
    traces: bool = False


class Attaching:
    """Registers kprobes and users of ftrace, each at a place of its own.

    Parameters
    ----------
    kernel
        Its types say where the structures have what; BadCall for one without.
    """

    def __init__(self, kernel: BootedKernel) -> None:
        self._kernel = kernel
        self._places = self._inside()
        self._traced = iter(self._entries())
        self._free: list[int] = []  # places that were probed
        self._idle: list[int] = []  # functions that were traced
        self._without = ""  # why nothing of ftrace's is registered

    # Registering --------------------------------------------------------------------------------

    def probe(self) -> Attached:
        """Register a kprobe at an instruction that is executed out of line.

        Raises
        ------
        BadCall
            The kernel has no kprobes, does not tell its structures, or allows no further place.
        """
        size, address = self._member("kprobe", "addr")
        copies = [at for at in map(self._copy, _COPIES) if at is not None]
        if not copies:
            raise BadCall("kprobes", "where struct kprobe has its copy is not known")
        guest = self._kernel.guest
        while True:
            place = self._free.pop() if self._free else next(self._places, 0)
            if not place:
                raise BadCall("kprobes", "no further place can be probed")
            structure = guest.alloc(size)
            guest.board.write(structure + address, place.to_bytes(8, "little"))
            if not self._call("kprobes", "register_kprobe", structure):
                break
            guest.free(structure)
        code = next(filter(None, (guest.word(structure + at) for at in copies)), 0)
        found = Attached(structure=structure, place=place, code=code, size=0)
        return attrs.evolve(found, detour=self._detour(found))

    def trace(self) -> Attached:
        """Let ftrace call for a function; the trampoline that the kernel makes for it.

        Raises
        ------
        BadCall
            The kernel has no ftrace, makes no trampolines, or does not tell its structures.
        """
        if self._without:
            raise BadCall("ftrace", self._without)
        size, called = self._member("ftrace_ops", "func")
        guest = self._kernel.guest
        structure = guest.alloc(size)
        guest.board.write(structure + called, guest.find((_NOTHING,)).to_bytes(8, "little"))
        while True:
            place = self._idle.pop() if self._idle else next(self._traced, 0)
            if not place:
                guest.free(structure)
                raise BadCall("ftrace", "no further function can be traced")
            if not self._call("ftrace", "ftrace_set_filter_ip", structure, place, 0, 0):
                break
        failed = self._call("ftrace", "register_ftrace_function", structure)
        if failed:
            guest.free(structure)
            raise BadCall("ftrace", f"register_ftrace_function: {errno_name(-failed)}")
        code, length = (
            guest.word(structure + self._member("ftrace_ops", name)[1])
            for name in ("trampoline", "trampoline_size")
        )
        found = Attached(structure=structure, place=place, code=code, size=length, traces=True)
        if not code:
            self.detach(found)
            self._without = "this kernel makes no trampolines: sites call its own text"
            raise BadCall("ftrace", self._without)
        return found

    def detach(self, attached: Attached) -> None:
        """Unregister it."""
        guest = self._kernel.guest
        if attached.traces:
            self._call("ftrace", "unregister_ftrace_function", attached.structure)
            self._call("ftrace", "ftrace_free_filter", attached.structure)
            self._idle.append(attached.place)
        else:
            self._call("kprobes", "unregister_kprobe", attached.structure)
            self._free.append(attached.place)
        guest.free(attached.structure)

    def pages(self) -> set[int] | None:
        """Return where pages are that the kernel has for slots and detours; None: it does not tell."""
        guest, found = self._kernel.guest, set()
        try:
            head = self._member("kprobe_insn_cache", "pages")[1]
            link = self._member("kprobe_insn_page", "list")[1]
            code = self._member("kprobe_insn_page", "insns")[1]
        except BadCall:
            return None
        known = [guest.symbols[name] for name in _CACHES if name in guest.symbols]
        for cache in known:
            first = cache + head
            at = guest.word(first)
            while at != first:
                found.add(guest.word(at - link + code))
                at = guest.word(at)
        return found if known else None

    # Structures ---------------------------------------------------------------------------------

    def _member(self, structure: str, member: str) -> tuple[int, int]:
        """Return the bytes of a structure, and where a member begins."""
        types = self._kernel.standing.types
        if types is None:
            raise BadCall(structure, "the kernel has no types (BTF), so its members are not known")
        found = types.find(structure, Kind.STRUCT)
        place = None if found is None else types.place(found.number, member)
        if found is None or place is None:
            raise BadCall(structure, f"the kernel is built without it, or it has no {member}")
        return found.size, place.offset // 8

    def _copy(self, member: str) -> int | None:
        try:
            return self._member("kprobe", member)[1]
        except BadCall:
            return None

    def _detour(self, probe: Attached) -> int:
        """Return what a probe's site would jump to where it was optimised; 0: none was made."""
        guest = self._kernel.guest
        if "get_kprobe" not in guest.symbols:
            return 0
        try:
            at = self._member("optimized_kprobe", "optinsn.insn")[1]
        except BadCall:
            return 0
        outer = self._call("kprobes", "get_kprobe", probe.place) & (1 << 64) - 1
        return guest.word(outer + at) if outer not in (0, probe.structure) else 0

    def _call(self, who: str, name: str, *args: int) -> int:
        if name not in self._kernel.guest.symbols:
            raise BadCall(who, f"the kernel is built without: it has no {name}()")
        with self._kernel.watched(), self._kernel.guest.unwatched():
            found = signed(self._kernel.guest.call_by_name((name,), *args))
        return found if name == "get_kprobe" else (found + (1 << 31)) % (1 << 32) - (1 << 31)

    # Places -------------------------------------------------------------------------------------

    def _entries(self) -> list[int]:
        """Return where system calls begin, each once."""
        form = self._kernel.arch.boots.system_calls[0]
        pattern = re.escape(form.format("\0")).replace(re.escape("\0"), r"\w+")
        return sorted({at for _, at in self._kernel.symbols.matching(pattern)})

    def _inside(self) -> Iterator[int]:
        """Yield instructions of system calls that are executed out of line: of each function one, and again."""
        kernel, patching = self._kernel, self._kernel.arch.patching
        if patching is None:
            return
        decode = patching.kprobes.decode
        entries = self._entries()
        for number in range(_ROUNDS):
            for start in entries:
                around = kernel.symbols.around(start)
                left, at = number, start
                end = start + (around[2] if around else 0)
                while at < end:
                    insn = decode(kernel.board.read(at, _LONGEST), at)
                    if not insn.size:
                        break
                    if at >= start + _ENTRY and not insn.refusal and insn.simulate is None:
                        if not left:
                            yield at
                            break
                        left -= 1
                    at += insn.size

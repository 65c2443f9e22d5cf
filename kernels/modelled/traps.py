# SPDX-License-Identifier: GPL-2.0-or-later
"""Traps that say something: failed checks of compilers, BUG and WARN.

Compilers and the kernel's macros end what must not happen in a trap instruction. Tables of the
module (`__bug_table`, `.kcfi_traps`) and the instruction itself say which trap it is. After a
WARN the kernel goes on behind the instruction; everything else ends there (lib/bug.c).
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np

from allocator import AccessError
from allocator.types import ADDRESS_MASK
from archs.traps import BEFORE, Trap
from emulator.faults import FaultKind
from kernels.modelled.kernel import Kernel
from loader.loaded import LoadedModule

_BUGS, _CHECKS = "__bug_table", ".kcfi_traps"
_WARNING, _ONCE, _DONE = 1, 2, 4  # BUGFLAG_*
_MOST = 16  # bytes of an instruction
_CODE = {"ubsan": "UBSAN", "kasan": "KASAN"}
# struct bug_entry with file and line; since Linux 7 one with a format has a word more.
_ENTRIES = tuple(
    np.dtype([("place", "<i4"), *more, ("file", "<i4"), ("line", "<u2"), ("flags", "<u2")])
    for more in ((), (("format", "<i4"),))
)


@attrs.frozen
class Bug:
    """An entry of a module's bug table: where its flags are, the flags, file and line."""

    flags_at: int
    flags: int
    file: str
    line: int


def trap_at(kernel: Kernel, pc: int) -> Trap | None:
    """Return what the instruction at `pc` says, if it is a trap."""
    code = before = b""
    for size in range(_MOST, 0, -1):
        code = code or _readable(kernel, pc, size)
    for size in range(BEFORE, 0, -1):
        before = before or _readable(kernel, pc - size, size)
    return kernel.arch.runs.emulation.trap(before, code)


def _readable(kernel: Kernel, address: int, size: int) -> bytes:
    """Return bytes of the guest's; empty where not all of them are there."""
    try:
        # To say why it stopped is not the guest's to pay for.
        return kernel.plain.read(address & ADDRESS_MASK, size)
    except AccessError:
        return b""


def bug_at(kernel: Kernel, loaded: LoadedModule, pc: int) -> Bug | None:
    """Return what a module's bug table says of `pc`."""
    for section in loaded.sections.values():
        if section.name != _BUGS or not section.size:
            continue
        table = kernel.memory.read(section.address, section.size)
        for entry in _ENTRIES:
            if section.size % entry.itemsize:
                continue
            entries = np.frombuffer(table, entry)
            places = np.arange(entries.size, dtype=np.int64) * entry.itemsize + entries["place"]
            if not _are_code(loaded, section.address, places):
                continue
            for index in np.flatnonzero(places == pc - section.address).tolist():
                start, fields = section.address + index * entry.itemsize, entry.fields
                assert fields is not None
                file = start + fields["file"][1] + int(entries["file"][index])
                at = start + fields["flags"][1]
                line, flags = int(entries["line"][index]), int(entries["flags"][index])
                return Bug(at, flags, _text(kernel, file), line)
    return None


def _are_code(
    loaded: LoadedModule, start: int, places: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> bool:
    """Return whether all entries of a table are about code of the module, as far as it is there."""
    ends = [(r.address - start, r.address + r.size - start) for r in loaded.regions.values()]
    text = [e for e, k in zip(ends, loaded.regions, strict=True) if k.is_text]
    inside = np.zeros(places.size, np.bool_)
    for low, high in text:
        inside |= (places >= low) & (places < high)
    return bool(inside.all() or (not any(k.is_init for k in loaded.regions) and inside.any()))


def _text(kernel: Kernel, address: int) -> str:
    try:
        return kernel.string(address, 256).decode("utf-8", "backslashreplace")
    except AccessError:
        return ""


def warn(kernel: Kernel, loaded: LoadedModule | None, pc: int) -> int | None:
    """Log a WARN and return where to go on; None where the trap at `pc` is none."""
    bug = None if loaded is None else bug_at(kernel, loaded, pc)
    found = trap_at(kernel, pc)
    if bug is None or found is None or not bug.flags & _WARNING:
        return None
    if bug.flags & _ONCE and bug.flags & _DONE:
        return pc + found.size
    if bug.flags & _ONCE:
        kernel.memory.write(bug.flags_at, (bug.flags | _DONE).to_bytes(2, "little"))
    where = kernel.symbolize(pc) or f"{pc:#x}"
    place = f"{bug.file}:{bug.line} " if bug.file else ""
    text = f"WARNING: CPU: {kernel.cpu.number} PID: 0 at {place}{where}\n"
    kernel.print(f"------------[ cut here ]------------\n{text}".encode(), 4)
    kernel.print(b"---[ end trace 0000000000000000 ]---\n", 4)
    return pc + found.size


def explain(
    kernel: Kernel, loaded: LoadedModule | None, pc: int, where: Callable[[int], str]
) -> tuple[FaultKind, str] | None:
    """Return what a trap at `pc` means, for a person; None where nothing says it."""
    found = trap_at(kernel, pc)
    if found is None:
        return None
    listed = loaded is not None and _is_listed(kernel, loaded, pc)
    if found.what == "cfi" or (listed and not found.what):
        return FaultKind.CFI, _cfi(kernel, found, where)
    if found.what:
        return FaultKind.CHECK, f"{_CODE[found.what]}: {found.detail}"
    bug = None if loaded is None else bug_at(kernel, loaded, pc)
    if bug is None:
        return None
    return FaultKind.BUG, f"at {bug.file}:{bug.line}" if bug.file else ""


def _is_listed(kernel: Kernel, loaded: LoadedModule, pc: int) -> bool:
    """Return whether a trap is that of a type check, by the module's table."""
    for section in loaded.sections.values():
        if section.name == _CHECKS and section.size >= 4:
            table = kernel.memory.read(section.address, section.size & -4)
            words = np.frombuffer(table, "<i4").astype(np.int64)
            if (words + np.arange(words.size) * 4 == pc - section.address).any():
                return True
    return False


def _cfi(kernel: Kernel, found: Trap, where: Callable[[int], str]) -> str:
    """Return which function was to be called, the type that it should have, and its own."""
    if not found.target:
        return "a call through a pointer to a function of another type"
    target = kernel.cpu.read(found.target) & ADDRESS_MASK
    expected = found.expected
    if isinstance(expected, str):
        expected = kernel.cpu.read(expected) & 0xFFFF_FFFF
    raw = _readable(kernel, target - found.away, 4)
    own = f"it has {int.from_bytes(raw, 'little'):#010x}" if len(raw) == 4 else "it has none"
    return f"target {where(target)}, expected type {expected:#010x}, {own}"

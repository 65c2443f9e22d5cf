# SPDX-License-Identifier: GPL-2.0-or-later
"""What a booted kernel says of its CPU, its mitigations and its command line.

Files of /proc and /sys say it in all versions alike; what they do not say, or only in words, is
read in the kernel's memory: the numbers of the features that alternatives go by, and the return
thunk in force.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from archs.environment import Boot
from archs.levels.boot import Bitmap
from archs.versions import MODELLED, version_of
from loader.btf import BadBtf
from loader.btf_records import Kind
from machine.arguments import Out
from machine.booted.files import AT_FDCWD, File, FileError, mount
from machine.booted.machine import BootedMachine

_NAMES = 0x4000  # bytes of names at once
_NAME_AT = 19  # in struct linux_dirent64
_CPUS = "/sys/devices/system/cpu"
_MOST = 32  # bytes of a bitmap of unknown size; no table names a number behind its end


def account(machine: BootedMachine) -> Boot:
    """Return what the kernel of a machine says of itself; the machine stays as it is."""
    kernel = machine.kernel
    level = machine.arch.boots
    with machine.fork():
        mount(machine)
        folder = f"{_CPUS}/vulnerabilities"
        release = kernel.release
        return Boot(
            command_line=_text(machine, "/proc/cmdline").strip(),
            cpuinfo=_text(machine, "/proc/cpuinfo"),
            vulnerabilities={
                name: _text(machine, f"{folder}/{name}").strip()
                for name in _folder(machine, folder)
            },
            possible_cpus=_count(_text(machine, f"{_CPUS}/possible")),
            symbols=symbols_of(machine),
            console="\n".join(line.text for line in machine.log),
            config=machine.image.config or {},
            version=version_of(release) or MODELLED,
            capabilities=_capabilities(machine, level.capabilities),
            return_thunk=_thunk(machine, level.return_thunk),
        )


def symbols_of(machine: BootedMachine) -> dict[str, int]:
    """Return the kernel's symbols, and what it exports where it does not list its data."""
    slide = machine.kernel.standing.started.slide
    exports = {name: export.address + slide for name, export in machine.image.exports.items()}
    return exports | machine.kernel.symbols.as_dict()


def _text(machine: BootedMachine, path: str) -> str:
    """Return the text of a file of the machine; empty where there is none."""
    try:
        with File(machine, path, os.O_RDONLY) as file:
            return file.read_all().decode("utf-8", "backslashreplace")
    except FileError:
        return ""


def _folder(machine: BootedMachine, path: str) -> list[str]:
    """Return the names in a folder of the machine, in the kernel's order."""
    found: list[str] = []
    folder = machine.syscall("openat", AT_FDCWD, path, os.O_RDONLY, 0)
    while folder >= 0:
        part = Out(_NAMES)
        length = machine.syscall("getdents64", folder, part, _NAMES)
        if length <= 0:
            machine.syscall("close", folder)
            break
        found += _names(bytes(part)[:length])
    return found


def _names(entries: bytes) -> Iterator[str]:
    """Yield the names in some of struct linux_dirent64, but for `.` and `..`."""
    at = 0
    while at < len(entries):
        (size,) = struct.unpack_from("<H", entries, at + 16)
        name = entries[at + _NAME_AT : at + size].partition(b"\0")[0].decode()
        if name not in (".", ".."):
            yield name
        at += size


def _count(listed: str) -> int:
    """Return how many CPUs a list as `0-3,8` has; one where there is no list."""
    ends = [part.partition("-") for part in listed.strip().split(",") if part]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends) or 1


def _capabilities(machine: BootedMachine, places: tuple[Bitmap, ...]) -> frozenset[int] | None:
    """Return the numbers of the features that the kernel found; None where nobody knows where."""
    symbols = machine.kernel.symbols
    for place in places:
        export = machine.image.exports.get(place.variable)
        slide = machine.kernel.standing.started.slide
        at = symbols.get(place.variable) or (0 if export is None else export.address + slide)
        size = _MOST
        if place.structure:
            inside = _member(machine, place)
            if inside is None:
                continue
            at, size = at and at + inside[0], inside[1]
        elif place.variable in symbols:
            known = symbols.around(at)
            size = min(size, known[2]) if known is not None and known[2] else size
        if at:
            bits = int.from_bytes(machine.read(at, size), "little")
            return frozenset(n for n in range(8 * size) if bits >> n & 1)
    return None


def _member(machine: BootedMachine, place: Bitmap) -> tuple[int, int] | None:
    """Return offset and size of a bitmap in its structure, as the kernel's types say."""
    types = machine.kernel.standing.types
    outer = None if types is None else types.find(place.structure, Kind.STRUCT)
    if types is None or outer is None:
        return None
    try:
        found = types.place(outer.number, place.member)
        return None if found is None else (found.bytes, types.size_of(found.type))
    except BadBtf:
        return None


def _thunk(machine: BootedMachine, variable: str) -> str:
    """Return the name of what a pointer of the kernel points at; empty where there is none."""
    at = machine.kernel.symbols.get(variable) if variable else None
    if at is None:
        return ""
    found = machine.kernel.symbols.around(machine.kernel.guest.word(at))
    return found[0] if found is not None and not found[1] else ""

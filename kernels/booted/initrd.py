# SPDX-License-Identifier: GPL-2.0-or-later
"""The initial file system of a booted kernel: one program, which asks for its parent for ever.

A process is needed that a kernel can be called in; that system call is where it is met.
Formats: the generic ABI's ELF header; Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import struct

_BASE, _PAGE = 0x40_0000, 0x1_0000
_DIRECTORY, _PROGRAM, _CHARACTERS = 0o040755, 0o100755, 0o020600
_CONSOLE = (5, 1)  # its major and minor number
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_RX, _LOAD, _EXECUTABLE = 5, 1, 2


def program(code: bytes, machine: int) -> bytes:
    """Return a static 64-bit ELF program of a few instructions."""
    identity = b"\x7fELF\2\1\1".ljust(16, b"\0")
    start = _EHDR.size + _PHDR.size
    size = start + len(code)
    header = _EHDR.pack(
        *(identity, _EXECUTABLE, machine, 1, _BASE + start, _EHDR.size, 0, 0),
        *(_EHDR.size, _PHDR.size, 1, 0, 0, 0),
    )
    return header + _PHDR.pack(_LOAD, _RX, 0, _BASE, _BASE, size, size, _PAGE) + code


def archive(code: bytes, machine: int) -> bytes:
    """Return the archive that holds the program as `/init`, and a console."""
    members = (
        ("dev", _DIRECTORY, b"", (0, 0)),
        ("dev/console", _CHARACTERS, b"", _CONSOLE),
        ("init", _PROGRAM, program(code, machine), (0, 0)),
        ("TRAILER!!!", 0, b"", (0, 0)),
    )
    found = b"".join(_member(number, *member) for number, member in enumerate(members, 1))
    return found + bytes(-len(found) % 512)


def _member(number: int, name: str, mode: int, data: bytes, device: tuple[int, int]) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The smallest ACPI tables that Linux takes for a PC's (ACPI specification 6.5, chapter 5).

There is no MADT: interrupts go through the 8259s.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

EVENTS, CONTROL, TIMER, RESET = 0x600, 0x604, 0x608, 0xCF9  # ports
_ID, _TABLE_ID, _CREATOR = b"EXECMM", b"EXECMEM ", b"EXEC"
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_CHECKSUM_AT = 9  # in a table's header
_ROOT = struct.Struct("<8sB6sBIIQB3x")
_ROOT_SHORT, _ROOT_CHECKSUM, _ROOT_EXTENDED = 20, 8, 32
_SCI = 9  # the interrupt of events, of which there are none
_CENTURY = 0x32  # the CMOS clock's register
_RESET_VALUE = 0x06
_NO_C2, _NO_C3 = 101, 1001  # latencies that say so
# FADT flags: WBINVD, C1 on all, no power button, no sleep button, the reset register.
_FLAGS = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 10
# IA-PC boot architecture flags: VGA not present, no MSI. No 8042, the CMOS clock is there.
_PC = 1 << 2 | 1 << 3
_IO, _ACCESS = 1, {8: 1, 16: 2, 32: 3}


def tables(base: int) -> Mapping[int, bytes]:
    """Return physical address -> table; the root pointer is at `base`."""
    control, code, fixed, index = (base + offset for offset in (0x40, 0x80, 0x100, 0x200))
    return {
        base: _root(index),
        control: struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2),
        code: _table(b"DSDT", 2, b""),
        fixed: _table(b"FACP", 3, _fixed(control, code)),
        index: _table(b"XSDT", 1, struct.pack("<Q", fixed)),
    }


def _fixed(control: int, code: int) -> bytes:
    """Return the FADT: where the fixed hardware is."""
    return b"".join(
        (
            struct.pack("<IIBBHI4B", control, code, 0, 0, _SCI, 0, 0, 0, 0, 0),
            struct.pack("<8I", EVENTS, 0, CONTROL, 0, 0, TIMER, 0, 0),
            struct.pack("<8B", 4, 2, 0, 4, 0, 0, 0, 0),  # bytes of each of these
            struct.pack("<HHHH5B", _NO_C2, _NO_C3, 0, 0, 0, 0, 0, 0, _CENTURY),
            struct.pack("<HxI", _PC, _FLAGS),
            _place(8, RESET),
            struct.pack("<BHB", _RESET_VALUE, 0, 0),
            struct.pack("<QQ", control, code),
            *(_place(32, EVENTS), _place(32, 0), _place(16, CONTROL), _place(16, 0)),
            *(_place(8, 0), _place(32, TIMER), _place(32, 0), _place(32, 0)),
        )
    )


def _place(bits: int, port: int) -> bytes:
    """Return a register's address; port 0: there is none."""
    return struct.pack("<BBBBQ", _IO, bits if port else 0, 0, _ACCESS[bits] if port else 0, port)


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    size = _HEADER.size + len(body)
    header = _HEADER.pack(
        *(signature, size, revision, 0, _ID, _TABLE_ID, 1, _CREATOR, 1),
    )
    return _summed(header + body, _CHECKSUM_AT)


def _root(index: int) -> bytes:
    """Return the RSDP, whose first part has a checksum of its own."""
    found = _ROOT.pack(b"RSD PTR ", 0, _ID, 2, 0, _ROOT.size, index, 0)
    short = _summed(found[:_ROOT_SHORT], _ROOT_CHECKSUM)
    return _summed(short + found[_ROOT_SHORT:], _ROOT_EXTENDED)


def _summed(data: bytes, at: int) -> bytes:
    """Return bytes that add up to 0, by the one at `at`."""
    return data[:at] + bytes((-sum(data) & 0xFF,)) + data[at + 1 :]

# SPDX-License-Identifier: GPL-2.0-or-later
"""The description of a machine's registers that gdb is given (target.xml).

Registers have numbers in the order of the description, and `g` holds all of them in that order.
Source: gdb's manual, appendix "Target Descriptions".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from xml.sax.saxutils import quoteattr

import attrs

from archs import Arch
from archs.levels.debug import VECTOR, Feature, Register

_ELEMENTS = (
    ("ieee_double", 2),
    ("ieee_single", 4),
    ("int64", 2),
    ("int32", 4),
    ("int16", 8),
    ("int8", 16),
)
_FLAGS = "CF=0 PF=2 AF=4 ZF=6 SF=7 TF=8 IF=9 DF=10 OF=11 NT=14 RF=16 VM=17 AC=18 ID=21".split()
# What an operating system would decide: how modules are told, which is not as a program's libraries.
_OSABI = "none"


def _vector() -> str:
    members = [(f"{kind}x{count}", kind, count) for kind, count in _ELEMENTS]
    vectors = "".join(f'<vector id="{n}" type="{k}" count="{c}"/>' for n, k, c in members)
    fields = "".join(f'<field name="{name}" type="{name}"/>' for name, _, _ in members)
    return f'{vectors}<union id="{VECTOR}">{fields}<field name="uint128" type="uint128"/></union>'


def _flags() -> str:
    fields = "".join(
        f'<field name="{name}" start="{bit}" end="{bit}"/>'
        for name, _, bit in (each.partition("=") for each in _FLAGS)
    )
    return f'<flags id="i386_eflags" size="4">{fields}</flags>'


_TYPES = {VECTOR: _vector, "i386_eflags": _flags}


@attrs.frozen
class Description:
    """What a debugger is told of the registers.

    Parameters
    ----------
    arch
        The architecture.
    system
        Registers of the system that the machine lists: the emulator's name -> bits.
    """

    arch: Arch
    system: Mapping[str, int] = attrs.field(factory=dict)

    @cached_property
    def features(self) -> Sequence[Feature]:
        """Features, and one with the registers of the system that are in none of them."""
        debug = self.arch.debugs
        known = {r.source or r.name for f in debug.features for r in f.registers}
        known |= {r.name for f in debug.features for r in f.registers}
        new = tuple(
            Register(name, bits, type="int", group="system")
            for name, bits in self.system.items()
            if name not in known
        )
        return [*debug.features, Feature(debug.system, new)] if new else debug.features

    @cached_property
    def registers(self) -> Sequence[Register]:
        """Every register, by its number."""
        return [register for feature in self.features for register in feature.registers]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each register, by the debugger's name."""
        return {register.name: number for number, register in enumerate(self.registers)}

    @cached_property
    def xml(self) -> bytes:
        """The description."""
        parts = [
            '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">',
            f"<architecture>{self.arch.debugs.architecture}</architecture>",
            f"<osabi>{_OSABI}</osabi>",
        ]
        for feature in self.features:
            parts.append(f"<feature name={quoteattr(feature.name)}>")
            used = {register.type for register in feature.registers}
            parts += [make() for name, make in _TYPES.items() if name in used]
            parts += map(_reg, feature.registers)
            parts.append("</feature>")
        parts.append("</target>")
        return "".join(parts).encode()


def _reg(register: Register) -> str:
    words = {"name": register.name, "bitsize": str(register.bits)}
    if register.type:
        words["type"] = register.type
    if register.group:
        words["group"] = register.group
    return f"<reg {' '.join(f'{name}={quoteattr(value)}' for name, value in words.items())}/>"


def value_of(value: int | None, bits: int) -> bytes:
    """Return a register's value as packets have it: hex, low byte first; `x` for an unknown one."""
    size = (bits + 7) // 8
    if value is None:
        return b"xx" * size
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little").hex().encode()


def number_of(text: bytes) -> int | None:
    """Return what `value_of` made of a number, None for an unknown one; ValueError for neither."""
    if text and not text.strip(b"x"):
        return None
    return int.from_bytes(bytes.fromhex(text.decode("ascii")), "little")

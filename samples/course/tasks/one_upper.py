# SPDX-License-Identifier: GPL-2.0-or-later
"""Place an object so that one upper half of an address serves all of its fields."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from allocator.types import ADDRESS_MASK
from archs import Arch
from archs.op import signed
from archs.reloc import Reloc
from loader.listing import insert
from machine.machine import ModelledMachine
from samples.bench import put, row
from samples.course.task import Answer, AnswerError, Check, Task, Verdict

FIELDS = 0x0, 0x18, 0x58
ALIGNMENT = 8
LESS = 0x38  # by which the least address lies below half a unit of the upper part


@attrs.frozen
class Halves:
    """Two instructions that form an address in the register that holds a result.

    Parameters
    ----------
    names
        Relocations of the two.
    code
        The two without their numbers, and what returns.
    text
        How they are written.
    place
        Address of the first.
    units
        How many times what the upper part counts the object lies away, at least.
    """

    arch: Arch
    names: tuple[str, str]
    code: tuple[bytes, bytes, bytes]
    text: str
    place: int
    units: int

    @property
    def rows(self) -> tuple[Reloc, Reloc]:
        """The relocations' rows."""
        high, low = (row(self.arch, name) for name in self.names)
        return high, low

    @property
    def bits(self) -> int:
        """How many bits the lower part has."""
        return sum(each.bits for part in self.rows[1].parts for each in part.slices)

    @property
    def least(self) -> int:
        """Lowest address that is free."""
        return self._origin + (self.units << self.bits) + (1 << self.bits - 1) - LESS

    @property
    def _origin(self) -> int:
        return self.place if self.rows[0].op.relative else self.place >> 32 << 32

    def filled(self, upper: int, address: int) -> bytes:
        """Return a function with this upper part, and the lower one that a linker takes."""
        high, low = self.rows
        bare = attrs.evolve(high, parts=tuple(attrs.evolve(part, bias=0) for part in high.parts))
        first, second, last = self.code
        x = address - self.place if high.op.relative else address
        return insert(bare, first, upper << self.bits) + insert(low, second, x) + last

    def leads(self, upper: int, address: int) -> Iterator[int]:
        """Yield for each field the address that is formed, executed."""
        machine = ModelledMachine(self.arch)
        for field in FIELDS:
            at = put(machine, self.filled(upper, address + field))
            moved = at - self.place if self.rows[0].op.relative else 0
            yield (machine.call(at) - moved) & ADDRESS_MASK


def _code(first: str, second: str, last: str) -> tuple[bytes, bytes, bytes]:
    return bytes.fromhex(first), bytes.fromhex(second), bytes.fromhex(last)


_PAIRS = {
    "riscv64": (
        ("R_RISCV_PCREL_HI20", "R_RISCV_LO12_I"),
        _code("17050000", "13050500", "67800000"),
        "auipc a0, upper ; addi a0, a0, lower",
        0xFFFF_FFFF_7800_0000,
        2,
    ),
    "mips64el": (
        ("R_MIPS_HI16", "R_MIPS_LO16"),
        _code("0000023c", "00004264", "0800e00300000000"),
        "lui v0, upper ; daddiu v0, v0, lower",
        0xFFFF_FFFF_C000_1000,
        0xC024,
    ),
}


def halves(arch: Arch) -> Halves:
    """Return the pair of an architecture that has one."""
    return Halves(arch, *_PAIRS[arch.name])


def _text(arch: Arch) -> str:
    pair = halves(arch)
    origin = f" from {pair.place:#x}, where it stands" if pair.rows[0].op.relative else ""
    fields = ", ".join(f"+{field:#x}" for field in FIELDS)
    return (
        f"An object has fields at {fields}. Code forms the upper part of its\n"
        f"address once, and each field has a lower part of its own:\n  {pair.text}\n"
        f"The first instruction counts in units of {1 << pair.bits:#x} bytes{origin}; the second\n"
        f"adds the lowest {pair.bits} bits of what is wanted, as a number with a sign. Memory is free\n"
        f"from {pair.least:#x} on. Say where the object lies, at a multiple of\n"
        f"{ALIGNMENT}, and which number the first instruction has, so that it serves all fields."
    )


def _grade(answer: Answer) -> Verdict:
    pair = halves(answer.arch)
    address, upper = answer.number("address") & ADDRESS_MASK, answer.number("upper")
    if address % ALIGNMENT:
        raise AnswerError(answer.file, f"address = {address:#x}: no multiple of {ALIGNMENT}")
    if not 0 <= upper < 1 << 32 - pair.bits:
        reason = f"upper = {upper:#x}: expected a number in [0x0, {1 << 32 - pair.bits:#x})"
        raise AnswerError(answer.file, reason)
    above = address - pair.least
    checks = [Check("the object lies at", f"{address:#x}", f"{pair.least:#x} or above", above >= 0)]
    for field, led in zip(FIELDS, pair.leads(upper, address), strict=True):
        wanted = (address + field) & ADDRESS_MASK
        off = f", off by {signed(led - wanted):+#x}" if led != wanted else ""
        checks.append(
            Check(f"the field at +{field:#x}", f"{led:#x}{off}", f"{wanted:#x}", led == wanted)
        )
    return Verdict(tuple(checks), abs(above))


def _template(arch: Arch) -> str:
    pair = halves(arch)
    return f'address = "{pair.least:#x}"\nupper = "{pair.units & 0xFFFF:#x}"\n'


TASK = Task(
    name="one-upper",
    title="Place an object so that one upper half serves all of its fields.",
    text=_text,
    template=_template,
    hints=(
        "Which fields lead right as the file stands, and by how much do the others miss?",
        (
            "A lower part whose highest bit is set counts as negative. So all fields need the upper "
            "part that counts up, or none of them does."
        ),
        (
            "The first field's lower part may not lie below half a unit when the last one's does not. "
            "Go up to where the first one's is just half a unit; there the upper part is one more."
        ),
    ),
    grade=_grade,
    unit="bytes left free below",
    best={"riscv64": LESS, "mips64el": LESS},
)

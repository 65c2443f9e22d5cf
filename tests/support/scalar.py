# SPDX-License-Identifier: GPL-2.0-or-later
"""A second relocator: slow, one relocation at a time, written from the psABI documents.

It shares no code with the product and is built differently on purpose: each formula is an
expression, each instruction format a function that assembles the word from named fields,
each limit a closed interval as the documents print them. Where the two agree, the rows of
the product say what the documents say.

Sources: System V ABI AMD64 supplement, table 4.9; ELF for the Arm 64-bit Architecture,
5.7.5 to 5.7.9 and the A64 encodings; RISC-V ELF psABI, 8.4, and the RISC-V unprivileged
specification, 2.3 and 16.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs

from tests.support.elfwriter import AARCH64, RISCV, X86_64

MASK64 = (1 << 64) - 1


@attrs.frozen
class Record:
    """One relocation: `offset` in the image, P, S, A (signed), type, and its section's number."""

    offset: int
    place: int
    value: int
    addend: int
    type: int
    group: int = 0


@attrs.frozen
class Rule:
    """One relocation type of a psABI.

    Parameters
    ----------
    formula
        X from S + A and P, unbounded.
    size
        Bytes that it touches.
    store
        Returns the new bytes from the old ones and X.
    lowest, highest
        The closed interval that X must lie in; None where the document checks nothing.
    align
        X must be a multiple of this.
    """

    formula: Callable[[int, int], int]
    size: int
    store: Callable[[bytes, int], bytes]
    lowest: int | None = None
    highest: int | None = None
    align: int = 1


def signed(x: int) -> int:
    """Return a 64-bit pattern as a signed number."""
    x &= MASK64
    return x - (1 << 64) if x >> 63 else x


def absolute(sa: int, _p: int) -> int:
    """Return S + A."""
    return sa


def relative(sa: int, p: int) -> int:
    """Return S + A - P."""
    return sa - p


def page(sa: int, p: int) -> int:
    """Return Page(S + A) - Page(P)."""
    return (sa >> 12 << 12) - (p >> 12 << 12)


def plain(size: int) -> Callable[[bytes, int], bytes]:
    """Return the writer of a little-endian word."""
    return lambda _old, x: (x & (1 << 8 * size) - 1).to_bytes(size, "little")


def _instruction(
    size: int, keep: int, fields: Callable[[int], int]
) -> Callable[[bytes, int], bytes]:
    """Return the writer of an instruction word; `keep` are the bits that stay."""

    def store(old: bytes, x: int) -> bytes:
        word = int.from_bytes(old, "little") & keep
        return (word | fields(x & MASK64)).to_bytes(size, "little")

    return store


def bit(x: int, n: int) -> int:
    """Return bit n of x."""
    return x >> n & 1


# A64: immhi:immlo of ADR and ADRP; imm26; imm19; imm14; imm12; imm16.
def _adr(imm21: int) -> int:
    return (imm21 & 3) << 29 | (imm21 >> 2 & 0x7FFFF) << 5


_ADR_KEEP = 0b1_00_11111_0000000000000000000_11111


def _a64(keep: int, fields: Callable[[int], int]) -> Callable[[bytes, int], bytes]:
    return _instruction(4, keep, fields)


def _low12(log2: int) -> Callable[[bytes, int], bytes]:
    return _a64(0xFFC0_03FF, lambda x: (x & 0xFFF) >> log2 << 10)


def _imm16(group: int) -> Callable[[bytes, int], bytes]:
    return _a64(0xFFE0_001F, lambda x: (x >> 16 * group & 0xFFFF) << 5)


# RISC-V formats, immediates bit by bit as the specification's tables give them.
def _u(x: int) -> int:
    return (x + 0x800 >> 12 & 0xFFFFF) << 12


def _i(x: int) -> int:
    return (x & 0xFFF) << 20


def _s(x: int) -> int:
    return (x >> 5 & 0x7F) << 25 | (x & 0x1F) << 7


def _b(x: int) -> int:
    return bit(x, 12) << 31 | (x >> 5 & 0x3F) << 25 | (x >> 1 & 0xF) << 8 | bit(x, 11) << 7


def _j(x: int) -> int:
    return bit(x, 20) << 31 | (x >> 1 & 0x3FF) << 21 | bit(x, 11) << 20 | (x >> 12 & 0xFF) << 12


def _cb(x: int) -> int:
    return (
        bit(x, 8) << 12
        | (x >> 3 & 3) << 10
        | (x >> 6 & 3) << 5
        | (x >> 1 & 3) << 3
        | bit(x, 5) << 2
    )


def _cj(x: int) -> int:
    order = (11, 4, 9, 8, 10, 6, 7, 3, 2, 1, 5)  # bits 12 down to 2 of the parcel
    return sum(bit(x, n) << 12 - k for k, n in enumerate(order))


def _call(old: bytes, x: int) -> bytes:
    auipc = _instruction(4, 0xFFF, _u)(old[:4], x)
    return auipc + _instruction(4, 0xFFFFF, _i)(old[4:], x)


def _word(size: int, fields: Callable[[int], int]) -> Callable[[bytes, int], bytes]:
    covered = fields(MASK64) if fields is not _u else 0xFFFFF000
    return _instruction(size, (1 << 8 * size) - 1 & ~covered, fields)


_S32 = (-0x80000000, 0x7FFFFFFF)
_U32 = (0, 0xFFFFFFFF)
_PAIR = (-0x80000800, 0x7FFFF7FF)
_MIB1 = (-0x100000, 0xFFFFC)

RULES: Mapping[int, Mapping[int, Rule]] = {
    X86_64: {
        1: Rule(absolute, 8, plain(8)),
        2: Rule(relative, 4, plain(4), *_S32),
        4: Rule(relative, 4, plain(4), *_S32),
        10: Rule(absolute, 4, plain(4), *_U32),
        11: Rule(absolute, 4, plain(4), *_S32),
        12: Rule(absolute, 2, plain(2), 0, 0xFFFF),
        13: Rule(relative, 2, plain(2), -0x8000, 0x7FFF),
        14: Rule(absolute, 1, plain(1), 0, 0xFF),
        15: Rule(relative, 1, plain(1), -0x80, 0x7F),
        24: Rule(relative, 8, plain(8)),
    },
    AARCH64: {
        257: Rule(absolute, 8, plain(8)),
        258: Rule(absolute, 4, plain(4), -0x80000000, 0xFFFFFFFF),
        259: Rule(absolute, 2, plain(2), -0x8000, 0xFFFF),
        260: Rule(relative, 8, plain(8)),
        261: Rule(relative, 4, plain(4), *_S32),
        262: Rule(relative, 2, plain(2), -0x8000, 0x7FFF),
        263: Rule(absolute, 4, _imm16(0), 0, 0xFFFF),
        264: Rule(absolute, 4, _imm16(0)),
        265: Rule(absolute, 4, _imm16(1), *_U32),
        266: Rule(absolute, 4, _imm16(1)),
        267: Rule(absolute, 4, _imm16(2), 0, 0xFFFF_FFFF_FFFF),
        268: Rule(absolute, 4, _imm16(2)),
        269: Rule(absolute, 4, _imm16(3)),
        273: Rule(relative, 4, _a64(0xFF00001F, lambda x: (x >> 2 & 0x7FFFF) << 5), *_MIB1, 4),
        274: Rule(relative, 4, _a64(_ADR_KEEP, _adr), -0x100000, 0xFFFFF),
        275: Rule(page, 4, _a64(_ADR_KEEP, lambda x: _adr(x >> 12)), -0x1_0000_0000, 0xFFFF_F000),
        276: Rule(page, 4, _a64(_ADR_KEEP, lambda x: _adr(x >> 12))),
        277: Rule(absolute, 4, _low12(0)),
        278: Rule(absolute, 4, _low12(0)),
        279: Rule(
            relative, 4, _a64(0xFFF8001F, lambda x: (x >> 2 & 0x3FFF) << 5), -0x8000, 0x7FFC, 4
        ),
        280: Rule(relative, 4, _a64(0xFF00001F, lambda x: (x >> 2 & 0x7FFFF) << 5), *_MIB1, 4),
        282: Rule(
            relative, 4, _a64(0xFC000000, lambda x: x >> 2 & 0x3FFFFFF), -0x8000000, 0x7FFFFFC, 4
        ),
        283: Rule(
            relative, 4, _a64(0xFC000000, lambda x: x >> 2 & 0x3FFFFFF), -0x8000000, 0x7FFFFFC, 4
        ),
        284: Rule(absolute, 4, _low12(1), align=2),
        285: Rule(absolute, 4, _low12(2), align=4),
        286: Rule(absolute, 4, _low12(3), align=8),
        299: Rule(absolute, 4, _low12(4), align=16),
    },
    RISCV: {
        1: Rule(absolute, 4, plain(4), -0x80000000, 0xFFFFFFFF),
        2: Rule(absolute, 8, plain(8)),
        16: Rule(relative, 4, _word(4, _b), -4096, 4094, 2),
        17: Rule(relative, 4, _word(4, _j), -0x100000, 0xFFFFE, 2),
        18: Rule(relative, 8, _call, *_PAIR),
        19: Rule(relative, 8, _call, *_PAIR),
        23: Rule(relative, 4, _word(4, _u), *_PAIR),
        24: Rule(absolute, 4, _word(4, _i)),  # X is the paired HI20's: see `apply`
        25: Rule(absolute, 4, _word(4, _s)),
        26: Rule(absolute, 4, _word(4, _u), *_PAIR),
        27: Rule(absolute, 4, _word(4, _i)),
        28: Rule(absolute, 4, _word(4, _s)),
        33: Rule(absolute, 1, plain(1)),  # ADD and SUB accumulate: see `apply`
        34: Rule(absolute, 2, plain(2)),
        35: Rule(absolute, 4, plain(4)),
        36: Rule(absolute, 8, plain(8)),
        37: Rule(absolute, 1, plain(1)),
        38: Rule(absolute, 2, plain(2)),
        39: Rule(absolute, 4, plain(4)),
        40: Rule(absolute, 8, plain(8)),
        44: Rule(relative, 2, _word(2, _cb), -256, 254, 2),
        45: Rule(relative, 2, _word(2, _cj), -2048, 2046, 2),
        57: Rule(relative, 4, plain(4), *_S32),
    },
}
NOTHING = {X86_64: {0}, AARCH64: {0, 256}, RISCV: {0, 51}}
PAIRED = {24, 25}
ADD, SUB = {33, 34, 35, 36}, {37, 38, 39, 40}


def is_pair(machine: int, number: int) -> bool:
    """Return whether X comes from another relocation."""
    return machine == RISCV and number in PAIRED


def accumulates(machine: int, number: int) -> bool:
    """Return whether relocations of this type at one place add up."""
    return machine == RISCV and number in ADD | SUB


def value_of(machine: int, record: Record) -> int:
    """Return X of a record that stands for itself, as a signed 64-bit number."""
    rule = RULES[machine][record.type]
    return signed(rule.formula((record.value + record.addend) & MASK64, record.place))


def fits(machine: int, number: int, x: int) -> bool:
    """Return whether the document lets a relocation hold X."""
    rule = RULES[machine][number]
    low, high = rule.lowest, rule.highest
    return (low is None or low <= x) and (high is None or x <= high) and x % rule.align == 0


def apply(machine: int, image: bytearray, records: Sequence[Record]) -> None:
    """Relocate `image` in place, record by record, in order."""
    sums: dict[int, int] = {}
    for record in records:
        if record.type in NOTHING[machine]:
            continue
        rule = RULES[machine][record.type]
        if accumulates(machine, record.type):
            sign = 1 if record.type in ADD else -1
            # The kernel starts a group from zero, whatever stands at the place.
            x = sums.get(record.offset, 0) + sign * (record.value + record.addend)
            sums[record.offset] = x
        elif is_pair(machine, record.type):
            x = value_of(machine, _high(records, record))
        else:
            x = value_of(machine, record)
            assert fits(machine, record.type, x), f"type {record.type}: {x:#x}"
        old = bytes(image[record.offset : record.offset + rule.size])
        image[record.offset : record.offset + rule.size] = rule.store(old, x)


def _high(records: Sequence[Record], low: Record) -> Record:
    """Return the PCREL_HI20 whose place is the low part's symbol."""
    return next(
        r for r in records if r.type == 23 and r.group == low.group and r.place == low.value
    )

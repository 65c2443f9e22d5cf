# SPDX-License-Identifier: GPL-2.0-or-later
"""A second relocator: slow, one relocation at a time, written from the psABI documents.

It shares no code with the product and is built differently on purpose: each formula is an
expression, each instruction format a function that assembles the word from named fields,
each limit a closed interval as the documents print them. Where the two agree, the rows of
the product say what the documents say.

Sources: System V ABI AMD64 supplement, tables 4.9 and 4.10; ELF for the Arm 64-bit
Architecture, 5.7.5 to 5.7.9 and the A64 encodings; RISC-V ELF psABI, 8.4, and the RISC-V
unprivileged specification, 2.3 and 16.2. The documents leave the width of label differences
unchecked; here they must be readable as a signed or an unsigned word. PREL32 and PREL16 of
aaelf64 may be read either way too; users and the kernel read them as signed, and so do we.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs

from tests.support.elfwriter import AARCH64, RISCV, X86_64

MASK64 = (1 << 64) - 1


@attrs.frozen
class Record:
    """One relocation: `offset` in the image, P, S (or Z), A (signed), type, its section's number."""

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


def _movnz(group: int) -> Callable[[bytes, int], bytes]:
    """Return the writer of MOVZ for X >= 0, of MOVN and the complement for X < 0."""

    def fields(x: int) -> int:
        opc, value = (0b00, ~x) if x >> 63 else (0b10, x)
        return opc << 29 | (value >> 16 * group & 0xFFFF) << 5

    return _a64(0x9FE0_001F, fields)


def _imm12(low: int) -> Callable[[bytes, int], bytes]:
    return _a64(0xFFC0_03FF, lambda x: (x >> low & 0xFFF) << 10)


_IMM19 = _a64(0xFF00_001F, lambda x: (x >> 2 & 0x7FFFF) << 5)


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
_GIB4_PAGES = (-0x1_0000_0000, 0xFFFF_F000)


def _within(bits: int) -> tuple[int, int]:
    """Return -2^bits <= X < 2^bits."""
    return -(1 << bits), (1 << bits) - 1


def _either(bits: int) -> tuple[int, int]:
    """Return the interval of a word that is read as signed or as unsigned."""
    return -(1 << bits - 1), (1 << bits) - 1


def _store6(old: bytes, x: int) -> bytes:
    return bytes((old[0] & 0xC0 | x & 0x3F,))


def _uleb128(old: bytes, x: int) -> bytes:
    """Return X in the groups of seven bits that `old` has, however few X needs."""
    count = 1 + next(n for n, byte in enumerate(old) if byte < 0x80)
    groups = [x >> 7 * n & 0x7F for n in range(count)]
    return bytes(g | 0x80 for g in groups[:-1]) + bytes(groups[-1:]) + old[count:]


RULES: Mapping[int, Mapping[int, Rule]] = {
    X86_64: {
        1: Rule(absolute, 8, plain(8)),
        2: Rule(relative, 4, plain(4), *_S32),
        4: Rule(relative, 4, plain(4), *_S32),
        10: Rule(absolute, 4, plain(4), *_U32),
        11: Rule(absolute, 4, plain(4), *_S32),
        12: Rule(absolute, 2, plain(2), *_either(16)),
        13: Rule(relative, 2, plain(2), -0x8000, 0x7FFF),
        14: Rule(absolute, 1, plain(1), *_either(8)),
        15: Rule(relative, 1, plain(1), -0x80, 0x7F),
        24: Rule(relative, 8, plain(8)),
        # What stands for S where a GOT is used: see GOT.
        3: Rule(absolute, 4, plain(4), *_S32),
        9: Rule(relative, 4, plain(4), *_S32),
        25: Rule(absolute, 8, plain(8)),
        26: Rule(relative, 4, plain(4), *_S32),
        27: Rule(absolute, 8, plain(8)),
        28: Rule(relative, 8, plain(8)),
        29: Rule(relative, 8, plain(8)),
        30: Rule(absolute, 8, plain(8)),
        31: Rule(absolute, 8, plain(8)),
        41: Rule(relative, 4, plain(4), *_S32),
        42: Rule(relative, 4, plain(4), *_S32),
        # Z stands for S.
        32: Rule(absolute, 4, plain(4), *_U32),
        33: Rule(absolute, 8, plain(8)),
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
        270: Rule(absolute, 4, _movnz(0), *_within(16)),
        271: Rule(absolute, 4, _movnz(1), *_within(32)),
        272: Rule(absolute, 4, _movnz(2), *_within(48)),
        273: Rule(relative, 4, _IMM19, *_MIB1, 4),
        274: Rule(relative, 4, _a64(_ADR_KEEP, _adr), -0x100000, 0xFFFFF),
        275: Rule(page, 4, _a64(_ADR_KEEP, lambda x: _adr(x >> 12)), *_GIB4_PAGES),
        276: Rule(page, 4, _a64(_ADR_KEEP, lambda x: _adr(x >> 12))),
        277: Rule(absolute, 4, _low12(0)),
        278: Rule(absolute, 4, _low12(0)),
        279: Rule(
            relative, 4, _a64(0xFFF8001F, lambda x: (x >> 2 & 0x3FFF) << 5), -0x8000, 0x7FFC, 4
        ),
        280: Rule(relative, 4, _IMM19, *_MIB1, 4),
        282: Rule(
            relative, 4, _a64(0xFC000000, lambda x: x >> 2 & 0x3FFFFFF), -0x8000000, 0x7FFFFFC, 4
        ),
        283: Rule(
            relative, 4, _a64(0xFC000000, lambda x: x >> 2 & 0x3FFFFFF), -0x8000000, 0x7FFFFFC, 4
        ),
        284: Rule(absolute, 4, _low12(1), align=2),
        285: Rule(absolute, 4, _low12(2), align=4),
        286: Rule(absolute, 4, _low12(3), align=8),
        287: Rule(relative, 4, _movnz(0), *_within(16)),
        288: Rule(relative, 4, _imm16(0)),
        289: Rule(relative, 4, _movnz(1), *_within(32)),
        290: Rule(relative, 4, _imm16(1)),
        291: Rule(relative, 4, _movnz(2), *_within(48)),
        292: Rule(relative, 4, _imm16(2)),
        293: Rule(relative, 4, _movnz(3)),
        299: Rule(absolute, 4, _low12(4), align=16),
        300: Rule(absolute, 4, _movnz(0), *_within(16)),
        301: Rule(absolute, 4, _imm16(0)),
        302: Rule(absolute, 4, _movnz(1), *_within(32)),
        303: Rule(absolute, 4, _imm16(1)),
        304: Rule(absolute, 4, _movnz(2), *_within(48)),
        305: Rule(absolute, 4, _imm16(2)),
        306: Rule(absolute, 4, _movnz(3)),
        307: Rule(absolute, 8, plain(8)),
        308: Rule(absolute, 4, plain(4), *_S32),
        309: Rule(relative, 4, _IMM19, *_MIB1, 4),
        310: Rule(absolute, 4, _imm12(3), 0, 0x7FF8, 8),
        311: Rule(page, 4, _a64(_ADR_KEEP, lambda x: _adr(x >> 12)), *_GIB4_PAGES),
        312: Rule(absolute, 4, _low12(3), align=8),
        313: Rule(absolute, 4, _imm12(3), 0, 0x7FF8, 8),
        314: Rule(relative, 4, plain(4), *_S32),
        315: Rule(relative, 4, plain(4), *_S32),
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
        20: Rule(relative, 4, _word(4, _u), *_PAIR),
        # ADD, SUB and SET accumulate: see `apply`.
        33: Rule(absolute, 1, plain(1), *_either(8)),
        34: Rule(absolute, 2, plain(2), *_either(16)),
        35: Rule(absolute, 4, plain(4), *_either(32)),
        36: Rule(absolute, 8, plain(8)),
        37: Rule(absolute, 1, plain(1), *_either(8)),
        38: Rule(absolute, 2, plain(2), *_either(16)),
        39: Rule(absolute, 4, plain(4), *_either(32)),
        40: Rule(absolute, 8, plain(8)),
        41: Rule(relative, 4, plain(4), *_S32),
        52: Rule(absolute, 1, _store6, 0, 63),
        53: Rule(absolute, 1, _store6, 0, 63),
        54: Rule(absolute, 1, plain(1), *_either(8)),
        55: Rule(absolute, 2, plain(2), *_either(16)),
        56: Rule(absolute, 4, plain(4), *_either(32)),
        59: Rule(relative, 4, plain(4), *_S32),
        60: Rule(absolute, 1, _uleb128),  # at least one byte
        61: Rule(absolute, 1, _uleb128),
        44: Rule(relative, 2, _word(2, _cb), -256, 254, 2),
        45: Rule(relative, 2, _word(2, _cj), -2048, 2046, 2),
        57: Rule(relative, 4, plain(4), *_S32),
    },
}
NOTHING = {X86_64: {0}, AARCH64: {0, 256}, RISCV: {0, 51}}
PAIRED, HIGH = {24, 25}, {20, 23}
ADD, SUB, SET = {33, 34, 35, 36}, {37, 38, 39, 40, 52, 61}, {53, 54, 55, 56, 60}
ULEB128 = {60, 61}
SIZED = {X86_64: {32, 33}, AARCH64: set[int](), RISCV: set[int]()}  # Z stands for S

Slot = Callable[[int], int]
# X, before P is subtracted, of the types that use a GOT: S, A, the table's address GOT, and
# the function G from what a slot holds to its address.
GOT: Mapping[int, Mapping[int, Callable[[int, int, int, Slot], int]]] = {
    X86_64: {
        **dict.fromkeys((3, 27, 30), lambda s, a, got, g: g(s) - got + a),
        **dict.fromkeys((9, 28, 41, 42), lambda s, a, _got, g: g(s) + a),
        **dict.fromkeys((25, 31), lambda s, a, got, _g: s + a - got),
        **dict.fromkeys((26, 29), lambda _s, a, got, _g: got + a),
    },
    AARCH64: {
        **dict.fromkeys((*range(300, 307), 310), lambda s, a, got, g: g(s + a) - got),
        **dict.fromkeys((307, 308), lambda s, a, got, _g: s + a - got),
        **dict.fromkeys((309, 311, 312), lambda s, a, _got, g: g(s + a)),
        313: lambda s, a, got, g: g(s + a) - (got >> 12 << 12),
        315: lambda s, a, _got, g: g(s) + a,
    },
    RISCV: dict.fromkeys((20, 41), lambda s, a, _got, g: g(s) + a),
}


def is_pair(machine: int, number: int) -> bool:
    """Return whether X comes from another relocation."""
    return machine == RISCV and number in PAIRED


def is_high(machine: int, number: int) -> bool:
    """Return whether paired relocations take their X from this one."""
    return machine == RISCV and number in HIGH


def accumulates(machine: int, number: int) -> bool:
    """Return whether relocations of this type at one place add up."""
    return machine == RISCV and number in ADD | SUB | SET


def value_of(machine: int, record: Record) -> int:
    """Return X of a record that stands for itself, as a signed 64-bit number."""
    rule = RULES[machine][record.type]
    return signed(rule.formula((record.value + record.addend) & MASK64, record.place))


def fits(machine: int, number: int, x: int) -> bool:
    """Return whether the document lets a relocation hold X."""
    rule = RULES[machine][number]
    low, high = rule.lowest, rule.highest
    return (low is None or low <= x) and (high is None or x <= high) and x % rule.align == 0


def total(records: Sequence[Record]) -> int:
    """Return what the records of one place accumulate, as a signed 64-bit number.

    The kernel starts from zero, whatever stands at the place; SET starts anew.
    """
    x = 0
    for record in records:
        value = record.value + record.addend
        x = value if record.type in SET else x - value if record.type in SUB else x + value
    return signed(x)


def apply(machine: int, image: bytearray, records: Sequence[Record]) -> None:
    """Relocate `image` in place, record by record, in order; places that accumulate at the end."""
    sums: dict[int, list[Record]] = {}
    highs = {(r.group, r.place): r for r in records if is_high(machine, r.type)}
    for record in records:
        if record.type in NOTHING[machine]:
            continue
        if accumulates(machine, record.type):
            sums.setdefault(record.offset, []).append(record)
            continue
        if is_pair(machine, record.type):
            x = value_of(machine, highs[record.group, record.value])
        else:
            x = value_of(machine, record)
            assert fits(machine, record.type, x), f"type {record.type}: {x:#x}"
        store(machine, image, record, x)
    for them in sums.values():
        x = total(them)
        assert fits(machine, them[-1].type, x), f"type {them[-1].type}: {x:#x}"
        store(machine, image, them[-1], x)


def width(machine: int, record: Record) -> int:
    """Return the bytes that a record touches; of a ULEB128 only the first is certain."""
    return 0 if record.type in NOTHING[machine] else RULES[machine][record.type].size


def store(machine: int, image: bytearray, record: Record, x: int) -> None:
    """Put X into the place of `record`."""
    rule = RULES[machine][record.type]
    size = 10 if record.type in ULEB128 and machine == RISCV else rule.size
    old = bytes(image[record.offset : record.offset + size])
    image[record.offset : record.offset + len(old)] = rule.store(old, x)

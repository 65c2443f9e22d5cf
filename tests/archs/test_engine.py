# SPDX-License-Identifier: GPL-2.0-or-later
"""The relocation engine against a scalar model written from the psABI documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
from archs import engine
from archs.engine import Failure, Problem, Records, apply, numbers_in
from archs.op import Op
from archs.reloc import Checks, Reloc
from tests.archs.facts import facts, known
from tests.support import scalar
from tests.support.scalar import MASK64, Record, signed


def scalar_limit(arch: archs.Arch, row: Reloc) -> bool:
    """Return whether the psABI says which X fit."""
    rules = known(arch, "link", "rules") or {}
    return row.number in rules and rules[row.number].lowest is not None


SUPPORTED = [
    pytest.param(arch, row, id=f"{row.name}-{row.number}")
    for arch in archs.ALL
    for row in arch.link.relocations.values()
    if not row.unsupported and row.op is not Op.NONE
]
STANDING_ALONE = [
    p for p in SUPPORTED if p.values[1].op is not Op.PAIR and not p.values[1].accumulates
]
ACCUMULATING = [p for p in SUPPORTED if p.values[1].accumulates]
LIMITED = [p for p in STANDING_ALONE if p.values[1].reach is not None]
BOUNDED = [p for p in LIMITED if scalar_limit(*p.values)]
SUMS = [p for p in ACCUMULATING if scalar_limit(*p.values)]
BASE = 0xFFFF_FFFF_C000_0000


def records(them: Sequence[Record]) -> Records:
    """Return the engine's arrays of scalar records."""
    return Records(
        offset=np.array([r.offset for r in them], np.intp),
        place=np.array([r.place for r in them], np.uint64),
        target=np.array([r.value + r.addend & MASK64 for r in them], np.uint64),
        addend=np.array([r.addend & MASK64 for r in them], np.uint64),
        type=np.array([r.type for r in them], np.uint32),
        group=np.array([r.group for r in them], np.uint64),
    )


def run(
    arch: archs.Arch, image: bytes, them: Sequence[Record], **options: Any
) -> tuple[bytes, Sequence[Failure]]:
    """Apply records to a copy of `image`; return the bytes and the failures.

    Few records are applied in another way than many; here both are taken, and must agree.
    """
    found = []
    for few in (engine.FEW, 0):
        buffer = np.frombuffer(image, np.uint8).copy()
        with mock.patch.multiple(engine, FEW=few, HARDLY=few):
            failures = apply(arch.link.relocations, buffer, records(them), **options)
        told = [(f.problem, f.row, f.index.tolist(), f.x.tolist()) for f in failures]
        found.append((buffer.tobytes() if not failures else b"", told))
    assert found[0] == found[1]
    return buffer.tobytes(), failures


def with_x(
    arch: archs.Arch,
    row: Reloc,
    x: int,
    *,
    offset: int = 0,
    addend: int = 0,
    place: int = BASE,
) -> Record:
    """Return a record of `row` at `place` whose X is `x`."""
    rule = facts(arch).link.rules[row.number]
    target = -x if row.op is Op.SUB else x - rule.formula(0, place)
    return Record(offset, place, (target - addend) & MASK64, addend, row.number)


@pytest.mark.parametrize(("arch", "row"), BOUNDED + SUMS)
def test_the_ends_of_a_reach_are_exact(arch: archs.Arch, row: Reloc) -> None:
    """The first and last X of the psABI's interval are applied, one step beyond is refused."""
    rule = facts(arch).link.rules[row.number]
    step = 4096 if row.op is Op.PAGE else rule.align
    image = bytes(range(1, 17))
    for x in (rule.lowest, rule.highest):
        record = with_x(arch, row, x)
        expected = bytearray(image)
        scalar.apply(arch.machine, expected, [record])
        assert run(arch, image, [record]) == (bytes(expected), [])
    for x in (rule.lowest - step, rule.highest + step):
        _, (failure,) = run(arch, image, [with_x(arch, row, x)])
        assert failure.problem is Problem.RANGE
        assert failure.row is row
        assert failure.index.tolist() == [0]
        assert [signed(v) for v in failure.x.tolist()] == [x]


@pytest.mark.parametrize(("arch", "row"), [p for p in LIMITED if p.values[1].reach.align > 1])
def test_bits_that_a_field_drops_must_be_zero(arch: archs.Arch, row: Reloc) -> None:
    """An X that is no multiple of the field's unit is refused, by the hardware's checks only."""
    align = facts(arch).link.rules[row.number].align
    image = bytes(16)
    for x in (1, align - 1, align + 1, 2 * align - 1):
        _, (failure,) = run(arch, image, [with_x(arch, row, x)])
        assert (failure.problem, failure.index.tolist()) == (Problem.ALIGN, [0])
        if row.kernel:
            assert run(arch, image, [with_x(arch, row, x)], checks=Checks.KERNEL)[1] == []
    assert run(arch, image, [with_x(arch, row, align)])[1] == []


@pytest.mark.parametrize(("arch", "row"), [p for p in STANDING_ALONE if p.values[1].reach is None])
def test_a_row_without_a_reach_takes_every_value(arch: archs.Arch, row: Reloc) -> None:
    """Where the psABI checks nothing, the extremes of 64 bits are applied."""
    for x in (0, -1, -(1 << 63), (1 << 63) - 1, 0x8000_0000):
        record = with_x(arch, row, x & ~0xFFF if row.op is Op.PAGE else x)
        expected = bytearray(16)
        scalar.apply(arch.machine, expected, [record])
        assert run(arch, bytes(16), [record]) == (bytes(expected), [])


@pytest.mark.parametrize(
    ("number", "inside", "outside"),
    [
        # arch/arm64/kernel/module.c, reloc_data: the kernel takes ABS words as unsigned.
        (258, (0, 0xFFFF_FFFF), (-1, 1 << 32)),
        (259, (0, 0xFFFF), (-1, 0x10000)),
    ],
)
def test_arm64_kernel_checks_of_data_words(
    number: int, inside: tuple[int, ...], outside: tuple[int, ...]
) -> None:
    """With the kernel's checks ABS32 and ABS16 are unsigned, unlike in the psABI."""
    arch = archs.arch("arm64")
    row = arch.link.relocations[number]
    for x in inside:
        assert run(arch, bytes(8), [with_x(arch, row, x)], checks=Checks.KERNEL)[1] == []
    for x in outside:
        (failure,) = run(arch, bytes(8), [with_x(arch, row, x)], checks=Checks.KERNEL)[1]
        assert failure.problem is Problem.RANGE


@pytest.mark.parametrize(
    ("name", "numbers"),
    # arch/x86/kernel/module.c writes PC32 and PLT32 unchecked; arch/riscv/kernel/module.c
    # writes branches, jumps and 32_PCREL unchecked, and adds up in words of the field's width.
    [
        ("x86_64", (2, 4)),
        ("riscv64", (16, 17, 44, 45, 57, 33, 34, 35, 37, 38, 39, 52, 53, 54, 55, 56)),
    ],
)
def test_kernel_writes_some_fields_unchecked(name: str, numbers: tuple[int, ...]) -> None:
    """With the kernel's checks these truncate silently; the hardware's checks refuse them."""
    arch = archs.arch(name)
    for number in numbers:
        record = with_x(arch, arch.link.relocations[number], 1 << 40)
        assert run(arch, bytes(8), [record], checks=Checks.KERNEL)[1] == []
        assert [f.problem for f in run(arch, bytes(8), [record])[1]] == [Problem.RANGE]


@pytest.mark.parametrize(("arch", "row"), [p for p in SUPPORTED if not p.values[1].kernel])
def test_what_the_kernel_does_not_know_its_checks_refuse(arch: archs.Arch, row: Reloc) -> None:
    """Types that no kernel loader handles are applied by the hardware's checks only."""
    _, (failure,) = run(arch, bytes(16), [with_x(arch, row, 0)], checks=Checks.KERNEL)
    assert (failure.problem, failure.row) == (Problem.UNSUPPORTED, row)
    assert run(arch, bytes(16), [with_x(arch, row, 0)])[1] == []


@pytest.mark.parametrize(("arch", "row"), STANDING_ALONE)
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_each_row_equals_the_scalar_model(
    arch: archs.Arch, row: Reloc, data: st.DataObject
) -> None:
    """A row alone, several records of it, at odd and even places, over whatever stood there."""
    count = data.draw(st.integers(1, 3))
    step = data.draw(st.sampled_from((8, 9, 16)))
    image = data.draw(st.binary(min_size=step * count + 8, max_size=step * count + 8))
    them = [
        with_x(arch, row, _in_range(data.draw, arch, row), offset=step * n, place=BASE + 4096 * n)
        for n in range(count)
    ]
    expected = bytearray(image)
    scalar.apply(arch.machine, expected, them)
    assert run(arch, image, them) == (bytes(expected), [])


SPACING = 24
Draw = Callable[..., Any]


def _in_range(draw: Draw, arch: archs.Arch, row: Reloc) -> int:
    rule = facts(arch).link.rules[row.number]
    unit = 4096 if row.op is Op.PAGE else rule.align
    low = -(1 << 63) if rule.lowest is None else rule.lowest
    high = (1 << 63) - 1 if rule.highest is None else rule.highest
    ends = st.sampled_from((-(-low // unit), high // unit, 0, -1 if low < 0 else 0))
    return unit * draw(st.one_of(st.integers(-(-low // unit), high // unit), ends))


ADDENDS = st.one_of(
    st.sampled_from((0, -4, -5, -8, 1, (1 << 63) - 1, -(1 << 63))), st.integers(-(1 << 40), 1 << 40)
)


def draw_records(draw: Draw, arch: archs.Arch) -> tuple[bytes, list[Record]]:
    """Return an image and relocations of any types, in any order, whose X their fields hold."""
    alone = [p.values[1] for p in STANDING_ALONE if p.values[0] is arch]
    found: list[Record] = []
    sums: dict[int, int] = {}
    numbers: dict[int, bytes] = {}
    at = draw(st.integers(0, 7))

    def next_place() -> int:
        nonlocal at
        here, at = at, at + SPACING + draw(st.integers(0, 3))
        return here

    page = draw(st.integers(0, (1 << 52) - 2)) << 12
    for row in draw(st.lists(st.sampled_from(alone), min_size=1, max_size=8)):
        offset, x = next_place(), _in_range(draw, arch, row)
        found.append(
            with_x(arch, row, x, offset=offset, addend=draw(ADDENDS), place=page + offset & MASK64)
        )
    if facts(arch).link.paired:
        for group in range(draw(st.integers(0, 2))):
            found += _draw_pairs(draw, arch, group, page, next_place)
            offset, width = next_place(), draw(st.sampled_from((*WIDTHS, "uleb")))
            sums[offset], before = _draw_sum(draw, width)
            numbers[offset] = before
            kinds = st.lists(st.sampled_from(WIDTHS.get(width, ULEB)), min_size=1, max_size=5)
            found += [
                Record(offset, page + offset & MASK64, draw(ADDRESSES), draw(ADDENDS), k, group)
                for k in draw(kinds)
            ]
    found = list(draw(st.permutations(found)))
    for offset, x in sums.items():
        aim(arch.machine, found, offset, x)
    image = bytearray(draw(st.binary(min_size=at + 8, max_size=at + 8)))
    for offset, before in numbers.items():
        image[offset : offset + len(before)] = before
    return bytes(image), found


# ADD, SUB and SET of one width, which a compiler may mix at one place.
WIDTHS = {"6": (52, 53), "8": (33, 37, 54), "16": (34, 38, 55), "32": (35, 39, 56), "64": (36, 40)}
ULEB = (60, 61)
ADDRESSES = st.integers(0, MASK64)


def _draw_sum(draw: Draw, width: str) -> tuple[int, bytes]:
    """Return what the records of a place shall add up to, and what must stand there before."""
    if width == "uleb":
        length = draw(st.integers(1, 9))
        groups = draw(st.binary(min_size=length, max_size=length))
        before = bytes(g | 0x80 for g in groups[:-1]) + bytes((groups[-1] & 0x7F,))
        return draw(st.integers(0, (1 << 7 * length) - 1)), before
    bits = int(width)
    low = 0 if bits == 6 else -(1 << bits - 1)
    high = (1 << 63) - 1 if bits == 64 else (1 << bits) - 1
    return draw(st.integers(low, high) | st.sampled_from((low, high, 0))), b""


def aim(machine: int, records: list[Record], offset: int, x: int) -> None:
    """Change the last record at `offset` so that the place accumulates to `x`."""
    *_, last = (n for n, r in enumerate(records) if r.offset == offset)
    before = scalar.total(machine, [r for r in records[:last] if r.offset == offset])
    record = records[last]
    psabi = facts(machine).link
    value = x if record.type in psabi.set_to else x - before
    value = before - x if record.type in psabi.subtracted else value
    records[last] = attrs.evolve(record, value=value - record.addend & MASK64)


def _draw_pairs(
    draw: Draw,
    arch: archs.Arch,
    group: int,
    page: int,
    next_place: Callable[[], int],
) -> list[Record]:
    """Return a HI20 and the LO12 that share it."""
    number = draw(st.sampled_from((20, 23)))
    high, offset = arch.link.relocations[number], next_place()
    x = _in_range(draw, arch, high)
    first = with_x(arch, high, x, offset=offset, addend=draw(ADDENDS), place=page + offset & MASK64)
    found = [attrs.evolve(first, group=group)]
    for number in draw(st.lists(st.sampled_from((24, 25)), max_size=3)):
        offset = next_place()
        found.append(Record(offset, page + offset & MASK64, first.place, 0, number, group))
    return found


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_engine_equals_the_scalar_model(arch: archs.Arch, data: st.DataObject) -> None:
    """Any relocations whose values fit give the model's bytes, whatever stood there before."""
    image, them = draw_records(data.draw, arch)
    expected = bytearray(image)
    scalar.apply(arch.machine, expected, them)
    assert run(arch, image, them) == (bytes(expected), [])


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_record_that_fails_is_reported(arch: archs.Arch, data: st.DataObject) -> None:
    """Of any mixture, exactly the records beyond their reach are named, each once, by index."""
    limited = [p.values[1] for p in BOUNDED if p.values[0] is arch]
    chosen = data.draw(st.lists(st.sampled_from(limited), min_size=1, max_size=12))
    bad = data.draw(st.lists(st.booleans(), min_size=len(chosen), max_size=len(chosen)))
    them, wrong = [], {}
    for index, (row, beyond) in enumerate(zip(chosen, bad, strict=True)):
        rule = facts(arch).link.rules[row.number]
        unit = 4096 if row.op is Op.PAGE else rule.align
        x = rule.highest + unit if beyond else 0
        them.append(with_x(arch, row, x, offset=16 * index, place=BASE + 4096 * index))
        if beyond:
            wrong[index] = x
    _, failures = run(arch, bytes(16 * len(them)), them)
    reported = [
        (index, signed(x))
        for f in failures
        for index, x in zip(f.index.tolist(), f.x.tolist(), strict=True)
    ]
    assert sorted(reported) == sorted(wrong.items())
    assert {f.problem for f in failures} <= {Problem.RANGE}


def test_unknown_and_unsupported_numbers_are_told_apart(arch: archs.Arch) -> None:
    """A number outside the table is unknown; one that the table names with a reason is not."""
    unsupported = next((row for row in arch.link.relocations.values() if row.unsupported), None)
    them = [Record(0, BASE, 0, 0, 65000), Record(0, BASE, 0, 0, 0xFFFF_FFFF)]
    if unsupported is not None:
        them.append(Record(0, BASE, 0, 0, unsupported.number))
    _, failures = run(arch, bytes(16), them)
    unknown = [f.index.tolist() for f in failures if f.problem is Problem.UNKNOWN]
    assert unknown == [[0], [1]]
    named = [(f.row, f.index.tolist()) for f in failures if f.problem is Problem.UNSUPPORTED]
    assert named == ([(unsupported, [2])] if unsupported else [])


def test_lo12_needs_its_hi20_in_its_own_section() -> None:
    """A LO12 whose label carries no HI20 of the same relocation section is UNPAIRED."""
    arch = archs.arch("riscv64")
    high = Record(0, BASE, BASE + 0x1234, 0, 23, 0)
    for low in (
        Record(8, BASE + 8, BASE, 0, 24, 1),  # the right label, another section
        Record(8, BASE + 8, BASE + 4, 0, 24, 0),  # no HI20 there
    ):
        _, (failure,) = run(arch, bytes(16), [high, low])
        assert (failure.problem, failure.index.tolist()) == (Problem.UNPAIRED, [1])
    _, (failure,) = run(arch, bytes(16), [Record(8, BASE, BASE, 0, 25)])
    assert failure.problem is Problem.UNPAIRED


def test_lo12_of_one_label_address_in_two_sections() -> None:
    """The same place in two relocation sections has a HI20 in each; a LO12 uses its own."""
    arch = archs.arch("riscv64")
    label = BASE + 0x1000
    them = [
        Record(32, label, label + 0x5123, 0, 23, 0),
        Record(0, BASE, label, 0, 24, 0),
        Record(4, BASE + 4, label, 0, 24, 1),
        Record(36, label, label + 0x7456, 0, 20, 1),
        Record(8, BASE + 8, label, 0, 24, 0),
    ]
    out, failures = run(arch, bytes(48), them)
    assert failures == []
    low = [int.from_bytes(out[at : at + 4], "little") >> 20 for at in (0, 4, 8)]
    assert low == [0x123, 0x456, 0x123]


@pytest.mark.parametrize("order", ["high first", "low first", "high in between", "far apart"])
@pytest.mark.parametrize("high", [20, 23])
def test_lo12_share_a_hi20_wherever_it_stands(high: int, order: str) -> None:
    """A HI20 may stand before, behind or between the LO12 that share it, at any distance."""
    arch = archs.arch("riscv64")
    label, x = BASE + 0x2000, 0x1234_5678 + 0x800
    lows = [Record(4 * n, BASE + 4 * n, label, 0, 24 + n % 2) for n in range(4)]
    top = Record(16, label, label + x, 0, high)
    noise = [Record(64, BASE + 64, BASE + 8 * n, 0, 57) for n in range(500)]
    them = {
        "high first": [top, *lows],
        "low first": [*lows, top],
        "high in between": [*lows[:2], top, *lows[2:]],
        "far apart": [top, *noise, *lows[:2], *noise, *lows[2:]],
    }[order]
    out, failures = run(arch, bytes(80), them)
    assert failures == []
    words = [int.from_bytes(out[at : at + 4], "little") for at in range(0, 20, 4)]
    assert words[4] >> 12 == 0x12346
    assert [words[0] >> 20, words[2] >> 20] == [0xE78, 0xE78]
    assert [(w >> 25) << 5 | w >> 7 & 31 for w in (words[1], words[3])] == [0xE78, 0xE78]


SUM_RECORDS = st.lists(
    st.tuples(st.sampled_from((35, 39, 56, 2, 57)), st.integers(0, 255), st.integers(0, 3)),
    min_size=1,
    max_size=14,
)


@given(drawn=SUM_RECORDS, split=st.integers(0, 14))
@settings(max_examples=80, deadline=None)
def test_places_accumulate_in_file_order(drawn: list[tuple[int, int, int]], split: int) -> None:
    """SET, ADD and SUB in any order, other records in between, add up from zero at each place.

    Three places in two sections; the values are small enough that no intermediate sum matters.
    """
    arch = archs.arch("riscv64")
    found, wanted = [], {}
    for n, (number, value, where) in enumerate(drawn):
        offset = 8 * where + {2: 32, 57: 64}.get(number, 0)
        group = int(n >= split)
        found.append(Record(offset + 96 * group, BASE, BASE + value, 0, number, group))
        if number in (35, 39, 56):
            place, s = offset + 96 * group, BASE + value
            before = wanted.get(place, 0)
            wanted[place] = {35: before + s, 39: before - s, 56: s}[number]
    image = b"\xff" * 192
    out, failures = run(arch, image, found, checks=Checks.KERNEL)
    assert failures == []
    for place, x in wanted.items():
        assert out[place : place + 8] == (x & 0xFFFF_FFFF).to_bytes(4, "little") + b"\xff" * 4


@pytest.mark.parametrize(("arch", "row"), SUMS)
def test_a_sum_that_does_not_fit_names_its_last_record(arch: archs.Arch, row: Reloc) -> None:
    """Of all records of a place that overflows the last is reported, with the whole sum."""
    rule = facts(arch).link.rules[row.number]
    other = next(
        n for n in facts(arch).link.subtracted if arch.link.relocations[n].size == row.size
    )
    them = [
        Record(8, BASE, 3, 0, other),  # fits in nothing but is followed by the rest
        Record(0, BASE, 1, 0, other),
        Record(8, BASE, 0, 0, row.number),
        Record(0, BASE, 0, 0, row.number),
        Record(16, BASE, 0, 0, row.number),
    ]
    aim(arch.machine, them, 8, rule.highest + 1)
    aim(arch.machine, them, 0, rule.lowest)
    _, (failure,) = run(arch, bytes(32), them)
    assert (failure.problem, failure.row) == (Problem.RANGE, row)
    assert failure.index.tolist() == [2]
    assert [signed(x) for x in failure.x.tolist()] == [rule.highest + 1]


@pytest.mark.parametrize(
    ("before", "x", "after"),
    [
        ("00", 0x7F, "7f"),
        ("7f", 0, "00"),
        ("8000", 5, "8500"),  # a redundant byte stays
        ("ffff7f", 1, "818000"),
        ("8080808000", 0x7FFFFFFFF, "ffffffff7f"),
        ("80808080808080808001", (1 << 64) - 1, "ffffffffffffffffff01"),
    ],
)
def test_a_uleb128_keeps_its_length(before: str, x: int, after: str) -> None:
    """A difference replaces the number that stands there, in as many bytes, and none behind."""
    arch = archs.arch("riscv64")
    end = b"\xc3\x5a"
    them = [Record(1, BASE, 0x1000 + x & MASK64, 0, 60), Record(1, BASE, 0x1000, 0, 61)]
    image = b"\xff" + bytes.fromhex(before) + end
    assert run(arch, image, them) == (b"\xff" + bytes.fromhex(after) + end, [])


@pytest.mark.parametrize(
    ("before", "x", "after"),
    [
        ("7f7f", 0, "7f7f"),
        ("808000", 5, "058000"),  # what stood behind is another number now
        ("00ffff", 0x80, "8001ff"),
        ("ffff7f", 1 << 13, "80407f"),
    ],
)
def test_the_kernel_writes_the_shortest_uleb128(before: str, x: int, after: str) -> None:
    """The kernel's checks write as it does: no byte for 0, no more than needed, no end looked for.

    The loop is apply_uleb128_accumulation of arch/riscv/kernel/module.c.
    """
    arch = archs.arch("riscv64")
    them = [Record(0, BASE, 0x1000 + x, 0, 60), Record(0, BASE, 0x1000, 0, 61)]
    out = run(arch, bytes.fromhex(before), them, checks=Checks.KERNEL)
    assert out == (bytes.fromhex(after), [])


@pytest.mark.parametrize(("before", "x"), [("00", 0x80), ("8000", 1 << 14), ("808000", -1)])
def test_a_uleb128_too_large_for_its_bytes_is_refused(before: str, x: int) -> None:
    """A number that needs more bytes than stand there is out of range."""
    arch = archs.arch("riscv64")
    them = [
        Record(16, BASE, 7, 0, 60),
        Record(0, BASE, 0x1000 + x, 0, 60),
        Record(0, BASE, 0x1000, 0, 61),
    ]
    image = bytes.fromhex(before) + bytes(24)
    _, (failure,) = run(arch, image, them)
    assert (failure.problem, failure.row.name) == (Problem.RANGE, "R_RISCV_SUB_ULEB128")
    assert failure.index.tolist() == [2]
    assert [signed(v) for v in failure.x.tolist()] == [x]


def test_a_uleb128_without_an_end_is_refused() -> None:
    """A number whose last byte is missing is not written past the buffer."""
    arch = archs.arch("riscv64")
    _, (failure,) = run(arch, b"\x00" + b"\x80" * 3, [Record(1, BASE, 1, 0, 60)])
    assert failure.problem is Problem.RANGE


@pytest.mark.parametrize("x", [0x7FF, 0x800, -0x800, -0x801, (1 << 31) - 0x801, -(1 << 31) - 0x800])
def test_hi20_and_lo12_add_up(x: int) -> None:
    """The rounded high part plus the signed low part is X, at every edge of the rounding."""
    arch = archs.arch("riscv64")
    auipc, addi = 0x0000_0517, 0x0005_0513
    image = auipc.to_bytes(4, "little") + addi.to_bytes(4, "little")
    them = [Record(0, BASE, BASE + x & MASK64, 0, 23), Record(4, BASE + 4, BASE, 0, 24)]
    out, failures = run(arch, image, them)
    assert failures == []
    high = int.from_bytes(out[:4], "little") >> 12
    low = int.from_bytes(out[4:], "little", signed=True) >> 20
    assert signed((high << 12 ^ 1 << 31) - (1 << 31) + low) == x


def test_a_place_that_is_not_zero_is_refused_where_asked() -> None:
    """With clean_target a place that holds anything is OCCUPIED, and only that place."""
    arch = archs.arch("x86_64")
    them = [Record(0, BASE, BASE, 0, 2), Record(8, BASE + 8, BASE, 0, 2), Record(16, BASE, 1, 0, 1)]
    image = bytes(11) + b"\1" + bytes(12)
    _, (failure,) = run(arch, image, them, clean_target=True)
    assert (failure.problem, failure.index.tolist()) == (Problem.OCCUPIED, [1])
    assert run(arch, image, them)[1] == []


def test_no_record_is_no_work(arch: archs.Arch) -> None:
    """An empty module has nothing to apply and nothing that fails."""
    assert run(arch, b"abc", []) == (b"abc", [])


@pytest.mark.parametrize("places", [(0, 0), (0, 2), (3, 0), (9, 16, 12), (5, 1, 5)])
@pytest.mark.parametrize("numbers", [(2,), (2, 4, 11)])
def test_words_that_share_bytes_are_refused_where_targets_must_be_zero(
    numbers: Sequence[int], places: Sequence[int]
) -> None:
    """Of words that overlap only the first in memory (then in the file) finds its place zero."""
    arch = archs.arch("x86_64")
    them = [
        Record(at, BASE + at, BASE + at + 1, 0, numbers[n % len(numbers)])
        for n, at in enumerate(places)
    ]
    taken: dict[int, int] = {}
    for index in sorted(range(len(places)), key=lambda i: (places[i], i)):
        if not any(abs(places[index] - places[before]) < 4 for before in taken.values()):
            taken[index] = index
    _, failures = run(arch, bytes(24), them, clean_target=True)
    assert {f.problem for f in failures} <= {Problem.OCCUPIED}
    refused = sorted(i for f in failures for i in f.index.tolist())
    assert refused == sorted(set(range(len(places))) - set(taken))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_clean_words_are_stored_at_any_byte_in_any_order(data: st.DataObject) -> None:
    """Words that do not overlap are stored right, however close, unaligned and unsorted."""
    arch = archs.arch("x86_64")
    steps = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=12))
    kinds = data.draw(st.lists(st.sampled_from((1, 2, 4, 11)), min_size=12, max_size=12))
    at, them = data.draw(st.integers(0, 7)), []
    for step, kind in zip(steps, kinds, strict=False):
        row = arch.link.relocations[kind]
        x = _in_range(data.draw, arch, row)
        them.append(with_x(arch, row, x, offset=at + step, place=BASE + at + step))
        at += step + row.size
    them = data.draw(st.permutations(them))
    expected = bytearray(at + 8)
    scalar.apply(arch.machine, expected, them)
    assert run(arch, bytes(at + 8), them, clean_target=True) == (bytes(expected), [])


def test_numbers_are_found_however_far_apart() -> None:
    """The types that occur are listed once each, ascending, up to the largest 32-bit number."""
    for numbers in ([7], [3, 66], [3, 67], [0, 63], [1, 0xFFFF_FFFF], []):
        types = np.array([*numbers[::-1], *numbers], np.uint32)
        assert numbers_in(types) == numbers

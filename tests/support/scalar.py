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

import functools
from collections.abc import Callable, Collection, Mapping, Sequence

import attrs

from tests.archs.facts import facts
from tests.support.formats import MASK64, Rule, signed


@attrs.frozen
class Record:
    """One relocation: `offset` in the image, P, S (or Z), A (signed), type, its section's number."""

    offset: int
    place: int
    value: int
    addend: int
    type: int
    group: int = 0


@attrs.frozen(kw_only=True)
class Psabi:
    """What the model asks of a machine for each relocation."""

    rules: Mapping[int, Rule]
    got: Mapping[int, Callable[[int, int, int, Callable[[int], int]], int]]
    nothing: Collection[int]
    sized: Collection[int]
    paired: Collection[int]
    high: Collection[int]
    subtracted: Collection[int]
    set_to: Collection[int]
    uleb128: Collection[int]
    accumulated: Collection[int]


@functools.cache
def psabi(machine: int) -> Psabi:
    """Return what the psABI says, looked up once."""
    known = facts(machine).link
    names = [field.name for field in attrs.fields(Psabi)[:-1]]
    return Psabi(
        **{name: getattr(known, name) for name in names},
        accumulated={*known.added, *known.subtracted, *known.set_to},
    )


def is_pair(machine: int, number: int) -> bool:
    """Return whether X comes from another relocation."""
    return number in psabi(machine).paired


def is_high(machine: int, number: int) -> bool:
    """Return whether paired relocations take their X from this one."""
    return number in psabi(machine).high


def accumulates(machine: int, number: int) -> bool:
    """Return whether relocations of this type at one place add up."""
    return number in psabi(machine).accumulated


def value_of(machine: int, record: Record) -> int:
    """Return X of a record that stands for itself, as a signed 64-bit number."""
    rule = psabi(machine).rules[record.type]
    return signed(rule.formula((record.value + record.addend) & MASK64, record.place))


def fits(machine: int, number: int, x: int) -> bool:
    """Return whether the document lets a relocation hold X."""
    rule = psabi(machine).rules[number]
    low, high = rule.lowest, rule.highest
    return (low is None or low <= x) and (high is None or x <= high) and x % rule.align == 0


def total(machine: int, records: Sequence[Record]) -> int:
    """Return what the records of one place accumulate, as a signed 64-bit number.

    The kernel starts from zero, whatever stands at the place; SET starts anew.
    """
    x, known = 0, psabi(machine)
    for record in records:
        value = record.value + record.addend
        anew, less = record.type in known.set_to, record.type in known.subtracted
        x = value if anew else x - value if less else x + value
    return signed(x)


def apply(machine: int, image: bytearray, records: Sequence[Record]) -> None:
    """Relocate `image` in place, record by record, in order; places that accumulate at the end."""
    sums: dict[int, list[Record]] = {}
    nothing = psabi(machine).nothing
    highs = {(r.group, r.place): r for r in records if is_high(machine, r.type)}
    for record in records:
        if record.type in nothing:
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
        x = total(machine, them)
        assert fits(machine, them[-1].type, x), f"type {them[-1].type}: {x:#x}"
        store(machine, image, them[-1], x)


def width(machine: int, record: Record) -> int:
    """Return the bytes that a record touches; of a ULEB128 only the first is certain."""
    known = psabi(machine)
    return 0 if record.type in known.nothing else known.rules[record.type].size


def store(machine: int, image: bytearray, record: Record, x: int) -> None:
    """Put X into the place of `record`."""
    known = psabi(machine)
    rule = known.rules[record.type]
    size = 10 if record.type in known.uleb128 else rule.size
    old = bytes(image[record.offset : record.offset + size])
    image[record.offset : record.offset + len(old)] = rule.store(old, x)

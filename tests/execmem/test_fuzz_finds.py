# SPDX-License-Identifier: GPL-2.0-or-later
"""The fuzzer finds mistakes that were planted, from nothing; and what it makes of comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from emulator.compares import Pair
from execmem import Machine, fuzz
from execmem.fuzzing.campaign import Campaign, Part
from execmem.fuzzing.engine import Done, Finding, cut, cut_sized
from execmem.fuzzing.mutate import Mutator
from execmem.fuzzing.operands import hints_of
from samples.modules import root
from tests.support import comparing

# Mistakes of samples/modules/src/parser.c: what is wrong, in which record.
PLANTED = {
    ("out-of-bounds access", "n"),
    ("double free", "e"),
    ("use after free", "u"),
    ("hang", "l"),
    ("out-of-bounds access", "a"),
}
CALL = ("parser:parser_parse", "data=bytes", "size=len(data)")
ARCHES = ("x86_64", "arm64", "riscv64", "mips64el")
MOST = 20_000  # executions; benchmarks/planted.py tells what other seeds need


class _All(Exception):
    """Everything was found."""


def loaded(arch: str, name: str) -> Any:
    """Return a machine under a check, with a sample."""
    machine = Machine(arch, root=root(arch))
    machine.load(name)
    machine.sanitize("guard")
    return machine


def last_record(data: bytes) -> str:
    """Return the tag of the last record of a file, as the format says."""
    at, tag = 4, "?"
    while len(data) - at >= 2 and data[at + 1] <= len(data) - at - 2:
        tag = chr(data[at])
        at += 2 + data[at + 1]
    return tag


@pytest.mark.parametrize("arch", ARCHES)
def test_planted_mistakes_are_found(arch: str) -> None:
    """Each, without a corpus; where there is none, nothing is found with what found them."""
    found: dict[tuple[str, str], bytes] = {}

    def tell(finding: Finding) -> None:
        found[finding.kind, last_record(finding.data)] = finding.data
        if found.keys() >= PLANTED:
            raise _All

    with pytest.raises(_All):
        fuzz(
            loaded(arch, "parser"), *CALL, executions=MOST, on_finding=tell, instructions=5_000_000
        )
    clean = loaded(arch, "parserclean")
    call, checks = clean.modules["parserclean"].call, clean.sanitizer
    for data in found.values():
        assert call("parser_parse", data, len(data)) >= 0
    assert not checks.findings


@pytest.mark.parametrize("arch", ARCHES)
def test_what_was_compared(arch: str) -> None:
    """What the source compares the input with is among it, each side as the machine has it."""
    machine = loaded(arch, "parserclean")
    module = machine.modules["parserclean"]
    at = module.symbols["parser_parse"]
    text = next(each for each in module.sections.values() if each.name == ".text")
    rounds = machine.rounds([(text.address, text.address + text.size)])
    memory = rounds.buffer(64)

    def compared(data: bytes) -> set[Pair]:
        pairs = rounds.compared(lambda: rounds.call(at, (memory.put(data), len(data))))
        return {*pairs, *(pair[::-1] for pair in pairs)}

    with rounds:
        assert (ord("x"), ord("P")) in compared(b"xRS\1")
        assert (9, 1) in compared(b"PRS\x09")
        tagged = compared(b"PRS\1n\2?!")
        assert (ord("?"), ord("#")) in tagged
        assert any((ord("n"), ord(tag)) in tagged for tag in "aceklmsu")  # of the switch
        assert (0x50, 0x51) not in tagged
        assert rounds.run(lambda: rounds.call(at, (memory.put(b"PRS\1"), 4))).result == 0


@pytest.mark.parametrize("name", comparing.ASKED)
@pytest.mark.parametrize("arch", ARCHES)
def test_what_the_kernel_compared(arch: str, name: str) -> None:
    """What its functions are given is known, and an input is made what it was compared with."""
    machine = Machine(arch)
    comparing.check(machine, machine.kernel.address(name), name)


def test_time_begins_when_all_is_set_up() -> None:
    """However long that takes: what there is has been run, and nothing more."""
    machine = loaded("riscv64", "parserclean")
    found = fuzz(machine, *(each.replace("parser:", "parserclean:") for each in CALL), seconds=0.0)
    assert 0 < found.executions < 100


def test_strings_of_another_length() -> None:
    """A longer or shorter one takes the place of what is there, with its end where that counts."""
    hints = hints_of(b"=ab;", [(b"ab", b"size")])
    assert {b"=size", b"=size\0"} <= set(Mutator(64).followed(b"=ab;", hints))
    hints = hints_of(b"", [(b"", b"mode")])
    assert b"mode" in set(Mutator(64).followed(b"", hints))


def test_what_hints_say() -> None:
    """Bytes become what they were compared with, in both orders; lengths and cases are known."""
    data = b"\x12\x34ab\x05"
    hints = hints_of(data, [(0x3412, 0x1111), (0x1234, 0x2222), (ord("a"), ord("z"))])
    assert {(0, 2, 0, 0x1111), (0, 2, 1, 0x2222), (2, 1, 0, ord("z"))} <= set(hints)
    assert (0, 0, 0, 3) in hints_of(data, [(5, 8)])
    cases = {each[3] for each in hints_of(b"d", [(ord("d"), ord("a")), (ord("d") - ord("a"), 4)])}
    assert set(b"abce") <= cases
    made = set(Mutator(64).followed(data, hints))
    assert {b"\x11\x11ab\x05", b"\x22\x22ab\x05", b"\x12\x34zb\x05"} <= made
    sized = set(Mutator(64).followed(b"t\2xyz", ((1, 1, 0, 4),)))
    assert sized == {b"t\4xyz", b"t\4xyyyz"}


def test_entries_are_cut_short() -> None:
    """What is not needed goes, and a piece with the byte that says how long it is."""
    assert cut(b"abcXdefghY", lambda data: b"X" in data and b"Y" in data) == b"XY"
    assert cut(b"abcX", lambda data: b"X" in data, low=2) == b"abX"

    def right(data: bytes) -> bool:
        return len(data) >= 2 and data[0] == len(data) - 2 >= 1

    assert cut_sized(b"\x08abcdefghZ", right) == b"\x01aZ"


def test_numbers_stay_where_they_are() -> None:
    """What makes a piece longer leaves the numbers in front of it alone."""
    mutator = Mutator(64, fields=((0, 8),))
    data = (5).to_bytes(8, "little") + b"\2xyz"
    hints = hints_of(data, [(5, 9), (2, 3), (len(data) - 8, 7)], mutator.fixed)
    made = set(mutator.followed(data, hints))
    assert (9).to_bytes(8, "little") + b"\2xyz" in made
    assert data[:8] + b"\3xyyz" in made
    assert data + bytes(3) in made
    assert {each[1:8] for each in made} == {bytes(7)}


class _Finding:
    """One who finds something with each input of two bytes, and notes what it ran."""

    size = 1
    mutator = Mutator(4)

    def __init__(self) -> None:
        self.ran: list[bytes] = []

    def do(self, parts: Sequence[Part]) -> Iterator[tuple[int, Done]]:
        for number, part in enumerate(parts):
            if part.shrink is not None:
                yield number, Done(executed=0, kept=(), finding=part.shrink)
                continue
            used, finding = 0, None
            for data in part.made(self.mutator):
                used += 1
                self.ran.append(data)
                where = f"0x{data.hex()} {data[0]}" if len(data) == 2 else ""
                finding = Finding(data=data, kind="bad", where=where)
                if where and finding.key not in part.known:
                    break
                finding = None
            yield number, Done(executed=used, used=used, kept=(), finding=finding)


def test_what_follows_a_finding_is_run_too() -> None:
    """Once, and each finding is told once."""
    crew = _Finding()
    inputs = [bytes([n]) * (1 + n % 3) for n in range(1, 40)]
    found = Campaign(crew, inputs, executions=1).run()
    assert crew.ran == inputs
    wrong = [data for data in inputs if len(data) == 2]
    assert [each.data for each in found.crashes] == wrong

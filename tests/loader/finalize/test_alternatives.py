# SPDX-License-Identifier: GPL-2.0-or-later
"""x86-64 alternatives: which are taken, what moves with them, what fills the room."""

from __future__ import annotations

import struct
from itertools import pairwise

import capstone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archs.boot_x86_64 import FEATURES
from archs.environment import Environment
from archs.insn_x86_64 import NOPS
from archs.passes.x86_64.alternatives import packed
from execmem.check.elfwriter import A, Rela, Sec, Sym, X
from loader.errors import BadModule
from tests.support.finalising import BASE, PC32, TEXT, finalised

NOT, DIRECT = 1, 2
ENOUGH = Environment(features=frozenset({"always", "popcnt"}))


def patched(original, entries, environment=ENOUGH, symbols=None, relas=()):
    """Return what is left of `original`, with entries of feature, flags, replacement, relocs."""
    table, table_relas, code, code_relas = b"", [], b"", []
    for feature, flags, replacement, length, its in entries:
        at = len(table)
        table += struct.pack("<iiHHBB", 0, 0, FEATURES[feature], flags, length, len(replacement))
        table_relas += [Rela(at, PC32, TEXT, 0), Rela(at + 4, PC32, "repl", len(code))]
        code_relas += [Rela(len(code) + r.offset, r.type, r.symbol, r.addend) for r in its]
        code += replacement
    sections = [
        Sec(".altinstr_replacement", code, A | X, relas=code_relas),
        Sec(".altinstructions", table, A, relas=table_relas),
    ]
    extra = [Sym("repl", ".altinstr_replacement")]
    return finalised(original, sections, environment, symbols, relas=relas, extra=extra)


def test_a_replacement_takes_the_place_if_the_feature_is_there():
    """POPCNT replaces the call, and one NOP fills what is left."""
    popcnt = bytes.fromhex("f30fb8c7")
    result = patched(b"\x90" * 7, [("popcnt", 0, popcnt, 7, ())])
    assert result.bytes() == popcnt + NOPS[3]


@pytest.mark.parametrize(("flags", "feature", "taken"), [
    (0, "erms", False), (NOT, "erms", True), (NOT, "popcnt", False),
])  # fmt: skip
def test_features_may_be_wanted_or_unwanted(flags, feature, taken):
    """ALT_NOT takes the replacement where the feature is missing; else padding becomes one NOP."""
    result = patched(b"\x0f\x0b" + b"\x90" * 4, [(feature, flags, b"\xf4", 6, ())])
    assert result.bytes() == (b"\xf4" + NOPS[5] if taken else b"\x0f\x0b" + NOPS[4])


def test_the_last_entry_that_applies_wins_and_lengths_are_levelled():
    """Of consecutive entries of one place each gets the longest length, in the table too."""
    entries = [("always", 0, b"\xf4", 2, ()), ("popcnt", 0, b"\xfa\xfb", 5, ()),
               ("erms", 0, b"\xcc" * 3, 3, ())]  # fmt: skip
    result = patched(b"\x90" * 8, entries)
    assert result.bytes() == b"\xfa\xfb" + NOPS[3] + b"\x90" * 3
    assert [entry[4] for entry in struct.iter_unpack("<iiHHBB", result.bytes(".altinstructions"))
            ] == [5, 5, 5]  # fmt: skip


@pytest.mark.parametrize("opcode", ["e8", "488b05", "0f84"])
def test_what_is_relative_reaches_the_same_from_the_new_place(opcode):
    """A call, a RIP-relative load and a conditional jump keep their targets when they move."""
    head = bytes.fromhex(opcode)
    relas = [Rela(len(head), PC32, "far", -4)]
    code = head + bytes(4)
    result = patched(
        b"\x90" * len(code), [("always", 0, code, len(code), relas)], ENOUGH, {"far": BASE - 0x5000}
    )
    away = int.from_bytes(result.bytes()[len(head) :], "little", signed=True)
    assert BASE + len(code) + away == BASE - 0x5000


@pytest.mark.parametrize(("distance", "short"), [(20, True), (127 + 2, True), (128 + 2, False)])
def test_a_near_jump_becomes_short(distance, short):
    """JMP rel32 becomes JMP rel8 where that reaches; INT3 fills what nobody executes."""
    jump = b"\xe9\0\0\0\0"
    relas = [Rela(1, PC32, TEXT, distance - 4)]
    result = patched(b"\x90" * 5 + bytes(300), [("always", 0, jump, 5, relas)])
    ((name, target, code), *rest) = result.code(0, 5)
    assert (name, int(target, 16)) == ("jmp", BASE + distance)
    assert len(code) == (2 if short else 5)
    assert [n for n, *_ in rest] == ["int3"] * (3 if short else 0)


def test_a_branch_within_the_replacement_stays():
    """A jump whose target moves along keeps its distance."""
    inside = b"\xeb\x01\x90\xf4"
    assert patched(b"\x90" * 4, [("always", 0, inside, 4, ())]).bytes() == inside


def test_an_indirect_call_of_the_kernel_becomes_direct():
    """ALT_FLAG_DIRECT_CALL calls what the pointer in pv_ops holds on bare hardware."""
    symbols = {"pv_ops": 0xFFFF_FFFF_82C3_5480, "BUG_func": 0xFFFF_FFFF_81D0_0CF0}
    native = {"native_read_msr": 0xFFFF_FFFF_8109_92F0}
    environment = Environment(features=frozenset({"always"}), symbols=symbols | native)
    call = b"\xff\x15\0\0\0\0"
    result = patched(
        call,
        [("always", DIRECT, b"\xe8\0\0\0\0", 6, [Rela(1, 4, "BUG_func", -4)])],
        environment,
        symbols,
        relas=[Rela(2, PC32, "pv_ops", 184 - 4)],  # read_msr in struct paravirt_patch_template
    )
    (name, target, _), (filler, *_) = result.code(0, 6)
    assert (name, int(target, 16), filler) == ("call", native["native_read_msr"], "nop")


def test_a_direct_call_of_something_unknown_is_left():
    """Without the function's symbol the indirect call stays, whatever the pointer holds."""
    symbols = {"pv_ops": 0xFFFF_FFFF_82C3_5480, "BUG_func": 0xFFFF_FFFF_81D0_0CF0}
    relas = [Rela(2, PC32, "pv_ops", 184 - 4)]
    entry = ("always", DIRECT, b"\xe8\0\0\0\0", 6, [Rela(1, 4, "BUG_func", -4)])
    result = patched(b"\xff\x15\0\0\0\0", [entry], ENOUGH, symbols, relas=relas)
    assert result.after[result.index(".text")] == result.before[result.index(".text")]


@pytest.mark.parametrize(("version", "said"), [((6, 9), True), ((6, 12), False), ((7, 3), False)])
def test_a_direct_call_is_not_guessed_and_said(version, said):
    """In a version whose pv_ops nobody knows the call stays, and a note says why."""
    symbols = {"pv_ops": 0xFFFF_FFFF_82C3_5480, "BUG_func": 0xFFFF_FFFF_81D0_0CF0}
    native = {"native_read_msr": 0xFFFF_FFFF_8109_92F0}
    features = frozenset({"always"})
    environment = Environment(features=features, symbols=symbols | native, version=version)
    relas = [Rela(2, PC32, "pv_ops", 184 - 4 - (16 if version > (7,) else 0))]
    entry = ("always", DIRECT, b"\xe8\0\0\0\0", 6, [Rela(1, 4, "BUG_func", -4)])
    result = patched(b"\xff\x15\0\0\0\0", [entry], environment, symbols, relas=relas)
    same = result.after[result.index(".text")] == result.before[result.index(".text")]
    assert same is said
    note = "1 calls through pv_ops: what it holds in Linux 6.9 is not known"
    assert result.notes == ((note,) if said else ())


def test_a_replacement_that_is_too_long_is_refused():
    """A table whose replacement does not fit its place is an error."""
    with pytest.raises(BadModule, match="longer than its place"):
        patched(b"\x90" * 2, [("always", 0, b"\xf4" * 3, 2, ())])


def table_of(form, count, feature, replacement=b"\xf4", length=4, home=".altinstr_replacement"):
    """Return code and table of alternatives: a format and what it packs for each entry."""
    size = struct.calcsize(form)
    table, relas = b"", []
    for n in range(count):
        flags = (0,) if form == "<iiHHBB" else ()
        relas += [Rela(len(table), PC32, TEXT, length * n), Rela(len(table) + 4, PC32, "repl", 0)]
        table += struct.pack(form, 0, 0, feature, *flags, length, len(replacement))
    assert len(table) == size * count
    sections = [Sec(home, replacement, A | X), Sec(".altinstructions", table, A, relas=relas)]
    code = b"\x90" * length * count
    return finalised(code, sections, ENOUGH, extra=[Sym("repl", home)])


@pytest.mark.parametrize("form", ["<iiHHBB", "<iiHBB"])
@pytest.mark.parametrize("count", [1, 6, 7, 12, 14, 42])
def test_entries_of_both_sizes(form, count):
    """Entries of 14 bytes and of 12 (before 6.3) are told apart, where both sizes fit too."""
    result = table_of(form, count, FEATURES["popcnt"])
    assert result.bytes() == (b"\xf4" + NOPS[3]) * count
    assert table_of(form, count, FEATURES["erms"]).bytes() == NOPS[4] * count


@pytest.mark.parametrize(("feature", "taken"), [("erms", True), ("popcnt", False)])
def test_before_6_3_the_highest_bit_is_not(feature, taken):
    """In an entry of 12 bytes ALT_NOT is the highest bit of the feature."""
    result = table_of("<iiHBB", 7, 0x8000 | FEATURES[feature])
    assert result.bytes() == (b"\xf4" + NOPS[3] if taken else NOPS[4]) * 7


@pytest.mark.parametrize(
    ("form", "count", "options", "reasons"),
    [
        ("<iiHBBB", 1, {}, "no multiple of 14; nor of 12 bytes: size 0xd is no multiple of 12"),
        ("<iiHHBB", 6, {"home": ".other"}, "is not in .altinstr_replacement; nor of 12"),
        ("<iiHBB", 7, {"replacement": b"\xf4" * 5}, "nor of 12 bytes: .* longer than its place"),
    ],
)
def test_a_table_that_makes_no_sense(form, count, options, reasons):
    """A table that is of neither form is refused, and nothing is written."""
    if form == "<iiHBBB":
        sections = [Sec(".altinstructions", bytes(13), A)]
        with pytest.raises(BadModule, match=reasons):
            finalised(b"\x90" * 4, sections, ENOUGH)
        return
    with pytest.raises(BadModule, match=reasons):
        table_of(form, count, FEATURES["popcnt"], **options)


@given(st.lists(st.sampled_from([b"\x90", NOPS[3], b"\xf4", b"\x0f\x0b", NOPS[8]]), max_size=12))
def test_runs_of_nops_become_as_few_instructions_as_can_be(pieces):
    """Packing keeps length and every instruction but NOPs; no two NOPs stand together."""
    code = b"".join(pieces)
    found = packed(code)
    assert len(found) == len(code)
    names = [name for name, *_ in _read(found)]
    kept = [name for name in names if name in ("hlt", "ud2")]
    assert kept == [name for name, *_ in _read(code) if name in ("hlt", "ud2")]
    last = packed(b"\x90" * 40)
    assert _read(last)[0][0] == "jmp"
    assert all(a != "nop" or b != "nop" for a, b in pairwise(names))


def _read(code):
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    return [(i.mnemonic, i.op_str, bytes(i.bytes)) for i in engine.disasm(code, 0)]

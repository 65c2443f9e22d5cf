# SPDX-License-Identifier: GPL-2.0-or-later
"""Call sites of the tracer, static calls, static keys, seals, lock prefixes and unwind tables."""

from __future__ import annotations

import random
import struct

import pytest

import archs
from archs.environment import Environment
from execmem.check.elfwriter import LOCAL, A, Rela, Sec, Sym, W, X, write
from loader.elf import parse
from loader.errors import BadModule
from loader.layout import plan
from loader.link import link
from tests.archs.facts import facts
from tests.support.addresses import place
from tests.support.finalising import BASE, MASK, PC32, TEXT, finalised, sites

KERNEL = 0xFFFF_FFFF_8100_0000
NOP5 = bytes.fromhex("0f1f440000")


def test_traced_functions_begin_with_a_nop():
    """Each call of the tracer becomes a NOP of five bytes, and the table ascends."""
    text = b"\xe8\0\0\0\0\xc3" * 4
    relas = [Rela(8 * n, 1, TEXT, 6 * site) for n, site in enumerate((2, 0, 3, 1))]
    table = Sec("__mcount_loc", bytes(32), A, align=8, relas=relas)
    calls = [Rela(6 * n + 1, PC32, "__fentry__", -4) for n in range(4)]
    result = finalised(text, [table], Environment(), {"__fentry__": KERNEL}, relas=calls)
    assert result.bytes() == (NOP5 + b"\xc3") * 4
    assert list(struct.unpack("<4Q", result.bytes("__mcount_loc"))) == [
        BASE + 6 * n for n in range(4)
    ]


# Static calls -------------------------------------------------------------------------------


def called(opcode, function, *, tail=False, features=(), own=False, init=False):
    """Return the code of one static call site whose key says `function`, and the flags kept."""
    head = bytes.fromhex(opcode)
    name = ".init.text" if init else ".text"
    symbols = {"__SCK__it": KERNEL + 0x900, "__SCT__it": KERNEL + 0x700}
    calls = {} if function is None else {"it": function}
    environment = Environment(
        features=frozenset(features),
        options={"return_thunk": "__x86_return_thunk"},
        symbols={"__static_call_return0": KERNEL + 0x100, "__static_call_return": KERNEL + 0x200,
                 "__x86_return_thunk": KERNEL + 0x300, **symbols},
        static_calls=calls,
    )  # fmt: skip
    relas = [Rela(0, PC32, "site", 0), Rela(4, PC32, "__SCK__it", int(tail))]
    sections = [
        Sec(".init.text", head + bytes(4), A | X, relas=[Rela(len(head), 4, "__SCT__it", -4)]),
        Sec(".static_call_sites", bytes(8), A | W, align=4, relas=relas),
    ]
    extra = [Sym("site", name, bind=LOCAL)]
    code = [Rela(len(head), 4, "__SCT__it", -4)]
    result = finalised(head + bytes(4), sections, environment, symbols, relas=code, extra=extra)
    _, key = struct.unpack("<ii", result.bytes(".static_call_sites"))
    at = result.address(".static_call_sites") + 4
    return result.code(0, len(head) + 4, name), (key + at & MASK) - symbols["__SCK__it"]


@pytest.mark.parametrize(
    ("opcode", "function", "tail", "features", "wanted"),
    [
        ("e8", KERNEL + 0x5000, False, (), ["call 0xffffffff81005000"]),
        ("e8", 0, False, (), ["nop dword ptr [rax + rax]"]),
        ("e8", KERNEL + 0x100, False, (), ["xor eax, eax"]),
        ("e8", None, False, (), ["call 0xffffffff81000700"]),
        ("e9", KERNEL + 0x5000, True, (), ["jmp 0xffffffff81005000"]),
        ("e9", 0, True, (), ["ret", "int3", "int3", "int3", "int3"]),
        ("e9", 0, True, ("rethunk",), ["jmp 0xffffffff81000300"]),
        ("0f84", KERNEL + 0x5000, True, (), ["je 0xffffffff81005000"]),
        ("0f84", 0, True, (), ["je 0xffffffff81000200"]),
        ("0f84", 0, True, ("rethunk",), ["je 0xffffffff81000300"]),
    ],
)
def test_a_static_call_is_what_its_key_says(opcode, function, tail, features, wanted):
    """A call, a tail call and a conditional one; of a function, of nothing, of one returning 0."""
    found, flags = called(opcode, function, tail=tail, features=features)
    texts = [f"{name} {operands}".strip() for name, operands, _ in found]
    assert [text.replace("cs ", "") for text in texts] == wanted
    assert flags == int(tail)


def test_sites_in_init_text_are_marked():
    """A site that will be freed with init gets the second flag; the call is written all the same."""
    found, flags = called("e8", KERNEL + 0x5000, init=True)
    assert (found[0][1], flags) == ("0xffffffff81005000", 2)


# Static keys --------------------------------------------------------------------------------


def distance(machine: int, at: int, addend: int) -> list[Rela]:
    """Return relocations that store how far `keys` is from a place in the table."""
    plus, *minus = facts(machine).link.distance
    return [Rela(at, plus, "keys", addend), *(Rela(at, n, "table", at) for n in minus)]


def test_jump_entries_are_sorted_marked_and_known_to_their_keys(arch):
    """Entries ascend by key, then place; init ones are marked; own keys point at their first."""
    chance = random.Random(3)
    entries = chance.sample([(key, 4 * n, n & 1) for key in (0, 1, 2) for n in range(6)], 18)
    relas, table = [], b""
    for number, (key, code, branch) in enumerate(entries):
        at = 16 * number
        where = "init" if key == 1 else "text"
        relas += [
            Rela(at, facts(arch).link.prel32, where, code),
            Rela(at + 4, facts(arch).link.prel32, where, code + 100),
            *distance(arch.machine, at + 8, 16 * key + branch),
        ]
        table += bytes(16)
    keys = struct.pack("<iiQ", 0, 0, 0) + struct.pack("<iiQ", 1, 0, 1) + bytes(16)
    image = write(
        arch.machine,
        [
            Sec(".text", bytes(256), A | X, align=4),
            Sec(".init.text", bytes(256), A | X, align=4),
            Sec(".data", keys, A | W, align=8),
            Sec("__jump_table", table, A | W, align=8, relas=relas),
        ],
        [
            Sym("text", ".text"),
            Sym("init", ".init.text"),
            Sym("keys", ".data"),
            Sym("table", "__jump_table"),
        ],
    )
    view = parse(image)
    addresses = place(plan(view), BASE)
    names = {s.name: s.index for s in view.sections}
    linked = link(image, addresses, {}, environment=Environment())
    start, base = addresses[names["__jump_table"]], addresses[names[".data"]]
    found = []
    for number, (code, target, key) in enumerate(
        struct.iter_unpack("<iiq", linked[names["__jump_table"]])
    ):
        at = start + 16 * number
        flags = key & 3
        place_ = code + at & MASK
        assert target + at + 4 & MASK == place_ + 100
        in_init = addresses[names[".init.text"]] <= place_ < addresses[names[".init.text"]] + 256
        assert bool(flags & 2) == in_init
        found.append(((key & ~3) + at + 8 - base & MASK, place_, flags & 1))
    assert [entry[:2] for entry in found] == sorted(entry[:2] for entry in found)
    offset = {0: ".text", 1: ".init.text", 2: ".text"}
    assert {(key // 16, at - addresses[names[offset[key // 16]]], flag)
            for key, at, flag in found} == set(entries)  # fmt: skip
    links = [value for _, _, value in struct.iter_unpack("<iiQ", linked[names[".data"]])]
    assert links == [start, start + 6 * 16 | 1, start + 12 * 16]  # each keeps its type bits


# Seals, locks, unwinding ---------------------------------------------------------------------


def test_functions_that_nobody_points_at_are_sealed():
    """ENDBR64 in the table becomes a NOP of four bytes; what is none, or not listed, stays."""
    endbr = bytes.fromhex("f30f1efa")
    result = finalised(endbr * 2 + b"\x90" * 4, [sites(".ibt_endbr_seal", [0, 8])], Environment())
    (name, _, code), *_ = result.code(0, 4)
    assert (name, len(code)) == ("nop", 4)
    assert result.bytes()[4:] == endbr + b"\x90" * 4


@pytest.mark.parametrize(("cpus", "prefix"), [(1, 0x3E), (2, 0xF0)])
def test_lock_prefixes_go_where_one_cpu_is_all_there_can_be(cpus, prefix):
    """LOCK INC becomes DS INC for one possible CPU, and stays for two; other bytes stay."""
    text = bytes.fromhex("f0ff0790")
    environment = Environment(possible_cpus=cpus)
    result = finalised(text, [sites(".smp_locks", [0, 3])], environment)
    assert result.bytes() == bytes((prefix,)) + text[1:]


def test_unwind_entries_ascend_and_what_they_say_moves_along():
    """Two tables are sorted as one; of equal addresses the entry that says nothing is first."""
    said = {0: 0x100, 4: 0x200, 8: 0x100, 12: 0x300}
    rows = [(8, 0x100), (0, 0x100), (12, 0x300), (4, 0x200), (8, 0)]
    relas = [Rela(4 * n, PC32, TEXT, at) for n, (at, _) in enumerate(rows)]
    entries = b"".join(struct.pack("<hhH", at, -at, what) for at, what in rows)
    tables = [Sec(".orc_unwind_ip", bytes(20), A, relas=relas), Sec(".orc_unwind", entries, A)]
    result = finalised(bytes(16), tables, Environment())
    start = result.address(".orc_unwind_ip")
    found = [
        (word + start + 4 * n - BASE, *entry)
        for n, ((word,), entry) in enumerate(
            zip(
                struct.iter_unpack("<i", result.bytes(".orc_unwind_ip")),
                struct.iter_unpack("<hhH", result.bytes(".orc_unwind")),
                strict=True,
            )
        )
    ]
    ordered = sorted([*said.items(), (8, 0)])
    assert found == [(at, at, -at, what) for at, what in ordered]


def test_unwind_tables_of_different_length_are_refused():
    """A module whose two unwind tables do not match is refused with both counts."""
    tables = [Sec(".orc_unwind_ip", bytes(8), A), Sec(".orc_unwind", bytes(6), A)]
    with pytest.raises(BadModule, match="2 addresses for 1 entries"):
        finalised(bytes(16), tables, Environment())


def test_no_two_passes_of_an_architecture_share_a_name(arch: archs.Arch):
    """Edits are attributed by name, and left out by it."""
    names = [step.name for step in arch.finalise]
    assert len(set(names)) == len(names)

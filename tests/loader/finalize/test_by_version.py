# SPDX-License-Identifier: GPL-2.0-or-later
"""How kernels of other versions finalise: what real 6.1 and 7.2 kernels left at such sites."""

from __future__ import annotations

import struct

import pytest

from archs.environment import Environment
from execmem.check.elfwriter import LOCAL, A, Rela, Sec, Sym
from tests.support.finalising import BASE, PC32, TEXT, finalised, sites

KERNEL = 0xFFFF_FFFF_8100_0000
RAX, RCX, R10 = (f"__x86_indirect_thunk_{name}" for name in ("rax", "rcx", "r10"))
INDIRECT = {name: KERNEL + 0x1000 + 32 * n for name, n in ((RAX, 0), (RCX, 1), (R10, 10))}


@pytest.mark.parametrize(
    ("version", "head", "register", "wanted"),
    [
        ((6, 1), "e8", RAX, "ffd0 0f1f00"),
        ((6, 12), "e8", RAX, "ffd0 0f1f00"),
        ((7, 2), "e8", RAX, "2e2e2e ffd0"),
        ((7, 2), "2ee8", R10, "2e2e2e 41ffd2"),
        ((6, 1), "e9", RAX, "ffe0 cc 6690"),
        ((6, 12), "e9", RCX, "ffe1 cc 6690"),
        ((7, 2), "e9", RCX, "ffe1 cccccc"),
        ((7, 2), "2ee9", R10, "41ffe2 cccccc"),
    ],
)
def test_indirect_branches(version, head, register, wanted):
    """What fills the room of a call or jump through a register."""
    code = bytes.fromhex(head)
    result = finalised(
        code + bytes(4),
        [sites(".retpoline_sites", [0])],
        Environment(version=version),
        INDIRECT,
        relas=[Rela(len(code), 4, register, -4)],
    )
    assert result.bytes() == bytes.fromhex(wanted)


# Of AMD's family 15, as QEMU's CPU "max" calls itself.
OLD_AMD = Environment(version=(5, 10), options={"nops": "k8"})
OLD_INTEL = Environment(version=(5, 10))


@pytest.mark.parametrize(
    ("environment", "head", "wanted"),
    [
        (OLD_AMD, "e8", "ffd0 666690"),
        (OLD_AMD, "e9", "ffe0 666690"),
        (OLD_INTEL, "e8", "ffd0 0f1f00"),
    ],
)
def test_indirect_branches_of_5_10(environment, head, wanted):
    """What fills the room depends on the vendor; nothing is done against speculation."""
    code = bytes.fromhex(head)
    result = finalised(
        code + bytes(4),
        [sites(".retpoline_sites", [0])],
        environment,
        INDIRECT,
        relas=[Rela(len(code), 4, RAX, -4)],
    )
    assert result.bytes() == bytes.fromhex(wanted)


@pytest.mark.parametrize(
    ("environment", "wanted"), [(OLD_AMD, "6666666690"), (OLD_INTEL, "0f1f440000")]
)
def test_sites_of_five_bytes_in_5_10(environment, wanted):
    """A tracer's call and a static branch get the NOP of the vendor."""
    calls = Sec("__mcount_loc", bytes(8), A, align=8, relas=[Rela(0, 1, TEXT, 0)])
    relas = [Rela(0, PC32, TEXT, 5), Rela(4, PC32, TEXT, 8), Rela(8, 24, "key", 0)]
    branches = Sec("__jump_table", bytes(16), A | 1, align=8, relas=relas)
    code = b"\xe8\0\0\0\0" + bytes.fromhex("0f1f440000")
    symbols = {"key": KERNEL + 0x100, "__fentry__": KERNEL}
    result = finalised(
        code, [calls, branches], environment, symbols, relas=[Rela(1, 4, "__fentry__", -4)]
    )
    assert result.bytes() == 2 * bytes.fromhex(wanted)


def test_5_10_wrote_some_functions_of_pv_ops_out():
    """What is shorter than a call takes its place; the call has seven bytes there."""
    table = Sec(
        ".parainstructions",
        struct.pack("<QBB6x", 0, 34, 7),
        A,
        align=8,
        relas=[Rela(0, 1, TEXT, 0)],
    )
    symbols = {"pv_ops": PV_OPS, "native_save_fl": KERNEL}
    environment = Environment(version=(5, 10), options={"nops": "k8"}, symbols=symbols)
    result = finalised(b"\xcc" * 7, [table], environment)
    assert result.bytes() == bytes.fromhex("9c58 6666906690")  # pushf; pop %rax


@pytest.mark.parametrize(("version", "poison"), [((6, 12), "660f1f00"), ((7, 2), "0f1f40d6")])
def test_entries_that_nobody_calls_indirectly(version, poison):
    """What an ENDBR becomes."""
    table = [sites(".ibt_endbr_seal", [0])]
    result = finalised(bytes.fromhex("f30f1efac3"), table, Environment(version=version))
    assert result.bytes() == bytes.fromhex(poison) + b"\xc3"


@pytest.mark.parametrize(("version", "kept"), [((6, 1), 0xF0), ((6, 12), 0x3E)])
def test_lock_prefixes_outside_of_text(version, kept):
    """Before modules had memory by type, only `.text` counted."""
    cold = Sec(".text.unlikely", b"\xf0\xff\x00\xc3", A | 4, align=16)
    table = Sec(
        ".smp_locks",
        bytes(8),
        A,
        align=4,
        relas=[Rela(0, PC32, TEXT, 0), Rela(4, PC32, "cold", 0)],
    )
    result = finalised(
        b"\xf0\xff\x00\xc3",
        [cold, table],
        Environment(version=version),
        extra=[Sym("cold", ".text.unlikely", bind=LOCAL)],
    )
    assert result.bytes()[0] == 0x3E
    assert result.bytes(".text.unlikely")[0] == kept


def alternative(version, old, new, form, *relas_of_new):
    """Return what one alternative makes of the code that it has."""
    return with_alternative(version, old, new, form, *relas_of_new).bytes()[:-1]


def with_alternative(version, old, new, form, *relas_of_new, number=0, name="fpu"):
    """Return a module with one alternative, finalised, where one feature is there."""
    feature = (number,) if form == 12 else (number, 0)  # and later kernels' flags
    entry = bytes(8) + struct.pack(f"<{len(feature)}HBB", *feature, len(old), len(new))
    relas = [Rela(0, PC32, TEXT, 0), Rela(4, PC32, "new", 0)]
    tables = [
        Sec(".altinstructions", entry, A, align=1, relas=relas),
        Sec(".altinstr_replacement", new, A | 4, align=1, relas=relas_of_new),
    ]
    environment = Environment(features=frozenset({name}), version=version)
    symbols = [Sym("new", ".altinstr_replacement", bind=LOCAL)]
    return finalised(old + b"\xc3", tables, environment, extra=symbols)


@pytest.mark.parametrize(
    ("version", "number", "taken", "said"),
    [
        ((6, 1), 114, True, False),  # 3*32+18, where 6.12 has CLEAR_CPU_BUF
        ((6, 1), 642, False, True),  # 20*32+2: nothing then
        ((6, 12), 642, True, False),
        ((6, 12), 114, False, False),
        ((6, 6), 114, False, True),
        ((6, 6), 642, False, True),
        ((6, 6), 0, False, False),  # FPU never moved; it is not there
        ((7, 9), 642, False, True),
    ],
)
def test_numbers_of_features_are_not_guessed(version, number, taken, said):
    """LFENCE_RDTSC moved after 6.1: in a version between nobody knows, and it is left and said."""
    form = 12 if version == (6, 1) else 14
    result = with_alternative(
        version, b"\x90" * 4, b"\xf4" * 4, form, number=number, name="lfence_rdtsc"
    )
    assert (result.bytes()[:1] == b"\xf4") is taken
    number = ".".join(map(str, version))
    text = f"alternatives: 1 name features by numbers that are not known of Linux {number}: "
    assert result.notes == ((f"{text}left as compiled",) if said else ())


@pytest.mark.parametrize(
    ("version", "form", "wanted"),
    [
        ((6, 1), 12, "c3 0f1f840000000000 0f1f840000000000 0f1f840000000000 0f1f4000"),
        ((6, 12), 14, "c3 eb1a" + 26 * "cc"),
    ],
)
def test_room_behind_a_replacement(version, form, wanted):
    """Older kernels fill it with NOPs of at most eight bytes, later ones jump over INT3."""
    found = alternative(version, b"\x90" * 29, b"\xc3", form)
    assert found == bytes.fromhex(wanted)


@pytest.mark.parametrize(
    ("version", "form", "gap"), [((6, 1), 12, "0f1f00"), ((6, 12), 14, "cccccc")]
)
def test_jumps_that_become_shorter(version, form, gap):
    """What stands behind a jump of two bytes that had five."""
    near = Rela(1, PC32, TEXT, 0x20 - 4)
    found = alternative(version, b"\x90" * 5, b"\xe9\0\0\0\0", form, near)
    assert found[:2] == b"\xeb\x1e"
    assert found[2:] == bytes.fromhex(gap)


PV_OPS = KERNEL + 0x40_0000


@pytest.mark.parametrize(
    ("number", "name", "size", "wanted"),
    [
        (30, "native_save_fl", 6, "90"),  # pushf; pop: a call, and a NOP
        (31, "pv_native_irq_disable", 6, "90"),
        (16, "_paravirt_nop", 6, None),
        (16, "_paravirt_nop", 7, None),
    ],
)
def test_calls_through_pv_ops(number, name, size, wanted):
    """In 6.1 a table named them: they call what the pointer holds, or do nothing."""
    table = Sec(
        ".parainstructions",
        struct.pack("<QBB6x", 0, number, size),
        A,
        align=8,
        relas=[Rela(0, 1, TEXT, 0)],
    )
    symbols = {"pv_ops": PV_OPS, name: KERNEL + 0x5678}
    environment = Environment(version=(6, 1), symbols=symbols)
    result = finalised(b"\xcc" * size + b"\xc3", [table], environment)
    if wanted is None:
        assert [mnemonic for mnemonic, *_ in result.code(0, size)] == ["nop"]
    else:
        (mnemonic, target, _), *rest = result.code(0, size)
        assert (mnemonic, int(target, 16)) == ("call", KERNEL + 0x5678)
        assert b"".join(code for *_, code in rest) == bytes.fromhex(wanted)


def test_what_pv_ops_holds_is_not_guessed():
    """In a version whose order nobody knows the call stays."""
    table = Sec(
        ".parainstructions",
        struct.pack("<QBB6x", 0, 30, 6),
        A,
        align=8,
        relas=[Rela(0, 1, TEXT, 0)],
    )
    symbols = {"pv_ops": PV_OPS, "native_save_fl": KERNEL}
    environment = Environment(version=(6, 3), symbols=symbols)
    result = finalised(b"\xcc" * 6, [table], environment)
    assert result.before == result.after
    (note,) = result.notes
    assert note == "1 calls through pv_ops: what it holds in Linux 6.3 is not known"


@pytest.mark.parametrize(
    ("on", "branch", "site", "wanted"),
    [
        (True, 0, "6690", "eb03"),
        (True, 0, "eb03", "eb03"),
        (False, 0, "eb03", "6690"),
        (True, 1, "eb03", "6690"),
        (False, 1, "6690", "eb03"),
        (True, 0, "0f1f440000", "e900000000"),
        (False, 0, "e900000000", "0f1f440000"),
    ],
)
def test_branches_of_keys_that_were_flipped(on, branch, site, wanted):
    """A branch jumps where its key and its bit differ, in the room that it has."""
    code = bytes.fromhex(site)
    table = Sec(
        "__jump_table",
        bytes(16),
        A | 1,
        align=8,
        relas=[Rela(0, PC32, TEXT, 0), Rela(4, PC32, TEXT, 5), Rela(8, 24, "key", branch)],
    )
    for known, expected in (({}, site), ({"key": on}, wanted)):
        environment = Environment(static_keys=known)
        text = code + bytes.fromhex("c3909090c3")
        result = finalised(text, [table], environment, {"key": KERNEL + 0x100})
        assert result.bytes()[: len(code)] == bytes.fromhex(expected)
        assert result.address() == BASE


def test_keys_may_be_elements_of_an_array():
    """The key is the one that the addend leads to."""
    relas = [Rela(0, PC32, TEXT, 0), Rela(4, PC32, TEXT, 5), Rela(8, 24, "keys", 0x50)]
    table = Sec("__jump_table", bytes(16), A | 1, align=8, relas=relas)
    for known, wanted in (("keys+0x50", "eb03"), ("keys+0x40", "6690"), ("keys", "6690")):
        environment = Environment(static_keys={known: True})
        result = finalised(
            bytes.fromhex("6690c3909090c3"), [table], environment, {"keys": KERNEL + 0x100}
        )
        assert result.bytes()[:2] == bytes.fromhex(wanted), known


WARN = {"__SCT__WARN_trap": KERNEL + 0x9000}


@pytest.mark.parametrize(("version", "known"), [((7, 2), True), ((6, 12), False)])
def test_a_warning_is_an_instruction(version, known):
    """Where the kernel has the trap of WARN(), its static call becomes that."""
    table = Sec(
        ".static_call_sites",
        bytes(8),
        A | 1,
        align=4,
        relas=[Rela(0, PC32, TEXT, 0), Rela(4, PC32, "__SCT__WARN_trap", 0)],
    )
    symbols = {"__SCK__WARN_trap": KERNEL + 0x8000, "__WARN_trap": KERNEL + 0x7000}
    calls = {"WARN_trap": KERNEL + 0x7000} if known else {}
    environment = Environment(symbols=symbols, static_calls=calls, version=version)
    relas = [Rela(1, 4, "__SCT__WARN_trap", -4)]
    result = finalised(b"\xe8\0\0\0\0", [table], environment, WARN, relas=relas)
    assert (result.bytes() == bytes.fromhex("67480fb93a")) == known

# SPDX-License-Identifier: GPL-2.0-or-later
"""Branches to thunks: what each mitigation makes of them, as a disassembler reads it."""

from __future__ import annotations

import pytest

from archs.environment import Environment
from execmem.check.elfwriter import LOCAL, Rela, Sec, Sym
from loader.errors import BadModule
from tests.support.finalising import BASE, MASK, PC32, finalised, sites

KERNEL = 0xFFFF_FFFF_8100_0000
THUNK = "__x86_return_thunk"
RAX, R11 = "__x86_indirect_thunk_rax", "__x86_indirect_thunk_r11"
INDIRECT = {RAX: KERNEL + 0x1000, R11: KERNEL + 0x1000 + 11 * 32}


def returning(features, thunk=THUNK, *, at=0):
    """Return the instructions at a `jmp __x86_return_thunk`, `at` bytes into the text."""
    symbols = {THUNK: KERNEL, "its_return_thunk": KERNEL + 0x100, "srso_return_thunk": KERNEL + 64}
    environment = Environment(features=features, options={"return_thunk": thunk}, symbols=symbols)
    code = bytes(at) + b"\xe9\0\0\0\0"
    relas = [Rela(at + 1, 4, THUNK, -4)]
    given = {THUNK: KERNEL}
    result = finalised(code, [sites(".return_sites", [at])], environment, given, relas=relas)
    return result.code(at, 5)


def test_a_return_needs_no_thunk_without_mitigation():
    """Without return thunks the jump is RET, and nothing can be executed behind it."""
    assert [name for name, *_ in returning(frozenset())] == ["ret", *["int3"] * 4]


@pytest.mark.parametrize("thunk", ["srso_return_thunk", THUNK])
def test_a_return_goes_to_the_thunk_in_force(thunk):
    """With return thunks the jump leads to the one that this CPU needs."""
    ((name, target, _),) = returning(frozenset({"rethunk"}), thunk)
    wanted = KERNEL + (64 if thunk != THUNK else 0)
    assert (name, int(target, 16)) == ("jmp", wanted)


@pytest.mark.parametrize(("at", "exposed"), [(0, True), (0x1F, True), (0x20, False), (0x40, True)])
def test_only_lower_halves_of_lines_need_the_its_thunk(at, exposed):
    """Indirect target selection affects branches in the first 32 bytes of a cache line."""
    found = returning(frozenset({"rethunk"}), "its_return_thunk", at=at)
    assert (found[0][0] == "jmp") == exposed
    if exposed:
        assert int(found[0][1], 16) == KERNEL + 0x100


# call, jmp, cs-prefixed call, jz to the thunk; where the displacement stands; and the register.
BRANCHES = {
    "call": ("e8", RAX, ["call rax", "nop"]),
    "jmp": ("e9", RAX, ["jmp rax", "int3", "nop"]),
    "cs call": ("2ee8", R11, ["call r11", "nop"]),
    "jz": ("0f84", R11, ["jne", "jmp r11", "int3"]),
}


@pytest.mark.parametrize("form", BRANCHES)
def test_a_thunk_becomes_the_indirect_branch_itself(form):
    """Without retpolines each form of branch branches through the register, in its old room."""
    opcode, register, wanted = BRANCHES[form]
    head = bytes.fromhex(opcode)
    relas = [Rela(len(head), 4, register, -4)]
    size = len(head) + 4
    table = [sites(".retpoline_sites", [0])]
    result = finalised(head + bytes(4), table, Environment(), INDIRECT, relas=relas)
    found = result.code(0, size)
    texts = [f"{name} {operands}".strip() for name, operands, _ in found]
    assert all(text.startswith(want) for text, want in zip(texts, wanted, strict=True)), texts
    assert sum(len(code) for *_, code in found) == size
    if form == "jz":
        assert int(found[0][1], 16) == BASE + size  # the opposite condition skips it


def test_lfence_retpolines_fence_first():
    """With retpoline,lfence the branch follows an LFENCE where there is room."""
    environment = Environment(features=frozenset({"retpoline", "retpoline_lfence"}))
    result = finalised(
        b"\xe8\0\0\0\0",
        [sites(".retpoline_sites", [0])],
        environment,
        INDIRECT,
        relas=[Rela(1, 4, RAX, -4)],
    )
    assert [name for name, *_ in result.code(0, 5)] == ["lfence", "call"]


def test_plain_retpolines_stay():
    """With retpolines the call of the thunk is what the compiler wrote."""
    environment = Environment(features=frozenset({"retpoline"}))
    result = finalised(
        b"\xe8\0\0\0\0",
        [sites(".retpoline_sites", [0])],
        environment,
        INDIRECT,
        relas=[Rela(1, 4, RAX, -4)],
    )
    assert result.after == result.before


@pytest.mark.parametrize(("at", "exposed"), [(0, True), (0x1E, True), (0x1F, False), (0x3F, True)])
def test_an_indirect_branch_in_a_lower_half_needs_the_its_thunk(at, exposed):
    """Without retpolines, a branch whose last byte is in the lower half goes through a thunk."""
    symbols = {"__x86_indirect_its_thunk_array": KERNEL + 0x8000}
    environment = Environment(features=frozenset({"indirect_thunk_its"}), symbols=symbols)
    result = finalised(
        b"\x90" * at + b"\xe8\0\0\0\0",
        [sites(".retpoline_sites", [at])],
        environment,
        INDIRECT,
        relas=[Rela(at + 1, 4, RAX, -4)],
    )
    (name, target, _), *_ = result.code(at, 5)
    assert (name, target == "rax") == ("call", not exposed)
    if exposed:
        assert int(target, 16) == KERNEL + 0x8000


@pytest.mark.parametrize(("opcode", "array"), [("e8", "call"), ("e9", "jump"), ("2ee8", "call")])
def test_counting_thunks_have_arrays_of_their_own(opcode, array):
    """With call depth tracking a branch leads to its register's thunk that counts."""
    arrays = {f"__x86_indirect_{kind}_thunk_array": KERNEL + n * 0x10000 for n, kind in
              enumerate(("call", "jump"))}  # fmt: skip
    features = frozenset({"retpoline", "call_depth"})
    environment = Environment(features=features, symbols={**arrays, "pcpu_hot": 0x35000})
    head = bytes.fromhex(opcode)
    result = finalised(
        head + bytes(4),
        [sites(".retpoline_sites", [0])],
        environment,
        INDIRECT,
        relas=[Rela(len(head), 4, R11, -4)],
    )
    ((_, target, _),) = result.code(0, len(head) + 4)
    assert int(target, 16) == arrays[f"__x86_indirect_{array}_thunk_array"] + 11 * 32


COUNTED = Environment(
    features=frozenset({"retpoline", "call_depth", "rethunk"}),
    options={"return_thunk": "call_depth_return_thunk"},
    symbols={
        "_text": KERNEL,
        "_etext": KERNEL + 0x100000,
        "_end": KERNEL + 0x200000,
        "pcpu_hot": 0x35000,
        "__pfx_padded": KERNEL + 0x2000,
        "padded": KERNEL + 0x2010,
        "bare": KERNEL + 0x3000,
        "__fentry__": KERNEL + 0x4000,
        "__pfx___fentry__": KERNEL + 0x3FF0,
    },
)


@pytest.mark.parametrize(
    ("callee", "counted"), [("padded", True), ("bare", False), ("__fentry__", False)]
)
def test_calls_into_the_kernel_are_counted_where_there_is_padding(callee, counted):
    """A call is aimed at the padding of the function, unless it has none or must not count."""
    result = finalised(
        b"\xe8\0\0\0\0",
        [sites(".call_sites", [0])],
        COUNTED,
        {callee: COUNTED.symbols[callee]},
        relas=[Rela(1, 4, callee, -4)],
    )
    ((_, target, _),) = result.code(0, 5)
    assert int(target, 16) == COUNTED.symbols[callee] - (9 if counted else 0)


def test_padding_of_own_functions_counts_the_call():
    """The padding before a called function counts one call in the CPU's data; code there stays."""
    text = b"\xe8\0\0\0\0" * 2 + b"\x90" * 22 + b"\xc3" + b"\xcc" * 15 + b"\xc3"
    relas = [Rela(1, 4, "padded", -4), Rela(6, 4, "full", -4)]
    extra = [Sym("padded", ".text", 32, bind=LOCAL), Sym("full", ".text", 48, bind=LOCAL)]
    result = finalised(text, [sites(".call_sites", [0, 5])], COUNTED, relas=relas, extra=extra)
    targets = [int(operands, 16) for _, operands, _ in result.code(0, 10)]
    assert targets == [BASE + 32 - 9, BASE + 48]
    ((name, operands, code),) = result.code(32 - 9, 9)
    assert (name, operands.endswith("5")) == ("sar", True)
    assert "gs:" in operands
    away = int.from_bytes(code[4:8], "little", signed=True)
    assert BASE + 32 + away & MASK == 0x35010  # call_depth in pcpu_hot
    assert result.bytes()[33:49] == text[33:49]


def test_a_table_that_points_outside_is_refused():
    """A site outside the module's sections is an error that names the mechanism."""
    table = Sec(".return_sites", bytes(4), 2, align=4, relas=[Rela(0, PC32, "text", 0x100000)])
    with pytest.raises(BadModule, match=r"returns: .* outside"):
        finalised(b"\xc3" * 16, [table], Environment())

# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules in the guest are finalised for the CPU that runs them."""

from __future__ import annotations

import struct

import pytest

from archs.insn_x86_64 import NOPS
from execmem import Machine
from execmem.check.elfwriter import AARCH64, FUNC, RISCV, X86_64, A, Rela, Sec, Sym, W, X
from loader.errors import BadModule
from tests.archs.facts import facts
from tests.support.modules import module

LSE, ZBB, CALLBACK = 37, 30, 1 << 15


def words(*values: int) -> bytes:
    """Return little-endian words."""
    return struct.pack(f"<{len(values)}I", *values)


def test_atomics_of_the_emulated_arm_cpu_are_used() -> None:
    """The branch around the large-system atomics is gone, and they do what they say."""
    code = words(
        0x1400_0003,  # b 12: as compiled, around what needs the capability
        0xB820_0022,  # ldadd w0, w2, [x1]: w2 = [x1], [x1] += w0
        0x1400_0002,  # b 16
        0x5280_0022,  # mov w2, #1
        0x2A02_03E0,  # mov w0, w2
        0xD65F_03C0,  # ret
    )
    table = Sec(
        ".altinstructions",
        struct.pack("<iiHBB", 0, 0, LSE | CALLBACK, 4, 0),
        A,
        relas=[
            Rela(0, facts("arm64").link.prel32, "add"),
            Rela(4, facts("arm64").link.prel32, "alt_cb_patch_nops"),
        ],
    )
    image = module(
        AARCH64,
        extra=[Sec(".text.add", code, A | X, align=4), table],
        symbols=[Sym("add", ".text.add", 0, len(code), FUNC), Sym("alt_cb_patch_nops")],
    )
    machine = Machine("arm64")
    loaded = machine.load(image, init=False)
    counter = machine.alloc((41).to_bytes(8, "little"))
    assert loaded.call("add", 3, counter) == 41
    assert int.from_bytes(machine.read(counter, 8), "little") == 44


@pytest.mark.parametrize(("extension", "result"), [(ZBB, 1), (ord("c") - ord("a"), 2)])
def test_extensions_of_the_emulated_riscv_cpu_are_known(extension: int, result: int) -> None:
    """It has compressed instructions but no Zbb: that replacement must not be taken."""
    # li a0, 1 ; ret ; li a0, 2
    code = words(0x0010_0513, 0x0000_8067, 0x0020_0513)
    table = Sec(
        ".alternative",
        struct.pack("<iiHHI", 0, 0, 0, 4, extension),
        A,
        relas=[
            Rela(0, facts("riscv64").link.prel32, "pick"),
            Rela(4, facts("riscv64").link.prel32, "pick", 8),
        ],
    )
    image = module(
        RISCV,
        extra=[Sec(".text.pick", code, A | X, align=4), table],
        symbols=[Sym("pick", ".text.pick", 0, len(code), FUNC)],
    )
    assert Machine("riscv64").load(image, init=False).call("pick") == result


# x86-64 ------------------------------------------------------------------------------------

ANSWER = b"\xb8\x05\0\0\0"  # mov $5, %eax
TEXT = ".text.traced"


def traced() -> bytes:
    """Return a module whose function calls the tracer, POPCNT or a function, and returns by a thunk."""
    code = b"\xe8\0\0\0\0" + ANSWER + b"\x90" * 4 + NOPS[5] + b"\xe9\0\0\0\0"
    relas = [Rela(1, 4, "__fentry__", -4), Rela(20, 4, "__x86_return_thunk", -4)]
    alternative = struct.pack("<iiHHBB", 0, 0, 4 * 32 + 23, 0, 4, 4)
    extra = [
        Sec(TEXT, code, A | X, align=16, relas=relas),
        Sec("__mcount_loc", bytes(8), A, align=8, relas=[Rela(0, 1, "answer")]),
        Sec(".return_sites", bytes(4), A, align=4, relas=[Rela(0, 2, "answer", 19)]),
        Sec(".altinstr_replacement", bytes.fromhex("f30fb8c0"), A | X),
        Sec(
            ".altinstructions",
            alternative,
            A,
            relas=[Rela(0, 2, "answer", 10), Rela(4, 2, "popcnt")],
        ),
        Sec("__jump_table", bytes(16), A | W, align=8, relas=[
            Rela(0, 2, "answer", 14), Rela(4, 2, "answer", 19), Rela(8, 24, "key")
        ]),
        Sec(".data.key", bytes(16), A | W, align=8),
    ]  # fmt: skip
    symbols = [
        Sym("answer", TEXT, size=len(code), type=FUNC),
        Sym("popcnt", ".altinstr_replacement"),
        Sym("key", ".data.key"),
    ]
    undefined = ("_printk", "__fentry__", "__x86_return_thunk")
    return module(X86_64, undefined=undefined, extra=extra, symbols=symbols)


@pytest.mark.parametrize("design", ["default", "vmalloc"])
def test_no_call_is_left_where_the_kernel_would_have_none(design):
    """In memory the tracer's call is a NOP, POPCNT is there and the return is RET; it computes."""
    machine = Machine("x86_64", design=design)
    loaded = machine.load(traced(), init=False)
    address = loaded.symbols["answer"]
    code = machine.read(address, 24)
    wanted = NOPS[5] + ANSWER + bytes.fromhex("f30fb8c0") + NOPS[5] + b"\xc3\xcc\xcc\xcc\xcc"
    assert code == wanted
    assert machine.call(address) == 2  # POPCNT of 5
    assert not {"__fentry__", "__x86_return_thunk"} & set(machine.kernel.calls)


def test_keys_lead_to_their_branches_in_memory():
    """The module's own static key points at its first entry in the table."""
    machine = Machine("x86_64")
    loaded = machine.load(traced(), init=False)
    table = next(s for s in loaded.sections.values() if s.name == "__jump_table")
    (entries,) = struct.unpack("<Q", machine.read(loaded.symbols["key"] + 8, 8))
    assert entries == table.address


def test_a_table_of_nonsense_is_refused_and_leaves_nothing():
    """A module that cannot be finalised is refused as if it had never been there."""
    image = module(X86_64, extra=[Sec(".return_sites", b"\xff\xff\xff\x7f", A, align=4)])
    machine = Machine("x86_64")
    with pytest.raises(BadModule, match="returns"):
        machine.load(image)
    assert not machine.modules
    assert machine.load(module(X86_64), init=False)

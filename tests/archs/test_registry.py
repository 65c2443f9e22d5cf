# SPDX-License-Identifier: GPL-2.0-or-later
"""The registry and its records: found by every name, complete, and true to other sources."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

import capstone
import pytest
import unicorn
from elftools.elf import enums
from hypothesis import given
from hypothesis import strategies as st

import archs
from archs.op import Op
from archs.reloc import Part, Reach, Stub
from execmem.check.elfwriter import Rela, Sec, Sym, write
from tests.archs.facts import facts, needs
from tests.support.tools import cross, llvm, run


def disassembler(arch: archs.Arch) -> capstone.Cs:
    """Return capstone for `arch`, set up as its record says."""
    mode = sum(getattr(capstone, name) for name in arch.runs.emulation.capstone_mode)
    engine = capstone.Cs(getattr(capstone, arch.runs.emulation.capstone_prefix), mode)
    engine.detail = True
    return engine


def test_an_architecture_answers_to_each_of_its_names(arch: archs.Arch) -> None:
    """Name and aliases find the architecture in any case, and its e_machine does."""
    for name in (arch.name, *arch.aliases):
        assert archs.arch(name) is arch
        assert archs.arch(name.upper()) is arch
    assert archs.by_machine(arch.machine) is arch


def test_no_two_architectures_share_a_name() -> None:
    """Names and aliases are unique over the registry, and so are machines."""
    names = [n for a in archs.archs() for n in (a.name, *a.aliases)]
    assert len(set(names)) == len(names)
    assert len({a.machine for a in archs.archs()}) == len(archs.archs())


@pytest.mark.parametrize("name", ["amd64", "x86-64", "aarch64", "riscv"])
def test_the_spellings_of_distributions_are_accepted(name: str) -> None:
    """What distributions and manufacturers call an architecture finds it."""
    assert archs.arch(name) in archs.ALL


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    """The error names what was asked for and every architecture that there is."""
    with pytest.raises(ValueError, match="unknown architecture 'vax'") as caught:
        archs.arch("vax")
    assert all(arch.name in str(caught.value) for arch in archs.ALL)
    assert archs.by_machine(75) is None  # EM_VAX


def test_relocation_numbers_are_those_of_pyelftools(arch: archs.Arch) -> None:
    """Number and name of every row agree with an independent table."""
    known = facts(arch).link
    if known.pyelftools is None:
        pytest.skip(f"pyelftools has no table of {arch.name}")
    enum = getattr(enums, known.pyelftools)
    numbers = {value: key for key, value in enum.items() if isinstance(value, int)}
    ours = arch.link.relocations
    assert set(ours) - set(numbers) == known.beyond_pyelftools
    differ = {n for n in set(ours) & set(numbers) if ours[n].name != numbers[n]}
    assert differ == set(known.wrong_in_pyelftools)


def printed_names(program: str, arch: archs.Arch, folder: Path) -> dict[int, str]:
    """Return the names that a readelf prints for the numbers of a table; unknown ones left out."""
    relas = [Rela(0, number, "s") for number in range(max(arch.link.relocations) + 1)]
    path = folder / "all.o"
    path.write_bytes(write(arch.machine, [Sec(".text", bytes(16), relas=relas)], [Sym("s")]))
    pattern = r"^\w{16}\s+(\w{8})(\w{8})\s+(R_\w+)"
    found = re.findall(pattern, run(program, "-rW", path), re.MULTILINE)
    if len({low for _, low, _ in found}) == 1:  # MIPS64's fields, as LLVM reads them
        return {int(high, 16) >> 24: name for high, _, name in found}
    return {int(low, 16): name for _, low, name in found}


def test_relocation_numbers_are_those_of_readelf(arch: archs.Arch, tmp_path: Path) -> None:
    """Number and name of every row agree with what binutils prints, and no name is left out."""
    names = printed_names(cross(arch.machine, "readelf"), arch, tmp_path)
    if names.get(256) == "R_AARCH64_NULL":  # what binutils calls aaelf64's second NONE
        names[256] = "R_AARCH64_NONE"
    names = {n: name for n, name in names.items() if "_P32_" not in name}  # of 32-bit objects
    table = {number: row.name for number, row in arch.link.relocations.items()}
    differ = {n for n in set(names) | set(table) if names.get(n) != table.get(n)}
    newer = facts(arch).link.newer_than_readelf
    assert differ <= set(newer)
    assert all(names.get(n) in (newer[n], table.get(n)) for n in differ)


def test_relocation_numbers_are_those_of_llvm(arch: archs.Arch, tmp_path: Path) -> None:
    """Numbers too new for binutils have the names that LLVM's readelf prints, where it is newer."""
    names = printed_names(llvm("llvm-readelf"), arch, tmp_path)
    if not names:
        pytest.skip(f"LLVM knows no relocations of {arch.name}")
    if names.get(41) == "R_RISCV_GNU_VTINHERIT":
        del names[41]  # what the number meant before LLVM 17
    table = {number: row.name for number, row in arch.link.relocations.items()}
    assert len(names.keys() & table.keys()) > 0.8 * len(table)
    assert {n: names[n] for n in names.keys() & table.keys()} == {
        n: table[n] for n in names.keys() & table.keys()
    }


def test_keys_of_the_table_are_its_numbers(arch: archs.Arch) -> None:
    """A row stands under its own number, has words unless it does nothing, or a reason."""
    for number, row in arch.link.relocations.items():
        assert row.number == number
        assert bool(row.parts or row.uleb) == (row.op is not Op.NONE)
        if row.unsupported:
            assert row.op is Op.NONE


def test_only_rows_of_plt_branches_have_a_stub(arch: archs.Arch) -> None:
    """The branches that the PLT serves are the rows that say so; no PLT, no such row.

    PLT32 of arm64 (314) may have a stub by aaelf64 5.7.9.1; the kernel knows no such type.
    """
    needs(arch, "load")
    stubbed = {n for n, row in arch.link.relocations.items() if row.stub is Stub.PLT and row.kernel}
    assert stubbed == (set() if arch.plt is None else set(arch.plt.branches))


def test_a_branch_reaches_as_far_as_its_relocation(arch: archs.Arch) -> None:
    """The reach of an instruction is its relocation's, counted from the instruction's start."""
    rows = facts(arch).link.branches
    assert {branch.mnemonic for branch in arch.link.branches} == set(rows)
    for branch in arch.link.branches:
        known = rows[branch.mnemonic]
        field = arch.link.relocations[known.row].reach
        assert branch.reach == Reach(field.lo + known.end, field.hi + known.end, field.align)


def test_a_record_is_whole(arch: archs.Arch) -> None:
    """Sizes are what other packages rely on: trap patterns, granules, page-rounded images."""
    assert len(arch.loads.trap) in (1, 2, 4)
    assert arch.loads.function_alignment & (arch.loads.function_alignment - 1) == 0
    assert arch.loads.function_alignment % len(arch.loads.trap) == 0
    assert arch.loads.image_size == arch.loads.address_map().image.size
    assert arch.loads.image_size % 4096 == 0
    assert arch.title
    assert arch.link.code_model
    if arch.text_poke is not None:
        assert len(arch.loads.trap) % arch.text_poke.granule == 0
        assert arch.text_poke.window % 4096 == 0
    if arch.plt is not None:
        assert arch.plt.align & (arch.plt.align - 1) == 0
        assert len(arch.plt.encode(0, 0)) == arch.plt.size


def test_the_trap_stops_and_the_return_returns(arch: archs.Arch) -> None:
    """Filled memory decodes as breakpoints, and the return instruction as a return."""
    decoded = list(disassembler(arch).disasm(arch.loads.trap * 4, 0))
    assert [i.mnemonic for i in decoded] == [facts(arch).run.trap_mnemonic] * 4
    ret, *slot = disassembler(arch).disasm(arch.runs.emulation.ret, 0)
    assert (ret.mnemonic, ret.op_str) in {("ret", ""), ("c.jr", "ra"), ("jr", "$ra")}
    assert [i.mnemonic for i in slot] == ["nop"] * (arch.runs.emulation.delay_slots is not None)


def test_names_of_emulator_constants_exist(arch: archs.Arch) -> None:
    """Every register, mode and model is a constant of the emulator by the name in the record."""
    emulation, calling = arch.runs.emulation, arch.runs.calling
    package = f"unicorn.{emulation.prefix.lower()}_const"
    constants = vars(__import__(package, fromlist=["*"]))
    assert hasattr(unicorn, f"UC_ARCH_{emulation.prefix}")
    assert hasattr(unicorn, emulation.mode)
    assert emulation.model in constants
    registers = {
        *calling.arguments,
        calling.result,
        calling.stack_pointer,
        calling.program_counter,
        *({calling.link} - {None}),
        *emulation.anchors,
        *emulation.constants,
    }
    for register in registers:
        assert f"{emulation.registers}{register.upper()}" in constants, register


def test_x86_thunks_jump_to_the_register_of_their_name() -> None:
    """`__x86_indirect_thunk_REG` is `jmp REG`; the other helpers only return."""
    arch = archs.arch("x86_64")
    for name, code in arch.runs.emulation.code.items():
        if name in arch.runs.emulation.fixups:
            continue
        (instruction,) = disassembler(arch).disasm(code, 0)
        if name.startswith("__x86_indirect_thunk_"):
            register = name.removeprefix("__x86_indirect_thunk_")
            assert (instruction.mnemonic, instruction.op_str) == ("jmp", register)
        else:
            assert instruction.mnemonic == "ret"


def test_x86_user_accesses_are_named_where_they_are() -> None:
    """The fixup of each function that accesses user memory names the instruction that does it."""
    arch = archs.arch("x86_64")
    for name, (access, resume) in arch.runs.emulation.fixups.items():
        code = arch.runs.emulation.code[name]
        found = {i.address: i for i in disassembler(arch).disasm(code, 0)}
        assert sum(i.size for i in found.values()) == len(code)
        size = {"1": "byte", "2": "word", "4": "dword", "8": "qword"}.get(name[-1], "byte")
        assert f"{size} ptr" in found[access].op_str
        assert resume in found


def test_va_list_walks_saved_registers_then_the_stack(arch: archs.Arch) -> None:
    """The psABI's va_list gives its unread argument registers first, then stack slots."""
    first, calling = facts(arch).run.va_list_first, arch.runs.calling
    memory = facts(arch).run.va_list | {0x2000: "s0", 0x2008: "s1"}
    slots = calling.va_list(0x2000 if calling.va_list_is_pointer else 0, memory.__getitem__)
    assert list(islice(slots, len(first) + 2)) == [*first, "s0", "s1"]


def test_an_exhausted_va_list_goes_on_with_the_stack() -> None:
    """Where __gr_offs of AAPCS64 is not negative no register is left."""
    memory = facts("arm64").run.va_list | {24: 0, 0x2000: "s0"}
    assert next(archs.arch("arm64").runs.calling.va_list(0, memory.__getitem__)) == "s0"


@given(
    address=st.integers(0, (1 << 46) - 1),
    pages=st.integers(-(1 << 20), (1 << 20) - 1),
    low=st.integers(0, 4095),
)
def test_a_plt_entry_goes_where_it_should(address: int, pages: int, low: int) -> None:
    """ADRP, ADD and BR of an entry add up to its target anywhere within 4 GiB of pages."""
    arch = archs.arch("arm64")
    here = 0xFFFF_8000_0000_0000 + 4 * address
    target = ((here >> 12) + pages << 12) + low
    code = arch.plt.encode(here, target)
    adrp, add, branch = disassembler(arch).disasm(code, here)
    assert [adrp.mnemonic, add.mnemonic, branch.mnemonic] == ["adrp", "add", "br"]
    scratch = {i.reg_name(i.operands[0].reg) for i in (adrp, add, branch)}
    assert scratch == {"x16"}
    assert add.reg_name(add.operands[1].reg) == "x16"
    assert (adrp.operands[1].imm + add.operands[2].imm) % (1 << 64) == target % (1 << 64)


def test_parts_are_words_of_the_machine(arch: archs.Arch) -> None:
    """Every part is a word of 1, 2, 4 or 8 bytes."""
    parts: list[Part] = [p for row in arch.link.relocations.values() for p in row.parts]
    assert {part.size for part in parts} <= {1, 2, 4, 8}

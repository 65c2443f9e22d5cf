# SPDX-License-Identifier: GPL-2.0-or-later
"""Where linkers differ because of more than where X lies: data, each with its reason and source.

What kind of symbol it is, an addend, what stood in the field before: random cases have all of it.
Differences by X alone are in `execmem.check.quirks`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import attrs

from execmem.check.coverage import Tried
from execmem.check.quirks import How
from loader.elfview import SHN_ABS, SHN_UNDEF, ElfView

# How the facts about a relocation are called: where X lies, and what symbol it names.
BELOW, ABOVE, OFF_GRID = "below it", "above it", "off its grid"
ADDEND, WEAK, NO_SYMBOL = "addend", "weak undefined", "no symbol"
ABSOLUTE = "absolute"
FULL_FIELD, SUBTRACTS = "field not empty", "subtracts an addend"
ALIKE, INVERTED = "the field is alike", "the field is inverted"  # where bytes differ
NEAR_END = "less than four bytes below the upper end"


class Kind(enum.Enum):
    """How somebody differs."""

    BYTES = "makes other bytes"
    LINKS = "links what is refused here"
    REFUSES = "refuses what is linked here"
    EXECUTES = "leads elsewhere when it is executed"
    FAILS = "cannot be linked here at all"


@attrs.frozen(kw_only=True)
class Quirk:
    """A way in which linkers are known to differ.

    Parameters
    ----------
    linkers
        Short names.
    kinds
        How.
    relocs
        Names of relocations, with wildcards.
    facts
        One of these must be so; empty: any.
    says
        A pattern that the difference's text must have.
    why
        One sentence.
    source
        Where that can be read; for linkers, the version it was read in or seen with.
    """

    linkers: Collection[str]
    kinds: Collection[Kind]
    relocs: Collection[str]
    facts: Collection[str] = ()
    says: str = ""
    why: str
    source: str

    def explains(
        self, linker: str, kind: Kind, reloc: str, facts: Collection[str], text: str
    ) -> bool:
        """Return whether a difference is of this kind."""
        return (
            linker in self.linkers
            and kind in self.kinds
            and any(fnmatchcase(reloc, pattern) for pattern in self.relocs)
            and (not self.facts or any(fact in self.facts for fact in facts))
            and re.search(self.says, text) is not None
        )


LD, LLD, BOTH = ("ld",), ("lld",), ("ld", "lld")
_OUT_OF_REACH = (BELOW, ABOVE)


QUIRKS: tuple[Quirk, ...] = (
    # x86-64
    Quirk(
        linkers=LLD,
        kinds=(Kind.LINKS, Kind.REFUSES),
        relocs=("R_X86_64_SIZE32",),
        says="SIZE32.* out of range",
        why="it takes a size as a signed number",
        source="LLVM 22, lld/ELF/Arch/X86_64.cpp, relocate: checkInt with R_X86_64_32S",
    ),
    # arm64
    Quirk(
        linkers=BOTH,
        kinds=(Kind.BYTES, Kind.REFUSES),
        relocs=("R_AARCH64_*GOT*",),
        facts=(ADDEND,),
        why="its slots hold S, and A counts from the slot; aaelf64 has slots that hold S+A",
        source="aaelf64, 5.7.9: GDAT(S+A); seen with binutils 2.40 and LLVM 22",
    ),
    Quirk(
        linkers=BOTH,
        kinds=(Kind.BYTES, Kind.REFUSES, Kind.LINKS),
        relocs=("R_AARCH64_*",),
        facts=(WEAK, NO_SYMBOL),
        why="a weak symbol that nobody defines lies at the place itself, or behind it, for whatever "
        "counts from there; for a module loader it lies at 0",
        source="aaelf64, 5.7 (weak references); lld/ELF/InputSection.cpp, "
        "getAArch64UndefinedRelativeWeakVA; bfd/elfxx-aarch64.c, _bfd_aarch64_elf_resolve_relocation",
    ),
    Quirk(
        linkers=LD,
        kinds=(Kind.REFUSES,),
        relocs=("R_AARCH64_*",),
        facts=(NO_SYMBOL,),
        says="no symbol",
        why="it wants a symbol",
        source="seen with binutils 2.40",
    ),
    Quirk(
        linkers=LD,
        kinds=(Kind.REFUSES,),
        relocs=("R_AARCH64_CALL26", "R_AARCH64_JUMP26"),
        facts=(ABSOLUTE,),
        says="exit status -11",
        why="it crashes over a branch to a local symbol that is absolute",
        source="binutils 2.40, bfd/elfnn-aarch64.c, elfNN_aarch64_size_stubs: st_shndx is an index to it",
    ),
    Quirk(
        linkers=BOTH,
        kinds=(Kind.LINKS,),
        relocs=("R_AARCH64_CALL26", "R_AARCH64_JUMP26", "R_AARCH64_PLT32"),
        facts=_OUT_OF_REACH,
        why="it puts veneers of its own where branches reach them",
        source="bfd/elfnn-aarch64.c, elfNN_aarch64_size_stubs; lld/ELF/Thunks.cpp",
    ),
    Quirk(
        linkers=LLD,
        kinds=(Kind.BYTES,),
        relocs=("R_AARCH64_PLT32",),
        facts=(NEAR_END,),
        why="it puts a veneer of its own where the last four bytes of the reach would do",
        source="LLVM 22, lld/ELF/Arch/AArch64.cpp, inBranchRange: range -= 4",
    ),
    Quirk(
        linkers=LLD,
        kinds=(Kind.BYTES,),
        relocs=("R_AARCH64_JUMP26",),
        facts=(ALIKE,),
        why="it writes the whole instruction, whatever stood there",
        source="LLVM 22, lld/ELF/Arch/AArch64.cpp, relocate: write32le(loc, 0x14000000)",
    ),
    Quirk(
        linkers=LLD,
        kinds=(Kind.BYTES,),
        relocs=("R_AARCH64_MOVW_*",),
        facts=(FULL_FIELD,),
        why="it adds bits to a field that it takes to be empty, as assemblers leave it",
        source="LLVM 22, lld/ELF/Arch/AArch64.cpp, writeSMovWImm: inst | imm << 5",
    ),
    Quirk(
        linkers=LLD,
        kinds=(Kind.BYTES,),
        relocs=("R_AARCH64_MOVW_*",),
        facts=(ALIKE, INVERTED),
        why="it takes every instruction but MOVK for MOVN or MOVZ, and makes it the one or the other",
        source="LLVM 22, lld/ELF/Arch/AArch64.cpp, writeSMovWImm",
    ),
    Quirk(
        linkers=LD,
        kinds=(Kind.BYTES,),
        relocs=("R_AARCH64_MOVW_*",),
        facts=(FULL_FIELD,),
        why="of an instruction that is neither MOVN nor MOVZ it keeps bit 29, which the kernel clears",
        source="bfd/elfxx-aarch64.c, reencode_movzn_to_movz; arch/arm64/kernel/module.c, reloc_insn_movw",
    ),
    # riscv64
    Quirk(
        linkers=LD,
        kinds=(Kind.BYTES,),
        relocs=("R_RISCV_ADD*", "R_RISCV_SUB*", "R_RISCV_SET*"),
        facts=(SUBTRACTS,),
        why="it adds the addend of what it subtracts: V - S + A, where the psABI has V - S - A",
        source="binutils 2.40, bfd/elfnn-riscv.c, riscv_elf_relocate_section: old_value - relocation, "
        "and then perform_relocation: value += rel->r_addend; "
        "RISC-V ELF psABI, 8.4",
    ),
    Quirk(
        linkers=LD,
        kinds=(Kind.REFUSES,),
        relocs=("R_RISCV_GOT_HI20", "R_RISCV_PCREL_LO12_*"),
        says="addend isn't allowed for R_RISCV_GOT_HI20",
        why="it allows no addend",
        source="binutils 2.40, bfd/elfnn-riscv.c, riscv_elf_relocate_section",
    ),
    Quirk(
        linkers=LD,
        kinds=(Kind.REFUSES, Kind.BYTES, Kind.LINKS),
        relocs=("R_RISCV_PCREL_HI20", "R_RISCV_PCREL_LO12_*", "R_RISCV_CALL*"),
        facts=(ADDEND, WEAK, NO_SYMBOL, *_OUT_OF_REACH),
        says="R_RISCV_HI20|R_RISCV_CALL|makes|links",
        why="it makes LUI of AUIPC where a symbol is far away, and does not count the addend then",
        source="binutils 2.40, bfd/elfnn-riscv.c, riscv_zero_pcrel_hi_reloc",
    ),
    Quirk(
        linkers=LLD,
        kinds=(Kind.REFUSES,),
        relocs=("R_RISCV_SET32",),
        says="SET32 out of range",
        why="it checks each record of a sum, not the sum",
        source="LLVM 22, lld/ELF/Arch/RISCV.cpp, relocate: R_RISCV_SET32 as R_RISCV_PLT32",
    ),
    Quirk(
        linkers=LLD,
        kinds=(Kind.REFUSES, Kind.BYTES, Kind.LINKS),
        relocs=("R_RISCV_*",),
        facts=(WEAK, NO_SYMBOL),
        why="a weak symbol that nobody defines lies at the place for whatever counts from there",
        source="LLVM 22, lld/ELF/InputSection.cpp, getRISCVUndefinedRelativeWeakVA",
    ),
    # mips64el
    Quirk(
        linkers=LLD,
        kinds=(Kind.LINKS,),
        relocs=("R_MIPS_26",),
        facts=_OUT_OF_REACH,
        why="it does not check whether a jump leaves its region",
        source="LLVM 22, lld/ELF/Arch/Mips.cpp, relocate: R_MIPS_26",
    ),
    Quirk(
        linkers=LLD,
        kinds=(Kind.REFUSES,),
        relocs=("R_MIPS_JALR",),
        says="non-function symbol",
        why="it wants the hint where a call leads to name a function",
        source="LLVM 22, lld/ELF/Arch/Mips.cpp, getRelExpr",
    ),
    Quirk(
        linkers=LD,
        kinds=(Kind.LINKS,),
        relocs=("R_MIPS_PC*", "R_MIPS_26", "R_MIPS_GNU_REL16_S2"),
        facts=(WEAK,),
        why="it does not check branches and jumps to a weak symbol that nobody defines",
        source="binutils 2.40, bfd/elfxx-mips.c, mips_elf_calculate_relocation: was_undefined, overflowed_p",
    ),
    Quirk(
        linkers=LD,
        kinds=(Kind.REFUSES,),
        relocs=("R_MIPS_*",),
        says="between ISA modes|JALX",
        why="an odd address means code of another instruction set to it",
        source="binutils 2.40, bfd/elfxx-mips.c, mips_elf_perform_relocation",
    ),
    # all
    Quirk(
        linkers=BOTH,
        kinds=(Kind.LINKS,),
        relocs=("*",),
        facts=(OFF_GRID,),
        says="no multiple of",
        why="it drops the bits that the field does not hold",
        source="seen with binutils 2.40 and LLVM 22",
    ),
)


HOW = {How.DIFFERS: Kind.BYTES, How.LINKS: Kind.LINKS, How.REFUSES: Kind.REFUSES}


def explain(linker: str, kind: Kind, reloc: str, facts: Collection[str], text: str) -> Quirk | None:
    """Return what explains that a linker differs; None where nothing is known.

    Parameters
    ----------
    linker
        Its short name.
    reloc
        Name of the relocation.
    facts
        As `facts_of`, and how the field differs (`ALIKE`, `INVERTED`).
    text
        What differs, in words.
    """
    return next((q for q in QUIRKS if q.explains(linker, kind, reloc, facts, text)), None)


def reason_for(view: ElfView, linker: str, how: How, those: Sequence[Tried], text: str) -> str:
    """Return why a linker does otherwise, where that is known of every one of relocations."""
    found = [explain(linker, HOW[how], t.row.name, facts_of(view, t), text) for t in those]
    known = [quirk for quirk in found if quirk is not None]
    if len(known) < len(found):
        return ""
    return "; ".join(dict.fromkeys(f"{quirk.why} ({quirk.source})" for quirk in known))


def facts_of(view: ElfView, one: Tried) -> frozenset[str]:
    """Return what is remarkable about a relocation of an object before it is linked."""
    rows = view.arch.link.relocations
    facts = {one.where}
    table = next(t for t in view.tables if t.target.name == one.section)
    for offset, number, symbol, addend in table.records.tolist():
        row = rows.get(number)
        if offset != one.offset or row is None:
            continue
        if addend and row.accumulates and row.op.weight("S") < 0:
            facts.add(SUBTRACTS)
        if row.name == one.row.name:
            facts |= {ADDEND} if addend else set()
            facts.add(_kind_of(view, symbol))
    reach = one.row.reach
    if one.x is not None and reach is not None and reach.hi - 4 < one.x < reach.hi:
        facts.add(NEAR_END)
    held = bytes(view.contents(table.target)[one.offset : one.offset + one.row.size])
    words = [(part, part.load(held)) for part in one.row.parts]
    if any(word & part.mask & ~part.zeros & ~part.movz for part, word in words):
        facts.add(FULL_FIELD)
    return frozenset(facts)


def _kind_of(view: ElfView, symbol: int) -> str:
    """Return what kind of symbol an index is."""
    if not symbol:
        return NO_SYMBOL
    where = int(view.symbols["shndx"][symbol])
    if where == SHN_ABS:
        return ABSOLUTE
    if where == SHN_UNDEF and view.symbol_name(symbol) in view.weak_undefined:
        return WEAK
    return "given" if where == SHN_UNDEF else "defined"

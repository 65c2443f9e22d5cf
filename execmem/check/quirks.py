# SPDX-License-Identifier: GPL-2.0-or-later
"""Where linkers differ from what is linked here, each with its reason: nothing else may differ.

A row is about one linker, one architecture, named relocations, and where their X lies. What a
linker makes of anything else must be the same, or the case fails. Each was seen with the version
named, in the case of tests/cases/rows of that relocation; the sources are those of that version.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence

import attrs

from execmem.check.coverage import Tried
from execmem.check.ends import ABOVE, BELOW, LOWER, OFF, UPPER


class How(enum.Enum):
    """What a linker does otherwise."""

    LINKS = "links what is refused here"
    REFUSES = "refuses what is linked here"
    DIFFERS = "makes other bytes"


@attrs.frozen(kw_only=True)
class Quirk:
    """One difference.

    Parameters
    ----------
    linker, arch
        Whose, and where.
    relocs
        Names of relocations, without the prefix that all of an architecture have.
    how
        What it does.
    where
        Where X lies, of `ends.ENDS`; empty: anywhere. `negative` stands for X < 0.
    seen
        Version that it was seen in.
    reason
        Why, with the source.
    """

    linker: str
    arch: str
    relocs: frozenset[str]
    how: How
    where: frozenset[str] = frozenset()
    seen: str
    reason: str

    def explains(self, one: Tried) -> bool:
        """Return whether it is about a relocation where it lies."""
        name = one.row.name
        mine = any(name.endswith(f"_{reloc}") for reloc in self.relocs)
        negative = "negative" in self.where and one.x is not None and one.x < 0
        return mine and (not self.where or one.where in self.where or negative)


SEEN = {"ld": "binutils 2.40", "lld": "lld 22", "mold": "mold 1.10", "jitlink": "LLVM 22"}
_GRID = "drops the bits below the grid of the field without a word"
_STUBS = "leads branches to what an object does not define through stubs of its own"
_EITHER = "lets the word be read as unsigned, too, as the ABI does"
_SUMS = "ADD8 ADD16 ADD32 SUB6 SUB8 SUB16 SUB32 SET6 SET8 SET16 SET32"
_WRAPS = "computes in the width of the word and never checks"
_UNKNOWN = "does not know the type, and leaves the place as it is without a word"
_ROUNDED = (
    "checks all 32 bits, and not what is left of them when the low half has its sign "
    "(elf/arch-riscv.cc)"
)
_BITFIELD = "takes -2^n <= X < 2^n of a field of n bits (complain_overflow_bitfield, bfd/reloc.c)"
_SIZE = "takes a size as signed (lld/ELF/Arch/X86_64.cpp, relocate)"

# Linker, architecture, relocations (without the architecture's prefix), what it does, where, why.
_ROWS: Sequence[tuple[str, str, str, How, Collection[str], str]] = (
    (
        "ld",
        "arm64",
        "CALL26 JUMP26 CONDBR19 TSTBR14",
        How.LINKS,
        (OFF,),
        f"{_GRID} (bfd/elfxx-aarch64.c, _bfd_aarch64_elf_put_addend)",
    ),
    (
        "lld",
        "arm64",
        "CALL26 JUMP26 TSTBR14",
        How.LINKS,
        (OFF,),
        f"{_GRID} (lld/ELF/Arch/AArch64.cpp, relocate: no checkAlignment)",
    ),
    (
        "mold",
        "arm64",
        (
            "CALL26 JUMP26 CONDBR19 LD_PREL_LO19 LDST16_ABS_LO12_NC LDST32_ABS_LO12_NC "
            "LDST64_ABS_LO12_NC LDST128_ABS_LO12_NC"
        ),
        How.LINKS,
        (OFF,),
        f"{_GRID} (elf/arch-arm64.cc)",
    ),
    (
        "jitlink",
        "arm64",
        "CALL26 JUMP26",
        How.LINKS,
        (OFF,),
        _STUBS,
    ),
    (
        "jitlink",
        "arm64",
        "CALL26 JUMP26",
        How.DIFFERS,
        (),
        _STUBS,
    ),
    (
        "ld",
        "arm64",
        "ABS16 ABS32",
        How.REFUSES,
        ("negative",),
        (
            "complain_overflow_unsigned (bfd/elfnn-aarch64.c); the ABI has -2^31 <= X < 2^32 "
            "and -2^15 <= X < 2^16"
        ),
    ),
    (
        "jitlink",
        "arm64",
        "ABS32",
        How.REFUSES,
        ("negative",),
        "Pointer32 has no sign (JITLink/aarch64.h); the ABI has -2^31 <= X < 2^32",
    ),
    (
        "lld",
        "arm64",
        "PREL16 PREL32",
        How.LINKS,
        (ABOVE,),
        f"{_EITHER} (lld/ELF/Arch/AArch64.cpp, checkIntUInt); the kernel reads it as signed",
    ),
    (
        "mold",
        "arm64",
        "PREL32",
        How.LINKS,
        (ABOVE,),
        f"{_EITHER} (elf/arch-arm64.cc); the kernel reads it as signed",
    ),
    (
        "lld",
        "arm64",
        "MOVW_PREL_G3",
        How.DIFFERS,
        ("negative",),
        (
            "fills the field and leaves MOVZ or MOVN as it is (lld/ELF/Arch/AArch64.cpp, "
            "relocate), which makes another number; the ABI says MOV[NZ], and GNU ld chooses"
        ),
    ),
    (
        "ld",
        "riscv64",
        f"32 32_PCREL {_SUMS}",
        How.LINKS,
        (
            BELOW,
            ABOVE,
        ),
        f"{_WRAPS} (bfd/elfnn-riscv.c, perform_relocation)",
    ),
    (
        "lld",
        "riscv64",
        f"32 {_SUMS}",
        How.LINKS,
        (
            BELOW,
            ABOVE,
        ),
        f"{_WRAPS} (lld/ELF/Arch/RISCV.cpp, relocate)",
    ),
    (
        "mold",
        "riscv64",
        f"32 32_PCREL {_SUMS}",
        How.LINKS,
        (
            BELOW,
            ABOVE,
        ),
        f"{_WRAPS} (elf/arch-riscv.cc)",
    ),
    (
        "jitlink",
        "riscv64",
        f"32 32_PCREL {_SUMS}",
        How.LINKS,
        (
            BELOW,
            ABOVE,
        ),
        f"{_WRAPS} (JITLink/ELF_riscv.cpp, applyFixup)",
    ),
    (
        "lld",
        "riscv64",
        "SET32",
        How.REFUSES,
        (UPPER,),
        "takes the word as signed (lld/ELF/Arch/RISCV.cpp, checkInt)",
    ),
    (
        "ld",
        "riscv64",
        "PCREL_HI20",
        How.LINKS,
        (ABOVE,),
        (
            "makes LUI of AUIPC where the address itself fits (bfd/elfnn-riscv.c, "
            "riscv_zero_pcrel_hi_reloc)"
        ),
    ),
    (
        "ld",
        "riscv64",
        "SET_ULEB128 SUB_ULEB128",
        How.REFUSES,
        (),
        "dies of a segmentation fault over a type that it does not know",
    ),
    (
        "ld",
        "riscv64",
        "PLT32",
        How.DIFFERS,
        (),
        _UNKNOWN,
    ),
    (
        "ld",
        "riscv64",
        "PLT32",
        How.LINKS,
        (
            BELOW,
            ABOVE,
        ),
        _UNKNOWN,
    ),
    (
        "mold",
        "riscv64",
        "CALL CALL_PLT HI20",
        How.LINKS,
        (ABOVE,),
        _ROUNDED,
    ),
    (
        "mold",
        "riscv64",
        "CALL CALL_PLT HI20",
        How.REFUSES,
        (LOWER,),
        _ROUNDED,
    ),
    (
        "mold",
        "riscv64",
        "PCREL_HI20",
        How.LINKS,
        (
            BELOW,
            ABOVE,
        ),
        "never checks it (elf/arch-riscv.cc)",
    ),
    (
        "mold",
        "riscv64",
        "BRANCH JAL RVC_BRANCH RVC_JUMP",
        How.LINKS,
        (OFF,),
        f"{_GRID} (elf/arch-riscv.cc)",
    ),
    (
        "mold",
        "riscv64",
        "ADD8 SUB8",
        How.DIFFERS,
        (),
        "moves its pointer and not the byte (elf/arch-riscv.cc, loc += S + A)",
    ),
    (
        "mold",
        "riscv64",
        "LO12_I LO12_S",
        How.DIFFERS,
        ("negative",),
        (
            "takes x0 for the base where bits 31 to 12 of the address are zero, whatever stands "
            "above them (elf/arch-riscv.cc)"
        ),
    ),
    (
        "jitlink",
        "riscv64",
        "CALL CALL_PLT",
        How.LINKS,
        (
            BELOW,
            ABOVE,
        ),
        _STUBS,
    ),
    (
        "jitlink",
        "riscv64",
        "CALL CALL_PLT",
        How.DIFFERS,
        (),
        _STUBS,
    ),
    (
        "jitlink",
        "riscv64",
        "RELAX",
        How.REFUSES,
        (),
        "wants a relocation in front of it (JITLink/ELF_riscv.cpp)",
    ),
    (
        "lld",
        "mips64el",
        "26",
        How.LINKS,
        (
            BELOW,
            ABOVE,
            OFF,
        ),
        "writes the low bits of any target (lld/ELF/Arch/Mips.cpp, relocate)",
    ),
    (
        "ld",
        "mips64el",
        "32 HI16 PCHI16 PC32",
        How.LINKS,
        (
            BELOW,
            ABOVE,
        ),
        f"{_WRAPS} (bfd/elf64-mips.c, complain_overflow_dont)",
    ),
    (
        "lld",
        "mips64el",
        "32 HI16 PCHI16 PC32",
        How.LINKS,
        (
            BELOW,
            ABOVE,
        ),
        f"{_WRAPS} (lld/ELF/Arch/Mips.cpp, relocate)",
    ),
    (
        "ld",
        "x86_64",
        "8 16",
        How.LINKS,
        (BELOW,),
        _BITFIELD,
    ),
    (
        "ld",
        "x86_64",
        "PC8 PC16",
        How.LINKS,
        (
            BELOW,
            ABOVE,
        ),
        _BITFIELD,
    ),
    (
        "mold",
        "x86_64",
        "8 16",
        How.REFUSES,
        ("negative",),
        "takes the word as unsigned (elf/arch-x86-64.cc); the ABI leaves that open",
    ),
    (
        "jitlink",
        "x86_64",
        "8 16",
        How.REFUSES,
        ("negative",),
        "takes the word as unsigned (JITLink/x86_64.h); the ABI leaves that open",
    ),
    (
        "jitlink",
        "x86_64",
        "PLT32",
        How.LINKS,
        (
            BELOW,
            ABOVE,
        ),
        _STUBS,
    ),
    (
        "jitlink",
        "x86_64",
        "PLT32",
        How.DIFFERS,
        (),
        _STUBS,
    ),
    (
        "jitlink",
        "x86_64",
        "SIZE32 SIZE64",
        How.REFUSES,
        (),
        "knows no absolute symbol that an object defines (JITLink/ELFLinkGraphBuilder.h)",
    ),
    (
        "lld",
        "x86_64",
        "SIZE32",
        How.LINKS,
        (BELOW,),
        _SIZE,
    ),
    (
        "lld",
        "x86_64",
        "SIZE32",
        How.REFUSES,
        (UPPER,),
        _SIZE,
    ),
)
QUIRKS: Sequence[Quirk] = tuple(
    Quirk(
        linker=linker,
        arch=arch,
        relocs=frozenset(relocs.split()),
        how=how,
        where=frozenset(where),
        seen=SEEN[linker],
        reason=reason,
    )
    for linker, arch, relocs, how, where, reason in _ROWS
)


# Fields of instructions that no CPU of the emulator has, by relocation: why nothing executes them.
_RELEASE_6 = "of MIPS Release 6; the emulated CPU is of Release 2, as the kernel's"
NOT_EXECUTED: Mapping[str, str] = {
    "R_MIPS_PC21_S2": f"BEQZC and BNEZC are {_RELEASE_6}",
    "R_MIPS_PC26_S2": f"BC and BALC are {_RELEASE_6}",
    "R_MIPS_PC18_S3": f"LDPC is {_RELEASE_6}",
    "R_MIPS_PC19_S2": f"ADDIUPC and LWPC are {_RELEASE_6}",
}


def reason_for(linker: str, arch: str, how: How, those: Sequence[Tried]) -> str:
    """Return why a linker does otherwise, where that is known of every one of relocations."""
    reasons: dict[str, None] = {}
    for one in those:
        for quirk in QUIRKS:
            same = quirk.linker == linker and quirk.arch == arch and quirk.how is how
            if same and quirk.explains(one):
                reasons[f"{quirk.seen}: {quirk.reason}"] = None
                break
        else:
            return ""
    return "; ".join(reasons)

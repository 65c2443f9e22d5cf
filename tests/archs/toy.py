# SPDX-License-Identifier: GPL-2.0-or-later
"""Toy: an architecture that exists only here, and is unlike the others wherever it can be.

32 bits, big endian, addends in place (REL), a high and a low half of addresses that need each
other's record, jumps inside a region of 256 MiB, a kernel below 2^32, no text_poke. It has the
levels link and load and no other. Instructions are like those of MIPS I: six bits of opcode, two
registers, sixteen bits of immediate; or six bits of opcode and the 26 of a jump.

Nothing is built for it, so that it holds the house to what its record says, and nothing else.
"""

from __future__ import annotations

import attrs

from allocator.types import MIB, AddressMap, ExecmemRange, ExecmemType, Interval, TlbRules
from archs.arch import Arch
from archs.dialect import Dialect
from archs.layouts import Table
from archs.levels.link import Branch, Link, Region, rows
from archs.levels.load import Load, Plt
from archs.op import Op, Term
from archs.reloc import Part, Reach, Reloc, Slice, Stub, data, signed, unsigned

MACHINE = 0xFEED  # no number of the ELF registry
REGION = 1 << 28
DIALECT = Dialect(bits=32, order="big", addends_in_place=True)

_TARGET = Term(1, ("S", "A"))
ABS32 = Op("ABS32", (_TARGET,), bits=32)
PC32 = Op("PC32", (_TARGET, Term(-1, ("P",))), bits=32)
# The processor takes the region from the address of the instruction that follows.
JUMP = Op("REGION", (_TARGET, Term(-1, ("P",), granule=REGION, bias=4)))


def _field(x: int, bits: int, bias: int = 0) -> tuple[Part, ...]:
    return (Part(4, (Slice(x, bits, 0),), bias=bias, order="big"),)


RELOCATIONS = rows(
    Reloc(0, "R_TOY_NONE", Op.NONE),
    Reloc(1, "R_TOY_32", ABS32, data(4, "big")),
    Reloc(2, "R_TOY_26", JUMP, _field(2, 26), Reach(0, REGION, 4), stub=Stub.PLT),
    Reloc(3, "R_TOY_HI16", ABS32, _field(16, 16, bias=0x8000), low=4),
    Reloc(4, "R_TOY_LO16", ABS32, _field(0, 16)),
    Reloc(5, "R_TOY_PC16", PC32, _field(2, 16), signed(18, 4)),
    Reloc(6, "R_TOY_REL32", PC32, data(4, "big")),
    Reloc(7, "R_TOY_16", ABS32, data(2, "big"), unsigned(16)),
    Reloc(8, "R_TOY_TLS", Op.NONE, unsupported="thread-local storage"),
)

IMAGE = 0x8010_0000
MODULES = Interval(0xC000_0000, 0xC400_0000)


def address_map(kaslr: int | None = None, image_size: int | None = None) -> AddressMap:
    """Return the address map of every boot: nothing is random, and all of it is below 2^32."""
    return AddressMap(
        image=Interval(IMAGE, IMAGE + (8 * MIB if image_size is None else image_size)),
        direct_map=0x4000_0000,
        vmalloc=Interval(0xC000_0000, 0xCF00_0000),
        ranges={ExecmemType.MODULE_TEXT: ExecmemRange(range=MODULES)},
        kaslr=kaslr,
        vmemmap=0xCF00_0000,
        space=Interval(0x4000_0000, 1 << 32),
    )


def plt_entry(address: int, slot: int) -> bytes:
    """Return LUI t9, hi ; LW t9, lo(t9) ; JR t9 ; NOP, which load the target from `slot`."""
    high, low = (RELOCATIONS[n].parts[0] for n in (3, 4))
    words = high.insert(0x3C19_0000, slot), low.insert(0x8F39_0000, slot), 0x0320_0008, 0
    return b"".join(word.to_bytes(4, "big") for word in words)


LINK = Link(
    relocations=RELOCATIONS,
    clean_target=False,
    dialect=DIALECT,
    branches=(
        Branch(mnemonic="JAL", reach=Reach(0, REGION, 4), what="call", region=Region(REGION, 4)),
        Branch(mnemonic="BEQ", reach=signed(18, 4), what="branch"),
    ),
    code_model="absolute",
    code_model_option="-mlong-calls",
)
LOAD = Load(
    address_map=address_map,
    image_size=8 * MIB,
    trap=(0x0000_000D).to_bytes(4, "big"),  # BREAK
    plt=Plt(
        section=".plt",
        init_section=".init.plt",
        size=16,
        encode=plt_entry,
        got_section=".got.plt",
        sorts=False,
        align=16,
        branches=(2,),
        placeholders={},
    ),
    tlb=TlbRules(name="one by one", interrupts=False, ceiling=16),
    prel32=False,
    function_alignment=4,
    vermagic="6.12.0-toy SMP mod_unload TOY",
    livepatching=False,
    layouts=Table(
        {
            "release": "6.12.0-toy",
            "structures": {
                "module": (
                    64,
                    {
                        "state": (0, 4, "u"),
                        "list": (4, 8, "struct list_head"),
                        "name": (12, 60, "char"),
                        "init": (40, 4, "fn"),
                        "exit": (48, 4, "fn"),
                    },
                )
            },
        }
    ),
)
TOY = Arch(name="toy", title="Toy", machine=MACHINE, link=LINK, load=LOAD)
LINKS_ONLY = attrs.evolve(TOY, load=None)

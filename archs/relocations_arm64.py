# SPDX-License-Identifier: GPL-2.0-or-later
"""arm64: what relocations mean, and where instructions hold their immediates (aaelf64, 5.7)."""

from __future__ import annotations

from archs.levels.link import Assembly, rows
from archs.op import Got, Op
from archs.reloc import Part, Reach, Reloc, Slice, Stub, data, signed, unsigned


def immediate(*slices: tuple[int, int, int]) -> tuple[Part, ...]:
    """Return the parts of an immediate in one instruction word."""
    return (Part(4, tuple(Slice(*s) for s in slices)),)


ADR = immediate((0, 2, 29), (2, 19, 5))
ADRP = immediate((12, 2, 29), (14, 19, 5))
BRANCH26 = immediate((2, 26, 0))
BRANCH19 = immediate((2, 19, 5))
BRANCH14 = immediate((2, 14, 5))


def _scaled(log2: int) -> tuple[Part, ...]:
    """Return the parts of the low 12 bits, scaled by the size of the access."""
    # The field has 12 bits whatever the scale; the kernel and linkers replace all of it.
    zeros = ((1 << log2) - 1) << (22 - log2)
    return (Part(4, (Slice(log2, 12 - log2, 10),), zeros=zeros),)


def _multiple(log2: int) -> Reach:
    """Return a reach without limits that requires a multiple of the access size."""
    return Reach(-(1 << 63), 1 << 63, 1 << log2)


def _movw(group: int) -> tuple[Part, ...]:
    """Return the parts of a MOVZ/MOVK immediate."""
    return immediate((16 * group, 16, 5))


def _signed_movw(group: int) -> tuple[Part, ...]:
    """Return the parts of a MOVZ or MOVN immediate, the opcode chosen by the sign."""
    return (Part(4, (Slice(16 * group, 16, 5),), zeros=1 << 29, movz=1 << 30),)


_WORD32 = Reach(-(1 << 31), 1 << 32)
_WORD16 = Reach(-(1 << 15), 1 << 16)

_LO15 = Reach(0, 1 << 15, 8)
_LD64_LO15 = immediate((3, 12, 10))


def _got(
    number: int, name: str, op: Op, parts: tuple[Part, ...], reach: Reach | None, got: Got
) -> Reloc:
    """Return a row that needs a GOT; the kernel has none, an object may bring its own."""
    return Reloc(number, f"R_AARCH64_{name}", op, parts, reach, got=got, kernel=False)


_DYNAMIC = "written by dynamic linkers, never in a relocatable object"
_DYNAMIC_NAMES = """
    COPY GLOB_DAT JUMP_SLOT RELATIVE TLS_DTPMOD64 TLS_DTPREL64 TLS_TPREL64 TLSDESC IRELATIVE
""".split()
_TLS = "the kernel has no thread-local storage"
_TLS_NAMES = """
    TLSGD_ADR_PREL21 TLSGD_ADR_PAGE21 TLSGD_ADD_LO12_NC TLSGD_MOVW_G1 TLSGD_MOVW_G0_NC
    TLSLD_ADR_PREL21 TLSLD_ADR_PAGE21 TLSLD_ADD_LO12_NC TLSLD_MOVW_G1 TLSLD_MOVW_G0_NC
    TLSLD_LD_PREL19 TLSLD_MOVW_DTPREL_G2 TLSLD_MOVW_DTPREL_G1 TLSLD_MOVW_DTPREL_G1_NC
    TLSLD_MOVW_DTPREL_G0 TLSLD_MOVW_DTPREL_G0_NC TLSLD_ADD_DTPREL_HI12
    TLSLD_ADD_DTPREL_LO12 TLSLD_ADD_DTPREL_LO12_NC TLSLD_LDST8_DTPREL_LO12
    TLSLD_LDST8_DTPREL_LO12_NC TLSLD_LDST16_DTPREL_LO12 TLSLD_LDST16_DTPREL_LO12_NC
    TLSLD_LDST32_DTPREL_LO12 TLSLD_LDST32_DTPREL_LO12_NC TLSLD_LDST64_DTPREL_LO12
    TLSLD_LDST64_DTPREL_LO12_NC TLSIE_MOVW_GOTTPREL_G1 TLSIE_MOVW_GOTTPREL_G0_NC
    TLSIE_ADR_GOTTPREL_PAGE21 TLSIE_LD64_GOTTPREL_LO12_NC TLSIE_LD_GOTTPREL_PREL19
    TLSLE_MOVW_TPREL_G2 TLSLE_MOVW_TPREL_G1 TLSLE_MOVW_TPREL_G1_NC TLSLE_MOVW_TPREL_G0
    TLSLE_MOVW_TPREL_G0_NC TLSLE_ADD_TPREL_HI12 TLSLE_ADD_TPREL_LO12
    TLSLE_ADD_TPREL_LO12_NC TLSLE_LDST8_TPREL_LO12 TLSLE_LDST8_TPREL_LO12_NC
    TLSLE_LDST16_TPREL_LO12 TLSLE_LDST16_TPREL_LO12_NC TLSLE_LDST32_TPREL_LO12
    TLSLE_LDST32_TPREL_LO12_NC TLSLE_LDST64_TPREL_LO12 TLSLE_LDST64_TPREL_LO12_NC
    TLSDESC_LD_PREL19 TLSDESC_ADR_PREL21 TLSDESC_ADR_PAGE21 TLSDESC_LD64_LO12
    TLSDESC_ADD_LO12 TLSDESC_OFF_G1 TLSDESC_OFF_G0_NC TLSDESC_LDR TLSDESC_ADD TLSDESC_CALL
    TLSLE_LDST128_TPREL_LO12 TLSLE_LDST128_TPREL_LO12_NC TLSLD_LDST128_DTPREL_LO12
    TLSLD_LDST128_DTPREL_LO12_NC
""".split()

RELOCATIONS = rows(
    Reloc(0, "R_AARCH64_NONE", Op.NONE),
    Reloc(256, "R_AARCH64_NONE", Op.NONE),
    Reloc(257, "R_AARCH64_ABS64", Op.ABS, data(8)),
    Reloc(258, "R_AARCH64_ABS32", Op.ABS, data(4), _WORD32, kernel_reach=unsigned(32)),
    Reloc(259, "R_AARCH64_ABS16", Op.ABS, data(2), _WORD16, kernel_reach=unsigned(16)),
    Reloc(260, "R_AARCH64_PREL64", Op.PC, data(8)),
    Reloc(261, "R_AARCH64_PREL32", Op.PC, data(4), signed(32)),
    Reloc(262, "R_AARCH64_PREL16", Op.PC, data(2), signed(16)),
    Reloc(263, "R_AARCH64_MOVW_UABS_G0", Op.ABS, _movw(0), unsigned(16)),
    Reloc(264, "R_AARCH64_MOVW_UABS_G0_NC", Op.ABS, _movw(0)),
    Reloc(265, "R_AARCH64_MOVW_UABS_G1", Op.ABS, _movw(1), unsigned(32)),
    Reloc(266, "R_AARCH64_MOVW_UABS_G1_NC", Op.ABS, _movw(1)),
    Reloc(267, "R_AARCH64_MOVW_UABS_G2", Op.ABS, _movw(2), unsigned(48)),
    Reloc(268, "R_AARCH64_MOVW_UABS_G2_NC", Op.ABS, _movw(2)),
    Reloc(269, "R_AARCH64_MOVW_UABS_G3", Op.ABS, _movw(3)),
    Reloc(270, "R_AARCH64_MOVW_SABS_G0", Op.ABS, _signed_movw(0), signed(17)),
    Reloc(271, "R_AARCH64_MOVW_SABS_G1", Op.ABS, _signed_movw(1), signed(33)),
    Reloc(272, "R_AARCH64_MOVW_SABS_G2", Op.ABS, _signed_movw(2), signed(49)),
    Reloc(273, "R_AARCH64_LD_PREL_LO19", Op.PC, BRANCH19, signed(21, 4)),
    Reloc(274, "R_AARCH64_ADR_PREL_LO21", Op.PC, ADR, signed(21)),
    Reloc(275, "R_AARCH64_ADR_PREL_PG_HI21", Op.PAGE, ADRP, signed(33)),
    Reloc(276, "R_AARCH64_ADR_PREL_PG_HI21_NC", Op.PAGE, ADRP),
    Reloc(277, "R_AARCH64_ADD_ABS_LO12_NC", Op.ABS, _scaled(0)),
    Reloc(278, "R_AARCH64_LDST8_ABS_LO12_NC", Op.ABS, _scaled(0)),
    Reloc(279, "R_AARCH64_TSTBR14", Op.PC, BRANCH14, signed(16, 4)),
    Reloc(280, "R_AARCH64_CONDBR19", Op.PC, BRANCH19, signed(21, 4)),
    Reloc(282, "R_AARCH64_JUMP26", Op.PC, BRANCH26, signed(28, 4), stub=Stub.PLT),
    Reloc(283, "R_AARCH64_CALL26", Op.PC, BRANCH26, signed(28, 4), stub=Stub.PLT),
    Reloc(284, "R_AARCH64_LDST16_ABS_LO12_NC", Op.ABS, _scaled(1), _multiple(1)),
    Reloc(285, "R_AARCH64_LDST32_ABS_LO12_NC", Op.ABS, _scaled(2), _multiple(2)),
    Reloc(286, "R_AARCH64_LDST64_ABS_LO12_NC", Op.ABS, _scaled(3), _multiple(3)),
    Reloc(287, "R_AARCH64_MOVW_PREL_G0", Op.PC, _signed_movw(0), signed(17)),
    Reloc(288, "R_AARCH64_MOVW_PREL_G0_NC", Op.PC, _movw(0)),
    Reloc(289, "R_AARCH64_MOVW_PREL_G1", Op.PC, _signed_movw(1), signed(33)),
    Reloc(290, "R_AARCH64_MOVW_PREL_G1_NC", Op.PC, _movw(1)),
    Reloc(291, "R_AARCH64_MOVW_PREL_G2", Op.PC, _signed_movw(2), signed(49)),
    Reloc(292, "R_AARCH64_MOVW_PREL_G2_NC", Op.PC, _movw(2)),
    Reloc(293, "R_AARCH64_MOVW_PREL_G3", Op.PC, _signed_movw(3)),
    Reloc(299, "R_AARCH64_LDST128_ABS_LO12_NC", Op.ABS, _scaled(4), _multiple(4)),
    _got(300, "MOVW_GOTOFF_G0", Op.ABS, _signed_movw(0), signed(17), Got.OFFSET_SUM),
    _got(301, "MOVW_GOTOFF_G0_NC", Op.ABS, _movw(0), None, Got.OFFSET_SUM),
    _got(302, "MOVW_GOTOFF_G1", Op.ABS, _signed_movw(1), signed(33), Got.OFFSET_SUM),
    _got(303, "MOVW_GOTOFF_G1_NC", Op.ABS, _movw(1), None, Got.OFFSET_SUM),
    _got(304, "MOVW_GOTOFF_G2", Op.ABS, _signed_movw(2), signed(49), Got.OFFSET_SUM),
    _got(305, "MOVW_GOTOFF_G2_NC", Op.ABS, _movw(2), None, Got.OFFSET_SUM),
    _got(306, "MOVW_GOTOFF_G3", Op.ABS, _signed_movw(3), None, Got.OFFSET_SUM),
    _got(307, "GOTREL64", Op.ABS, data(8), None, Got.RELATIVE),
    _got(308, "GOTREL32", Op.ABS, data(4), signed(32), Got.RELATIVE),
    _got(309, "GOT_LD_PREL19", Op.PC, BRANCH19, signed(21, 4), Got.SLOT_SUM),
    _got(310, "LD64_GOTOFF_LO15", Op.ABS, _LD64_LO15, _LO15, Got.OFFSET_SUM),
    _got(311, "ADR_GOT_PAGE", Op.PAGE, ADRP, signed(33), Got.SLOT_SUM),
    _got(312, "LD64_GOT_LO12_NC", Op.ABS, _scaled(3), _multiple(3), Got.SLOT_SUM),
    _got(313, "LD64_GOTPAGE_LO15", Op.ABS, _LD64_LO15, _LO15, Got.PAGE_OFFSET_SUM),
    Reloc(314, "R_AARCH64_PLT32", Op.PC, data(4), signed(32), stub=Stub.PLT, kernel=False),
    _got(315, "GOTPCREL32", Op.PC, data(4), signed(32), Got.SLOT),
    *(
        Reloc(512 + n, f"R_AARCH64_{name}", Op.NONE, unsupported=_TLS)
        for n, name in enumerate(_TLS_NAMES)
    ),
    *(
        Reloc(1024 + n, f"R_AARCH64_{name}", Op.NONE, unsupported=_DYNAMIC)
        for n, name in enumerate(_DYNAMIC_NAMES)
    ),
)

ASSEMBLY = Assembly(
    triple="aarch64-linux-gnu",
    hosts=("aarch64",),
    lines={
        "function": ("stp x29, x30, [sp, #-16]!",),
        "return": ("ldp x29, x30, [sp], #16", "ret"),
        "value": ("mov x0, #{0}",),
        "call": ("bl {0}",),
        "branch": ("ldp x29, x30, [sp], #16", "b {0}"),
        "address-of": ("adrp x0, {0}", "add x0, x0, :lo12:{0}"),
        "load": ("ldr x0, [x0]",),
        "word": (".quad {0}",),
    },
    flags=("-mgeneral-regs-only", "-mno-outline-atomics", "-mbranch-protection=none"),
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers in instructions of x86-64, as LLVM's MCInst counts them.

A memory operand is base, scale, index, displacement, segment. The short forms for the
accumulator name no register. `archs.operands.Templates` says how a template is written.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, appendix A
"Opcode Map"; the order of operands is that of LLVM's X86Instr*.td.
"""

from __future__ import annotations

from archs.operands import Templates, expand

# ADD OR ADC SBB AND SUB XOR, eight opcodes each; CMP writes nothing.
_ALU = "\n".join(
    f"""
    {first:02x}-{first + 1:02x}: =E R
    {first + 2:02x}-{first + 3:02x}: =R E
    {first + 4:02x}-{first + 5:02x}: i
    """
    for first in range(0x00, 0x38, 8)
)

_ONE = """
    38-39: E R
    3a-3b: R E
    3c-3d: i
    50-5f: R
    63: R E
    68 6a: s
    69 6b: R E i
    70-7f: j c
    80-81/0123456 83/0123456: =E i
    80-81/7 83/7: E i
    84-85: E R
    88-89: E R
    8a-8b: R E
    8d: R E
    8f/0: E
    98-99:
    9c-9d:
    a0-a3: o -
    a8-a9: i
    b0-bf: R i
    c0-c1/012345 c0-c1/7: =E u
    c3:
    c6-c7/0: E i
    c9:
    cc:
    cd: u
    d0-d3/0123457: =E
    e8-e9 eb: j
    f4:
    f6-f7/0: E i
    f6-f7/23: =E
    f6-f7/4567: E
    f8-fd:
    fe-ff/01: =E
    ff/24: E
    ff/6: E
"""

_TWO = """
    0f05:
    0f0b:
    0f1f/0: E
    0f40-4f: =R E c
    0f80-8f: j c
    0f90-9f: E c
    0fa2:
    0fa3: E R
    0fa4 0fac: =E R u
    0fa5 0fad: =E R
    0fab 0fb3 0fbb: =E R
    0faf: =R E
    0fb6-b7 0fbe-bf: R E
    0fba/4: E u
    0fba/567: =E u
    0fc8-cf: =R
    f30fb8: R E
    f30fbc-bd: R E
"""

# Of registers some of these are other instructions with other operands.
_FLOAT = """
    0f10 660f10 0f28 660f28 660f6f f30f6f: R E
    f20f10 f30f10: R X
    0f11 660f11 0f29 660f29 660f7f f30f7f: E R
    f20f11 f30f11: X R
    0f54-59 0f5c-5f 660f54-59 660f5c-5f: =R E
    f20f58-59 f20f5c-5f f30f58-59 f30f5c-5f: =R E
    0f2e-2f 660f2e-2f: R E
    0f14 660f14 660fd4 660ffc-fe 660ff8-fb 660fdb 660feb 660fef: =R E
    660f70 f20f70 f30f70: R E u
    660fd6: X R
    f20f2c f20f2d f30f2c f30f2d: R E
    f30f5a f20f5a f30f51 f20f51: =R X
"""

OPERANDS = Templates(
    opcodes=dict(expand(_ALU + _ONE + _TWO + _FLOAT)),
    prefixes=bytes.fromhex("262e363e64656667f0f2f3"),
    mandatory=bytes.fromhex("66f2f3"),
)

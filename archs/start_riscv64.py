# SPDX-License-Identifier: GPL-2.0-or-later
"""How a riscv64 kernel is started: Documentation/arch/riscv/boot.rst, and the SBI specification.

The computer: one hart that begins in S-mode, with firmware below it: console, timer and reset are
calls of it (`emulator.hardware.sbi`), so there is no other hardware.
"""

from __future__ import annotations

from functools import reduce
from operator import or_

from archs.devicetree import flatten, kaslr_seed, randomness, wide
from archs.levels.boot import (
    Bitmap,
    Boot,
    Dump,
    Flag,
    Flushing,
    FlushInstruction,
    Need,
    Plan,
    Start,
    TableFormat,
)
from archs.system_riscv64 import TIMEBASE
from archs.versions import Since

RAM = 0x8000_0000
_MIB = 1 << 20
_ALIGN = 2 * _MIB  # of the image, and the distance from the start of memory that it is built for
_TREE = 2 * _MIB  # bytes that are kept for the tree, behind the image
_HART = 0
# What the emulator's CPU executes: the extensions of RVA20U64, as far as it has them.
_EXTENSIONS = ("i", "m", "a", "f", "d", "c", "zicntr", "zicsr", "zifencei")
_BASE_LETTERS = 6


def _tree(plan: Plan, initrd: int) -> bytes:
    letters, named = _EXTENSIONS[:_BASE_LETTERS], _EXTENSIONS[_BASE_LETTERS:]
    return flatten(
        {
            "#address-cells": 2,
            "#size-cells": 2,
            "compatible": "riscv-virtio",
            "model": "execmem",
            "chosen": {
                "bootargs": plan.command_line,
                "linux,initrd-start": wide(initrd),
                "linux,initrd-end": wide(initrd + len(plan.initrd)),
                "rng-seed": randomness(plan.kaslr),
                **({} if plan.kaslr is None else {"kaslr-seed": wide(kaslr_seed(plan.kaslr))}),
            },
            f"memory@{RAM:x}": {
                "device_type": "memory",
                "reg": (*wide(RAM), *wide(plan.memory)),
            },
            "cpus": {
                "#address-cells": 1,
                "#size-cells": 0,
                "timebase-frequency": TIMEBASE,
                f"cpu@{_HART:x}": {
                    "device_type": "cpu",
                    "compatible": "riscv",
                    "reg": _HART,
                    "status": "okay",
                    "mmu-type": "riscv,sv57",
                    "riscv,isa": "rv64" + "_".join(("".join(letters), *named)),
                    "riscv,isa-base": "rv64i",
                    "riscv,isa-extensions": _EXTENSIONS,
                    "interrupt-controller": {
                        "compatible": "riscv,cpu-intc",
                        "#interrupt-cells": 1,
                        "interrupt-controller": None,
                    },
                },
            },
        }
    )


def _start(plan: Plan) -> Start:
    image = RAM + _ALIGN
    tree = image + plan.image_size + -plan.image_size % _ALIGN
    initrd = tree + _TREE
    contents = {image + at: data for at, data in plan.image.items()}
    contents[tree] = _tree(plan, initrd)
    contents[initrd] = plan.initrd
    return Start(
        contents=contents,
        image=image,
        entry=image + plan.entry,
        registers={"a0": _HART, "a1": tree},
    )


# As arch/riscv/mm/ptdump.c prints them since 6.7: Svnapot, Svpbmt, two bits of software's, the rest.
_FLAGS = (
    Flag(1 << 63, {1 << 63: " N"}, " ."),
    Flag(3 << 61, {1 << 61: " MT(NC)", 2 << 61: " MT(IO)", 3 << 61: " MT(??)"}, "   ..  "),
    Flag(3 << 8, {number << 8: f" RSW({number})" for number in (1, 2, 3)}, "   ..  "),
    *(
        Flag(1 << bit, {1 << bit: f" {name}"}, " .")
        for bit, name in zip(range(7, -1, -1), "DAGUXWRV", strict=True)
    ),
)
DUMP = Dump(
    line="{start}-{end}    {physical} {size:>9}{unit} {level}{flags}",
    units="KMGTPE",
    levels=("PTE", "PMD", "PUD", "P4D", "PGD"),
    flags=_FLAGS,
    kept=reduce(or_, (flag.mask for flag in _FLAGS)),
    empty=None,
)


def _page(code: bytes) -> tuple[str, int]:
    return f"x{int.from_bytes(code, 'little') >> 15 & 0x1F}", 0


def _word(kind: str, code: int, mask: int, **when: int) -> FlushInstruction:
    data = code.to_bytes(4, "little"), mask.to_bytes(4, "little")
    operand = _page if kind.endswith("address") else None
    whole, everywhere = kind.endswith("all"), kind.startswith("SBI")
    return FlushInstruction(kind, *data, when, whole=whole, operand=operand, everywhere=everywhere)


_RFENCE = 0x5246_4E43  # the SBI's extension; functions 1 and 2 are sfence.vma on other harts
_FLUSHING = Flushing(
    instructions=(
        _word("sfence.vma all", 0x1200_0073, 0xFE0F_FFFF),
        _word("sfence.vma address", 0x1200_0073, 0xFE00_7FFF),
        *(_word("SBI remote sfence.vma", 0x73, 0xFFFF_FFFF, a7=_RFENCE, a6=n) for n in (1, 2)),
    ),
    step=2,
    functions=("flush_tlb_kernel_range", "flush_tlb_all"),
    always_whole=Since(((0, 0), True)),
    idle=True,
    resets=2,
)

BOOT = Boot(
    board="riscv64",
    ram=RAM,
    memory=512 * _MIB,
    parts=(),
    models=("sifive-u54", "base64"),  # `any` does not come up within minutes
    model_prefix="UC_CPU_RISCV64_",
    command_line="earlycon=sbi keep_bootcon nokaslr",
    start=_start,
    # 1: li a7, 173; ecall; j 1b
    spin=bytes.fromhex("9308d00a73000000e5bf"),
    system_calls=("__riscv_sys_{}", "sys_{}"),
    # orig_a0 and a0, then a1 to a5 (arch/riscv/include/asm/syscall_wrapper.h)
    system_call_arguments=((280, 80), (88,), (96,), (104,), (112,), (120,)),
    registers_size=512,
    # C.NOP, which aligns functions. (A long NOP at the end of one may be a branch that is off.)
    padding=(bytes.fromhex("0100"),),
    machine=243,
    console=Need(
        option="CONFIG_SERIAL_EARLYCON_RISCV_SBI",
        functions=("early_sbi_setup", "hvc_sbi_init"),
        what="a console of the SBI",
    ),
    # drivers/tty/hvc/hvc_riscv_sbi.c takes over from the early console, if that lets it.
    once={"hvc_sbi_init": "keep_bootcon"},
    # How fast unaligned words are (arch/riscv/kernel/unaligned_access_speed.c): as others.
    takes={"__riscv_copy_words_unaligned": 1_000, "__riscv_copy_bytes_unaligned": 8_000},
    # arch/riscv/kernel/cpufeature.c
    capabilities=(Bitmap(variable="riscv_isa"),),
    # Privileged specification, 12.3 to 12.5
    tables=TableFormat(
        sizes=((39, 12), (48, 12), (57, 12)),
        leaf=0xE,
        link=1,
        page=0xE7,  # dirty, accessed, global
        run=1 << 63,  # Svnapot
        coded=True,
        frame=(1 << 54) - (1 << 10),
        shift=2,
        written=(1 << 2, 1 << 2),  # W, X
        executed=(1 << 3, 1 << 3),
        dump=DUMP,
    ),
    flushing=_FLUSHING,
    able="base64",
)

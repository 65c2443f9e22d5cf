# SPDX-License-Identifier: GPL-2.0-or-later
"""How an arm64 kernel is started: Documentation/arch/arm64/booting.rst.

The computer: one CPU that begins at EL1, a PL011, a GICv2, the generic timer.
"""

from __future__ import annotations

from functools import cache, reduce
from operator import or_

from attrs import evolve

from archs.devicetree import flatten, kaslr_seed, randomness, wide
from archs.levels.boot import (
    Bitmap,
    Boot,
    Dump,
    Flag,
    Flushing,
    FlushInstruction,
    Need,
    Part,
    Plan,
    Start,
    TableFormat,
)

RAM = 0x4000_0000
_MIB = 1 << 20
_ALIGN = 2 * _MIB  # of the image; the kernel runs from anywhere that is so aligned
_GIC, _CPU_INTERFACE, _UART = 0x800_0000, 0x801_0000, 0x900_0000
_WINDOW, _UART_SIZE = 0x1_0000, 0x1000
_PPI, _LEVEL_LOW = 1, 0x108
# Private interrupts of the generic timer: secure and non-secure physical, virtual, hypervisor's.
_TIMERS = (13, 14, 11, 10)
_CONTROLLER = 1  # phandle
_TREE = 2 * _MIB  # bytes that are kept for the tree, behind the image


def _tree(plan: Plan, initrd: int) -> bytes:
    interrupts = tuple(cell for number in _TIMERS for cell in (_PPI, number, _LEVEL_LOW))
    return flatten(
        {
            "#address-cells": 2,
            "#size-cells": 2,
            "compatible": "linux,dummy-virt",
            "interrupt-parent": _CONTROLLER,
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
                "cpu@0": {"device_type": "cpu", "compatible": "arm,armv8", "reg": 0},
            },
            f"intc@{_GIC:x}": {
                "compatible": "arm,cortex-a15-gic",
                "#interrupt-cells": 3,
                "interrupt-controller": None,
                "phandle": _CONTROLLER,
                "reg": (*wide(_GIC), *wide(_WINDOW), *wide(_CPU_INTERFACE), *wide(_WINDOW)),
            },
            "timer": {
                "compatible": "arm,armv8-timer",
                "interrupts": interrupts,
                "always-on": None,
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
        registers={"x0": tree, "x1": 0, "x2": 0, "x3": 0},
    )


# As arch/arm64/mm/ptdump.c prints memory types, by what MAIR_EL1 says of a number (Arm ARM, D17.2): the
# numbers were others before 5.13. One that says the same as another before it is the tagged one's,
# or nobody's.
_MEMORY = {
    0xFF: ("MEM/NORMAL", "MEM/NORMAL-TAGGED"),
    0xF0: ("MEM/NORMAL-TAGGED",),
    0x44: ("MEM/NORMAL-NC",),
    0x00: ("DEVICE/nGnRnE",),
    0x04: ("DEVICE/nGnRE",),
    0x0C: ("DEVICE/GRE",),
}
MAIR = 0x4_0044_FFFF  # since 5.13
_TYPE = 7 << 2


def _memory_types(mair: int) -> Flag:
    left = {attribute: list(names) for attribute, names in _MEMORY.items()}
    texts = {}
    for number, attribute in enumerate(mair.to_bytes(8, "little")):
        if left.get(attribute):
            texts[number << 2] = f" {left[attribute].pop(0)}"
    return Flag(_TYPE, texts)


@cache
def dump_of(mair: int) -> Dump:
    """Return how a kernel prints page tables that has a value in MAIR_EL1."""
    return evolve(DUMP, flags=(*_FLAGS[:-1], _memory_types(mair)))


_FLAGS = (
    Flag(1, {1: "  "}, " F"),
    Flag(1 << 6, {1 << 6: " USR"}, "    "),
    Flag(1 << 7, {1 << 7: " ro"}, " RW"),
    Flag(1 << 53, {1 << 53: " NX"}, " x "),
    Flag(3 << 8, {3 << 8: " SHD"}, "    "),
    Flag(1 << 10, {1 << 10: " AF"}, "   "),
    Flag(1 << 11, {1 << 11: " NG"}, "   "),
    Flag(1 << 52, {1 << 52: " CON"}, "    "),
    Flag(1 << 1, {1 << 1: "    "}, " BLK"),
    Flag(1 << 54, {1 << 54: " UXN"}, "    "),
    Flag(1 << 50, {1 << 50: " GP"}, "   "),
    _memory_types(MAIR),
)
DUMP = Dump(
    line="{start}-{end}   {size:>9}{unit} {level}{flags}",
    units="KMGTPE",
    levels=("PTE", "PMD", "PUD", "P4D", "PGD"),
    flags=_FLAGS,
    kept=reduce(or_, (flag.mask for flag in _FLAGS)),
    marks=2,
)

# TLBI by its operands (Arm ARM, C5.5): CRm and op2; of all CPUs (is) or this one, ranges with r.
_OF_EL1 = {0: "vmalle1", 1: "vae1", 2: "aside1", 3: "vaae1", 5: "vale1", 7: "vaale1"}
_SCOPES = ((3, "", "is"), (7, "", ""), (2, "r", "is"), (6, "r", ""))


def _page(code: bytes) -> tuple[str, int]:
    """Return the register with the number of the page, of 4 KiB whatever the granule."""
    return f"x{code[0] & 0x1F}", 12


def _tlbi(kind: str, code: int, mask: int) -> FlushInstruction:
    data = code.to_bytes(4, "little"), mask.to_bytes(4, "little")
    operand = _page if kind.startswith(("vaa", "vaale")) else None  # of any ASID: the kernel's
    whole, everywhere = kind.startswith("vmall"), kind.endswith("is")
    return FlushInstruction(
        f"tlbi {kind}", *data, whole=whole, operand=operand, everywhere=everywhere
    )


_FLUSHING = Flushing(
    instructions=(
        *(
            _tlbi(f"{ranges}{name}{where}", 0xD508_8000 | crm << 8 | op2 << 5, 0xFFFF_FFE0)
            for crm, ranges, where in _SCOPES
            for op2, name in _OF_EL1.items()
            if not ranges or op2 & 1
        ),
        _tlbi("of another level", 0xD508_8000, 0xFFF8_F000),
    ),
    step=4,
    functions=("flush_tlb_kernel_range", "flush_tlb_all"),
    idle=True,
    by_area=True,
)

BOOT = Boot(
    board="arm64",
    ram=RAM,
    memory=512 * _MIB,
    parts=(
        Part(kind="gic_distributor", start=_GIC, size=_WINDOW),
        Part(kind="gic_cpu_interface", start=_CPU_INTERFACE, size=_WINDOW),
        Part(kind="pl011", start=_UART, size=_UART_SIZE),
    ),
    models=("a72", "a57", "a53"),  # with `max` none came up within minutes
    model_prefix="UC_CPU_ARM64_",
    command_line=f"earlycon=pl011,{_UART:#x} keep_bootcon nokaslr",
    start=_start,
    # 1: mov x8, #173; svc #0; b 1b
    spin=bytes.fromhex("a81580d2010000d4feffff17"),
    system_calls=("__arm64_sys_{}", "sys_{}"),
    # regs[0] to regs[5]; the first is orig_x0, too, which is looked at since 7.3
    system_call_arguments=((0, 272), (8,), (16,), (24,), (32,), (40,)),
    registers_size=512,
    padding=(bytes(4), bytes.fromhex("1f2003d5")),
    machine=183,
    # arch/arm64/kernel/cpufeature.c: since 6.5, and before
    capabilities=(Bitmap(variable="system_cpucaps"), Bitmap(variable="cpu_hwcaps")),
    console=Need(
        option="CONFIG_SERIAL_AMBA_PL011_CONSOLE",
        functions=("pl011_early_console_setup", "pl011_console_setup"),
        what="a console on a PL011",
    ),
    # Arm ARM, D8.3
    tables=TableFormat(
        sizes=((48, 12), (39, 12), (47, 14), (48, 14), (36, 14), (48, 16), (42, 16)),
        shared=False,
        table=2,
        run=1 << 52,  # Contiguous
        link=3,
        page=3 << 53 | 0x703,  # UXN, PXN; accessed, inner shareable
        frame=(1 << 48) - (1 << 12),
        written=(1 << 7, 0),  # AP[2], PXN
        executed=(1 << 53, 0),
        dump=DUMP,
    ),
    flushing=_FLUSHING,
    able="max",
)

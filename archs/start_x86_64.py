# SPDX-License-Identifier: GPL-2.0-or-later
"""How an x86-64 kernel is started: Documentation/arch/x86/boot.rst, "64-bit boot protocol".

The decompressor is left out: the kernel proper is entered in long mode. The computer: a PC of
one CPU with 8259s, an 8254, a CMOS clock, a 16550A and the least ACPI; no local APIC, no PCI.
"""

from __future__ import annotations

import struct

from archs import acpi
from archs.devicetree import kaslr_seed, randomness
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
    Space,
    Start,
    TableFormat,
)
from archs.versions import Since

_MIB, _WORD = 1 << 20, (1 << 64) - 1
_MAP = 0xFFFF_FFFF_8000_0000  # __START_KERNEL_map: where physical address 0 is linked to
_ALIGN = 2 * _MIB  # CONFIG_PHYSICAL_ALIGN
_SPACE, _LOWEST = 1024 * _MIB, 16 * _MIB  # KERNEL_IMAGE_SIZE with KASLR, LOAD_PHYSICAL_ADDR
# Physical addresses below 1 MiB, which the kernel itself keeps free of everything.
_GDT, _TABLES, _STACK, _PARAMETERS, _COMMAND_LINE = 0x8000, 0x1_0000, 0x8_0000, 0x9_0000, 0x9_1000
_SEED, _ACPI = 0x9_2000, 0xE_0000
_LOW_END, _HIGH = 0x9_F000, _MIB  # between them is what a PC keeps for its ROMs
_RAM, _RESERVED = 1, 2  # kinds of memory in the E820 map

# Descriptors of the protocol: __BOOT_CS is 0x10, __BOOT_DS 0x18.
_DESCRIPTORS = (0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
_PRESENT_WRITABLE, _LARGE = 0x03, 0x83
_GIB_MAPPED = 4

# struct boot_params, and in it struct setup_header.
_SIZE, _RSDP, _ENTRIES, _HEADER, _MAP_AT = 4096, 0x70, 0x1E8, 0x1F1, 0x2D0
_JUMP = 0x201  # the header's size is the distance of a jump behind it
_LOADER, _INITRD, _COMMAND_LINE_AT, _DATA_AT = 0x210, 0x218, 0x228, 0x250
_RNG_SEED = 9  # type of struct setup_data, since Linux 6.0
_MAGIC_AT, _MAGIC, _FLAG_AT, _FLAG = 0x202, b"HdrS", 0x1FE, 0xAA55
_UNKNOWN_LOADER = 0xFF
_LOADED_HIGH, _KASLR = 0x01, 0x02
_FLAGS_AT = 0x211


def _parameters(plan: Plan, initrd: int) -> bytes:
    """Return struct boot_params."""
    found = bytearray(_SIZE)
    if plan.header[_MAGIC_AT : _MAGIC_AT + 4] == _MAGIC:
        end = _MAGIC_AT + plan.header[_JUMP]
        found[_HEADER:end] = plan.header[_HEADER:end]
    else:  # an ELF file: what the kernel proper looks at
        struct.pack_into("<H4s", found, _FLAG_AT, _FLAG, b"")
        found[_MAGIC_AT : _MAGIC_AT + 4] = _MAGIC
        found[_FLAGS_AT] = _LOADED_HIGH
    if plan.kaslr is not None:
        found[_FLAGS_AT] |= _KASLR  # as the decompressor tells the kernel proper
    found[_LOADER] = _UNKNOWN_LOADER
    struct.pack_into("<II", found, _INITRD, initrd, len(plan.initrd))
    struct.pack_into("<I", found, _COMMAND_LINE_AT, _COMMAND_LINE)
    struct.pack_into("<Q", found, _DATA_AT, _SEED)
    struct.pack_into("<Q", found, _RSDP, _ACPI)
    areas = (
        (0, _LOW_END, _RAM),
        (_LOW_END, _HIGH - _LOW_END, _RESERVED),
        (_HIGH, plan.memory - _HIGH, _RAM),
    )
    found[_ENTRIES] = len(areas)
    for number, area in enumerate(areas):
        struct.pack_into("<QQI", found, _MAP_AT + 20 * number, *area)
    return bytes(found)


def _tables() -> bytes:
    """Return page tables that map the first addresses as they are, in pages of 2 MiB."""
    directories = [_TABLES + 0x1000 * (2 + number) for number in range(_GIB_MAPPED)]
    top = struct.pack("<Q", _TABLES + 0x1000 | _PRESENT_WRITABLE).ljust(0x1000, b"\0")
    middle = struct.pack(
        f"<{_GIB_MAPPED}Q", *(directory | _PRESENT_WRITABLE for directory in directories)
    )
    pages = (number << 21 | _LARGE for number in range(512 * _GIB_MAPPED))
    return top + middle.ljust(0x1000, b"\0") + struct.pack(f"<{512 * _GIB_MAPPED}Q", *pages)


def _distance(kaslr: int, address: int, size: int) -> int:
    """Return how far a kernel goes: find_random_virt_addr (arch/x86/boot/compressed/kaslr.c)."""
    slots = 1 + (_SPACE - _LOWEST - size) // _ALIGN
    return _MAP + _LOWEST + kaslr_seed(kaslr) % slots * _ALIGN - address


def _start(plan: Plan) -> Start:
    image = plan.address - _MAP
    initrd = image + plan.image_size
    initrd += -initrd % _ALIGN
    limit, seed = len(_DESCRIPTORS) * 8 - 1, randomness(plan.kaslr)
    return Start(
        contents={
            _GDT: struct.pack(f"<{len(_DESCRIPTORS)}Q", *_DESCRIPTORS),
            _TABLES: _tables(),
            _PARAMETERS: _parameters(plan, initrd),
            _COMMAND_LINE: plan.command_line.encode() + b"\0",
            _SEED: struct.pack("<QII", 0, _RNG_SEED, len(seed)) + seed,
            **acpi.tables(_ACPI),
            **{image + at: data for at, data in plan.image.items()},
            initrd: plan.initrd,
        },
        image=image,
        entry=image + plan.entry,
        registers={
            "gdtr": _GDT << 16 | limit,
            "cr3": _TABLES,
            "rsp": _STACK,
            "rsi": _PARAMETERS,
        },
    )


# The CPU: what QEMU 5 executes of AMD's first Zen, but called as QEMU's own model `max` calls
# itself, on which no mitigation changes code but retpolines (family 15 is older than the bugs).
_ALL = 0xFFFF_FFFF
_FAMILY_15_MODEL_107 = 0x6_0FB1
_BRAND = b"Unicorn CPU".ljust(48, b"\0")
_REGISTERS = ("eax", "ebx", "ecx", "edx")


_MODELS = (
    "epyc",
    *("opteron-g1", "opteron-g2", "opteron-g3", "opteron-g4", "opteron-g5", "phenom", "dhyana"),
    *("core2duo", "conroe", "penryn", "nehalem", "westmere", "sandybridge", "ivybridge"),
    *("haswell", "broadwell", "skylake-client", "skylake-server", "cascadelake-server"),
    *("cooperlake", "icelake-client", "icelake-server", "snowridge", "denverton"),
    *("knightsmill", "epyc-rome", "kvm64", "qemu64"),
)


def _identity() -> dict[int, dict[str, tuple[int, int]]]:
    found = {leaf: {"eax": (_ALL, _FAMILY_15_MODEL_107)} for leaf in (1, 0x8000_0001)}
    words = struct.unpack("<12I", _BRAND)
    for number in range(3):
        values = words[4 * number : 4 * number + 4]
        found[0x8000_0002 + number] = {
            name: (_ALL, value) for name, value in zip(_REGISTERS, values, strict=True)
        }
    return found


def _ports(kind: str, start: int, size: int) -> Part:
    return Part(kind=kind, start=start, size=size, space=Space.PORTS)


# As arch/x86/mm/dump_pagetables.c prints them. Bit 7 means something else in pages; bit 12 of large
# leaves (PAT) is part of what that file takes for the address.
DUMP = Dump(
    line="{start}-{end}   {size:>9}{unit} {flags}{level}",
    units="BKMGTPE",
    levels=("pte", "pmd", "pud", "p4d", "pgd"),
    flags=(
        Flag(1 << 2, {1 << 2: "USR "}, "    "),
        Flag(1 << 1, {1 << 1: "RW "}, "ro "),
        Flag(1 << 3, {1 << 3: "PWT "}, "    "),
        Flag(1 << 4, {1 << 4: "PCD "}, "    "),
        Flag(1 << 7, {1 << 7: "PSE "}, "    ", (1, 2, 3, 4)),
        Flag(1 << 7, {1 << 7: "PAT "}, "    ", (0,)),
        Flag(1 << 8, {1 << 8: "GLB "}, "    "),
        Flag(1 << 63, {1 << 63: "NX "}, "x  "),
    ),
    kept=_WORD & ~((1 << 52) - (1 << 12)),
    narrows=1 << 2 | 1 << 1,
    closes=1 << 63,
    missing=" " * 30,
    empty=" " * 30,
    marks=1,
    lower=True,
    over=16,  # the hypervisor's hole
)

_BYTE = b"\xff"
_LOW = ("rax", "rcx", "rdx", "rbx", "", "", "rsi", "rdi")  # without SIB and RIP-relative forms


def _address(code: bytes) -> tuple[str, int]:
    """Return the register that `invlpg (register)` takes the address from; "" for other forms."""
    extended, modrm = code[0] & 0xF1 == 0x41, code[2 + (code[0] & 0xF0 == 0x40)]
    number = modrm & 7
    plain = modrm >> 6 == 0 and number not in (4, 5)
    return (f"r{8 + number}" if extended else _LOW[number]) if plain else "", 0


# Each also behind a REX prefix; where it has none, no instruction begins a byte before.
_PLAIN = (
    ("invlpg", b"\x0f\x01\x38", b"\xff\xff\xf8"),  # register forms of these bytes are others
    ("invlpg", b"\x0f\x01\x78", b"\xff\xff\xf8"),
    ("invlpg", b"\x0f\x01\xb8", b"\xff\xff\xf8"),
    ("mov cr3", b"\x0f\x22\xd8", b"\xff\xff\xf8"),
    ("mov cr4", b"\x0f\x22\xe0", b"\xff\xff\xf8"),
)
_GLOBAL = 0.5  # CR4.PGE is cleared and set again


def _told(kind: str, code: bytes, mask: bytes) -> FlushInstruction:
    whole, operand = _GLOBAL * (kind == "mov cr4"), _address if kind == "invlpg" else None
    process = kind == "mov cr3"  # without PCID, which no CPU here has
    return FlushInstruction(kind, code, mask, whole=whole, operand=operand, process=process)


_FLUSHING = Flushing(
    instructions=(
        *(_told(*each) for each in _PLAIN),
        *(_told(kind, b"\x40" + code, b"\xf0" + mask) for kind, code, mask in _PLAIN),
        FlushInstruction("invpcid", b"\x66\x0f\x38\x82", _BYTE * 4, whole=1),
    ),
    step=1,
    functions=("flush_tlb_kernel_range", "flush_tlb_all", "cpa_flush"),
    protects_whole=True,
    # Before, a change of NX alone did not look for other mappings of a page.
    always_whole=Since(((0, 0), False), ((6, 2), True)),
    splits_whole=True,
    rox_at_once=Since(((0, 0), False), ((6, 10), True)),
)

BOOT = Boot(
    board="x86_64",
    ram=0,
    memory=512 * _MIB,
    parts=(
        _ports("i8259", 0x20, 2),
        _ports("i8259", 0xA0, 2),
        _ports("i8254", 0x40, 0x22),
        _ports("mc146818", 0x70, 2),
        _ports("ns16550", 0x3F8, 8),
        _ports("acpi_pm", acpi.EVENTS, 12),
        _ports("reset", acpi.RESET, 1),
    ),
    models=_MODELS,
    model_prefix="UC_CPU_X86_",
    identity=_identity(),
    command_line="console=ttyS0 earlyprintk=ttyS0 nolapic noapic pci=off panic=-1",
    start=_start,
    distance=_distance,
    # 1: mov $110, %eax; syscall; jmp 1b
    spin=bytes.fromhex("b86e0000000f05ebf7"),
    system_calls=("__x64_sys_{}", "sys_{}"),
    # di, si, dx, r10, r8, r9
    system_call_arguments=((112,), (104,), (96,), (56,), (72,), (64,)),
    registers_size=512,
    padding=(b"\xcc",),
    machine=62,
    # arch/x86/kernel/cpu/common.c; arch/x86/kernel/cpu/bugs.c
    capabilities=(
        Bitmap(variable="boot_cpu_data", structure="cpuinfo_x86", member="x86_capability"),
    ),
    return_thunk="x86_return_thunk",
    console=Need(
        option="CONFIG_SERIAL_8250_CONSOLE",
        functions=("univ8250_console_setup", "serial8250_console_setup", "setup_early_printk"),
        what="a console on an 8250",
    ),
    # Intel SDM 3A, 4.5
    tables=TableFormat(
        sizes=((48, 12), (57, 12)),
        leaf=0x80,
        large=0x80,
        link=0x63,
        page=1 << 63 | 0x63,
        frame=(1 << 52) - (1 << 12),
        roots=("init_top_pgt", "swapper_pg_dir"),
        written=(1 << 1, 1 << 1),  # R/W, XD
        executed=(1 << 63, 0),
        dump=DUMP,
    ),
    flushing=_FLUSHING,
    able="icelake-server",
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""x86-64: everything lives in the top 2 GiB, and nothing else ever reaches.

Calls, jumps and RIP-relative operands hold a signed 32-bit displacement. The kernel is
built with -mcmodel=kernel: code also holds *absolute* addresses as sign-extended 32-bit
immediates (R_X86_64_32S), so module data is bound to 0xffffffff80000000 and above as
tightly as module text. There are no veneers: the window behind the kernel image is
within reach of everything, and what lies outside it cannot be used at all. That is why
text from the vmalloc range, four orders of magnitude away, is "completely broken".

P is the address of the field, not of the next instruction: a call carries the addend
-4, an instruction with an immediate behind the displacement -5 or -8.

The kernel's loader (arch/x86/kernel/module.c) does not range-check PC32 and PLT32; it
does insist that a place is zero before it is relocated.

Sources: System V ABI AMD64 supplement, 4.4; Documentation/arch/x86/x86_64/mm.rst;
arch/x86/mm/init.c (execmem_arch_setup); arch/x86/kernel/alternative.c (text_poke,
text_poke_bp_batch, text_poke_loc_init).
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from allocator.types import (
    ADDRESS_MASK,
    GIB,
    MIB,
    PAGE_SIZE,
    AddressMap,
    ExecmemRange,
    ExecmemType,
    Interval,
    TextPoke,
    align_up,
)
from archs import traps
from archs.arch import (
    U8,
    U64,
    Arch,
    Entry,
    Finalisation,
    Ftrace,
    Index,
    Thunks,
    VariableSize,
    exactly,
    same,
)
from archs.environment import Boot, Environment
from archs.insn_x86_64 import CALL, ESCAPE, JUMP, JUMP8, Instruction, decode, holds
from archs.levels.link import Branch, Fill, Link, Probe, rows
from archs.levels.load import Load, module_struct
from archs.levels.patch import Emulator, LivePatch, Patch
from archs.levels.run import Anchor, CallingConvention, Emulation, Exceptions, Run
from archs.op import Got, Op
from archs.reloc import Reach, Reloc, data, signed, unsigned
from archs.system_x86_64 import SYSTEM
from archs.text import Guest
from archs.text_x86_64 import PATCHING

START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
MODULES_END = 0xFFFF_FFFF_FF00_0000
KERNEL_TEXT = 0xFFFF_FFFF_8100_0000
IMAGE_SIZE = 0x2C3_0000  # [_text, _end) of Debian's 6.12.107 kernel
KERNEL_ALIGN = 2 * MIB


def address_map(kaslr: int | None = None, image_size: int | None = None) -> AddressMap:
    """Return the address map of one boot (arch/x86/mm/init.c, asm/pgtable_64_types.h).

    Debian builds with RANDOMIZE_BASE: the text map is 1 GiB, whether or not a boot uses
    KASLR. With KASLR the image moves in steps of 2 MiB and the module window starts
    1 to 1024 pages late (get_module_load_offset).
    """
    size = IMAGE_SIZE if image_size is None else align_up(image_size, PAGE_SIZE)
    text, modules = KERNEL_TEXT, START_KERNEL_MAP + GIB
    if kaslr is not None:
        chance = random.Random(kaslr)  # noqa: S311 - a boot that can be repeated, no secret
        slots = (GIB - 16 * MIB - align_up(size, KERNEL_ALIGN)) // KERNEL_ALIGN
        text += chance.randrange(slots + 1) * KERNEL_ALIGN
        modules += chance.randint(1, 1024) * PAGE_SIZE
    window = ExecmemRange(range=Interval(modules, MODULES_END), alignment=PAGE_SIZE)
    return AddressMap(
        image=Interval(text, text + size),
        direct_map=0xFFFF_8880_0000_0000,
        vmalloc=Interval(0xFFFF_C900_0000_0000, 0xFFFF_E900_0000_0000),
        ranges={ExecmemType.MODULE_TEXT: window},
        kaslr=kaslr,
        vmemmap=0xFFFF_EA00_0000_0000,
    )


def _va_list(address: int, load: Callable[[int], int]) -> Iterator[int]:
    """Yield the integer slots of a va_list (psABI 3.5.7): saved registers, then the stack."""
    offset = load(address) & 0xFFFF_FFFF
    overflow, saved = load(address + 8), load(address + 16)
    while offset < 48:
        yield load(saved + offset)
        offset += 8
    while True:
        yield load(overflow)
        overflow += 8


_REGISTERS = "rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15".split()
_JUMP_TO = {
    name: bytes((0xFF, 0xE0 | number)) if number < 8 else bytes((0x41, 0xFF, 0xE0 | number & 7))
    for number, name in enumerate(
        "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
    )
}
_RET = b"\xc3"


def _user_access() -> tuple[dict[str, bytes], dict[str, tuple[int, int]]]:
    """Return the functions of arch/x86/lib that access user memory, and their fixups.

    An address of the kernel's half becomes -1, where nothing is.
    """
    # mov %rax,%rdx; sar $63,%rdx; or %rdx,%rax / the access / xor %eax,%eax; ret /
    # mov $-14,%rax; xor %edx,%edx; ret
    get = ("4889c248c1fa3f4809d0", "31c0c3", "48c7c0f2ffffff31d2c3")
    # mov %rcx,%rbx; sar $63,%rbx; or %rbx,%rcx / the access / xor %ecx,%ecx; ret /
    # mov $-14,%ecx; ret
    put = ("4889cb48c1fb3f4809d9", "31c9c3", "b9f2ffffffc3")
    string = ("", "c3", "")  # what is left stays in %rcx
    code, fixups = {}, {}
    for names, access, (before, after, failed) in (
        ("__get_user_1 __get_user_nocheck_1", "0fb610", get),  # movzbl (%rax),%edx
        ("__get_user_2 __get_user_nocheck_2", "0fb710", get),
        ("__get_user_4 __get_user_nocheck_4", "8b10", get),
        ("__get_user_8 __get_user_nocheck_8", "488b10", get),
        ("__put_user_1 __put_user_nocheck_1", "8801", put),  # mov %al,(%rcx)
        ("__put_user_2 __put_user_nocheck_2", "668901", put),
        ("__put_user_4 __put_user_nocheck_4", "8901", put),
        ("__put_user_8 __put_user_nocheck_8", "488901", put),
        ("rep_stos_alternative", "f3aa", string),
        ("rep_movs_alternative", "f3a4", string),
    ):
        parts = [bytes.fromhex(part) for part in (before, access, after, failed)]
        resume = parts[:3] if failed else parts[:2]
        for name in names.split():
            code[name] = b"".join(parts)
            fixups[name] = len(parts[0]), sum(map(len, resume))
    return code, fixups


_USER_CODE, _USER_FIXUPS = _user_access()
# Types of arch/x86/include/asm/extable_fixup_types.h: DEFAULT, FAULT, UACCESS; IMM_REG.
_EX_PLAIN, _EX_IMM_REG = (1, 2, 3), 17
_EX_REGISTERS = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()


def _fixup(word: int) -> tuple[tuple[str, int], ...] | None:
    """Return what an exception table entry sets: type, register, flags and immediate."""
    kind, register, flags, immediate = word & 0xFF, word >> 8 & 15, word >> 12 & 15, word >> 16
    if kind not in (*_EX_PLAIN, _EX_IMM_REG):
        return None
    cleared = tuple((name, 0) for bit, name in ((1, "rax"), (2, "rdx")) if flags & bit)
    if kind in _EX_PLAIN:
        return cleared
    value = (immediate ^ 0x8000) - 0x8000
    return (_EX_REGISTERS[register], value & ((1 << 64) - 1)), *cleared


_DYNAMIC = "written by dynamic linkers, never in a relocatable object"
_TLS = "the kernel has no thread-local storage"
_VTABLE = "a note of the C++ compiler for garbage collection"


def _got(number: int, name: str, op: Op, size: int, got: Got) -> Reloc:
    """Return a row that needs a GOT; the kernel has none, an object may bring its own."""
    reach = signed(32) if size == 4 else None
    return Reloc(number, name, op, data(size), reach, got=got, kernel=False)


RELOCATIONS = rows(
    Reloc(0, "R_X86_64_NONE", Op.NONE),
    Reloc(1, "R_X86_64_64", Op.ABS, data(8)),
    Reloc(2, "R_X86_64_PC32", Op.PC, data(4), signed(32), kernel_reach=None),
    _got(3, "R_X86_64_GOT32", Op.ABS, 4, Got.OFFSET),
    Reloc(4, "R_X86_64_PLT32", Op.PC, data(4), signed(32), kernel_reach=None),
    Reloc(5, "R_X86_64_COPY", Op.NONE, unsupported=_DYNAMIC),
    Reloc(6, "R_X86_64_GLOB_DAT", Op.NONE, unsupported=_DYNAMIC),
    Reloc(7, "R_X86_64_JUMP_SLOT", Op.NONE, unsupported=_DYNAMIC),
    Reloc(8, "R_X86_64_RELATIVE", Op.NONE, unsupported=_DYNAMIC),
    _got(9, "R_X86_64_GOTPCREL", Op.PC, 4, Got.SLOT),
    Reloc(10, "R_X86_64_32", Op.ABS, data(4), unsigned(32)),
    Reloc(11, "R_X86_64_32S", Op.ABS, data(4), signed(32)),
    Reloc(12, "R_X86_64_16", Op.ABS, data(2), Reach(-(1 << 15), 1 << 16), kernel=False),
    Reloc(13, "R_X86_64_PC16", Op.PC, data(2), signed(16), kernel=False),
    Reloc(14, "R_X86_64_8", Op.ABS, data(1), Reach(-(1 << 7), 1 << 8), kernel=False),
    Reloc(15, "R_X86_64_PC8", Op.PC, data(1), signed(8), kernel=False),
    Reloc(16, "R_X86_64_DTPMOD64", Op.NONE, unsupported=_TLS),
    Reloc(17, "R_X86_64_DTPOFF64", Op.NONE, unsupported=_TLS),
    Reloc(18, "R_X86_64_TPOFF64", Op.NONE, unsupported=_TLS),
    Reloc(19, "R_X86_64_TLSGD", Op.NONE, unsupported=_TLS),
    Reloc(20, "R_X86_64_TLSLD", Op.NONE, unsupported=_TLS),
    Reloc(21, "R_X86_64_DTPOFF32", Op.NONE, unsupported=_TLS),
    Reloc(22, "R_X86_64_GOTTPOFF", Op.NONE, unsupported=_TLS),
    Reloc(23, "R_X86_64_TPOFF32", Op.NONE, unsupported=_TLS),
    Reloc(24, "R_X86_64_PC64", Op.PC, data(8)),
    _got(25, "R_X86_64_GOTOFF64", Op.ABS, 8, Got.RELATIVE),
    _got(26, "R_X86_64_GOTPC32", Op.PC, 4, Got.BASE),
    _got(27, "R_X86_64_GOT64", Op.ABS, 8, Got.OFFSET),
    _got(28, "R_X86_64_GOTPCREL64", Op.PC, 8, Got.SLOT),
    _got(29, "R_X86_64_GOTPC64", Op.PC, 8, Got.BASE),
    _got(30, "R_X86_64_GOTPLT64", Op.ABS, 8, Got.OFFSET),
    _got(31, "R_X86_64_PLTOFF64", Op.ABS, 8, Got.RELATIVE),
    Reloc(32, "R_X86_64_SIZE32", Op.SIZE, data(4), unsigned(32), kernel=False),
    Reloc(33, "R_X86_64_SIZE64", Op.SIZE, data(8), kernel=False),
    Reloc(34, "R_X86_64_GOTPC32_TLSDESC", Op.NONE, unsupported=_TLS),
    Reloc(35, "R_X86_64_TLSDESC_CALL", Op.NONE, unsupported=_TLS),
    Reloc(36, "R_X86_64_TLSDESC", Op.NONE, unsupported=_TLS),
    Reloc(37, "R_X86_64_IRELATIVE", Op.NONE, unsupported=_DYNAMIC),
    Reloc(38, "R_X86_64_RELATIVE64", Op.NONE, unsupported=_DYNAMIC),
    _got(41, "R_X86_64_GOTPCRELX", Op.PC, 4, Got.SLOT),
    _got(42, "R_X86_64_REX_GOTPCRELX", Op.PC, 4, Got.SLOT),
    Reloc(250, "R_X86_64_GNU_VTINHERIT", Op.NONE, unsupported=_VTABLE),
    Reloc(251, "R_X86_64_GNU_VTENTRY", Op.NONE, unsupported=_VTABLE),
)

# The NOPs that the kernel prefers, by length (asm/nops.h; Intel SDM vol. 2, NOP, table 4-12).
NOPS = tuple(
    bytes.fromhex(code)
    for code in (
        "",
        "90",
        "6690",
        "0f1f00",
        "0f1f4000",
        "0f1f440000",
        "660f1f440000",
        "0f1f8000000000",
        "0f1f840000000000",
        "660f1f840000000000",
        "66660f1f840000000000",
        "6666660f1f840000000000",
    )
)


# Direct branches, as arrays: a row of code per place. E8 calls, E9 jumps, 0F 80..8F jump on a
# condition; a CS prefix (2E) pads a branch to a thunk. All end in a 32-bit displacement.
CS, INT3 = 0x2E, 0xCC
NOP1, RET1 = 0x90, 0xC3


def _length(code: U8) -> Index:
    prefix = code[:, 0] == CS
    first = np.where(prefix, code[:, 1], code[:, 0])
    plain = (first == CALL) | (first == JUMP)
    condition = (code[:, 0] == ESCAPE) & (code[:, 1] >> 4 == 8)
    return np.where(plain, 5 + prefix, np.where(condition, 6, 0)).astype(np.intp)


def _targets(code: U8, places: U64) -> U64:
    """Return where branches go; the place is that of the first byte."""
    if code.shape[1] == 5:
        length: Index | int = 5
        words = code[:, 1:]
    else:
        length = _length(code)
        columns = np.arange(4) + np.maximum(length, 4)[:, None] - 4
        words = np.take_along_axis(code, columns, axis=1)
    displacement = np.ascontiguousarray(words).view("<i4")[:, 0].astype(np.int64)
    return np.asarray(places + (displacement + length).view(np.uint64))


def _aim(code: U8, places: U64, targets: U64) -> U8:
    """Return branches with new displacements; rows are as long as the branches."""
    new = code.copy()
    displacement = targets - places - np.uint64(code.shape[1])
    new[:, -4:] = displacement.astype("<u4")[:, None].view(np.uint8)
    return new


def _branches(opcode: int, places: U64, targets: U64 | int) -> U8:
    """Return E8 or E9 branches at the places."""
    code = np.zeros((places.size, 5), np.uint8)
    code[:, 0] = opcode
    return _aim(code, places, np.broadcast_to(np.asarray(targets, np.uint64), places.shape))


def _rows(code: bytes, count: int) -> U8:
    return np.broadcast_to(np.frombuffer(code, np.uint8), (count, len(code)))


def _indirect(code: U8, places: U64, registers: U64, environment: Environment) -> U8 | None:
    """Return what takes the place of branches to indirect thunks (patch_retpoline)."""
    features = environment.features
    if "retpoline" in features and "retpoline_lfence" not in features:
        if "call_depth" not in features:
            return None
        calls, jumps = (environment.symbol(name) for name in COUNTING_THUNKS)
        first = np.where((code[:, :2] == CALL).any(axis=1), calls, jumps).astype(np.uint64)
        return _aim(code, places, first + registers * np.uint64(THUNK_STEP))
    # A thousand branches have few forms: the opcode, of one byte or two, and the register.
    opcode = np.ascontiguousarray(code[:, [0, code.shape[1] - 5]]).view("<u2")[:, 0]
    form = registers | opcode.astype(np.uint64) << np.uint64(8)
    _, chosen, which = np.unique(form, return_index=True, return_inverse=True)
    fence = "retpoline_lfence" in features
    kinds = [
        _direct(code[n, :-4].tobytes(), int(registers[n]), code.shape[1], fence)
        for n in chosen.tolist()
    ]
    new: U8 = np.array(kinds, np.uint8).reshape(-1, code.shape[1])[which]
    if "indirect_thunk_its" in features:
        # Where the branch would end in the lower half of a cache line, a thunk that does not.
        # The kernel makes one for each module; the one of its own does the same.
        length = np.uint64(2) + registers // np.uint64(8)
        exposed = places + length - np.uint64(1) & np.uint64(0x20) == 0
        thunks = np.uint64(environment.symbol(ITS_THUNKS)) + registers * np.uint64(ITS_STEP)
        new = np.where(exposed[:, None], _aim(code, places, thunks), new)
    return new


def _direct(opcode: bytes, register: int, length: int, fence: bool) -> list[int]:
    """Return an indirect branch in `length` bytes, for a branch to the register's thunk."""
    code = b""
    if opcode[0] == ESCAPE:  # Jcc thunk: skip an indirect jump on the opposite condition
        code += bytes((0x70 | (opcode[1] & 0xF) ^ 1, length - 2))
    if fence:
        code += bytes.fromhex("0faee8")
    is_call = opcode[-1] == CALL
    code += b"\x41" * (register >= 8)
    code += bytes((0xFF, (0xD0 if is_call else 0xE0) | register & 7))
    if not is_call and len(code) < length:
        code += bytes((INT3,))
    return list(code + NOPS[length - len(code)])


def _return_thunk(environment: Environment) -> str:
    return environment.options.get("return_thunk", "__x86_return_thunk")


def _return_at(places: U64, environment: Environment) -> NDArray[np.bool_]:
    """Return where a return needs the thunk (cpu_wants_rethunk_at)."""
    if "rethunk" not in environment.features:
        return np.zeros(places.shape, np.bool_)
    if _return_thunk(environment) != ITS_RETURN_THUNK:
        return np.ones(places.shape, np.bool_)
    return np.asarray(places & np.uint64(0x20) == 0)


def _returns(places: U64, environment: Environment) -> U8:
    """Return what stands for a return at the places."""
    plain = _rows(bytes((RET1, INT3, INT3, INT3, INT3)), places.size)
    thunked = _return_at(places, environment)
    if not thunked.any():
        return plain
    thunk = environment.symbol(_return_thunk(environment))
    return np.where(thunked[:, None], _branches(JUMP, places, thunk), plain)


def _static_call(
    code: U8, places: U64, functions: U64, tail: NDArray[np.bool_], environment: Environment
) -> U8:
    """Return the code of static call sites (arch/x86/kernel/static_call.c)."""
    symbols, none = environment.symbols, functions == 0
    if code.shape[1] == 6:  # Jcc.d32, a tail call
        name = "__static_call_return"
        if "rethunk" in environment.features:
            name = _return_thunk(environment)
        nowhere = np.uint64(environment.symbol(name)) if none.any() else np.uint64(0)
        return _aim(code, places, np.where(none, nowhere, functions))
    opcode = np.where(tail, JUMP, CALL).astype(np.uint8)
    new = _aim(np.repeat(opcode[:, None], 5, axis=1), places, functions)
    new[none & ~tail] = np.frombuffer(NOPS[5], np.uint8)
    new[none & tail] = _returns(places[none & tail], environment)
    zero = np.uint64(symbols.get("__static_call_return0", 0))
    new[~none & ~tail & (functions == zero)] = np.frombuffer(CLEAR_RAX, np.uint8)
    return new


def _padding(functions: U64, environment: Environment) -> U8:
    """Return `sarq $5, %gs:pcpu_hot+16(%rip)` in front of functions (INCREMENT_CALL_DEPTH)."""
    code = _rows(bytes.fromhex("6548c13d0000000005"), functions.size).copy()
    depth = np.uint64(environment.symbol("pcpu_hot") + CALL_DEPTH_OFFSET)
    code[:, 4:8] = (depth - functions).astype("<u4")[:, None].view(np.uint8)
    return code


CLEAR_RAX = bytes.fromhex("2e2e2e31c0")  # cs cs cs xorl %eax, %eax
THUNK_STEP = 32  # from one thunk of an array to the next
COUNTING_THUNKS = ("__x86_indirect_call_thunk_array", "__x86_indirect_jump_thunk_array")
ITS_RETURN_THUNK = "its_return_thunk"
ITS_THUNKS, ITS_STEP = "__x86_indirect_its_thunk_array", 64
CALL_DEPTH_OFFSET = 16  # of call_depth in struct pcpu_hot

THUNKS = Thunks(
    longest=6,
    length=_length,
    targets=_targets,
    aim=_aim,
    registers=tuple(f"__x86_indirect_thunk_{name}" for name in _JUMP_TO),
    indirect=_indirect,
    returns=_returns,
    padding=_padding,
    filler=NOP1,
    is_call=lambda code: np.asarray(code[:, 0] == CALL),
    call_size=5,
    untracked=(
        "error_entry",
        "paranoid_entry",
        "xen_error_entry",
        "__switch_to_asm",
        "ret_from_fork",
        "soft_restart_cpu",
        "__fentry__",
    ),
)


@lru_cache(maxsize=4096)
def _relative(code: bytes) -> tuple[tuple[int, Instruction, tuple[int, int]], ...]:
    """Return the fields of code that are relative: instruction's offset, instruction, field."""
    found, at = [], 0
    while (insn := decode(code, at)) is not None:
        if insn.is_branch:
            found.append((at, insn, insn.immediate))
        if insn.relative:
            found.append((at, insn, insn.displacement))
        at += insn.length
    return tuple(found)


def _moved(code: bytes, source: int, place: int, size: int) -> bytes:
    """Return code with what is relative to its own address adjusted (apply_relocation)."""
    fields, shift = _relative(code), source - place
    if not fields:
        return code
    new = bytearray(code)
    for at, insn, (offset, width) in fields:
        field, end = slice(at + offset, at + offset + width), at + insn.length
        away = int.from_bytes(new[field], "little", signed=True)
        if not 0 <= end + away <= size:  # else the target moves along
            value = away + shift & (1 << 8 * width) - 1
            new[field] = value.to_bytes(width, "little")
        near = away + shift + 3  # behind a jump of two bytes instead of five
        if insn.opcode[0] == JUMP and -128 <= near < 128:
            short = bytes((JUMP8, near & 0xFF))
            new[at:end] = short + bytes((INT3,)) * (insn.length - 2)
    return bytes(new)


@lru_cache(maxsize=4096)
def _packed(code: bytes) -> bytes:
    """Return code with each run of NOPs made into one (optimize_nops)."""
    new, at = bytearray(code), 0
    while (insn := decode(code, at)) is not None:
        first, at = at, at + insn.length
        if not insn.is_nop:
            continue
        if at == len(code):
            break
        while (insn := decode(code, at)) is not None and insn.is_nop:
            at += insn.length
        new[first:at] = _nop(at - first)
    return bytes(new)


def _nop(length: int) -> bytes:
    """Return what does nothing for `length` bytes; beyond the longest NOP, a jump over INT3."""
    if length < len(NOPS):
        return NOPS[length]
    jump = bytes((JUMP8, length - 2)) if length < 128 else bytes((JUMP,))
    jump += b"" if length < 128 else (length - 5).to_bytes(4, "little")
    return jump.ljust(length, bytes((INT3,)))


# What the pointers in pv_ops hold on bare hardware, by offset in struct paravirt_patch_template
# (arch/x86/kernel/paravirt.c).
_PV_OPS = (
    "native_io_delay pv_native_get_debugreg pv_native_set_debugreg native_read_cr0 "
    "native_write_cr0 native_write_cr4 native_load_tr_desc native_load_gdt native_load_idt "
    "native_set_ldt native_store_tr native_load_tls native_load_gs_index native_write_ldt_entry "
    "native_write_gdt_entry native_write_idt_entry nop_func nop_func native_load_sp0 "
    "native_tss_invalidate_io_bitmap native_tss_update_io_bitmap pv_native_wbinvd native_cpuid "
    "native_read_msr native_write_msr native_read_msr_safe native_write_msr_safe native_read_pmc "
    "nop_func nop_func pv_native_save_fl pv_native_irq_disable pv_native_irq_enable "
    "pv_native_safe_halt native_halt native_flush_tlb_local native_flush_tlb_global "
    "native_flush_tlb_one_user native_flush_tlb_multi"
).split()


def _direct_call(
    code: bytes, place: int, replacement: bytes, environment: Environment
) -> bytes | None:
    """Return a call of what `call *disp(%rip)` finds in pv_ops (alt_replace_call)."""
    symbols = environment.symbols
    if code[:2] != b"\xff\x15" or len(code) != 6 or replacement[:1] != bytes((CALL,)):
        return None
    slot = place + 6 + int.from_bytes(code[2:], "little", signed=True)
    number, rest = divmod(slot - symbols.get("pv_ops", 0), 8)
    name = _PV_OPS[number] if 0 <= number < len(_PV_OPS) and not rest else ""
    if name not in symbols or "BUG_func" not in symbols:
        return None
    if name == "nop_func":
        return b""
    # The replacement calls BUG_func, which stands for the function.
    away = int.from_bytes(replacement[1:], "little") + symbols[name] - symbols["BUG_func"]
    return bytes((CALL,)) + (away & 0xFFFF_FFFF).to_bytes(4, "little")


# X86_FEATURE_* of Linux 6.12, by word and bit (asm/cpufeatures.h), called as /proc/cpuinfo calls
# them, or where it does not show them after the macro; "-" is no feature.
_WORDS = {
    0: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts "
    "acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    1: "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm "
    "3dnowext 3dnow",
    3: "cxmmx k6_mtrr cyrix_arr centaur_mcr k8 zen5 p3 p4 constant_tsc up art arch_perfmon pebs bts "
    "syscall32 sysenter32 rep_good amd_lbr_v2 clear_cpu_buf acc_power nopl always xtopology "
    "tsc_reliable nonstop_tsc cpuid extd_apicid amd_dcm aperfmperf rapl nonstop_tsc_s3 "
    "tsc_known_freq",
    4: "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid "
    "dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand "
    "hypervisor",
    6: "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop "
    "skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc "
    "perfctr_llc mwaitx",
    7: "ring3mwait cpuid_fault cpb epb cat_l3 cat_l2 cdp_l3 tdx_host_platform hw_pstate "
    "proc_feedback xcompacted pti kernel_ibrs rsb_vmexit intel_ppin cdp_l2 msr_spec_ctrl ssbd mba "
    "rsb_ctxsw perfmon_v2 use_ibpb use_ibrs_fw spec_store_bypass_disable ls_cfg_ssbd ibrs ibpb "
    "stibp zen l1tf_pteinv ibrs_enhanced msr_ia32_feat_ctl",
    8: "tpr_shadow flexpriority ept vpid coherency_sfw_no - - - - - - - - - - vmmcall xenpv ept_ad "
    "vmcall vmw_vmmcall pvunlock vcpupreempt tdx_guest",
    9: "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm "
    "zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt "
    "avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    10: "xsaveopt xsavec xgetbv1 xsaves xfd",
    11: "cqm_llc cqm_occup_llc cqm_mbm_total cqm_mbm_local fence_swapgs_user fence_swapgs_kernel "
    "split_lock_detect per_thread_mba sgx1 sgx2 entry_ibpb rrsba_ctrl retpoline retpoline_lfence "
    "rethunk unret use_ibpb_fw rsb_vmexit_lite sgx_edeccssa call_depth msr_tsx_ctrl smba bmec "
    "user_shstk srso srso_alias ibpb_on_vmexit apic_msrs_fence zen2 zen3 zen4 zen1",
    12: "- - - - avx_vnni avx512_bf16 - cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - - fred lkgs "
    "wrmsrns - amx_fp16 - avx_ifma - - lam",
    13: "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - "
    "amd_stibp_always_on - - - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no "
    "amd_ibpb_ret brs",
    14: "dtherm ida arat - pln - pts hwp hwp_notify hwp_act_window hwp_epp hwp_pkg_req - - - "
    "hwp_highest_perf_change - - - hfi",
    15: "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - pausefilter - "
    "pfthreshold avic - v_vmsave_vmload vgif - x2avic - v_spec_ctrl - - - - vnmi - - "
    "svme_addr_chk",
    16: "- avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni "
    "avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - "
    "movdiri movdir64b enqcmd sgx_lc",
    17: "overflow_recov succor - smca",
    18: "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect srbds_ctrl md_clear "
    "rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - "
    "amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities "
    "core_capabilities spec_ctrl_ssbd",
    19: "sme sev vm_page_flush sev_es sev_snp - - - - v_tsc_aux sme_coherent - - - debug_swap - - - - "
    "- - - - - - - - - svsm - hv_inuse_wr_allowed",
    20: "no_nested_data_bp wrmsr_xx_base_ns lfence_rdtsc - - verw_clear null_sel_clr_base - autoibrs "
    "no_smm_ctl_msr - - - - - - - - - - - - - - - - - sbpb ibpb_brtype srso_no",
    21: "amd_lbr_pmc_freeze clear_bhb_loop bhi_ctrl clear_bhb_hw clear_bhb_loop_on_vmexit fast_cppc "
    "indirect_thunk_its - - - - tsa_sq_no tsa_l1_no clear_cpu_buf_vm",
    22: "f00f fdiv coma tlb_mmatch apic_c1e 11ap fxsave_leak clflush_monitor sysret_ss_attrs - "
    "null_seg swapgs_fence bug_monitor amd_e400 cpu_meltdown spectre_v1 spectre_v2 "
    "spec_store_bypass bug_l1tf mds msbds_only swapgs taa itlb_multihit srbds mmio_stale_data "
    "mmio_unknown retbleed eibrs_pbrsb smt_rsb gds tdx_pw_mce",
    23: "bug_srso div0 rfds bhi ibpb_no_ret its its_native_only - - tsa",
}
FEATURES = {
    name: 32 * word + bit
    for word, names in _WORDS.items()
    for bit, name in enumerate(names.split())
    if name != "-"
}
# Bugs that are called like a feature.
_BUGS = {"monitor": "bug_monitor", "l1tf": "bug_l1tf", "srso": "bug_srso"}


# CPU models of an emulator (QEMU's TCG), as /proc/cpuinfo has them, for boots that did not keep it:
# vendor and family; flags; bugs.
_MODELS = {
    "max": (
        ("AuthenticAMD", "15"),
        (
            "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush acpi mmx"
            " fxsr sse sse2 ss syscall nx mmxext pdpe1gb rdtscp lm 3dnowext 3dnow rep_good nopl "
            "xtopology cpuid extd_apicid pni pclmulqdq monitor ssse3 fma cx16 sse4_1 sse4_2 movbe"
            " popcnt aes xsave avx f16c rdrand hypervisor lahf_lm svm cr8_legacy abm sse4a "
            "3dnowprefetch vmmcall fsgsbase bmi1 avx2 smep bmi2 erms mpx adx smap clflushopt clwb"
            " xsaveopt xgetbv1 arat npt vgif umip pku ospke vaes la57"
        ),
        "fxsave_leak sysret_ss_attrs null_seg swapgs_fence amd_e400 spectre_v1 spectre_v2",
    ),
    "Skylake-Server": (
        ("GenuineIntel", "6"),
        (
            "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr"
            " sse sse2 ht syscall nx pdpe1gb rdtscp lm constant_tsc rep_good nopl xtopology cpuid"
            " pni pclmulqdq ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand "
            "hypervisor lahf_lm abm pti fsgsbase bmi1 avx2 smep bmi2 erms adx smap clflushopt "
            "clwb xsaveopt xgetbv1 arat pku ospke"
        ),
        (
            "cpu_meltdown spectre_v1 spectre_v2 spec_store_bypass l1tf mds swapgs itlb_multihit "
            "mmio_stale_data retbleed gds bhi its"
        ),
    ),
    "EPYC": (
        ("AuthenticAMD", "23"),
        (
            "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx "
            "fxsr sse sse2 ht syscall nx mmxext fxsr_opt pdpe1gb rdtscp lm rep_good nopl "
            "xtopology cpuid extd_apicid pni pclmulqdq ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt "
            "aes xsave avx f16c rdrand hypervisor lahf_lm cmp_legacy svm cr8_legacy abm sse4a "
            "misalignsse 3dnowprefetch osvw vmmcall fsgsbase bmi1 avx2 smep bmi2 rdseed adx smap "
            "clflushopt sha_ni xsaveopt xsavec xgetbv1 arat npt"
        ),
        (
            "sysret_ss_attrs swapgs_fence spectre_v1 spectre_v2 spec_store_bypass "
            "retbleed smt_rsb srso div0"
        ),
    ),
}


def environment(boot: Boot) -> Environment:
    """Return what a boot means for modules: what arch/x86/kernel/cpu/bugs.c would select.

    /proc/cpuinfo shows features and bugs; the mitigations in force follow from the bugs and
    the command line, in the kernel's order, since one depends on another.
    """
    cpu, options = boot.cpu, boot.options
    if not cpu and boot.model in _MODELS:
        (vendor, family), flags, known = _MODELS[boot.model]
        cpu = {"vendor_id": vendor, "cpu family": family, "flags": flags, "bugs": known}
    features = set(cpu.get("flags", "").split())
    bugs = set(cpu.get("bugs", "").split())
    features |= {_BUGS.get(bug, bug) for bug in bugs}
    features.add("always")
    if "sse2" in features:  # init_amd, init_intel: LFENCE is made to serialise
        features.add("lfence_rdtsc")
    thunk = "__x86_return_thunk"
    if options.get("mitigations") != "off":
        thunk = _mitigate(cpu, features, bugs, options, boot.vulnerabilities)
    mode = _PREEMPTION.get(options.get("preempt", ""), _PREEMPTION["voluntary"])
    return Environment(
        features=frozenset(features),
        options={"return_thunk": thunk},
        possible_cpus=boot.possible_cpus,
        symbols=boot.symbols,
        static_calls={
            name: boot.symbols.get(function, 0)
            for name, function in (mode | _APIC).items()
            if not function or function in boot.symbols
        },
    )


def _mitigate(
    cpu: Mapping[str, str],
    features: set[str],
    bugs: set[str],
    options: Mapping[str, str],
    vulnerabilities: Mapping[str, str],
) -> str:
    """Add the mitigations in force to `features`; return the return thunk in force."""
    is_intel, family = cpu.get("vendor_id") == "GenuineIntel", int(cpu.get("cpu family", 0))
    thunk = "__x86_return_thunk"
    spectre = "off" if "nospectre_v2" in options else options.get("spectre_v2", "auto")
    retbleed = options.get("retbleed", "auto").split(",")[0]
    # spectre_v2_select_mitigation
    if "spectre_v2" not in bugs and spectre != "on":
        spectre = "off"
    if spectre in ("auto", "on"):
        enhanced = "ibrs_enhanced" in features
        kernel_ibrs = is_intel and {"retbleed", "ibrs"} <= (bugs | features)
        kernel_ibrs = kernel_ibrs and retbleed not in ("off", "stuff")
        spectre = "eibrs" if enhanced else "ibrs" if kernel_ibrs else "retpoline"
    if "retpoline" in spectre or spectre == "eibrs,lfence":
        features.add("retpoline")
        if spectre.endswith(("lfence", "amd")):
            features.add("retpoline_lfence")
    if spectre == "ibrs":
        features.add("kernel_ibrs")
    if spectre != "off":
        features |= {"rsb_ctxsw"} if "ibrs_enhanced" in features else {"rsb_ctxsw", "rsb_vmexit"}
    if {"ibrs", "ibpb"} & features:
        features.add("msr_spec_ctrl")
    if "ibpb" in features and spectre != "off":
        features.add("use_ibpb")
    # retbleed_select_mitigation
    stuffing = False
    if "retbleed" in bugs and retbleed != "off":
        stuffing = retbleed == "stuff" and spectre == "retpoline" and is_intel
        if stuffing:
            features |= {"rethunk", "call_depth"}
            thunk = "call_depth_return_thunk"
        elif not is_intel and retbleed == "ibpb":
            features |= {"entry_ibpb", "ibpb_on_vmexit"}
        elif not is_intel:
            features |= {"rethunk", "unret"}
            thunk = "retbleed_return_thunk"
    # its_select_mitigation
    its = options.get("indirect_target_selection", "on")
    exposed = "its" in bugs and its != "off" and spectre != "off" and not stuffing
    if exposed and "retpoline_lfence" not in features:
        features.add("rethunk")
        if "retpoline" not in features:
            features.add("indirect_thunk_its")
        thunk = ITS_RETURN_THUNK
    # srso_select_mitigation; Zen 1 and 2 without a second thread may need nothing
    srso = options.get("spec_rstack_overflow", "safe-ret")
    says = vulnerabilities.get("spec_rstack_overflow", "Safe RET")
    if "srso" in bugs and srso == "safe-ret" and "safe ret" in says.lower():
        alias = family == 0x19
        features |= {"rethunk", "unret", "srso_alias" if alias else "srso"}
        thunk = "srso_alias_return_thunk" if alias else "srso_return_thunk"
    # bhi_select_mitigation: retpolines are enough
    if "bhi" in bugs and "retpoline" not in features:
        features |= {"clear_bhb_loop", "clear_bhb_loop_on_vmexit"}
    # mds, taa, mmio and rfds share one way to clear buffers
    if {"mds", "taa", "mmio_stale_data", "rfds"} & bugs:
        features.add("clear_cpu_buf")
    if "l1tf" in bugs:
        features.add("l1tf_pteinv")
    return thunk


# What PREEMPT_DYNAMIC makes of four static calls, by `preempt=` (kernel/sched/core.c:
# __sched_dynamic_update); Debian's default is voluntary.
_PREEMPTION = {
    mode: dict(
        zip(
            ("cond_resched", "might_resched", "preempt_schedule", "preempt_schedule_notrace"),
            functions.split(","),
            strict=True,
        )
    )
    for mode, functions in {
        "none": "__cond_resched,__static_call_return0,,",
        "voluntary": "__cond_resched,__cond_resched,,",
        "full": "__static_call_return0,__static_call_return0,preempt_schedule_thunk,"
        "preempt_schedule_notrace_thunk",
    }.items()
}
# The local APIC without x2APIC: interrupts go to one CPU after the other
# (arch/x86/kernel/apic/apic_flat_64.c).
_APIC = {
    "apic_call_send_IPI_mask": "default_send_IPI_mask_sequence_phys",
    "apic_call_send_IPI_self": "default_send_IPI_self",
}

_ZERO = bytes.fromhex("31c0")  # xor %eax, %eax: so that JE is taken

_INT3 = b"\xcc"
_NOPS = (bytes.fromhex("6690"), bytes.fromhex("0f1f440000"))


def jump_to(place: int, target: int) -> bytes | None:
    """Return JMP rel32, or None where it is too far."""
    distance = target - place - 5
    return b"\xe9" + struct.pack("<i", distance) if distance in signed(32) else None


def emulator(new: bytes) -> Emulator | None:
    """Return what emulates the instruction that INT3 stands for, as text_poke_loc_init() knows it.

    CALL, JMP, Jcc, RET and the NOPs of two and five bytes; INT3 may fill what follows.
    """
    opcode = new[:1]
    size = {b"\xe8": 5, b"\xe9": 5, b"\xeb": 2, b"\xc3": 1}.get(opcode, 0)
    condition = None
    if len(new) > 1 and opcode == b"\x0f" and new[1] & 0xF0 == 0x80:
        size, condition = 6, new[1] & 15
    elif opcode and new[0] & 0xF0 == 0x70:
        size, condition = 2, new[0] & 15
    nop = next((nop for nop in _NOPS if new.startswith(nop)), None)
    if nop is not None:
        size = len(nop)
    if not size or len(new) < size or new[size:].strip(_INT3):
        return None
    field = b"" if nop is not None else new[size - 4 : size] if size > 4 else new[1:size]
    displacement = int.from_bytes(field, "little", signed=True)

    def emulate(address: int, guest: Guest) -> None:
        following, stack = address + size, guest.read("rsp")
        target = (following + displacement) & ADDRESS_MASK
        if opcode == b"\xe8":
            guest.write("rsp", stack - 8)
            guest.store(stack - 8, following)
        elif opcode == b"\xc3":
            target = guest.load(stack)
            guest.write("rsp", stack + 8)
        elif condition is not None and not holds(condition, guest.read("eflags")):
            target = following
        guest.write("rip", target)

    return emulate


X86_64 = Arch(
    name="x86_64",
    aliases=("amd64", "x86-64", "x64"),
    title="x86-64",
    machine=62,
    link=Link(
        relocations=RELOCATIONS,
        clean_target=True,
        branches=(
            Branch(
                mnemonic="call rel32",
                reach=Reach(-(1 << 31) + 5, (1 << 31) + 5),
                what="call",
                probe=Probe(code=bytes.fromhex("e800000000"), fills=(Fill(4, 1, -4),)),
            ),
            Branch(
                mnemonic="jmp rel32",
                reach=Reach(-(1 << 31) + 5, (1 << 31) + 5),
                what="jump",
                probe=Probe(code=bytes.fromhex("e900000000"), fills=(Fill(4, 1, -4),)),
            ),
            Branch(
                mnemonic="jcc rel32",
                reach=Reach(-(1 << 31) + 6, (1 << 31) + 6),
                what="branch",
                probe=Probe(
                    code=bytes.fromhex("0f8400000000"), fills=(Fill(4, 2, -4),), setup=_ZERO
                ),
            ),
            Branch(
                mnemonic="jcc rel8",
                reach=Reach(-128 + 2, 128 + 2),
                what="branch",
                probe=Probe(code=bytes.fromhex("7400"), fills=(Fill(15, 1, -1),), setup=_ZERO),
            ),
            Branch(
                mnemonic="lea disp32(%rip)",
                reach=Reach(-(1 << 31) + 7, (1 << 31) + 7),
                what="data",
                probe=Probe(
                    code=bytes.fromhex("488d0500000000"), fills=(Fill(2, 3, -4),), result="rax"
                ),
            ),
        ),
        code_model="kernel: text and data in the top 2 GiB",
        code_model_option="-mcmodel=kernel",
        code_model_absolute=(11,),  # R_X86_64_32S
    ),
    load=Load(
        prel32=True,
        address_map=address_map,
        image_size=IMAGE_SIZE,
        trap=b"\xcc",
        vermagic="6.12.107+deb13-amd64 SMP preempt mod_unload modversions ",
        livepatching=True,
        structure_sizes=(("device", 768), ("scatterlist", 32)),
        function_alignment=16,
        module_struct=module_struct(
            1280,
            taints=848,
            args=944,
            percpu=952,
            percpu_size=960,
            source_list=1168,
            target_list=1184,
            exit=1200,
            refcnt=1208,
        ),
        plt=None,
        got_section=".got",
        errata={},
    ),
    run=Run(
        calling=CallingConvention(
            arguments=("rdi", "rsi", "rdx", "rcx", "r8", "r9"),
            result="rax",
            stack_pointer="rsp",
            program_counter="rip",
            link=None,
            sign_extend_32=False,
            va_list=_va_list,
        ),
        emulation=Emulation(
            prefix="X86",
            mode="UC_MODE_64",
            model="UC_CPU_X86_EPYC_ROME",
            # FPU TSC CX8 CMOV MMX FXSR SSE SSE2; SSE3 PCLMULQDQ SSSE3 CX16 SSE4.1 SSE4.2 MOVBE
            # POPCNT AES: what QEMU 5.0 executes of it (no AVX)
            features=frozenset((0, 4, 8, 15, 23, 24, 25, 26))
            | {4 * 32 + bit for bit in (0, 1, 9, 13, 19, 20, 22, 23, 25)},
            registers="UC_X86_REG_",
            capstone_prefix="CS_ARCH_X86",
            capstone_mode=("CS_MODE_64",),
            page_size_varies=False,
            anchors={"gs_base": Anchor.PERCPU},
            constants={
                # As a booted kernel has them: PGE MCE, OSFXSR OSXMMEXCPT and PAE; PG AM WP NE ET MP PE; the selectors of kernel code, stack and task.
                "cr4": 0x6E0,
                "cr0": 0x8005_0033,
                "cs": 0x10,
                "ss": 0x18,
            },
            canary=(Anchor.PERCPU, 40),
            current_variables=("pcpu_hot", "const_pcpu_hot"),
            guard_variables=("__ref_stack_chk_guard",),  # since Linux 6.15
            percpu_from_zero=True,
            trap=traps.x86_64,
            code={
                "__fentry__": _RET,
                "__x86_return_thunk": _RET,
                **{f"__x86_indirect_thunk_{name}": _JUMP_TO[name] for name in _REGISTERS},
                **_USER_CODE,
            },
            fixups=_USER_FIXUPS,
            fixup=_fixup,
            ret=_RET,
            longest=lambda _code: 15,
            copy=bytes.fromhex("4889d1f3a4c3"),  # mov %rdx,%rcx; rep movsb; ret
            # INT3 has one byte, INT n two.
            exceptions=Exceptions(beyond={3: 1, **dict.fromkeys(range(32, 256), 2)}),
            msrs={0xC000_0080: 0xD01},  # EFER: NXE LMA LME SCE
            unsaved_msrs=(
                *range(0x200, 0x210),  # MTRRs: eight of variable ranges, then the fixed ones
                *(0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF),
                0x17B,  # MCG_CTL, and ten banks of machine checks
                *range(0x400, 0x428),
            ),
            system=SYSTEM,
            capabilities=frozenset(
                (
                    "always fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush "
                    "mmx fxsr sse sse2 syscall nx mmxext pdpe1gb rdtscp lm pni pclmulqdq monitor ssse3 "
                    "cx16 sse4_1 sse4_2 movbe popcnt aes xsave rdrand hypervisor lahf_lm svm cr8_legacy "
                    "abm sse4a fsgsbase bmi1 smep bmi2 adx smap clflushopt clwb xsaveopt xgetbv1 npt "
                    "lfence_rdtsc"
                ).split()
            ),
        ),
    ),
    patch=Patch(
        text_poke=TextPoke(
            name="text_poke",
            window=0x0000_7FFF_F000_0000,
            pages=2,
            granule=1,
            private=True,
            sync="a serialising instruction on every CPU (text_poke_sync)",
        ),
        live=LivePatch(
            name="text_poke_bp",
            concurrent=lambda _old, new: len(new) == 1,
            rule="only a single byte may be written under them",
            jump=jump_to,
            breakpoint=_INT3,
            emulator=emulator,
            emulates="CALL, JMP, Jcc, RET and the NOPs of 2 and 5 bytes",
        ),
        text=PATCHING,
    ),
    finalisation=Finalisation(
        order=(
            "extable",
            "retpolines",
            "returns",
            "alternatives",
            "callthunks",
            "ibt_seal",
            "smp_locks",
            "orc",
            "ftrace",
            "jump_labels",
            "static_calls",
            "trace_events",
            "running_kernel",
        ),
        extable_handlers=True,
        environment=environment,
        features=FEATURES,
        ftrace=Ftrace(
            section="__mcount_loc",
            entries=(
                Entry(
                    code=((b"\xe8\0\0\0\0", b"\xff\0\0\0\0"),),
                    calls="__fentry__",
                    idle=same(0, NOPS[5]),
                ),
                Entry(code=exactly(NOPS[5]), idle=same(0, NOPS[5])),
            ),
        ),
        static_call=_static_call,
        thunks=THUNKS,
        variable_size=VariableSize(
            filler=NOPS[1], moved=_moved, packed=_packed, direct_call=_direct_call
        ),
    ),
)

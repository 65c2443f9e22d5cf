# SPDX-License-Identifier: GPL-2.0-or-later
"""An x86-64 computer: exceptions through the kernel's IDT, ports, and the 8254's interrupt.

Unicorn stops where a CPU would take an exception, and leaves the rest to its user: the frame on
the stack, the handler's address, and the privilege level, which no register that it lets one
write changes. That, and what an exception says of itself, stand in a copy of the whole CPU, at
places that are found out by making exceptions (`_places`).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from functools import cache

import attrs
import unicorn
from unicorn import unicorn_const as uc_const
from unicorn import x86_const as x86

from archs.levels.boot import Space, Start
from emulator.boards.board import Board, Halt, Named
from emulator.boards.state import Mark, State, Still, context_bytes
from emulator.budget import Budget
from emulator.hardware.i8254 import I8254
from emulator.hardware.i8259 import I8259
from emulator.hardware.part import Device
from emulator.instructions import on_instruction
from emulator.paging import Tables

TSC_FREQUENCY = 1_000_000_000  # hertz of the time stamp counter
_MASK = (1 << 64) - 1
_PHYSICAL = 1 << 40  # what CPUID says of physical addresses
_FRAMES = (1 << 52) - (1 << 12)  # bits of a page table entry, or CR3, that are an address
_PRESENT, _LEAF = 0x01, 0x80
_TIMER = 0  # its line at the first 8259

# Exceptions that push an error code: #DF #TS #NP #SS #GP #PF #AC #CP. Those that are no faults,
# so that RF is not set in what is pushed: #DB, NMI, #BP, #OF.
_WITH_ERROR = frozenset((8, 10, 11, 12, 13, 14, 17, 21))
_TRAPS = frozenset((1, 2, 3, 4))
_INVALID_OPCODE, _DOUBLE_FAULT, _PROTECTION, _PAGE_FAULT = 6, 8, 13, 14
_IN_IDT = 2  # an error code's bit: it is a gate that is meant
_INT_SIZE = 2  # bytes of `int n`
_HLT = 0xF4

_PE_PG, _LONG_MODE, _PAE, _LA57 = 0x8000_0033, 0x500, 0x20, 1 << 12  # CR0, EFER, CR4
_TF, _IF, _NT, _RF = 0x100, 0x200, 0x4000, 0x1_0000  # RFLAGS
_USER_FLAGS = 0xCD5  # CF PF AF ZF SF DF OF
_EFER, _STAR, _LSTAR, _CSTAR, _FMASK = 0xC000_0080, *range(0xC000_0081, 0xC000_0085)
_SYSTEM_CALLS = 1  # EFER.SCE
_KERNEL_GS, _KERNEL_GS_BASE = "kernel_gs_base", 0xC000_0102
_GS_BASE, _NX = 0xC000_0101, 1 << 11
# What a kernel has in force: PE MP ET NE WP AM PG; PSE PAE MCE PGE OSFXSR OSXMMEXCPT.
_CR0, _CR4 = 0x8005_0033, 0x6F0
# asm/segment.h: __KERNEL_CS, and __KERNEL_DS behind it; GDT_ENTRY_TSS.
_KERNEL_CODE, _TASK, _GDT_LIMIT, _IDT_LIMIT = 0x10, 0x40, 0x7F, 0xFFF
_TASK_LIMIT, _TASK_FLAGS = 0x206F, 0x8B00
_TSC_AUX = 0xC000_0103
# CPUID: RDRAND and RDSEED, which Unicorn answers by the host's entropy; two runs would differ.
_RANDOM = ((1, "ecx", 1 << 30), (7, "ebx", 1 << 18))
_IN_PARTS = frozenset((4, 7, 0x0B, 0x0D, 0x8000_001D))  # leaves that ECX tells apart
_OSXSAVE, _OSXSAVE_ENABLED = 1 << 27, 1 << 18  # CPUID's bit, and CR4's
_CPL, _ADDSEG, _INHIBIT, _CODE64 = 0x03, 1 << 6, 1 << 3, 1 << 15  # the emulator's own flags
_CODE32, _STACK32 = 1 << 4, 1 << 5
# Descriptors' flags as the emulator keeps them: kernel code and data, as SYSCALL sets them.
_CODE_FLAGS, _STACK_FLAGS = 0x00AF_9B00, 0x00CF_9300
_NO_EXCEPTION = 0xFFFF_FFFF
_GATE_PRESENT, _GATE_INTERRUPT, _GATE_TYPE = 0x80, 0x0E, 0x0F
_STACKS, _INTERRUPT_STACKS = 4, 0x24  # of a TSS: RSP0, IST1


@attrs.frozen
class _Places:
    """Where in a saved context what stands that no register shows.

    Parameters
    ----------
    error
        An exception's error code; behind it, whether an instruction asked for it.
    former
        The exception that is thought to be under way still.
    flags
        The emulator's own flags, the privilege level among them.
    code
        The descriptor of CS; that of SS is behind it.
    """

    error: int
    former: int
    flags: int
    code: int


class _TripleFault(Exception):
    """An exception could not be delivered, nor what tells of that."""


class X86Board(Board):
    """One CPU in long mode beside the chips of a PC."""

    # The x87 registers are a user's, and in memory while the kernel runs.
    undefined = _INVALID_OPCODE
    lasting = (
        *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
        *(f"r{number}" for number in range(8, 16)),
        *("rflags", "cr3", "fs_base", "gs_base", "mxcsr"),
        *(f"xmm{number}" for number in range(16)),
    )

    def __init__(self, *args: object, **named: object) -> None:
        self._called = False  # a SYSCALL ended the run
        super().__init__(*args, **named)  # type: ignore[arg-type] # handed on as they came
        self._where = _places(self.model)
        self._changes: dict[tuple[int, int], dict[str, tuple[int, int]]] = {
            (leaf, 0): dict(changes)
            for leaf, changes in self.boot.identity.items()
            if self.cpu == self.boot.models[0]
        }
        for leaf, name, bit in _RANDOM:
            changes = self._changes.setdefault((leaf, 0), {})
            taken, put = changes.get(name, (0, 0))
            changes[name] = (taken | bit, put & ~bit)
        self._pic = next(device for device in self.devices if isinstance(device, I8259))
        self._pit = next(device for device in self.devices if isinstance(device, I8254))

    def _connect(self) -> None:
        super()._connect()
        self._ports: dict[int, tuple[Device, int]] = {
            part.start + offset: (device, offset)
            for part, device in zip(self.boot.parts, self.devices, strict=True)
            if part.space is Space.PORTS
            for offset in range(part.size)
        }
        uc, end = self.uc, self.ram.start + self.ram.size
        uc.mmio_map(end, _PHYSICAL - end, _nothing, None, _nowhere, None)
        uc.hook_add(uc_const.UC_HOOK_INSN, self._guarded(self._in), aux1=x86.UC_X86_INS_IN)
        uc.hook_add(uc_const.UC_HOOK_INSN, self._guarded(self._out), aux1=x86.UC_X86_INS_OUT)
        uc.hook_add(uc_const.UC_HOOK_INSN, self._system_call, aux1=x86.UC_X86_INS_SYSCALL)
        on_instruction(uc, x86.UC_X86_INS_CPUID, self._guarded(self._identify))
        on_instruction(uc, x86.UC_X86_INS_RDTSC, self._guarded(self._counter))
        on_instruction(uc, x86.UC_X86_INS_RDTSCP, self._guarded(self._counter_and_cpu))
        uc.hook_add(uc_const.UC_HOOK_INSN_INVALID, self._guarded(self._invalid))

    def reset(self, _start: Start, /) -> None:
        """Set what the boot protocol asks for: long mode, flat segments, interrupts off."""
        self.set("cr4", _PAE)
        self.uc.msr_write(_EFER, _LONG_MODE)
        self.set("cr0", _PE_PG)
        self.set("cs", 0x10)
        for name in ("ds", "es", "ss"):
            self.set(name, 0x18)
        self.set("rflags", 2)

    def stand(self, tables: Tables, named: Named, percpu: int, /) -> None:
        """Be in long mode with the kernel's own descriptors; interrupts are off."""
        self.set("cr3", tables.root)
        self.set("cr4", _CR4 | (_LA57 if tables.bits > 48 else 0))
        self.uc.msr_write(_EFER, _LONG_MODE | _SYSTEM_CALLS | _NX)
        self.set("cr0", _CR0)
        self.set("gdtr", named("gdt_page") + percpu << 16 | _GDT_LIMIT)
        self.set("idtr", named("idt_table") << 16 | _IDT_LIMIT)
        self.set("cs", _KERNEL_CODE)
        self.set("ss", _KERNEL_CODE + 8)
        task = named("cpu_tss_rw") + percpu
        self.uc.reg_write(x86.UC_X86_REG_TR, (_TASK, task, _TASK_LIMIT, _TASK_FLAGS))
        self.uc.msr_write(_GS_BASE, percpu)
        self.set("gs_base", percpu)
        self.uc.msr_write(_KERNEL_GS_BASE, 0)
        self.set("rflags", 2)

    def faulted(self, number: int) -> int | None:
        """Return what CR2 tells of a page fault."""
        return self.get("cr2") if number == _PAGE_FAULT else None

    def get(self, name: str) -> int:
        """Return a register; of a descriptor table what SGDT stores."""
        if name in ("gdtr", "idtr"):
            _, base, limit, _ = self.uc.reg_read(self.number(name))
            return int(base) << 16 | int(limit)
        return super().get(name)

    def set(self, name: str, value: int) -> None:
        """Set a register; of a descriptor table what LGDT loads."""
        if name in ("gdtr", "idtr"):
            self.uc.reg_write(self.number(name), (0, value >> 16, value & 0xFFFF, 0))
        else:
            super().set(name, value)

    def kept(self) -> Mapping[str, int]:
        """Return the registers that calls leave otherwise than the boot did, by name."""
        return {**super().kept(), _KERNEL_GS: self.uc.msr_read(_KERNEL_GS_BASE)}

    def keep(self, values: Mapping[str, int]) -> None:
        """Set them; of the flags those that code may set."""
        flags = self.get("rflags") & ~_USER_FLAGS | values["rflags"] & _USER_FLAGS
        super().keep({**values, "rflags": flags})
        self.uc.msr_write(_KERNEL_GS_BASE, values[_KERNEL_GS])

    # Addresses ----------------------------------------------------------------------------------

    def translate(self, address: int) -> int | None:
        """Walk the tables as the CPU does, of four levels or five (Intel SDM 3A, 4.5)."""
        levels = 5 if self.get("cr4") & _LA57 else 4
        shift = 12 + 9 * (levels - 1)
        top = address >> shift + 8
        if top not in (0, _MASK >> shift + 8):
            return None  # not canonical
        at = self.get("cr3") & _FRAMES
        while True:
            try:
                entry = self.ram.word(at + 8 * (address >> shift & 511))
            except IndexError:
                return None
            if not entry & _PRESENT:
                return None
            if shift == 12 or (entry & _LEAF and shift <= 30):
                within = (1 << shift) - 1
                return entry & _FRAMES & ~within | address & within
            at = entry & _FRAMES
            shift -= 9

    def tables(self) -> Tables:
        """Return the page tables that CR3 has."""
        bits = 57 if self.get("cr4") & _LA57 else 48
        root = self.get("cr3") & _FRAMES
        return Tables(format=self.boot.tables, root=root, bits=bits, granule=12)

    # Exceptions ---------------------------------------------------------------------------------

    def exception(self, number: int) -> None:
        """Let the handler in the kernel's IDT have an exception."""
        pc = self.pc
        error, asked = struct.unpack_from("<II", self.context(), self._where.error)
        if not asked:
            self._deliver(number, pc, error if number in _WITH_ERROR else None)
        elif self._may_ask(number):
            self._deliver(number, pc, None, asked=True)
        else:
            self._deliver(_PROTECTION, pc - _INT_SIZE, number << 3 | _IN_IDT)

    def _may_ask(self, number: int) -> bool:
        """Return whether `int` of the current privilege level may enter a gate."""
        try:
            kind = self._gate(number)[3]
        except LookupError:
            return False
        return kind & _GATE_PRESENT != 0 and kind >> 5 & 3 >= self.get("cs") & 3

    def _invalid(self, _uc: unicorn.Uc, _data: object) -> bool:
        self.raised(self.pc)
        self.context()
        self.excepted = _INVALID_OPCODE, self.pc, None
        self._deliver(_INVALID_OPCODE, self.pc, None)
        return True

    def bus_error(self, _kind: str, _physical: int, /) -> None:
        """Do nothing: a PC has no such error, and all addresses that there are answer."""

    def _deliver(self, vector: int, pc: int, error: int | None, *, asked: bool = False) -> None:
        """Enter a handler; if that cannot be, the handler of double faults."""
        try:
            self._enter(vector, pc, error, asked=asked)
        except LookupError:
            try:
                self._enter(_DOUBLE_FAULT, pc, 0)
            except LookupError as reason:
                raise _TripleFault(f"triple fault at {pc:#x}: {reason}") from None

    # The emulator looks up addresses by itself, to drop what it has translated there. Where nothing
    # is mapped it takes that for a page fault of the guest.

    def translate_anew(self, start: int, end: int) -> None:
        """Let the blocks at addresses be translated again, and leave the CPU as it is."""
        self.context()
        super().translate_anew(start, end)
        self._end_exception()

    def _execute(self) -> bool:
        self.context()
        found = super()._execute()
        self._end_exception()
        return found

    def _slice(self, until: int) -> Halt | None:
        halt = super()._slice(until)
        if halt is not Halt.RETURNED and self.translate(until) is None:
            self._forget_faults()
        return halt

    def _forget_faults(self) -> None:
        self.context()
        self._end_exception()

    def _end_exception(self) -> None:
        """Let the CPU be as in the context saved last, with no exception under way."""
        saved = self._context
        assert saved is not None
        former = ctypes.c_uint32.from_address(saved.context.value + self._where.former)
        former.value = _NO_EXCEPTION
        self.uc.context_restore(saved)

    def save(self) -> State:
        """Return everything but the memory, and no fault that the guest never sees."""
        self._forget_faults()
        return super().save()

    def mark(self) -> Mark:
        """Return the computer as it is now, and no fault that the guest never sees."""
        self._forget_faults()
        return super().mark()

    def freeze(self) -> Still:
        """Return the computer as it is now, and no fault that the guest never sees."""
        self._forget_faults()
        return super().freeze()

    def _gate(self, vector: int) -> tuple[int, int, int, int, int, int]:
        """Return a gate's fields: offset, selector, stack, type, offset, offset."""
        table = self.get("idtr")
        if 16 * vector + 15 > table & 0xFFFF:
            raise LookupError(f"no gate {vector}")
        return struct.unpack("<HHBBHI", self.read((table >> 16) + 16 * vector, 12))

    def _enter(self, vector: int, pc: int, error: int | None, *, asked: bool = False) -> None:
        """Do what a CPU does (Intel SDM 3A, 6.14), from the context saved last."""
        low, selector, stack, kind, middle, high = self._gate(vector)
        if not kind & _GATE_PRESENT:
            raise LookupError(f"gate {vector} is not present")
        self.left(pc)
        flags, below = self.get("rflags"), self.get("cs") & 3
        sp = self.sp
        if stack & 7:
            sp = self._word(self._task() + _INTERRUPT_STACKS + 8 * ((stack & 7) - 1))
        elif below:
            sp = self._word(self._task() + _STACKS)
        fault = not asked and vector not in _TRAPS and vector < 32
        frame = struct.pack(
            *("<5Q", pc, self.get("cs"), flags | (_RF if fault else 0), self.sp, self.get("ss"))
        )
        if error is not None:
            frame = struct.pack("<Q", error) + frame
        sp = (sp & -16) - len(frame)
        self.write(sp, frame)
        if below:
            self._become_kernel(selector, 0, 0)
        self._end_exception()
        self.sp = sp
        masked = _TF | _NT | _RF | (_IF if kind & _GATE_TYPE == _GATE_INTERRUPT else 0)
        self.set("rflags", flags & ~masked)
        self.pc = high << 32 | middle << 16 | low

    def _task(self) -> int:
        """Return where the TSS is."""
        return int(self.uc.reg_read(x86.UC_X86_REG_TR)[1])

    def _word(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def _become_kernel(self, selector: int, stack: int, stack_flags: int) -> None:
        """Enter privilege level 0 in the context saved last.

        Parameters
        ----------
        selector
            Of the code.
        stack, stack_flags
            Of the stack's segment; flags 0 for one that is not there.
        """
        where, saved = self._where, self._context
        assert saved is not None
        start = saved.context.value
        flags = ctypes.c_uint32.from_address(start + where.flags)
        flags.value = flags.value & ~(_CPL | _ADDSEG) | _CODE64 | _CODE32 | _STACK32
        limit = 0xFFFF_FFFF if stack_flags else 0
        code = (selector & ~3, 0, 0, 0xFFFF_FFFF, _CODE_FLAGS)
        both = struct.pack("<IIQIIIIQII", *code, stack, 0, 0, limit, stack_flags)
        ctypes.memmove(start + where.code, both, len(both))

    def _system_call(self, uc: unicorn.Uc, _data: object) -> None:
        self._called = True
        uc.emu_stop()

    def finish(self) -> bool:
        """Make the system call that ended the run: the emulator does nothing of it."""
        called, self._called = self._called, False
        if not called:
            return False
        pc, flags = self.pc, self.get("rflags")
        own = struct.unpack_from("<I", self.context(), self._where.flags)[0]
        if not self.uc.msr_read(_EFER) & _SYSTEM_CALLS:
            self._deliver(_INVALID_OPCODE, pc - _INT_SIZE, None)
            return True
        star = self.uc.msr_read(_STAR) >> 32 & 0xFFFC
        self._become_kernel(star, star + 8, _STACK_FLAGS)
        self._end_exception()
        self.set("rcx", pc)
        self.set("r11", flags & ~_RF)
        self.set("rflags", flags & ~self.uc.msr_read(_FMASK) & ~_RF | 2)
        self.pc = self.uc.msr_read(_LSTAR if own & _CODE64 else _CSTAR)
        return True

    def run(
        self, until: int, *, seconds: float | None = None, budget: Budget | None = None
    ) -> Halt:
        """Execute as any computer does; a triple fault switches it off."""
        try:
            return super().run(until, seconds=seconds, budget=budget)
        except _TripleFault as fault:
            self.broken = str(fault)
            return Halt.OFF

    def _identify(self) -> bool:
        """Answer CPUID where the answer is not the model's own."""
        leaf, part = self.get("eax"), self.get("ecx")
        changes = self._changes.get((leaf, part if leaf in _IN_PARTS else 0))
        if changes is None:
            return False
        values = dict(_cpuid(self.model, leaf, part))
        for name, (taken, put) in changes.items():
            values[name] = values[name] & ~taken | put
        if leaf == 1 and self.get("cr4") & _OSXSAVE_ENABLED:
            values["ecx"] |= _OSXSAVE
        for name, value in values.items():
            self.set(f"r{name[1:]}", value)
        return True

    # Ports --------------------------------------------------------------------------------------

    def _in(self, _uc: unicorn.Uc, port: int, size: int, _data: object) -> int:
        found = self._ports.get(port)
        if found is None:
            return (1 << 8 * size) - 1
        device, offset = found
        now = self.clock.now
        value = device.read(offset, size)
        if self.clock.now != now:
            self._look()
        return value

    def _out(self, _uc: unicorn.Uc, port: int, size: int, value: int, _data: object) -> None:
        found = self._ports.get(port)
        if found is not None:
            device, offset = found
            device.write(offset, size, value)

    # Time ---------------------------------------------------------------------------------------

    def deadline(self) -> int | None:
        """Return when the 8254's first counter ends."""
        return self._pit.deadline()

    def interruptible(self) -> bool:
        """Return whether IF is set, STI is not just behind, and the 8259 lets the timer through."""
        if not self._pic.ready(_TIMER) or not self.get("rflags") & _IF:
            return False
        own = struct.unpack_from("<I", self.context(), self._where.flags)[0]
        return not own & _INHIBIT

    def interrupt(self) -> None:
        """Raise the timer's interrupt."""
        self._pit.take()
        self.context()
        self._deliver(self._pic.acknowledge(_TIMER), self.pc, None, asked=True)

    def waiting(self, pc: int) -> int | None:
        """Tell by the byte before the program counter: HLT."""
        try:
            return pc if self.read(pc - 1, 1)[0] == _HLT else None
        except LookupError:
            return None

    def _wait(self) -> Halt | None:
        return super()._wait() if self.get("rflags") & _IF else Halt.STUCK

    def _counter(self) -> bool:
        value = self.clock.ticks(TSC_FREQUENCY)
        self.set("rax", value & 0xFFFF_FFFF)
        self.set("rdx", value >> 32)
        self._look()
        return True

    def _counter_and_cpu(self) -> bool:
        self.set("rcx", self.uc.msr_read(_TSC_AUX) & 0xFFFF_FFFF)
        return self._counter()


BOARD = X86Board


def _nothing(_uc: unicorn.Uc, _offset: int, size: int, _data: object) -> int:
    return (1 << 8 * size) - 1


def _nowhere(_uc: unicorn.Uc, _offset: int, _size: int, _value: int, _data: object) -> None:
    pass


@cache
def _cpuid(model: str, leaf: int, part: int) -> dict[str, int]:
    """Return what a CPU model says of itself."""
    uc = unicorn.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
    uc.ctl_set_cpu_model(getattr(x86, model))
    uc.mem_map(0, 0x1000)
    uc.mem_write(0, bytes.fromhex("0fa290"))
    uc.reg_write(x86.UC_X86_REG_EAX, leaf)
    uc.reg_write(x86.UC_X86_REG_ECX, part)
    uc.emu_start(0, 2)
    names = ("eax", "ebx", "ecx", "edx")
    return {name: uc.reg_read(getattr(x86, f"UC_X86_REG_{name.upper()}")) for name in names}


@cache
def _places(model: str) -> _Places:
    """Return where this version of the emulator keeps what no register shows.

    A few pages of memory and a few instructions are enough to see it: three page faults with
    different error codes, and one change to user mode.
    """
    uc = unicorn.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
    uc.ctl_set_cpu_model(getattr(x86, model))
    tables, code, read_only, absent, gdt = 0x1_0000, 0x1000, 0x5000, 0x10_0000, 0x8000
    uc.mem_map(0, 0x2_0000)
    for level in range(3):
        uc.mem_write(tables + 0x1000 * level, struct.pack("<Q", tables + 0x1000 * (level + 1) | 7))
    pages = [page << 12 | (5 if page == read_only >> 12 else 7) for page in range(0x20)]
    uc.mem_write(tables + 0x3000, struct.pack(f"<{len(pages)}Q", *pages))
    kernel_code, kernel_data, user_data, user_code = 0x10, 0x18, 0x2B, 0x33
    descriptors = (
        *(0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF),
        *(0, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF),
    )
    uc.mem_write(gdt, struct.pack("<7Q", *descriptors))
    # mov (%rbx),%rax; nop; mov %rax,(%rbx); nop; iretq; int $0x80
    uc.mem_write(code, bytes.fromhex("488b0390 48890390 48cf cd80"))
    uc.reg_write(x86.UC_X86_REG_CR3, tables)
    uc.reg_write(x86.UC_X86_REG_CR4, _PAE)
    uc.msr_write(_EFER, _LONG_MODE)
    uc.reg_write(x86.UC_X86_REG_CR0, _PE_PG | 1 << 16)
    uc.reg_write(x86.UC_X86_REG_GDTR, (0, gdt, 8 * len(descriptors) - 1, 0))
    uc.reg_write(x86.UC_X86_REG_CS, kernel_code)
    uc.reg_write(x86.UC_X86_REG_SS, kernel_data)
    seen: list[bytes] = []

    def told(engine: unicorn.Uc, _number: int, _data: object) -> None:
        seen.append(context_bytes(engine.context_save()))
        engine.emu_stop()

    uc.hook_add(uc_const.UC_HOOK_INTR, told)
    before = uc.context_save()
    kernel = context_bytes(before)
    errors = ((absent, 0, 0), (absent, 4, 2), (read_only, 4, 3))
    for address, offset, _ in errors:
        uc.reg_write(x86.UC_X86_REG_RBX, address)
        uc.emu_start(code + offset, 0)
        uc.context_restore(before)
    frame = struct.pack("<5Q", code + 10, user_code, 0x202, gdt, user_data)
    uc.mem_write(gdt - len(frame), frame)
    uc.reg_write(x86.UC_X86_REG_RSP, gdt - len(frame))
    uc.emu_start(code + 8, 0)
    places = _found(kernel, seen, [error for _, _, error in errors]) if len(seen) == 4 else None
    if places is None:
        raise RuntimeError("this version of Unicorn does not tell of faults as 2.1.4 does")
    return places


def _found(kernel: bytes, seen: list[bytes], errors: list[int]) -> _Places | None:
    """Return the places by how contexts differ: three faults, then an interrupt of a user."""
    words = [struct.unpack(f"<{len(data) // 4}I", data[: len(data) & -4]) for data in seen]
    first = struct.unpack(f"<{len(kernel) // 4}I", kernel[: len(kernel) & -4])
    *faults, user = words
    count = range(len(first) - 8)
    error = [i for i in count if [fault[i] for fault in faults] == errors and user[i + 1] == 1]
    former = [i for i in count if first[i] == 0xFFFF_FFFF and all(f[i] == 14 for f in faults)]
    flags = [
        i for i in count if user[i] == first[i] | 3 and not first[i] & 3 and first[i] & _CODE64
    ]
    code = [
        i for i in count if (user[i], user[i + 6], first[i], first[i + 6]) == (0x33, 0x2B, 16, 24)
    ]
    found = (error, former, flags, code)
    if any(len(places) != 1 for places in found):
        return None
    return _Places(*(4 * places[0] for places in found))

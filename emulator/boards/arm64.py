# SPDX-License-Identifier: GPL-2.0-or-later
"""An arm64 computer: exceptions, the generic timer, and the translation of addresses.

Of the emulator's CPU, Python sees what the architecture gives it by system registers; what an
exception says of itself (syndrome, address) only a copy of the whole CPU shows, at a place that
is found out by making an exception.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import unicorn
from attrs import evolve
from unicorn import arm64_const as a64
from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.arch.arm64 import CpReg

from archs.levels.boot import Start
from archs.start_arm64 import MAIR, dump_of
from emulator.boards.board import Board, Named
from emulator.boards.state import context_bytes
from emulator.clock import nanoseconds
from emulator.hardware.gicv2 import SOFTWARE
from emulator.paging import Tables

FREQUENCY = 62_500_000  # hertz of the generic timer: what a kernel is told by CNTFRQ_EL0
_MASK = (1 << 64) - 1
_EL1H_MASKED = 0x3C5  # PSTATE: EL1 with its own stack, D A I F masked
_IRQ_MASKED = 0x80
_EL = 0xF
_VIRTUAL_TIMER = 27
_ENABLED, _INT_MASKED, _FIRES = 1, 2, 4  # CNTV_CTL_EL0
_WFI, _WFE = 0xD503_207F, 0xD503_205F
_PREFETCH, _DATA, _FIQ_LIKE = 3, 4, 7  # numbers that the emulator gives exceptions
_SYNC_EXTERNAL, _FAR_NOT_VALID, _WRITE = 0x10, 1 << 10, 1 << 6
_DATA_LOWER, _FETCH_LOWER, _SAME = 0x24, 0x20, 1
_IL = 1 << 25

# System registers by op0, op1, CRn, CRm, op2.
_SCR_EL3, _HCR_EL2 = (3, 6, 1, 1, 0), (3, 4, 1, 1, 0)
_SCTLR_EL1, _TCR_EL1 = (3, 0, 1, 0, 0), (3, 0, 2, 0, 2)
_TTBR0_EL1, _TTBR1_EL1 = (3, 0, 2, 0, 0), (3, 0, 2, 0, 1)
_VBAR_EL1, _SPSR_EL1, _ELR_EL1 = (3, 0, 12, 0, 0), (3, 0, 4, 0, 0), (3, 0, 4, 0, 1)
_ESR_EL1, _FAR_EL1 = (3, 0, 5, 2, 0), (3, 0, 6, 0, 0)
_CNTFRQ_EL0 = (3, 3, 14, 0, 0)
_CPACR_EL1, _MAIR_EL1, _TPIDR_EL1 = (3, 0, 1, 0, 2), (3, 0, 10, 2, 0), (3, 0, 13, 0, 4)
# What kernels have in force (asm/sysreg.h, mm/proc.S), as far as the emulator goes by it: MMU,
# caches, stack alignment; walks cached and shared, none in the lower half, 48 bits of physical
# addresses, tags ignored there.
_SCTLR = 0x34F4_D91D
_TCR = 0x3500_3500 | 1 << 7 | 5 << 32 | 1 << 36 | 1 << 37
_GRANULES_LOW = {12: 0, 16: 1, 14: 2}  # bits of a page's size -> TCR_EL1.TG0
_GRANULES_HIGH = {1: 14, 2: 12, 3: 16}  # TCR_EL1.TG1 -> bits of a page's size

_Register = tuple[int, int, int, int, int]


def _encode(register: _Register) -> int:
    op0, op1, crn, crm, op2 = register
    return (op0 & 1) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5


_READ, _WRITTEN = 0xD530_0000, 0xD510_0000
_ACCESS = 0xFFF0_0000
_CNTPCT, _CNTVCT = _encode((3, 3, 14, 0, 1)), _encode((3, 3, 14, 0, 2))
_CNTVCTSS, _CNTPCTSS = _encode((3, 3, 14, 0, 6)), _encode((3, 3, 14, 0, 5))
_CNTV_TVAL, _CNTV_CTL, _CNTV_CVAL = (_encode((3, 3, 14, 3, op2)) for op2 in range(3))
_TIMER = (_CNTV_TVAL, _CNTV_CTL, _CNTV_CVAL)
_MMFR0 = _encode((3, 0, 0, 7, 0))
_CLOCKS = (_CNTPCT, _CNTVCT, _CNTVCTSS, _CNTPCTSS)
_WORDS = np.unique(
    np.array(
        [_READ | r for r in (*_CLOCKS, *_TIMER, _MMFR0)] + [_WRITTEN | r for r in _TIMER],
        np.uint32,
    )
)
_GRANULE_16K, _SUPPORTED_16K = 0xF << 20, 1 << 20  # ID_AA64MMFR0_EL1.TGran16


class Arm64Board(Board):
    """One CPU that starts at EL1 beside a GICv2."""

    undefined = 1
    lasting = (
        *(f"x{number}" for number in range(31)),
        *("sp", "nzcv", "sp_el0", "tpidr_el0", "tpidrro_el0", "ttbr0_el1", "ttbr1_el1"),
        *("fpcr", "fpsr"),
        *(f"q{number}" for number in range(32)),
    )

    def __init__(self, *args: object, **named: object) -> None:
        self._control = 0  # CNTV_CTL_EL0 and CNTV_CVAL_EL0: the emulator's own follow the host
        self._compare = 0
        self._user_table = 0  # TTBR0_EL1 when a process last came into the kernel
        self._fault_at = _where_faults_are_told()
        super().__init__(*args, **named)  # type: ignore[arg-type] # handed on as they came

    def reset(self, _start: Start, /) -> None:
        """Set what firmware leaves: EL1 is AArch64, everything masked."""
        self._set_system(_SCR_EL3, 0x501)
        self._set_system(_HCR_EL2, 1 << 31)
        self._set_system(_CNTFRQ_EL0, FREQUENCY)
        self.set("pstate", _EL1H_MASKED)

    def stand(self, tables: Tables, named: Named, percpu: int, /) -> None:
        """Be at EL1 with the kernel's vectors and first task; everything is masked."""
        self._set_system(_SCR_EL3, 0x501)
        self._set_system(_HCR_EL2, 1 << 31)
        self._set_system(_CNTFRQ_EL0, FREQUENCY)
        size, high = (
            64 - tables.bits,
            next(code for code, bits in _GRANULES_HIGH.items() if bits == tables.granule),
        )
        low = _GRANULES_LOW[tables.granule]
        tcr = _TCR | size | size << 16 | low << 14 | high << 30
        self._set_system(_CPACR_EL1, 3 << 20)
        self._set_system(_MAIR_EL1, MAIR)
        self._set_system(_TTBR1_EL1, tables.root)
        self._set_system(_TTBR0_EL1, 0)
        self._set_system(_TCR_EL1, tcr)
        self._set_system(_VBAR_EL1, named("vectors"))
        self._set_system(_SCTLR_EL1, _SCTLR)
        self.set("pstate", _EL1H_MASKED)
        self._set_system(_TPIDR_EL1, percpu)
        self.set("sp_el0", named("init_task"))

    def faulted(self, number: int) -> int | None:
        """Return the address of an abort."""
        if number not in (_PREFETCH, _DATA):
            return None
        found: int = struct.unpack_from("<Q", self.context(), self._fault_at)[0]
        return found

    # System registers ---------------------------------------------------------------------------

    def _system(self, register: _Register) -> int:
        op0, op1, crn, crm, op2 = register
        return int(self.uc.reg_read(a64.UC_ARM64_REG_CP_REG, (crn, crm, op0, op1, op2)))

    def _set_system(self, register: _Register, value: int) -> None:
        op0, op1, crn, crm, op2 = register
        self.uc.reg_write(a64.UC_ARM64_REG_CP_REG, (crn, crm, op0, op1, op2, value))

    def registers(self) -> Mapping[str, int]:
        """Return the timer's registers, and the process' page table."""
        return {
            "cntv_ctl_el0": self._control,
            "cntv_cval_el0": self._compare,
            "user table": self._user_table,
        }

    def set_registers(self, values: Mapping[str, int]) -> None:
        """Set them."""
        self._control = values["cntv_ctl_el0"]
        self._compare = values["cntv_cval_el0"]
        self._user_table = values["user table"]

    # Addresses ----------------------------------------------------------------------------------

    def translate(self, address: int) -> int | None:
        """Walk the tables as the architecture does (Arm ARM, D8.2), for any granule.

        A kernel may hide user memory from itself while it does not mean to access it; then it
        is what it was when the process came into the kernel.
        """
        if not self._system(_SCTLR_EL1) & 1:
            return address
        high = address >> 55 & 1
        if high:
            return self._walk(self._system(_TTBR1_EL1), address, high)
        found = self._walk(self._system(_TTBR0_EL1), address, high)
        return self._walk(self._user_table, address, high) if found is None else found

    def _walk(self, table: int, address: int, high: int) -> int | None:
        tcr = self._system(_TCR_EL1)
        size = tcr >> (16 if high else 0) & 63
        if high:
            granule = _GRANULES_HIGH.get(tcr >> 30 & 3, 12)
        else:
            granule = {0: 12, 1: 16, 2: 14}.get(tcr >> 14 & 3, 12)
        bits = 64 - size
        top = _MASK >> bits << bits & ~(0xFF << 56) & _MASK
        if address & top != (top if high else 0):
            return None
        stride = granule - 3
        levels = -(-(bits - granule) // stride)
        shift = granule + (levels - 1) * stride
        frame = (1 << 48) - (1 << granule)
        at = table & (1 << 48) - 2
        index = address >> shift & (1 << bits - shift) - 1
        while True:
            try:
                entry = self.ram.word(at + 8 * index)
            except IndexError:
                return None
            if not entry & 1:
                return None
            if shift == granule or not entry & 2:
                within = (1 << shift) - 1
                return entry & frame & ~within | address & within
            at = entry & frame
            shift -= stride
            index = address >> shift & (1 << stride) - 1

    def tables(self) -> Tables:
        """Return the page tables that TTBR1_EL1 has."""
        tcr = self._system(_TCR_EL1)
        return Tables(
            format=evolve(self.boot.tables, dump=dump_of(self._system(_MAIR_EL1))),
            root=self._system(_TTBR1_EL1) & (1 << 48) - 2,
            bits=64 - (tcr >> 16 & 63),
            granule=_GRANULES_HIGH.get(tcr >> 30 & 3, 12),
        )

    # Exceptions ---------------------------------------------------------------------------------

    def exception(self, number: int) -> None:
        """Enter the kernel's vector of synchronous exceptions."""
        pc, state = self.pc, self.get("pstate")
        at = self._fault_at
        syndrome, _, address = struct.unpack_from("<IIQ", self.context(), at - 8)
        if number in (_PREFETCH, _DATA):
            self._set_system(_FAR_EL1, address)
            if state & _EL and syndrome >> 26 in (_DATA_LOWER, _FETCH_LOWER):
                syndrome |= _SAME << 26
        self._set_system(_ESR_EL1, syndrome)
        self._enter(pc, state, 0)

    def bus_error(self, kind: str, _physical: int, /) -> None:
        """Tell of a synchronous external abort, whose virtual address is not known."""
        pc, state = self.pc, self.get("pstate")
        cause = _FETCH_LOWER if kind == "fetch" else _DATA_LOWER
        if state & _EL:
            cause |= _SAME
        what = _SYNC_EXTERNAL | _FAR_NOT_VALID | (_WRITE if kind == "write" else 0)
        self._set_system(_ESR_EL1, cause << 26 | _IL | what)
        self._enter(pc, state, 0)

    def _enter(self, pc: int, state: int, kind: int) -> None:
        self.left(pc)
        below = not state & _EL
        self.set("pstate", _EL1H_MASKED)
        if below:
            self._user_table = self._system(_TTBR0_EL1)
            # The emulator banks the stack pointer only when it takes an exception itself.
            self.set("sp_el0", self.sp)
            self.sp = self.get("sp_el1")
        self._set_system(_SPSR_EL1, state)
        # PSTATE reaches the translator's flags only with a system register that is written after.
        self._set_system(_ELR_EL1, pc)
        self.pc = self._system(_VBAR_EL1) + (0x400 if below else 0x200) + kind

    # Time ---------------------------------------------------------------------------------------

    def deadline(self) -> int | None:
        """Return when the virtual timer fires; None while it is off or masked.

        What the CPU has sent itself is there already.
        """
        if self._sent():
            return self.clock.now
        return self._fires()

    def _sent(self) -> list[int]:
        return [number for number in self.wires.pending if number < SOFTWARE]

    def _fires(self) -> int | None:
        if self._control & (_ENABLED | _INT_MASKED) != _ENABLED:
            return None
        return nanoseconds(self._compare, FREQUENCY)

    def interruptible(self) -> bool:
        """Return whether PSTATE.I is clear."""
        return not self.get("pstate") & _IRQ_MASKED

    def interrupt(self) -> None:
        """Raise the virtual timer's interrupt, and what the CPU has sent itself."""
        fires = self._fires()
        ticks = [_VIRTUAL_TIMER] if fires is not None and self.clock.now >= fires else []
        self.wires.pending[:] = self._sent() + ticks
        self._enter(self.pc, self.get("pstate"), 0x80)

    def waiting(self, pc: int) -> int | None:
        """Tell by the instruction before, or at, the program counter: WFI, or WFE."""
        for at in (pc - 4, pc):
            try:
                word = int.from_bytes(self.read(at, 4), "little")
            except LookupError:
                continue
            if word in (_WFI, _WFE):
                return at + 4
        return None

    def clock_reads(self, code: bytes, /) -> Sequence[int]:
        """Return where counters are read or timers set, and the page sizes asked for."""
        words = np.frombuffer(code, "<u4", len(code) // 4)
        found: list[int] = (np.flatnonzero(np.isin(words & ~np.uint32(31), _WORDS)) * 4).tolist()
        return found

    def watch_site(self, address: int) -> None:
        """Answer an MRS or MSR, whatever stands there when it is executed."""
        for kind, work in (
            (a64.UC_ARM64_INS_MRS, self._asked),
            (a64.UC_ARM64_INS_MSR, self._told),
        ):
            hook = self._guarded(work)
            self.uc.hook_add(uc_const.UC_HOOK_INSN, hook, None, address, address, kind)

    def _asked(self, uc: unicorn.Uc, target: int, register: CpReg, _data: object) -> bool:
        """Answer an MRS; False: the emulator does."""
        value = self._value(_encoded(register))
        if value is None:
            return False
        if target != a64.UC_ARM64_REG_XZR:
            uc.reg_write(target, value)
        self._look()
        return True

    def _told(self, uc: unicorn.Uc, source: int, register: CpReg, _data: object) -> bool:
        """Take what an MSR sets; False: the emulator does."""
        number = _encoded(register)
        value = 0 if source == a64.UC_ARM64_REG_XZR else uc.reg_read(source)
        if number == _CNTV_CTL:
            self._control = value & (_ENABLED | _INT_MASKED)
        elif number == _CNTV_TVAL:
            now = self.clock.ticks(FREQUENCY)
            signed = (value & 0xFFFF_FFFF ^ 1 << 31) - (1 << 31)
            self._compare = now + signed & _MASK
        elif number == _CNTV_CVAL:
            self._compare = value
        else:
            return False
        self._look()
        return True

    def _value(self, register: int) -> int | None:
        if register in _CLOCKS:
            return self.clock.ticks(FREQUENCY)
        if register == _MMFR0:
            value = self._system((3, 0, 0, 7, 0))
            return value & ~_GRANULE_16K | _SUPPORTED_16K
        due = self._compare
        now = self.clock.now * FREQUENCY // 10**9
        if register == _CNTV_CTL:
            return self._control | (_FIRES if self._control & _ENABLED and now >= due else 0)
        if register == _CNTV_CVAL:
            return due
        if register == _CNTV_TVAL:
            return due - now & 0xFFFF_FFFF
        return None


BOARD = Arm64Board


def _encoded(register: CpReg) -> int:
    return _encode((register.op0, register.op1, register.crn, register.crm, register.op2))


@cache
def _where_faults_are_told() -> int:
    """Return where in a context the address of a data abort stands: behind its syndrome."""
    uc = unicorn.Uc(uc_const.UC_ARCH_ARM64, uc_const.UC_MODE_ARM)
    uc.ctl_set_cpu_model(a64.UC_CPU_ARM64_A72)
    uc.mem_map(0, 0x10000)
    table, code, bad = 0x4000, 0x8000, 0x12_3456_7000

    def system(register: _Register, value: int) -> None:
        op0, op1, crn, crm, op2 = register
        uc.reg_write(a64.UC_ARM64_REG_CP_REG, (crn, crm, op0, op1, op2, value))

    system(_SCR_EL3, 0x501)
    system(_HCR_EL2, 1 << 31)
    uc.mem_write(table, (0x401).to_bytes(8, "little"))  # the first GiB as it is, accessed
    uc.mem_write(code, bytes.fromhex("010040f9"))  # ldr x1, [x0]
    system(_TTBR0_EL1, table)
    system(_TCR_EL1, 25 | 1 << 23)  # 39 bits of addresses, none above
    system(_SCTLR_EL1, 0x30D0_0801)  # the MMU is on
    uc.reg_write(a64.UC_ARM64_REG_PSTATE, _EL1H_MASKED)
    system(_ELR_EL1, 0)
    uc.reg_write(a64.UC_ARM64_REG_X0, bad)
    seen: list[bytes] = []

    def told(engine: unicorn.Uc, _number: int, _data: object) -> None:
        seen.append(context_bytes(engine.context_save()))
        engine.emu_stop()

    uc.hook_add(uc_const.UC_HOOK_INTR, told)
    uc.emu_start(code, code + 4)
    pattern = bad.to_bytes(8, "little")
    for context in seen:
        at = context.find(pattern)
        while at >= 0:
            if at >= 8 and struct.unpack_from("<I", context, at - 8)[0] >> 26 == 0x25:
                return at
            at = context.find(pattern, at + 1)
    raise RuntimeError("this version of Unicorn does not tell of faults as 2.1.4 does")

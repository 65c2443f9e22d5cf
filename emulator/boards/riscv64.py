# SPDX-License-Identifier: GPL-2.0-or-later
"""A riscv64 computer: one hart in S-mode, and the firmware below it.

Of exceptions the emulator says only the number; what else the architecture tells a kernel is
worked out here. What M-mode would take is firmware's, which is Python: calls of it, counters
(that firmware emulates on many computers, too) and WFI, which is let trap so that waiting is
seen where it begins. Interrupts are the emulator's own: they come when the hart allows them.

Registers are read and set in a copy of the whole hart (a context), because the emulator checks
each access by Python against the guest's privilege, and because a program counter that a hook
sets by itself is lost at the next stop inside of a block (tests/emulator/test_unicorn_faults.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache

import unicorn
from unicorn import riscv_const as rv
from unicorn import unicorn_const as uc_const

from archs.levels.boot import Start
from archs.system_riscv64 import CYCLES, SYSTEM, TIMEBASE
from emulator.boards.access import PAGE
from emulator.boards.board import Board, Halt, Named
from emulator.hardware.sbi import Sbi
from emulator.paging import Tables

_NEVER = -1  # when the timer fires that is off

_USER, _SUPERVISOR, _MACHINE = 0, 1, 3

# Exceptions (privileged specification, table of scause).
_ILLEGAL, _BREAKPOINT, _ECALL = 2, 3, 8
_SOFTWARE, _TIMER = 1, 5  # interrupts
_ACCESS_FAULTS = {"fetch": 1, "read": 5, "write": 7}
_PAGE_FAULTS = frozenset((12, 13, 15))
_WITH_ADDRESS = frozenset((0, 1, 4, 5, 6, 7, 12, 13, 15))

# mstatus, and as much of it as the kernel sees
_SIE, _SPIE, _SPP = 1 << 1, 1 << 5, 1 << 8
_TIMEOUT_WAIT = 1 << 21 | 1 << 29  # TW: where it belongs, and where the emulator has it
# What firmware sets: the supervisor's interrupts and exceptions are its own; WFI traps.
_INTERRUPTS, _EXCEPTIONS = 0x222, 0xB109

_SV39 = 8  # satp.MODE; one more for each further level
_LEVELS = {_SV39: 3, _SV39 + 1: 4, _SV39 + 2: 5}
_VALID, _LEAF = 1, 0xE
_NUMBER = (1 << 44) - 1  # of a page, in satp and entries

_WFI = 0x1050_0073
_SYSTEM = 0x73
_COUNTERS = {0xC00: CYCLES, 0xC01: TIMEBASE, 0xC02: CYCLES}  # cycle, time, instret
_A0, _A1, _A2, _A6, _A7 = (f"x{number}" for number in (10, 11, 12, 16, 17))


class Riscv64Board(Board):
    """One hart, and firmware."""

    requests, undefined = (_ECALL,), _ILLEGAL
    beyond = 4  # whatever the exception is
    lasting = (
        *(f"x{number}" for number in range(1, 32)),
        *("satp", "sscratch", "fcsr"),
        *(f"f{number}" for number in range(32)),
    )

    def __init__(self, *args: object, **named: object) -> None:
        self._places = places()
        self._raised_bits = 0  # of `mip`, as the emulator was told
        super().__init__(*args, **named)  # type: ignore[arg-type] # handed on as they came
        self._sbi = Sbi(self.wires, self.ram, TIMEBASE)
        self._hart = self.uc.context_save()
        self._words = words_of(self._hart)
        self._entries = self.ram.view.cast("Q")
        self._registers = [self.number(f"x{number}") for number in range(32)]
        self.uc.hook_add(uc_const.UC_HOOK_INSN_INVALID, self._guarded(self._breakpoint))

    def reset(self, _start: Start, /) -> None:
        """Set what firmware leaves."""
        self.set("priv", _MACHINE)
        self.set("mideleg", _INTERRUPTS)
        self.set("medeleg", _EXCEPTIONS)
        self.set("mstatus", _TIMEOUT_WAIT)
        self.set("priv", _SUPERVISOR)

    def stand(self, tables: Tables, named: Named, _percpu: int, /) -> None:
        """Be in S-mode with the kernel's trap handler and first task; interrupts are off."""
        self.set("priv", _MACHINE)
        self.set("mideleg", _INTERRUPTS)
        self.set("medeleg", _EXCEPTIONS)
        self.set("mstatus", _TIMEOUT_WAIT)
        mode = next(mode for mode, levels in _LEVELS.items() if 12 + 9 * levels == tables.bits)
        self.set("stvec", named("handle_exception"))
        self.set("sscratch", 0)
        self.set("satp", mode << 60 | tables.root >> 12)
        self.set("priv", _SUPERVISOR)
        self.set("tp", named("init_task"))
        self.set("gp", named("__global_pointer$"))

    def faulted(self, number: int) -> int | None:
        """Return the address of a page fault."""
        return self.hart("bad address")[0] if number in _PAGE_FAULTS else None

    # Registers ----------------------------------------------------------------------------------

    def hart(self, *names: str) -> tuple[int, ...]:
        """Return registers of whatever level."""
        self.uc.context_update(self._hart)
        return tuple(self._words[self._places[name]] for name in names)

    def _set_hart(self, **values: int) -> None:
        """Set registers beside the ones that `hart` has just returned."""
        for name, value in values.items():
            self._words[self._places[name]] = value
        self.uc.context_restore(self._hart)

    def registers(self) -> Mapping[str, int]:
        """Return what firmware keeps, and what is pending."""
        timer = self._sbi.timer
        pending = self._raised_bits | self._pending() & 1 << _SOFTWARE
        return {"timer": _NEVER if timer is None else timer, "pending": pending}

    def set_registers(self, values: Mapping[str, int]) -> None:
        """Set it, and let what is pending come: the emulator forgets that with its registers."""
        timer = values["timer"]
        self._sbi.timer = None if timer == _NEVER else timer
        self._raised_bits = values["pending"] & 1 << _TIMER
        if values["pending"]:
            self._raise(values["pending"])

    # Addresses ----------------------------------------------------------------------------------

    def translate(self, address: int) -> int | None:
        """Walk the tables as the architecture does (privileged specification, 12.3 to 12.5)."""
        (satp,) = self.hart("satp")
        return self._walk(satp, address)

    def _walk(self, satp: int, address: int) -> int | None:
        levels = _LEVELS.get(satp >> 60)
        if levels is None:
            return address
        shift = 12 + 9 * (levels - 1)
        sign = address >> shift + 8
        if sign not in (0, (1 << 56 - shift) - 1):
            return None
        entries, base = self._entries, self.ram.start >> 3
        number = satp & _NUMBER
        while shift >= 12:
            at = (number << 9 | address >> shift & 511) - base
            if not 0 <= at < len(entries) or not entries[at] & _VALID:
                return None
            entry = entries[at]
            number = entry >> 10 & _NUMBER
            if entry & _LEAF:
                within = (1 << shift) - 1
                return None if number << 12 & within else number << 12 | address & within
            shift -= 9
        return None

    def tables(self) -> Tables:
        """Return the page tables that `satp` has."""
        (satp,) = self.hart("satp")
        bits = 12 + 9 * _LEVELS.get(satp >> 60, 3)
        root = (satp & _NUMBER) << 12
        return Tables(format=self.boot.tables, root=root, bits=bits, granule=12)

    # Exceptions ---------------------------------------------------------------------------------

    def exception(self, number: int) -> None:
        """Let firmware or the kernel have an exception."""
        pc, privilege, address = self.hart("pc", "priv", "bad address")
        pc -= self.beyond
        value = 0
        if number == _ECALL:  # of whom does not matter to it
            if privilege == _SUPERVISOR:
                self._firmware()
                return
        elif number == _ILLEGAL:
            value = self._word(pc)
            if self._emulated(value, privilege):
                self.excepted = self.former  # it is none
                return
        elif number in _WITH_ADDRESS:
            value = address
        self._enter(number, pc, value)

    def bus_error(self, kind: str, _physical: int, /) -> None:
        """Tell of an access fault, whose virtual address is not known: 0 is allowed then."""
        self._enter(_ACCESS_FAULTS[kind], self.pc, 0)

    def _breakpoint(self, uc: unicorn.Uc, _data: object) -> bool:
        """Take EBREAK, which the emulator counts among invalid instructions, and an error."""
        pc = self.pc
        self.raised(pc)
        self._enter(_BREAKPOINT, pc, pc)
        self.taken = True
        uc.emu_stop()
        return True

    def _enter(self, cause: int, pc: int, value: int) -> None:
        self.left(pc)
        status, privilege, vector = self.hart("mstatus", "priv", "stvec")
        entered = status & ~(_SIE | _SPIE | _SPP)
        entered |= (_SPIE if status & _SIE else 0) | (_SPP if privilege else 0)
        self._set_hart(
            mstatus=entered,
            priv=_SUPERVISOR,
            sepc=pc,
            scause=cause,
            stval=value,
            pc=vector & ~3,
        )

    # Firmware -----------------------------------------------------------------------------------

    def _firmware(self) -> None:
        extension, function, *given = self.hart(_A7, _A6, _A0, _A1, _A2)
        found = self._sbi.call(extension, function, given)
        self._set_hart(**dict(zip((_A0, _A1), found, strict=False)))
        if self._sbi.sent:  # the kernel takes it back itself, in `sip`
            self._sbi.sent = False
            self._raise(self._raised_bits | 1 << _SOFTWARE)
        self._pend()
        self._tick()

    def _word(self, pc: int) -> int:
        """Return the instruction there, or 0; `hart` was just called."""
        satp = self._words[self._places["satp"]]
        data = b""
        for address in (pc, pc + 2):
            physical = self._walk(satp, address)
            at = -1 if physical is None else physical - self.ram.start
            if not 0 <= at < self.ram.size:
                return 0
            if address & PAGE - 1 <= PAGE - 4:
                data += self.ram.view[at : at + 4]
                break
            data += self.ram.view[at : at + 2]
            if data[0] & 3 != 3:
                break
        word = int.from_bytes(data[:4], "little")
        return word if word & 3 == 3 else word & 0xFFFF

    def _emulated(self, word: int, privilege: int) -> bool:
        """Do what an instruction asks that only M-mode can do; False: it is illegal indeed."""
        if word == _WFI and privilege == _SUPERVISOR:
            self._waits()
            return True
        function, source, csr = word >> 12 & 7, word >> 15 & 31, word >> 20
        if word & 0x7F != _SYSTEM or function & 3 < 2 or source or csr not in _COUNTERS:
            return False
        if privilege == _USER and not self.hart("scounteren")[0] >> (csr & 31) & 1:
            return False
        target = word >> 7 & 31
        value = self.clock.ticks(_COUNTERS[csr])
        if target:
            self.set_number(self._registers[target], value)
        self._tick()
        return True

    # Time ---------------------------------------------------------------------------------------

    def deadline(self) -> int | None:
        """Return when the timer fires; None: it has, or is off."""
        return self._sbi.timer

    def interruptible(self) -> bool:
        """Return that it may be raised: the CPU itself holds it back."""
        return True

    def interrupt(self) -> None:
        """Raise the timer's interrupt."""
        self._sbi.timer = None
        self.wires.pending[:] = [_TIMER]
        self._pend()

    def _pend(self) -> None:
        """Let the hart see what is pending."""
        pending = sum(1 << number for number in self.wires.pending)
        if self._raised_bits != pending:
            self._raised_bits = pending
            self._raise(pending)

    def _raise(self, pending: int) -> None:
        """Set `mip`: only a write by M-mode tells the emulator's loop of interrupts."""
        now = self.get("priv")
        self.set("priv", _MACHINE)
        self.set("mip", self.get("mip") & ~(1 << _TIMER) | pending)
        self.set("priv", now)

    def _pending(self) -> int:
        """Return `mip`, which only M-mode may read."""
        now = self.get("priv")
        self.set("priv", _MACHINE)
        found = self.get("mip")
        self.set("priv", now)
        return found

    def _tick(self) -> None:
        """Raise what is due; it comes with the instruction after the one that trapped."""
        if self._due():
            self.interrupt()

    def _look(self) -> None:
        """Raise what is due while the guest loads `jiffies`; it loads again afterwards.

        The emulator looks for interrupts only between runs of chained blocks. A run may end at a
        load, because it has not set its register yet.
        """
        if self._due():
            self.interrupt()
            self.uc.emu_stop()

    def _waits(self) -> None:
        """Let time pass until something is pending that the hart does not ignore."""
        if self.get("sip") & self.get("sie"):
            return
        deadline = self.deadline()
        if deadline is None or not self.get("sie") & 1 << _TIMER:
            self._stop = Halt.STUCK
            self.uc.emu_stop()
            return
        self.clock.advance(deadline)
        self.interrupt()

    def waiting(self, _pc: int, /) -> int | None:
        """Return None: waiting traps."""
        return None

    def clock_reads(self, code: bytes, /) -> Sequence[int]:
        """Return where `cycle` and `instret` are read: the emulator gives its host's, always."""
        return [
            at
            for at in SYSTEM.sites(code)
            if code[at] & 0x7F == _SYSTEM and code[at + 1] >> 4 & 3 > 1
        ]

    def watch_site(self, address: int) -> None:
        """Answer the read at such a place by guest time."""
        work = self._guarded(self._counted)
        self.uc.hook_add(uc_const.UC_HOOK_CODE, work, None, address, address)

    def _counted(self, _uc: unicorn.Uc, address: int, _size: int, _data: object) -> None:
        (privilege,) = self.hart("priv")
        if self._emulated(self._word(address), privilege):
            self.pc = address + 4

    def watch_idle(self, _start: int, _end: int, /) -> None:
        """Do nothing: the CPU itself holds interrupts back."""


BOARD = Riscv64Board


def words_of(context: unicorn.unicorn.UcContext) -> ctypes.Array[ctypes.c_uint64]:
    """Return what a saved context holds, as words that can be set."""
    found: ctypes.Array[ctypes.c_uint64]
    found = (ctypes.c_uint64 * (context.size // 8)).from_address(context.context.value)
    return found


_NAMED = ("pc", "mstatus", "stvec", "sepc", "scause", "stval", "satp", "scounteren")


@cache
def places() -> Mapping[str, int]:
    """Return which word of a context is which register.

    They are found out by setting registers, and by a fault, so that another version of the
    emulator may keep them elsewhere; RuntimeError where they cannot be found.
    """
    uc = unicorn.Uc(uc_const.UC_ARCH_RISCV, uc_const.UC_MODE_RISCV64)
    uc.ctl_set_cpu_model(rv.UC_CPU_RISCV64_SIFIVE_U54)
    context = uc.context_save()
    words = words_of(context)

    def changed(name: str, first: int, second: int) -> int:
        """Return the word that a register's value decides."""
        number = getattr(rv, f"UC_RISCV_REG_{name.upper()}")
        uc.reg_write(number, first)
        uc.context_update(context)
        before = list(words)
        uc.reg_write(number, second)
        uc.context_update(context)
        found = [
            index
            for index, (old, new) in enumerate(zip(before, words, strict=True))
            if old == first and new == second
        ]
        if len(found) != 1:
            raise RuntimeError(f"this version of Unicorn does not keep {name} as 2.1.4 does")
        return found[0]

    uc.reg_write(rv.UC_RISCV_REG_PRIV, _MACHINE)
    known = {name: changed(name, 0, 0x20) for name in _NAMED if name != "satp"}
    known["satp"] = changed("satp", 0, _SV39 << 60 | 0x1234)
    known |= {f"x{number}": changed(f"x{number}", 0, 0x5A5A) for number in range(1, 32)}
    known["priv"] = changed("priv", _MACHINE, _SUPERVISOR)

    uc.mem_map(0, 0x4000)
    table, code, bad = 0x1000, 0x2000, 0x12_3456_7000
    uc.mem_write(table, (0xCF).to_bytes(8, "little"))  # the first GiB as it is
    uc.mem_write(code, bytes.fromhex("83b58500"))  # ld a1, 8(a1): no register has the address
    uc.reg_write(rv.UC_RISCV_REG_SATP, _SV39 << 60 | table >> 12)
    uc.reg_write(rv.UC_RISCV_REG_A1, bad - 8)

    def told(engine: unicorn.Uc, _number: int, _data: object) -> None:
        engine.context_update(context)
        engine.emu_stop()

    uc.hook_add(uc_const.UC_HOOK_INTR, told)
    uc.emu_start(code, code + 4)
    found = [index for index, word in enumerate(words) if word == bad]
    if len(found) != 1:
        raise RuntimeError("this version of Unicorn does not tell of faults as 2.1.4 does")
    known["bad address"] = found[0]
    return known

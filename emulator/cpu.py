# SPDX-License-Identifier: GPL-2.0-or-later
"""One CPU: Unicorn bound to the page table.

Unicorn runs in virtual TLB mode: the TLB-fill hook *is* the page-table walk. What it
answers stays in the CPU's TLB, and translated code stays in its translation cache, until
somebody flushes, as on hardware; the page table never flushes by itself. A CPU subscribes
to the flushes and cache maintenance that the kernel's code paths perform.

Physical memory is the host buffer, mapped once, so the guest and Python see one memory.

Several CPUs over one memory are several Unicorn contexts: each has a TLB and translated
code of its own, and each must be told. Unicorn can only drop a whole TLB, and does so after
cache maintenance; what a CPU looked up is therefore kept here too and looked up again, until
a flush that is meant for this CPU.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType

import attrs
import unicorn
from unicorn import unicorn_const as uc_const
from unicorn.unicorn_py3.arch.types import uc_engine
from unicorn.unicorn_py3.unicorn import uccallback

from allocator import KernelMemory, PageTable, Prot, Translation
from allocator.types import PAGE_SIZE
from archs import Arch
from archs.system import Processor
from emulator import process
from emulator.budget import Budget, Counter, Limits
from emulator.faults import FaultKind

PAGE_MASK = -PAGE_SIZE
# Unicorn drops translated code by virtual address and ignores what is not mapped executable
# at that moment. Caches of real CPUs are maintained by physical address, so while that is
# done, physical memory answers at this window, where no architecture has anything.
PHYSICAL_WINDOW = 0x0070_0000_0000_0000
UNLIMITED = (1 << 62) - 1  # instructions
WATCHED = 1 << 20  # bytes behind physical memory where watched pages answer
LOWER_HALF = 1 << 63  # addresses below belong to the address space that a CPU has loaded
TLB_ENTRIES = 1536
STALE_RANGES = 512  # of more, all translated code is dropped
TICK = 500_000  # instructions between timer ticks: a jiffy, at INSTRUCTION nanoseconds each
INSTRUCTION = 8  # about what one takes here, so that a guest's benchmark of 16 jiffies is short
_PERMS = tuple(
    sum(
        bit
        for prot, bit in (
            (Prot.R, uc_const.UC_PROT_READ),
            (Prot.W, uc_const.UC_PROT_WRITE),
            (Prot.X, uc_const.UC_PROT_EXEC),
        )
        if Prot(value) & prot
    )
    for value in range(8)
)
LONGEST = 16  # bytes of an instruction, and no less
_INSTRUCTION = ctypes.CFUNCTYPE(ctypes.c_uint32, uc_engine, ctypes.c_void_p)
_ACCESS = {
    uc_const.UC_MEM_READ: (Prot.R, FaultKind.READ),
    uc_const.UC_MEM_WRITE: (Prot.W, FaultKind.WRITE),
    uc_const.UC_MEM_FETCH: (Prot.X, FaultKind.FETCH),
}


@attrs.define
class Stop(Exception):
    """Why emulation ended before it reached its end."""

    kind: FaultKind
    pc: int
    address: int | None = None
    number: int | None = None
    reason: str = ""


@attrs.frozen
class Registers:
    """A copy of a CPU's registers: what the emulator saves, and what it leaves out."""

    saved: unicorn.unicorn.UcContext
    unsaved: tuple[int, ...]


class Cpu:
    """One emulated CPU over a kernel memory.

    Counting instructions costs ten times the execution, so it is done only under a limit of
    them, and only then `on_tick` is called about every TICK of them, as a timer interrupt would
    be; otherwise time passes when the guest waits for it or looks at it. Where an instruction traps,
    the entry of `breakpoints` for its address, or else `on_trap`, says at which address to go
    on, `on_fetch` where there is nothing to execute, and `on_access_failed` where there is
    nothing to load or store; what is still a trap is `on_check`'s. None, and the run ends. The instruction counts.

    Parameters
    ----------
    arch
        Names the Unicorn constants, registers and fixed register values.
    memory
        The page table that answers TLB misses, and the buffer behind it.
    number
        Which CPU it is; a flush that is meant for one CPU means `memory.this_cpu`.
    limits
        What it may execute, of all CPUs of a machine together.
    """

    def __init__(
        self, arch: Arch, memory: KernelMemory, number: int = 0, limits: Limits | None = None
    ) -> None:
        emulation = arch.runs.emulation
        self.arch = arch
        self.number = number
        self._memory = memory
        self._constants = _constants(emulation.prefix)
        self._registers: dict[str, int] = {}
        self._miss: tuple[int, int] | None = None
        self._interrupt: int | None = None
        self._box = ctypes.c_uint64()
        self._pointer = ctypes.byref(self._box)
        self.limits = Limits() if limits is None else limits
        self._budget = self.limits.budget  # of the run under way
        self._armed = 0  # instructions that Unicorn was told to execute at most, not paid yet
        self._since_tick = 0
        self._inside = False  # a run
        self._watched: dict[int, int] = {}
        self._counting = False  # by the run that is no callback
        self._counted = False  # by Unicorn, since its last start or one before
        self._expired = False
        self._maintaining = False
        self._locating: tuple[int, int] | None = None
        self._exceptions = emulation.exceptions
        self._settled: unicorn.unicorn.UcContext | None = None
        self._outside: dict[int, int] = {}
        self._unsaved = tuple(emulation.unsaved)
        self._unsaved_values = list(emulation.unsaved.values())
        self._system = emulation.system
        self._executed = 0  # instructions of the last slice
        self._refused: BaseException | None = None  # by a hook in the run under way
        self._scanned: dict[int, int] = {}
        self._sites: set[int] = set()
        self.page_table = 0
        self.on_clock: Callable[[], int] = lambda: 0
        self.on_entropy: Callable[[], int] = lambda: 0
        self.on_tick: Callable[[], object] | None = None
        self.on_trap: Callable[[int], int | None] | None = None
        self.on_check: Callable[[int], int | None] | None = None
        self.breakpoints: dict[int, Callable[[Cpu], int]] = {}
        self._mm: PageTable | None = None
        # By address space: the kernel's upper half, and the lower half of `_mm`.
        self._looked_up: dict[int, Translation] = {}
        self._tagged: dict[int, Translation] = {}
        # What is to be dropped before the next instruction: code by physical address, the TLB.
        self._stale: dict[tuple[int, int], None] = {}
        self._dropped = False
        self.on_fetch: Callable[[int], int | None] | None = None
        self.on_access_failed: Callable[[int], int | None] | None = None
        self.last_words: Callable[[], dict[str, str | int]] | None = None  # see `process`
        kind = getattr(uc_const, f"UC_ARCH_{emulation.prefix}")
        self.uc = unicorn.Uc(kind, getattr(uc_const, emulation.mode))
        if emulation.page_size_varies:
            self.uc.ctl_set_page_size(PAGE_SIZE)
        self.uc.ctl_set_cpu_model(getattr(self._constants, emulation.model))
        self.uc.ctl_set_tlb_mode(uc_const.UC_TLB_VIRTUAL)
        self._counter = Counter(self.uc)
        physical = memory.physical
        self.uc.mem_map_ptr(0, physical.size, uc_const.UC_PROT_ALL, physical.address)
        self.uc.hook_add(uc_const.UC_HOOK_TLB_FILL, self._fill)
        self.uc.hook_add(uc_const.UC_HOOK_INTR, self._interrupted)
        for name, value in emulation.constants.items():
            self.write(name, value)
        for place, value in emulation.system_registers.items():
            self.uc.cpr_write(*place, value)
        for msr, value in emulation.msrs.items():
            self.uc.msr_write(msr, value)
        if self._system is not None:
            for name, work in self._system.calls.items():
                self._on_instruction(name, work)
            if self._system.port_input:
                number = getattr(self._constants, self._system.port_input)
                self.uc.hook_add(uc_const.UC_HOOK_INSN, _nobody, None, 1, 0, number)
        self._set_unsaved = self.bank(tuple(emulation.unsaved))
        self._unsubscribe = (
            memory.on_tlb_flush(self._flush_tlb),
            memory.on_icache_sync(self.sync_icache),
        )
        _WATCHDOG.watch(self)

    def close(self) -> None:
        """Stop listening to flushes; the CPU cannot be used afterwards."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()

    def register(self, name: str) -> int:
        """Return Unicorn's number of a register."""
        number = self._registers.get(name)
        if number is None:
            number = getattr(self._constants, self.arch.runs.emulation.registers + name.upper())
            self._registers[name] = number
        return number

    def read(self, name: str) -> int:
        """Return the value of a register."""
        # The binding looks the register's type up each time; all of these have 64 bits or less.
        box = self._box
        box.value = 0
        status = self.uc._do_reg_read(self.register(name), self._pointer)  # noqa: SLF001 -- see above
        if status != uc_const.UC_ERR_OK:
            raise unicorn.UcError(status)
        return box.value

    def write(self, name: str, value: int) -> None:
        """Set a register."""
        self._box.value = value
        status = self.uc._do_reg_write(self.register(name), self._pointer)  # noqa: SLF001 -- see above
        if status != uc_const.UC_ERR_OK:
            raise unicorn.UcError(status)

    def bank(self, names: Sequence[str]) -> Callable[[list[int]], None]:
        """Return what sets several registers at once, to as many values."""
        count = len(names)
        numbers = (ctypes.c_int * count)(*map(self.register, names))
        values = (ctypes.c_uint64 * count)()
        start, write = ctypes.addressof(values), self.uc._do_reg_write_batch  # noqa: SLF001 -- same
        pointers = (ctypes.c_void_p * count)(*range(start, start + 8 * count, 8))

        def store(given: list[int]) -> None:
            values[:] = given  # type: ignore[assignment]  # a list is invariant, ints are taken
            status = write(numbers, pointers, count)
            if status != uc_const.UC_ERR_OK:
                raise unicorn.UcError(status)

        return store

    def run(self, start: int, end: int, *, instructions: int | None, seconds: float | None) -> None:
        """Execute from `start` until `end` is reached.

        A run inside another one (from a callback) never outlives it, and pays from the same
        budget. One with a limit of instructions inside one without counts only code that was
        not translated before.

        Parameters
        ----------
        instructions
            Most instructions to execute; None: as many as `limits` has left.
        seconds
            Most wall-clock time; None: what `limits` has left.

        Raises
        ------
        Stop
            When the guest faulted, trapped or ran into a limit.
        """
        limits, inside = self.limits, self._inside
        limits.pay()  # for what the run around has executed
        outer = limits.enter(instructions, seconds)
        around, self._budget = self._budget, limits.budget
        payer, limits.pay = limits.pay, self._pay
        self._miss = self._interrupt = None
        self._inside = True
        box = process.box
        noted = None if box is None else box.enter(self, self.deadline)
        try:
            if self._budget.late:
                raise Stop(FaultKind.TIME_LIMIT, start)
            if self._dropped:
                self._maintain()
            counted = self._budget.left is not None
            if not inside:
                self._count(counted, end)
            if counted:
                self._run_counted(start, end)
            else:
                self._run_free(start, end, nested=inside)
        finally:
            limits.leave(outer)
            limits.pay = payer
            self._inside, self._budget = inside, around
            self._miss = self._interrupt = None
            if box is not None:
                box.leave(noted)
            if inside:
                self._return_to(around, end)

    def _return_to(self, around: Budget, end: int) -> None:
        """Let the run around a run that is over at `end` go on with its own budget."""
        # Starting at the end executes nothing. It sets the counter, and takes back a stop and
        # an exception that were the inner run's.
        left = around.left
        count = UNLIMITED if self._counted else 0
        if left is not None:
            count = self._armed = min(max(left, 1), TICK)
        self.uc.emu_start(end, end, count=count)
        if left is not None and left <= 0:
            self.uc.emu_stop()

    @property
    def deadline(self) -> float | None:
        """The moment at which the time of what runs now is over."""
        return self._budget.deadline

    def _pay(self) -> None:
        """Take what was executed since Unicorn's last start from the budget."""
        armed, self._armed = self._armed, 0
        if armed and self._budget.left is not None:
            executed = self._executed = self._counter.read(armed)
            self._budget.take(executed)
            self._since_tick += executed

    def _count(self, counting: bool, nowhere: int) -> None:
        """Translate code anew where from now on its instructions are counted, or are not."""
        if counting != self._counting:
            self._counting = counting
            self.uc.ctl_flush_tb()
            if counting and not self._counter.found:
                self._counter.find(nowhere)

    def _run_free(self, at: int, end: int, *, nested: bool) -> None:
        """Execute until the end, without counting."""
        while True:
            # To stop counting drops all translated code, which nobody may be in the middle of.
            found = self._slice(at, end, UNLIMITED if nested and self._counted else 0)
            if found is None:
                return
            at, resumed = found
            if not self._expires(at, resumed=resumed):
                self.wait()  # it halted

    def _run_counted(self, at: int, end: int) -> None:
        """Execute until the end or until the budget is spent; guest time passes with it."""
        budget = self._budget
        while True:
            left = budget.left
            assert left is not None
            if left <= 0:  # which is "no limit" to Unicorn
                raise Stop(FaultKind.INSTRUCTION_LIMIT, at)
            count = min(left, TICK)
            found = self._slice(at, end, count)
            if found is None:
                return
            at, resumed = found
            if not self._expires(at, resumed=resumed) and self._executed < count:
                self.wait()  # it halted
            if not resumed:
                while self._since_tick >= TICK:
                    self._since_tick -= TICK
                    if self.on_tick is not None:
                        self.on_tick()

    def _slice(self, at: int, end: int, count: int) -> tuple[int, bool] | None:
        """Execute up to `count` instructions; None at the end, else where, and if by `_resumes`."""
        self._counted = count > 0
        self._armed = count
        try:
            self.uc.emu_start(at, end, count=count)
            at = self.read(self.arch.runs.calling.program_counter)
            if self._refused is not None:
                raise self._refused
            if at == end:
                return None
            if self._interrupt is None:
                return at, False
            stop = self._trap(self._interrupt, at)
        except unicorn.UcError as error:
            self._pay()
            if self._refused is not None:  # before that: some of the block may follow
                raise self._refused from None
            stop = self._stop(error)
        finally:
            self._pay()
            self._refused = None
        return self._resume(stop), True

    def _expires(self, at: int, *, resumed: bool) -> bool:
        """Return whether somebody stopped the run; Stop where its time is over."""
        # A guest that is resumed each time is seldom where it can be stopped.
        expired, self._expired = self._expired or resumed, False
        if expired and self._budget.late:
            raise Stop(FaultKind.TIME_LIMIT, at)
        return expired

    def expire(self) -> None:
        """Stop the run whose deadline has passed, if there is one; any thread may call this."""
        if self._inside and self._budget.late:
            # A stop between a kernel function and its return would call it again: only the
            # end of a run may come at any moment.
            self._expired = True
            self.uc.emu_stop()

    def _resume(self, stop: Stop) -> int:
        """Return where to go on after a stop that was expected; raise any other."""
        self._miss = self._interrupt = None
        found = None
        if stop.kind is FaultKind.TRAP:
            handler = self.breakpoints.get(stop.pc)
            if handler is not None:
                found = handler(self)
            elif self.on_trap is not None:
                found = self.on_trap(stop.pc)
        elif stop.kind is FaultKind.INSTRUCTION:
            found = self._perform(stop)
        elif stop.kind is FaultKind.FETCH and self.on_fetch is not None:
            found = self.on_fetch(stop.pc)
        elif stop.kind in (FaultKind.READ, FaultKind.WRITE) and self.on_access_failed is not None:
            found = self.on_access_failed(stop.pc)
        if found is None and stop.kind in (FaultKind.TRAP, FaultKind.INSTRUCTION):
            found = None if self.on_check is None else self.on_check(stop.pc)
        if found is None:
            raise stop
        return found

    def _trap(self, number: int, at: int) -> Stop:
        at -= self._exceptions.beyond.get(number, 0)
        undefined = number == self._exceptions.undefined
        return Stop(FaultKind.INSTRUCTION if undefined else FaultKind.TRAP, at, number=number)

    def _stop(self, error: unicorn.UcError) -> Stop:
        at = self.read(self.arch.runs.calling.program_counter)
        if error.errno == uc_const.UC_ERR_INSN_INVALID:
            kind = FaultKind.TRAP if self._exceptions.invalid_is_trap else FaultKind.INSTRUCTION
            return Stop(kind, at)
        if self._miss is None:
            return Stop(FaultKind.TRAP, at, number=self._interrupt)
        page, access = self._miss
        if access != uc_const.UC_MEM_FETCH:
            return Stop(_ACCESS[access][1], at, self._locate(page, access, at))
        if page == at - PAGE_SIZE:
            # An undefined instruction makes an empty block, which "ends" before its start.
            return Stop(FaultKind.INSTRUCTION, at)
        return Stop(FaultKind.FETCH, at, max(page, at))

    def _locate(self, page: int, access: int, at: int) -> int:
        """Return the address in `page` that the instruction at `at` could not access.

        The TLB asks for pages. So the instruction is executed once more, while its page lies
        where physical memory has nothing; that error has an address. Every other page that
        it stores to lies behind that one, so that what it could store has no effect.
        """
        found: list[int] = []
        nothing = self._memory.physical.size

        def hook(_uc: unicorn.Uc, _access: int, address: int, *_: object) -> bool:
            if address < nothing + PAGE_SIZE:
                found.append(address - nothing)
            return False

        kinds = uc_const.UC_HOOK_MEM_READ_UNMAPPED | uc_const.UC_HOOK_MEM_WRITE_UNMAPPED
        context, handle = self.context(), self.uc.hook_add(kinds, hook)
        self._locating = page, access
        self._drop_tlb()
        try:
            self._counted = True
            self.uc.emu_start(at, 0, count=1)
        except unicorn.UcError:
            pass
        finally:
            self._locating = None
            self.uc.hook_del(handle)
            self.restore(context)
            self._drop_tlb()
        return page + found[0] if found else page

    def context(self) -> Registers:
        """Return a copy of all registers, to be given to `restore`."""
        return Registers(self.uc.context_save(), tuple(map(self.read, self._unsaved)))

    def restore(self, context: Registers) -> None:
        """Set all registers to what `context` saved."""
        self.uc.context_restore(context.saved)
        for name, value in zip(self._unsaved, context.unsaved, strict=True):
            self.write(name, value)

    def settle(self) -> None:
        """Remember every register as it is now, for `reset`."""
        emulation = self.arch.runs.emulation
        for name, value in emulation.privilege.items():
            self.write(name, value)
        if self._unsaved:
            self._set_unsaved(self._unsaved_values)  # which may show in other registers
        self._outside = {n: self.uc.msr_read(n) for n in emulation.unsaved_msrs}
        self._settled = self.uc.context_save()

    def reset(self, *, fully: bool = False) -> None:
        """Set every register to what it was at `settle`, whatever a guest made of it.

        Parameters
        ----------
        fully
            Those too that take long: what the emulator does not save. A call sets those of
            `Emulation.unsaved` with its arguments.
        """
        assert self._settled is not None
        self.uc.context_restore(self._settled)
        if fully:
            self._set_unsaved(self._unsaved_values)
            for number, value in self._outside.items():
                self.uc.msr_write(number, value)

    # Instructions that ask the machine ---------------------------------------------------------

    def clock(self) -> int:
        """Return nanoseconds since boot, after the little that it takes to look."""
        return self.on_clock()

    def entropy(self) -> int:
        """Return 64 bits of the machine's seed."""
        return self.on_entropy()

    def forget(self) -> None:
        """Drop what this CPU has looked up in page tables."""
        self._looked_up.clear()
        self._tagged.clear()
        self._drop_tlb()

    def wait(self) -> None:
        """Let time pass until the next interrupt, which is the timer's."""
        if self.on_tick is not None:
            self.on_tick()

    def _code(self, at: int, size: int) -> bytes:
        """Return up to `size` bytes that stand at an address."""
        code = b""
        for span in self._memory.page_table.spans(at, min(size, (1 << 64) - at)):
            if span.pa is None:
                break
            code += self._memory.physical.read(span.pa, span.size)
        return code

    def _perform(self, stop: Stop) -> int | None:
        """Do the work of an instruction that the emulator refused; return where to go on."""
        if self._system is None:
            return None
        done = self._system.perform(self._code(stop.pc, LONGEST), self)
        if isinstance(done, str):
            stop.reason = done
            return None
        return None if done is None else stop.pc + done

    def _look_for_sites(self, page: int, frame: int) -> None:
        """Find the instructions in a page that the emulator would answer from its host."""
        assert self._system is not None
        physical = self._memory.physical
        code = physical.read(frame, PAGE_SIZE)
        follows = self._memory.page_table.translate((page + PAGE_SIZE) % (1 << 64))
        if follows is not None:
            code += physical.read(follows.address, LONGEST)
        seen = hash(code)
        if self._scanned.get(page) == seen:
            return
        self._scanned[page] = seen
        for offset in self._system.sites(code):
            at = page + offset
            if offset < PAGE_SIZE and at not in self._sites:
                self._sites.add(at)
                self.uc.hook_add(uc_const.UC_HOOK_CODE, self._at_site, None, at, at)

    def _at_site(self, _uc: unicorn.Uc, address: int, _size: int, _data: object) -> None:
        if self._locating is not None:
            return
        stop = Stop(FaultKind.INSTRUCTION, address)
        found = self._perform(stop)
        if found is not None:
            self.write(self.arch.runs.calling.program_counter, found)
        elif stop.reason:
            self._refuse(stop)

    def _refuse(self, why: BaseException) -> None:
        """End the run under way, from a hook."""
        self._refused = why
        self.uc.emu_stop()

    def _on_instruction(self, name: str, work: Callable[[Processor], str | None]) -> None:
        """Let `work` do what an instruction does; the emulator calls back for a few only."""
        number = getattr(self._constants, f"UC_{self.arch.runs.emulation.prefix}_INS_{name}")

        def hook(_uc: unicorn.Uc, _key: object) -> int:
            reason = work(self)
            if reason is not None:
                at = self.read(self.arch.runs.calling.program_counter)
                self._refuse(Stop(FaultKind.INSTRUCTION, at, reason=reason))
            return 1  # done

        # The binding's table lacks some of what the library knows; all are called alike.
        called = uccallback(self.uc, _INSTRUCTION)(hook)
        self.uc._Uc__do_hook_add(uc_const.UC_HOOK_INSN, called, 1, 0, ctypes.c_int(number))  # noqa: SLF001 -- see above

    def on_execute(self, start: int, end: int, callback: Callable[[int], None]) -> None:
        """Call `callback(address)` before each instruction in [start, end) executes."""

        def hook(_uc: unicorn.Uc, address: int, _size: int, _data: object) -> None:
            if self._locating is None:
                callback(address)

        self.uc.hook_add(uc_const.UC_HOOK_CODE, hook, None, start, end - 1)

    def each_instruction(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Call `callback(address)` before every instruction; return what ends that.

        In a run under way, before those that were not translated yet.
        """

        def hook(_uc: unicorn.Uc, address: int, _size: int, _data: object) -> None:
            if self._locating is None:
                callback(address)

        handle = self.uc.hook_add(uc_const.UC_HOOK_CODE, hook)
        if not self._inside:
            self.uc.ctl_flush_tb()
        return lambda: self.uc.hook_del(handle)

    def on_access(self, callback: Callable[[int, int, bool], None]) -> None:
        """Call `callback(physical, size, write)` at each load and store of the guest."""

        def hook(
            _uc: unicorn.Uc, access: int, address: int, size: int, _value: int, _data: object
        ) -> None:
            if self._locating is None:
                callback(address, size, access == uc_const.UC_MEM_WRITE)

        self.uc.hook_add(uc_const.UC_HOOK_MEM_READ | uc_const.UC_HOOK_MEM_WRITE, hook)

    def _fill(
        self,
        _uc: unicorn.Uc,
        address: int,
        access: int,
        entry: unicorn.unicorn.uc_tlb_entry,
        _data: object,
    ) -> bool:
        """Answer a TLB miss from the page table; a refusal is remembered for the fault."""
        if self._maintaining:
            entry.paddr = (address & PAGE_MASK) - PHYSICAL_WINDOW
            entry.perms = uc_const.UC_PROT_EXEC
            return True
        page = address & PAGE_MASK
        if self._locating is not None:
            wanted = self._locating == (page, access)
            if wanted or access == uc_const.UC_MEM_WRITE:
                entry.paddr = self._memory.physical.size + PAGE_SIZE * (not wanted)
                entry.perms = uc_const.UC_PROT_READ | uc_const.UC_PROT_WRITE
                return True
        table, looked_up = self._memory.page_table, self._looked_up
        if self._mm is not None and page < LOWER_HALF:
            table, looked_up = self._mm, self._tagged
        wanted_right = _ACCESS[access][0]
        found = looked_up.get(page)
        if found is None or not found.prot & wanted_right:
            found = table.translate(page)
            if found is None or not found.prot & wanted_right:
                self._miss = (page, access)
                return False
            if len(looked_up) >= TLB_ENTRIES:
                looked_up.clear()
            looked_up[page] = found
        if access == uc_const.UC_MEM_FETCH and self._system is not None:
            self._look_for_sites(page, found.address)
        entry.paddr = found.address
        entry.perms = _PERMS[found.prot.value]
        watched = self._watched.get(page)
        if watched is not None and access != uc_const.UC_MEM_FETCH:
            entry.paddr = watched
        return True

    def watch(self, page: int, on_read: Callable[[], object]) -> None:
        """Call `on_read` before each time that the guest reads of the page at an address.

        The page becomes a device to the emulator; what stands in memory is read and written.
        """
        base = self._memory.physical.size + WATCHED + len(self._watched) * PAGE_SIZE

        def place(offset: int) -> int:
            found = self._memory.translate(page)
            assert found is not None
            return found.address + offset

        def read(_uc: unicorn.Uc, offset: int, size: int, _data: object) -> int:
            if offset % 8 == 0:  # a doubleword comes in two halves, the low one first
                try:
                    on_read()
                except BaseException as refusal:  # noqa: BLE001 -- who gives no value is complained of
                    self._refuse(refusal)
            return int.from_bytes(self._memory.physical.read(place(offset), size), "little")

        def write(_uc: unicorn.Uc, offset: int, size: int, value: int, _data: object) -> None:
            contents = (value % (1 << 8 * size)).to_bytes(size, "little")
            self._memory.physical.write(place(offset), contents)

        self.uc.mmio_map(base, PAGE_SIZE, read, None, write, None)
        self._watched[page] = base
        self._drop_tlb()

    def switch_mm(self, mm: PageTable | None) -> None:
        """Load another address space for the lower half; None: the kernel's own.

        Entries of the TLB are tagged (PCID): those of an address space are out of sight while
        another one is loaded, and stay until they are flushed.
        """
        self._mm = mm
        self._drop_tlb()

    def _interrupted(self, uc: unicorn.Uc, number: int, _data: object) -> None:
        self._interrupt = number
        uc.emu_stop()

    def _flush_tlb(self, _start: int, _end: int, all_cpus: bool) -> None:
        if all_cpus or self._memory.this_cpu == self.number:
            # Never less than what was asked for.
            self._looked_up.clear()
            self._tagged.clear()
            self._drop_tlb()

    def sync_icache(self, start: int, end: int) -> None:
        """Make what this CPU fetches from [start, end) be what stands there."""
        table = self._memory.page_table
        found = table.translate(start)
        if found is not None and start % found.leaf + end - start <= found.leaf:
            self._stale[found.address, end - start] = None
        else:
            for span in table.spans(start, end - start):
                if span.pa is not None:
                    self._stale[span.pa, span.size] = None
        self._drop_tlb()

    def _drop_tlb(self) -> None:
        """Drop what Unicorn looked up: now, or before this CPU executes anything again."""
        self._dropped = True
        if self._inside:
            self._maintain()

    def _maintain(self) -> None:
        """Drop what the guest may not use any more: translated code, then the TLB."""
        if len(self._stale) > STALE_RANGES:
            self._stale.clear()
            self.uc.ctl_flush_tb()
        self._maintaining = True
        try:
            for pa, size in self._stale:
                at = PHYSICAL_WINDOW + pa
                self.uc.ctl_remove_cache(at, at + size)
        finally:
            self._maintaining = self._dropped = False
            self._stale.clear()
            # What was looked up at the window must not stay executable there.
            self.uc.ctl(uc_const.UC_CTL_TLB_FLUSH, uc_const.UC_CTL_IO_WRITE)


def _nobody(_uc: unicorn.Uc, _port: int, size: int, _data: object) -> int:
    """Return what a bus reads where no device answers."""
    return (1 << 8 * size) - 1


def _constants(prefix: str) -> ModuleType:
    return import_module(f"unicorn.{prefix.lower()}_const")


class _Watchdog:
    """Stops CPUs that run past their deadline: one thread for all of them.

    Unicorn's own timeout starts a thread per run, which costs more than a short run.
    """

    INTERVAL = 0.05

    def __init__(self) -> None:
        self._cpus: weakref.WeakSet[Cpu] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, cpu: Cpu) -> None:
        """Stop `cpu` whenever its deadline has passed, as long as it lives."""
        with self._lock:
            self._cpus.add(cpu)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._loop, name="watchdog", daemon=True)
                self._thread.start()

    def restart(self) -> None:
        """Watch in a process that was forked, which has no threads."""
        self._lock = threading.Lock()  # a thread that is not here may hold the other one
        self._thread = None
        for cpu in list(self._cpus):
            self.watch(cpu)

    def _loop(self) -> None:
        while True:
            time.sleep(self.INTERVAL)
            with self._lock:
                cpus = list(self._cpus)
            for cpu in cpus:
                cpu.expire()
                del cpu
            if not cpus:
                with self._lock:
                    if not self._cpus:
                        self._thread = None
                        return
            del cpus


_WATCHDOG = _Watchdog()
os.register_at_fork(after_in_child=_WATCHDOG.restart)

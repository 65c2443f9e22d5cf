# SPDX-License-Identifier: GPL-2.0-or-later
"""One CPU: Unicorn bound to the page table.

Unicorn runs in virtual TLB mode: the TLB-fill hook *is* the page-table walk. What it
answers stays in the CPU's TLB, and translated code stays in its translation cache, until
somebody flushes, as on hardware; the page table never flushes by itself. A CPU subscribes
to the flushes and cache maintenance that the kernel's code paths perform.

Physical memory is the host buffer, mapped once, so the guest and Python see one memory.

Several CPUs over one memory are several Unicorn contexts: each has a TLB and translated
code of its own, and each must be told (`emulator.tlb`). Long because what runs, stops and goes
on shares the state of one engine.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from types import ModuleType

import attrs
import unicorn
from unicorn import unicorn_const as uc_const

from allocator import AccessError, KernelMemory, PageTable
from archs import Arch
from archs.system import Processor
from emulator import interrupts, process
from emulator.blocks import Blocks
from emulator.budget import Budget, Counter, Limits
from emulator.compares import Compares
from emulator.faults import FaultKind, Stop
from emulator.fresh import Fresh, Taken
from emulator.instructions import on_instruction
from emulator.registers import NamedRegisters
from emulator.sites import LONGEST, Sites
from emulator.slots import Slots
from emulator.steered import TICK, Steered
from emulator.tlb import PAGE, Tlb
from emulator.watchdog import WATCHDOG
from emulator.watching import Watching

UNLIMITED = (1 << 62) - 1  # instructions
INSTRUCTION = 8  # about what one takes here, so that a guest's benchmark of 16 jiffies is short
_ACCESS = {uc_const.UC_MEM_READ: FaultKind.READ, uc_const.UC_MEM_WRITE: FaultKind.WRITE}


@attrs.frozen
class Registers:
    """A copy of a CPU's registers: what the emulator saves, and what it leaves out."""

    saved: unicorn.unicorn.UcContext
    unsaved: tuple[int, ...]


class Cpu(Steered):
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
        super().__init__()
        self.arch = arch
        self.number = number
        self._memory = memory
        self._constants = _constants(emulation.prefix)
        self._registers: dict[str, int] = {}
        self._interrupt: int | None = None
        self._box = ctypes.c_uint64()
        self._pointer = ctypes.byref(self._box)
        self.limits = Limits() if limits is None else limits
        self._budget = self.limits.budget  # of the run under way
        self._armed = 0  # instructions that Unicorn was told to execute at most, not paid yet
        self._since_tick = 0
        self._counting = False  # by the run that is no callback
        self._counted = False  # by Unicorn, since its last start or one before
        self._expired = False
        self._exceptions = emulation.exceptions
        self._slots: Slots | None = None
        self._settled: unicorn.unicorn.UcContext | None = None
        self._outside: dict[int, int] = {}
        self._unsaved = tuple(emulation.unsaved)
        self._unsaved_values = list(emulation.unsaved.values())
        self._system = emulation.system
        self._executed = 0  # instructions of the last slice
        self._refused: BaseException | None = None  # by a hook in the run under way
        self._site = 0  # that was reached last
        self.leavers: list[Callable[[int], object]] = []  # told where blocks are left
        self.linked: tuple[int, int] | None = None
        self.page_table = 0
        self.on_clock: Callable[[], int] = lambda: 0
        self.on_entropy: Callable[[], int] = lambda: 0
        self.on_tick: Callable[[], object] | None = None
        self.on_trap: Callable[[int], int | None] | None = None
        self.on_check: Callable[[int], int | None] | None = None
        self.breakpoints: dict[int, Callable[[Cpu], int]] = {}
        self.on_fetch: Callable[[int], int | None] | None = None
        self.on_access_failed: Callable[[int], int | None] | None = None
        self.last_words: Callable[[], dict[str, str | int]] | None = None  # see `process`
        kind = getattr(uc_const, f"UC_ARCH_{emulation.prefix}")
        self.uc = unicorn.Uc(kind, getattr(uc_const, emulation.mode))
        interrupts.listen()
        if emulation.page_size_varies:
            self.uc.ctl_set_page_size(PAGE)
        self.uc.ctl_set_cpu_model(getattr(self._constants, emulation.model))
        self.uc.ctl_set_tlb_mode(uc_const.UC_TLB_VIRTUAL)
        self._counter = Counter(self.uc)
        physical = memory.physical
        self.uc.mem_map_ptr(0, physical.size, uc_const.UC_PROT_ALL, physical.address)
        sites = None
        if self._system is not None:
            sites = Sites(self.uc, memory, self._system.sites, self._at_site).look_for
        view = None if emulation.views is None else partial(self._masked, *emulation.views)
        self._tlb = Tlb(self.uc, memory, number, self._refuse, sites, view)
        self.uc.hook_add(uc_const.UC_HOOK_INTR, self._interrupted)
        for name, value in emulation.constants.items():
            self.write(name, value)
        paged = emulation.paged_registers.get(memory.page_size, {})
        for place, value in {**emulation.system_registers, **paged}.items():
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
        if emulation.delay_slots is not None:
            self._slots = Slots(arch.runs, self.uc, self._tlb, self, self._code)
        self.watching = Watching(
            self.uc,
            pc=partial(self.read, arch.runs.calling.program_counter),
            translate=self._physical,
            anew=self.uc.ctl_flush_tb,
            runs=lambda: self._tlb.running,
            fail=self._refuse,
            quiet=lambda: self._tlb.locating is not None,
            clears=emulation.clears,
            constants=self._constants,
        )
        WATCHDOG.watch(self)

    def close(self) -> None:
        """Stop listening to flushes; the CPU cannot be used afterwards."""
        self._tlb.close()

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

    def _masked(self, name: str, mask: int) -> int:
        return self.read(name) & mask

    def write(self, name: str, value: int) -> None:
        """Set a register."""
        self._box.value = value
        status = self.uc._do_reg_write(self.register(name), self._pointer)  # noqa: SLF001 -- see above
        if status != uc_const.UC_ERR_OK:
            raise unicorn.UcError(status)

    @property
    def registers(self) -> NamedRegisters:
        """All registers by name."""
        return NamedRegisters(self.uc, self.arch, self._constants)

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

    def reader(self, names: Sequence[str]) -> Callable[[], list[int]]:
        """Return what reads several registers at once."""
        count = len(names)
        numbers = (ctypes.c_int * count)(*map(self.register, names))
        values = (ctypes.c_uint64 * count)()
        start, read = ctypes.addressof(values), self.uc._do_reg_read_batch  # noqa: SLF001 -- same
        pointers = (ctypes.c_void_p * count)(*range(start, start + 8 * count, 8))

        def load() -> list[int]:
            ctypes.memset(values, 0, ctypes.sizeof(values))  # some are narrower
            status = read(numbers, pointers, count)
            if status != uc_const.UC_ERR_OK:
                raise unicorn.UcError(status)
            return list(values)

        return load

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
        limits, tlb, governor = self.limits, self._tlb, self.governor
        inside = tlb.running
        limits.pay()  # for what the run around has executed
        rest = self._rest
        outer = limits.enter(instructions, seconds)
        around, self._budget = self._budget, limits.budget
        payer, limits.pay = limits.pay, self._pay
        tlb.missed = self._interrupt = None
        tlb.running = True
        seat = None if governor is None else governor.enter()
        box = process.box
        noted = None if box is None else box.enter(self, self.deadline)
        try:
            if self._budget.late:
                raise Stop(FaultKind.TIME_LIMIT, start)
            if tlb.dropped:
                tlb.maintain()
            counted = self._budget.left is not None
            if not inside:
                self._count(counted or governor is not None, end)
            if governor is not None:
                self._run_steered(start, end, governor)
            elif counted:
                self._run_counted(start, end)
            else:
                self._run_free(start, end, nested=inside)
        finally:
            limits.leave(outer)
            limits.pay = payer
            with WATCHDOG.stopping:
                tlb.running, self._budget = inside, around
                self._expired = False
            tlb.missed = self._interrupt = None
            if box is not None:
                box.leave(noted)
            if seat is not None and governor is not None:
                governor.leave(seat)
            if inside:
                self._return_to(around, end, rest)

    def _return_to(self, around: Budget, end: int, rest: int) -> None:
        """Let the run around a run that is over at `end` go on with its own budget."""
        # Starting at the end executes nothing. It sets the counter, and takes back a stop and
        # an exception that were the inner run's.
        left = around.left
        count = UNLIMITED if self._counted else 0
        if self.governor is not None:
            self._rest = self._armed = rest if left is None else min(rest, max(left, 0))
            interrupts.start(self.uc, end, end, count=UNLIMITED)
            self._counter.limit(self._armed)
            return
        if left is not None:
            count = self._armed = min(max(left, 1), TICK)
        interrupts.start(self.uc, end, end, count=count)
        if left is not None and left <= 0:
            self.uc.emu_stop()

    @property
    def deadline(self) -> float | None:
        """The moment at which the time of what runs now is over."""
        return self._budget.deadline

    def _pay(self) -> None:
        """Take what was executed since Unicorn's last start from the budget."""
        armed, self._armed = self._armed, 0
        if not armed:
            return
        if self._budget.left is not None or self.governor is not None:
            executed = self._executed = self._counter.read(armed) - self._broke
            self._rest = armed - executed
            self.take(executed)
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
            if count == 1 and self._slots is not None and self._slots.before(at):
                count = 2  # the two are executed together
            found = self._slice(at, end, count)
            if found is None:
                if budget.left is not None and budget.left < 0:
                    raise Stop(FaultKind.INSTRUCTION_LIMIT, end)
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
            interrupts.start(self.uc, at, end, count=count)
            at = self.read(self.arch.runs.calling.program_counter)
            self._left(at)
            if self._refused is not None:
                raise self._refused
            if at == end:
                return None
            if self._interrupt is None:
                return at if self._slots is None else self._slots.whole(at, self), False
            if self._slots is not None:
                self._slots.leave()
            stop = self._trap(self._interrupt, at)
        except unicorn.UcError as error:
            self._pay()
            self._left(self.read(self.arch.runs.calling.program_counter))
            if self._refused is not None:  # before that: some of the block may follow
                raise self._refused from None
            if self._slots is not None:
                self._slots.leave()
                if self._tlb.put_off is not None:
                    return self._slots.look_up(self), True
            at = self.read(self.arch.runs.calling.program_counter)
            if error.errno == uc_const.UC_ERR_FETCH_UNMAPPED and self._tlb.fetched(at):
                return at, True
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
        with WATCHDOG.stopping:
            if self._tlb.running and self._budget.late:
                # A stop between a kernel function and its return would call it again: only the
                # end of a run may come at any moment.
                self._expired = True
                self.uc.emu_stop()

    def _resume(self, stop: Stop) -> int:
        """Return where to go on after a stop that was expected; raise any other."""
        self._tlb.missed = self._interrupt = None
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
        if self.governor is not None:
            self.governor.happened("what it ran into is answered by Python")
        return found

    def _place(self, number: int | None, at: int) -> int:
        """Return where an exception came from, as far as the emulator knows; else 0."""
        if self._exceptions.at_sites is None or number in self._exceptions.placed:
            return at
        return self._site if number in self._exceptions.at_sites else 0

    def _trap(self, number: int, at: int) -> Stop:
        at = self._place(number, at) - self._exceptions.beyond.get(number, 0)
        undefined = number == self._exceptions.undefined
        return Stop(FaultKind.INSTRUCTION if undefined else FaultKind.TRAP, at, number=number)

    def _stop(self, error: unicorn.UcError) -> Stop:
        at = self.read(self.arch.runs.calling.program_counter)
        if error.errno == uc_const.UC_ERR_INSN_INVALID:
            kind = FaultKind.TRAP if self._exceptions.invalid_is_trap else FaultKind.INSTRUCTION
            return Stop(kind, at)
        if self._tlb.missed is None:
            return Stop(FaultKind.TRAP, self._place(self._interrupt, at), number=self._interrupt)
        page, access = self._tlb.missed
        if access != uc_const.UC_MEM_FETCH:
            address = self._tlb.locate(page, access, partial(self._again, at))
            return Stop(_ACCESS[access], at, address)
        if page == at - PAGE:
            # An undefined instruction makes an empty block, which "ends" before its start.
            return Stop(FaultKind.INSTRUCTION, at)
        return Stop(FaultKind.FETCH, at, max(page, at))

    def _again(self, at: int) -> None:
        """Execute the instruction at an address, and leave the registers as they are."""
        context = self.context()
        self._counted = True
        try:
            with suppress(unicorn.UcError):
                interrupts.start(self.uc, at, 0, count=1)
        finally:
            self.restore(context)

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
        self.linked = None
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

    def load(self, address: int, size: int) -> int:
        """Return the word of `size` bytes at an address; AccessError where it may not be read."""
        order = self.arch.link.dialect.order
        self.watching.touch(address, size, None)
        return int.from_bytes(self._memory.read(address, size), order)

    def store(self, address: int, value: int, size: int) -> None:
        """Store a word of `size` bytes; AccessError where it may not be written."""
        data = value.to_bytes(size, self.arch.link.dialect.order)
        self.watching.touch(address, size, data)
        self._memory.write(address, data)

    def _physical(self, address: int) -> int | None:
        found = self._memory.translate(address)
        return None if found is None else found.address

    def forget(self) -> None:
        """Drop what this CPU has looked up in page tables."""
        self._tlb.forget()

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
        try:
            done = self._system.perform(self._code(stop.pc, LONGEST), self)
        except AccessError as error:
            stop.kind = FaultKind.WRITE if error.access == "write" else FaultKind.READ
            stop.address = error.address
            return None
        if isinstance(done, str):
            stop.reason = done
            return None
        return None if done is None else stop.pc + done

    def _at_site(self, _uc: unicorn.Uc, address: int, _size: int, _data: object) -> None:
        if self._tlb.locating is not None:
            return
        if self.governor is not None and self._breaks(address, "an instruction is Python"):
            return
        self._site = address
        stop = Stop(FaultKind.INSTRUCTION, address)
        found = self._perform(stop)
        if found is not None:
            self._left(found)
            self.write(self.arch.runs.calling.program_counter, found)
        elif stop.reason or stop.address is not None:
            self._refuse(stop)

    def _refuse(self, why: BaseException) -> None:
        """End the run under way, from a hook."""
        self._refused = why
        self.uc.emu_stop()

    def _on_instruction(self, name: str, work: Callable[[Processor], str | None]) -> None:
        """Let `work` do what an instruction does; the emulator calls back for a few only."""
        number = getattr(self._constants, f"UC_{self.arch.runs.emulation.prefix}_INS_{name}")

        def do() -> bool:
            if self.governor is not None:
                self.governor.happened("an instruction is Python")
            reason = work(self)
            if reason is not None:
                at = self.read(self.arch.runs.calling.program_counter)
                self._refuse(Stop(FaultKind.INSTRUCTION, at, reason=reason))
            return True

        on_instruction(self.uc, number, do)

    def _before(self, callback: Callable[[int], None]) -> Callable[..., None]:
        """Return the hook that calls `callback(address)`, but for a look-up of pages."""

        def hook(_uc: unicorn.Uc, address: int, _size: int, _data: object) -> None:
            if self._tlb.locating is None:
                callback(address)

        return hook

    def on_execute(self, start: int, end: int, callback: Callable[[int], None]) -> None:
        """Call `callback(address)` before each instruction in [start, end) executes."""
        before = self._before(self._minded(callback))
        self.uc.hook_add(uc_const.UC_HOOK_CODE, before, None, start, end - 1)

    def note_blocks(self, without: range = range(0)) -> Blocks:
        """Note which blocks are executed from now on but in a range, until the result's `stop`.

        RuntimeError in the middle of a run, whose code would not tell.
        """
        if self._tlb.running:
            raise RuntimeError("code that runs would not tell of blocks")
        return Blocks(self.uc, self.uc.ctl_flush_tb, self._code, self.leavers, without)

    def note_fresh(self, spans: Iterable[tuple[int, int]]) -> Fresh:
        """Note which blocks are executed for the first time from now on."""
        found = Fresh(self.uc, spans)
        self.uc.ctl_flush_tb()
        return found

    def count_edges(self, spans: Iterable[tuple[int, int]]) -> Taken:
        """Count the edges between blocks from now on, exactly."""
        found = Taken(self.uc, spans)
        self.uc.ctl_flush_tb()
        return found

    def note_compares(
        self, spans: Iterable[tuple[int, int]], functions: Mapping[int, str] | None = None
    ) -> Compares:
        """Note the values that code compares from now on; `functions` as of `Compares`."""
        return Compares(self.uc, self.arch, spans, self._code, self.uc.ctl_flush_tb, functions)

    def _left(self, at: int) -> None:
        for tell in self.leavers:
            tell(at)

    def each_instruction(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Call `callback(address)` before every instruction; return what ends that.

        In a run under way, before those that were not translated yet.
        """
        handle = self.uc.hook_add(uc_const.UC_HOOK_CODE, self._before(callback))
        if not self._tlb.running:
            self.uc.ctl_flush_tb()
        return lambda: self.uc.hook_del(handle)

    def on_access(self, callback: Callable[[int, int, bool], None]) -> None:
        """Call `callback(physical, size, write)` at each load and store of the guest."""

        def hook(
            _uc: unicorn.Uc, access: int, address: int, size: int, _value: int, _data: object
        ) -> None:
            if self._tlb.locating is None:
                callback(address, size, access == uc_const.UC_MEM_WRITE)

        self.uc.hook_add(uc_const.UC_HOOK_MEM_READ | uc_const.UC_HOOK_MEM_WRITE, hook)

    # The TLB -------------------------------------------------------------------------------

    def watch(self, page: int, on_read: Callable[[], object]) -> None:
        """Call `on_read` before each time that the guest reads of the page at an address."""
        self._tlb.watch(page, on_read)

    def switch_mm(self, mm: PageTable | None) -> None:
        """Load another address space for the lower half; None: the kernel's own."""
        self._tlb.switch_mm(mm)

    def sync_icache(self, start: int, end: int) -> None:
        """Make what this CPU fetches from [start, end) be what stands there."""
        self._tlb.sync_icache(start, end)

    def _interrupted(self, uc: unicorn.Uc, number: int, _data: object) -> None:
        self._interrupt = number
        uc.emu_stop()


def _nobody(_uc: unicorn.Uc, _port: int, size: int, _data: object) -> int:
    """Return what a bus reads where no device answers."""
    return (1 << 8 * size) - 1


def _constants(prefix: str) -> ModuleType:
    return import_module(f"unicorn.{prefix.lower()}_const")

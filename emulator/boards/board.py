# SPDX-License-Identifier: GPL-2.0-or-later
"""A computer for a whole kernel: memory, a CPU with an MMU, hardware, time.

Unicorn executes and translates addresses. What it leaves to others is done here and, per
architecture, in the file beside this one: exceptions and interrupts reach the kernel's own
vectors, clocks show guest time, waiting ends when the next timer fires. The guest stops only
where a hook stops it, because resuming after any other stop corrupts it (Unicorn issue 1355).

An interrupt is delivered where the guest waits, looks at a clock or reads `jiffies` (a page
of its memory is watched for that), if it lets itself be interrupted; nowhere else.

Long because runs, interrupts and going back are about one state, the emulator's: each of them
must know what the others leave in it.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import unicorn
from unicorn import unicorn_const as uc_const

from archs import Arch
from archs.levels.boot import Boot, Space, Start
from emulator import interrupts
from emulator.blocks import Blocks
from emulator.boards.access import PAGE
from emulator.boards.breaks import Break, Breaks
from emulator.boards.pieces import Pieces
from emulator.boards.rewinding import Rewinding
from emulator.budget import Budget, Counter
from emulator.clock import NSEC_PER_SEC, Clock
from emulator.compares import Compares
from emulator.fresh import Fresh, Taken
from emulator.governor import Governor
from emulator.hardware.part import Device, Wires
from emulator.hardware.parts import PARTS
from emulator.paging import Tables
from emulator.ram import Ram
from emulator.watchdog import WATCHDOG
from emulator.watching import Watching

EMULATOR: str = unicorn.__version__  # whose contexts these are
_READ_OF_JIFFIES = 8_000  # nanoseconds that pass with each: a busy wait ends soon
_TICK = NSEC_PER_SEC // 250  # waiting ends after this at the latest
_PATIENCE = 1000  # times that a guest may wait with interrupts masked
_ACCESS = {uc_const.UC_MEM_READ_UNMAPPED: "read", uc_const.UC_MEM_WRITE_UNMAPPED: "write"}


Named = Callable[[str], int]


class Halt(enum.Enum):
    """Why a run came to an end."""

    RETURNED = "it came to where it should"
    STOPPED = "somebody stopped it"
    STUCK = "it waits, and nothing will happen"
    EXPIRED = "its time is over"
    SPENT = "its instructions are spent"
    OFF = "it switched the computer off"
    BROKEN = "the emulator cannot go on"


class Board(Rewinding):
    """A computer.

    Parameters
    ----------
    arch
        What it is built like; it must have the level boot.
    memory
        Bytes of RAM.
    cpu
        The CPU's model, one of the level's; "" is the first.
    start
        Physical address of the RAM of a computer without hardware, whose CPU is the level's most
        able one where nobody says otherwise; None: as the level has it.
    """

    lasting: ClassVar[tuple[str, ...]]  # registers that outlast a call; see `kept`
    beyond: ClassVar[int] = 0  # bytes that the emulator adds to where an exception comes from
    undefined: ClassVar[int]  # the exception of an instruction that there is none of
    requests: ClassVar[tuple[int, ...]] = ()  # exceptions by which a kernel asks for something

    def __init__(self, arch: Arch, memory: int, cpu: str = "", start: int | None = None) -> None:
        super().__init__(arch)
        self.boot: Boot = arch.boots
        self.bare = start is not None
        self.cpu = cpu or (self.boot.able if self.bare else self.boot.models[0])
        self.model = self.boot.model(self.cpu)  # by the emulator's name
        emulation = arch.runs.emulation
        self.wires = Wires()
        self.clock: Clock = self.wires.clock
        self.ram = Ram(self.boot.ram if start is None else start, memory)
        # The last exception's number, where it was, and of a page fault which address.
        self.excepted: tuple[int, int, int | None] = 0, 0, None
        self.former: tuple[int, int, int | None] = self.excepted  # the one before it
        self.devices: list[Device] = [PARTS[part.kind](self.wires) for part in self.boot.parts]
        self.sites: set[int] = set()
        self.breaks = Breaks(self, self.translate_anew)
        self._stop: Halt | None = None
        self._until = 0  # of the run under way
        self._budget = self._endless = Budget()  # of the run under way; where there is none
        self._counting = False  # whether code is translated so that its instructions are counted
        self._expired = False
        self._waited = 0  # times that it waited, and the interrupt could not come yet
        self._soon: Any = None  # the hook that ends the run for an interrupt
        self._soon_at = 0  # from which page on
        self._early = False  # whether that has ended it
        self._raised: BaseException | None = None
        self._fault: tuple[str, int] | None = None  # an access where nothing answers
        self.taken = False  # what the emulator calls an error was handed to the kernel
        self.uc = unicorn.Uc(
            getattr(uc_const, f"UC_ARCH_{emulation.prefix}"), getattr(uc_const, emulation.mode)
        )
        self._meter = Counter(self.uc)
        WATCHDOG.watch(self)
        interrupts.listen()
        self.uc.ctl_set_cpu_model(getattr(self._constants, self.model))
        self.memory = Pieces(self.uc, self.ram)
        self._connect()
        self.uc.hook_add(uc_const.UC_HOOK_INTR, self._guarded(self._exception))
        self._watch_outside()
        self.leavers: list[Callable[[int], object]] = []  # told where blocks are left
        self._executing = False  # whether the emulator runs, so that code is under way
        self.watching = Watching(
            self.uc,
            pc=lambda: self.pc,
            translate=self.translate,
            anew=self.forget_code,
            runs=lambda: self._executing,
            fail=self.fail,
            quiet=lambda: False,
            clears=emulation.clears,
            constants=self._constants,
        )

    # What each architecture does ----------------------------------------------------------------

    @abc.abstractmethod
    def reset(self, start: Start, /) -> None:
        """Set the registers that a boot loader leaves."""

    @abc.abstractmethod
    def stand(self, tables: Tables, named: Named, percpu: int, /) -> None:
        """Let the CPU be in a kernel that is in the memory already: in none of its functions.

        Parameters
        ----------
        tables
            The page tables to use.
        named
            Returns the address of one of its symbols, or 0.
        percpu
            The offset of the CPU's per-cpu variables.
        """

    @abc.abstractmethod
    def faulted(self, number: int) -> int | None:
        """Return the address of a page fault that the emulator reports; None for another exception."""

    @abc.abstractmethod
    def exception(self, number: int) -> None:
        """Let the kernel's vector have an exception that the emulator reports."""

    @abc.abstractmethod
    def bus_error(self, kind: str, physical: int, /) -> None:
        """Let the kernel have a `read` or `write` of a place where nothing answers."""

    @abc.abstractmethod
    def deadline(self) -> int | None:
        """Return the guest time at which the timer fires next; None: it is not set."""

    @abc.abstractmethod
    def interruptible(self) -> bool:
        """Return whether the CPU takes interrupts now."""

    @abc.abstractmethod
    def interrupt(self) -> None:
        """Let the timer's interrupt come."""

    @abc.abstractmethod
    def waiting(self, pc: int) -> int | None:
        """Return where to go on if the CPU waits for an interrupt; None if it does not."""

    def clock_reads(self, _code: bytes, /) -> Sequence[int]:
        """Return where in code clocks are read, and nothing else tells that they are."""
        return ()

    def watch_site(self, address: int) -> None:
        """Answer the instruction at such a place."""
        raise NotImplementedError

    def finish(self) -> bool:
        """Do what the emulator left when it ended; return whether there was anything to do."""
        return False

    def watch_clocks(self, code: bytes, address: int) -> None:
        """Answer the clock reads that stand in code at an address."""
        for offset in self.clock_reads(code):
            self._watch_sites((address + offset,))

    def _watch_sites(self, addresses: Iterable[int]) -> None:
        for address in addresses:
            if address not in self.sites:
                self.sites.add(address)
                self.watch_site(address)

    # Starting -----------------------------------------------------------------------------------

    def load(self, start: Start) -> None:
        """Put into memory and registers what a boot loader does."""
        for physical, data in start.contents.items():
            self.ram.write(physical, data)
        self.reset(start)
        for name, value in start.registers.items():
            self.set(name, value)
        self.pc = start.entry

    def expect_code(self, physical: int, size: int) -> None:
        """Let code be executed at physical addresses, before it is met there.

        Each stop where it is met lets the emulator look at the address that a run goes until, and
        on x86 count it as the guest's page fault if that is not mapped yet.
        """
        for at in range(physical & -PAGE, physical + size, PAGE):
            self.memory.execute(at, lambda same: same)  # whole pieces

    def watch_jiffies(self, physical: int) -> None:
        """Let time pass with each read of the word of 8 bytes at a physical address.

        Its page answers as hardware does, out of the same memory.
        """
        page = physical & -PAGE
        jiffies = range(physical - page, physical - page + 8)
        base, ram = page - self.ram.start, self.ram

        def read(_uc: unicorn.Uc, offset: int, size: int, _data: object) -> int:
            if offset in jiffies:
                self.clock.now += _READ_OF_JIFFIES
                self._look()
            at = base + offset
            return int.from_bytes(ram.view[at : at + size], "little")

        def write(_uc: unicorn.Uc, offset: int, size: int, value: int, _data: object) -> None:
            at = base + offset
            ram.view[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

        self.memory.leave_out(page, PAGE)
        self.uc.mmio_map(page, PAGE, read, None, write, None)

    def watch_idle(self, start: int, end: int) -> None:
        """Let interrupts also come in the blocks of [start, end): code that waits with them masked.

        Some kernels wait so, and unmask them behind the waiting instruction.
        """
        self.uc.hook_add(uc_const.UC_HOOK_BLOCK, self._idle_block, None, start, end - 1)

    def _idle_block(self, uc: unicorn.Uc, _address: int, _size: int, _data: object) -> None:
        if self._waited and self._due():
            uc.emu_stop()

    # Running ------------------------------------------------------------------------------------

    def run(
        self, until: int, *, seconds: float | None = None, budget: Budget | None = None
    ) -> Halt:
        """Execute from the program counter until it gets to `until`, or say why it did not.

        Parameters
        ----------
        until
            An address in executable memory at which no instruction is ever executed.
        seconds
            Time of the host that it may take; afterwards the computer can only go back.
        budget
            Time and instructions, likewise; counting them makes it ten times as slow.
        """
        outer = self._budget
        if seconds is not None:
            budget = Budget.of(None, seconds)
        if budget is not None:
            self._budget = budget
        try:
            if self._due():  # what became due while nobody ran
                self._touched = True
                self.interrupt()
            while True:
                halt = self._slice(until)
                if halt is not None:
                    self._stop = None  # a run around this one goes on
                    return halt
        finally:
            with WATCHDOG.stopping:
                self._budget = outer
                self._expired &= outer is not self._endless  # a run around it is stopped with it

    def expire(self) -> None:
        """End a run whose time is over, wherever it is: from any thread.

        That loses the program counter, so afterwards the computer can only go back.
        """
        with WATCHDOG.stopping:
            if self._budget.late and self.governor is None:
                self._expired = True
                self.uc.emu_stop()

    def stop(self) -> None:
        """End the run under way, from a hook: it returns `Halt.STOPPED`."""
        self._stop = Halt.STOPPED
        self.uc.emu_stop()

    def stop_here(self) -> None:
        """Let a breakpoint that has this as its handler end the run."""
        self._stop = Halt.STOPPED

    def run_below(self, address: int, until: int, *, seconds: float | None = None) -> Halt:
        """Execute as `run` does, up to the first block at an address or above, at the most."""

        def met(_uc: unicorn.Uc, _address: int, _size: int, _data: object) -> None:
            self.stop()

        hook = self.uc.hook_add(uc_const.UC_HOOK_BLOCK, met, None, address, (1 << 64) - 1)
        try:
            return self.run(until, seconds=seconds)
        finally:
            self.uc.hook_del(hook)
            self.forget_code()

    def off_here(self) -> None:
        """Let a breakpoint that has this as its handler switch the computer off."""
        self._stop = Halt.OFF
        self.broken = "it was switched off"

    def switch_off(self) -> None:
        """End the run under way, from a hook: it returns `Halt.OFF`."""
        self._stop = Halt.OFF
        self.broken = "it was switched off"
        self.uc.emu_stop()

    def _slice(self, until: int) -> Halt | None:
        self._stop = self.breaks.at = None
        self._until = until
        self._early = False
        count = self._count(until)
        if count < 0:
            return self._spent()
        governor = self.governor
        if governor is not None:
            count = self._allowed(governor, count)
            if self._budget.late and not governor.replays:
                return self._late()
        pc, self._armed = self.pc, count
        if pc == until:  # somebody has sent it there
            return Halt.RETURNED
        self._executing = True
        try:
            interrupts.start(self.uc, pc, until, count=count)
        except unicorn.UcError as error:
            self._reraise()
            self.left(self.pc)
            if error.errno == uc_const.UC_ERR_FETCH_PROT and self._execute():
                self._not_soon()
                return None
            taken, self.taken = self.taken, False
            fault, self._fault = self._fault, None
            if fault is not None:
                self.bus_error(*fault)
            elif not taken:
                self.broken = f"{error} at {self.pc:#x}"
                self._not_soon()
                return Halt.BROKEN
        finally:
            self._executing = False
            executed = self._meter.read(count + 1) if count else 0
            self.take(min(executed, self._armed))
        self.left(self.pc)
        over = executed > self._armed and self.pc != until
        if governor is not None and self._raised is None:
            ours = over or self._looked(governor)
            if ours and not self._early and self._stop is None:
                return None
        self._not_soon()
        self._reraise()
        if over and governor is None:
            return self._spent()
        if self._expired:
            self._expired = False
            return self._late()
        if self.finish():
            return None
        pc = self.pc
        at = self.breaks.at
        if pc == until and at is None and self._stop is None:
            return Halt.RETURNED
        if at is not None:
            to = self.breaks.tell(at)
            if to is not None and governor is not None:
                self.take(1)  # something was done in place of what stands there
            self.pc = at if to is None else to
            if self._stop is not None:
                return self._stop
            if to == until:
                return Halt.RETURNED
            if to is None:
                self.breaks.go_on(at)
        elif self._stop is not None:
            return self._stop
        if self._due():
            self._waited = 0
            self._touched = True
            self.interrupt()
            return None
        if at is None:
            after = None if self._early else self.waiting(pc)
            if after is not None:
                self.pc = after
                return self._wait()
        return None  # a clock was looked at, and what was due cannot come yet

    def _allowed(self, governor: Governor, left: int) -> int:
        """Return how many instructions may follow, of those that are left; 0 left: any."""
        before = self.pc
        most = governor.allow(self)
        if self.pc != before:
            self.breaks.forget()
        return min(most, left) if left else most

    def _not_soon(self) -> None:
        if self._soon is not None:
            self.uc.hook_del(self._soon)
            self._soon = None

    def _late(self) -> Halt:
        self.broken = "it was stopped somewhere when its time was over"
        return Halt.EXPIRED

    def _count(self, until: int) -> int:
        """Return how many instructions are left, 0 for any, and less for none."""
        left = self._budget.left
        if self._counting is not (left is not None or self.governor is not None):
            self._counting = not self._counting
            if self._counting and not self._meter.found:
                pc = self.pc
                self._meter.find(until)
                self.pc = pc
            self.uc.ctl_flush_tb()
        return 0 if left is None else left if left > 0 else -1

    def _spent(self) -> Halt:
        """Stop for good where the emulator has stopped counting: in the middle of a block."""
        self.broken = f"it was stopped somewhere after {self._budget.instructions} instructions"
        return Halt.SPENT

    def _execute(self) -> bool:
        """Let code be executed where the emulator has just refused to; False: it may be."""
        pc = self.pc
        # Code may go on in the next page.
        return any(
            self.memory.execute(address, self.translate) for address in (pc, (pc | PAGE - 1) + 1)
        )

    def _wait(self) -> Halt | None:
        deadline = self.deadline()
        self.clock.advance(self.clock.now + _TICK if deadline is None else deadline)
        if self._due():
            self._waited = 0
            self._touched = True
            self.interrupt()
            return None
        self._waited += 1
        return Halt.STUCK if deadline is None or self._waited > _PATIENCE else None

    def _due(self) -> bool:
        deadline = self.deadline()
        return deadline is not None and self.clock.now >= deadline and self.interruptible()

    def _look(self) -> None:
        """Let what is due come, now that the guest has looked at a clock: from a hook.

        A run that a hook ends inside of a block loses the program counter, so it ends with the
        next block of the same page: that of a loop, if it waits in one. Or of the page behind,
        as a block may reach into that and then be told by its beginning.
        """
        if self._due() and self._soon is None:
            self._soon_from(self.pc & -PAGE)

    def _soon_from(self, start: int) -> None:
        """End the run with the next block of two pages."""
        if self._soon is None:
            self._soon_at, end = start, start + 2 * PAGE
            self._soon = self.uc.hook_add(uc_const.UC_HOOK_BLOCK, self._now, None, start, end - 1)
            self.translate_anew(start, end)

    def _now(self, uc: unicorn.Uc, _address: int, _size: int, _data: object) -> None:
        """End the run at a block that begins: only there the program counter is right."""
        self._early = True
        uc.emu_stop()

    def _reraise(self) -> None:
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised

    def _guarded(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return a hook whose exceptions end the run and come out of it."""

        def hook(*args: Any) -> Any:
            self._touched = True
            try:
                return work(*args)
            except BaseException as error:  # noqa: BLE001 -- raised again by _reraise
                self.fail(error)
                return False

        return hook

    # Hooks --------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Let the parts answer at physical addresses."""
        self.wires.on_off = self.switch_off
        for part, device in zip(self.boot.parts, self.devices, strict=True):
            if part.space is not Space.MEMORY or self.bare:
                continue
            self.uc.mmio_map(
                part.start,
                part.size,
                self._guarded(partial(_read, device)),
                None,
                self._guarded(partial(self._write, device)),
                None,
            )

    def _write(
        self, device: Device, _uc: unicorn.Uc, offset: int, size: int, value: int, _data: object
    ) -> None:
        device.write(offset, size, value)
        if self.wires.pending:  # the CPU may have sent itself something
            self._look()

    def _watch_outside(self) -> None:
        """Tell of accesses to addresses where there is no memory.

        Were memory among them, each store would take ten times as long (emulator.boards.pieces).
        """
        told = self._guarded(self._nothing_there)
        end = self.ram.start + self.ram.size
        for first, last in ((0, self.ram.start - 1), (end, (1 << 64) - 1)):
            if first <= last:
                self.uc.hook_add(uc_const.UC_HOOK_MEM_UNMAPPED, told, None, first, last)

    def _exception(self, _uc: unicorn.Uc, number: int, _data: object) -> None:
        self.raised(self.pc - self.beyond)
        if self.bare and number not in self.requests:
            at = self.faulted(number)
            beyond = self.arch.runs.emulation.exceptions.beyond.get(number, 0)
            self.former, self.excepted = self.excepted, (number, self.pc - beyond, at)
            if at is not None and self.lacking is not None:
                self.lacking(at)
        self.exception(number)
        self.left(self.pc)  # where it has not gone to a vector

    def _nothing_there(
        self, _uc: unicorn.Uc, access: int, physical: int, _size: int, _value: int, _data: object
    ) -> bool:
        # The kernel gets it when the run has ended: only then the registers are as before it.
        self._fault = _ACCESS.get(access, "fetch"), physical
        return False

    def note_blocks(self, without: range = range(0)) -> Blocks:
        """Note which blocks are executed from now on but in a range, until the result's `stop`.

        RuntimeError in the middle of a run, whose code would not tell.
        """
        if self._executing:
            raise RuntimeError("code that runs would not tell of blocks")
        return Blocks(self.uc, self.forget_code, self._code, self.leavers, without)

    def note_fresh(self, spans: Iterable[tuple[int, int]]) -> Fresh:
        """Note which blocks are executed for the first time from now on."""
        found = Fresh(self.uc, spans)
        self.forget_code()
        return found

    def count_edges(self, spans: Iterable[tuple[int, int]]) -> Taken:
        """Count the edges between blocks from now on, exactly; `forget_code` when it stops."""
        found = Taken(self.uc, spans)
        self.forget_code()
        return found

    def note_compares(
        self, spans: Iterable[tuple[int, int]], functions: Mapping[int, str] | None = None
    ) -> Compares:
        """Note the values that code compares from now on; `functions` as of `Compares`."""
        return Compares(self.uc, self.arch, spans, self._code, self.forget_code, functions)

    def _code(self, address: int, size: int) -> bytes:
        try:
            return self.read(address, size)
        except LookupError:
            return b""

    def left(self, at: int) -> None:
        """Note that the block under way was left: everything in it before an address was executed."""
        for tell in self.leavers:
            tell(at)

    # Breakpoints ----------------------------------------------------------------------------------

    def break_at(
        self,
        address: int,
        handler: Callable[[], int | None],
        *,
        inside: bool = False,
        order: int = 0,
        outside: str = "",
    ) -> Break:
        """Call `handler` before each execution of the instruction at an address.

        It returns where to go on, or None for: right there. Several may wait for an address; the
        first that knows where to go on is the last one that is called.

        Parameters
        ----------
        inside
            The handler looks at registers and memory or sets them, no more: it is called while
            the emulator runs, which takes a few microseconds and not 20. Others may run guest code of their own.
        order
            Lower ones are called first.
        outside
            What the handler changes or tells outside of the guest, in words; empty: nothing.
        """
        return self.breaks.add(address, Break(handler, inside, order, outside=outside))

    def no_break_at(self, address: int, made: Break | None = None) -> None:
        """Take a breakpoint away, or all that wait for an address; nothing where there is none."""
        self.breaks.remove(address, made)

    def ends(self) -> bool:
        """Return whether the run is to end."""
        return self._stop is not None

    def go_to(self, address: int) -> None:
        """Let the emulator go on at an address, from a hook: it ends the block."""
        self.pc = address

    @property
    def failing(self) -> bool:
        """Whether the run under way ends with an exception."""
        return self._raised is not None

    def fail(self, error: BaseException) -> None:
        """Let the run end, from a hook, and raise an exception."""
        self._raised = error
        self.uc.emu_stop()


def _read(device: Device, _uc: unicorn.Uc, offset: int, size: int, _data: object) -> int:
    return device.read(offset, size)

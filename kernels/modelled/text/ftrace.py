# SPDX-License-Identifier: GPL-2.0-or-later
"""Function tracing: the call site at a function's entry, pointed at a trampoline.

A trampoline comes from execmem (consumer ftrace) and is real code: it calls into the kernel,
where Python looks on, and goes on into the function with every register as it was. To see
the return, the return address is replaced by the way into a second trampoline, and the true
one kept on the task's shadow stack, as the function graph tracer does. Replacing a function (as live
patching does) needs no callback: its trampoline goes elsewhere.

Durations are instructions of the guest from behind the call site to the return, without those
of the tracer. A run that stops on the way leaves frames on the shadow stack; the stack pointer
tells that they are dead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from fnmatch import fnmatchcase
from functools import partial

import attrs

from allocator import Allocation
from allocator.types import ADDRESS_MASK, Consumer, Interval
from archs import Arch
from archs.text import Ftrace as Encoding
from archs.text import OnStack, Register
from emulator.cpu import Cpu
from emulator.faults import Fault, FaultKind
from kernels.modelled.image import SLOT
from kernels.modelled.services import Services
from kernels.modelled.text.patches import Claim, Patches, Running
from kernels.tracing import (
    LIMIT,
    CallTrace,
    OnCall,
    PatchRefused,
    TracedCall,
    TraceSite,
    UntilStopped,
)
from loader.loaded import LoadedModule

REACH = 32  # bytes in which an entry of the table has its site
STUBS = ("ftrace_enter", "ftrace_exit")  # kernel functions that trampolines call


@attrs.define(eq=False)
class _Frame:
    """A traced call that has not returned: where its return address was, and what it was."""

    trace: Trace
    call: TracedCall | None
    place: int
    parent: int
    began: int


class Trace(CallTrace):
    """Functions being traced, until `stop`; a context manager. Made by `Machine.trace`."""

    def __init__(
        self,
        ftrace: Tracer,
        sites: dict[int, TraceSite],
        *,
        limit: int,
        on_entry: OnCall | None,
        on_exit: OnCall | None,
    ) -> None:
        super().__init__(sites, limit=limit, on_entry=on_entry, on_exit=on_exit)
        self._ftrace = ftrace
        self.patches: list[Claim] = []

    def stop(self) -> None:
        """Trace no more: every byte is as it was before."""
        self._ftrace.stop(self)


class Tracer:
    """The tracer of one machine.

    Parameters
    ----------
    arch, encoding
        The architecture, and its call sites.
    patches
        Where trampolines come from, and how sites are changed.
    kernel
        Whose CPUs' registers are looked at, and whose stubs trampolines call.
    running
        Yields the CPUs that are in a call.
    """

    def __init__(
        self,
        arch: Arch,
        encoding: Encoding,
        patches: Patches,
        kernel: Services,
        running: Running,
    ) -> None:
        self._calling = arch.runs.calling
        self._plt = arch.plt
        self._encoding = encoding
        self._patches = patches
        self._kernel = kernel
        self._running = running
        self._active: dict[int, Trace] = {}  # by the end of the site
        self._stacks: dict[int, list[_Frame]] = {}  # by task
        self._trampolines: Allocation | None = None
        self._retired: list[Allocation] = []
        self._exits: list[int] = []  # of all trampolines there are, the latest last
        self._own: set[int] = set()  # addresses of instructions that are the tracer's
        self._uncount = ExitStack()  # ends the counting, where there is something to end
        self._counting = False
        self._clocks = [0] * len(kernel.cpus)

    # Sites -----------------------------------------------------------------------------------

    def sites(self, module: LoadedModule, near: int | None = None) -> Iterator[TraceSite]:
        """Yield where functions of a module can be traced, as far as it is in memory.

        `near` leaves out those that do not reach to an address.
        """
        stub = self._encoding.stub
        address_of_stub = None if stub is None else self._kernel.address(stub)
        for section in module.sections.values():
            if section.name != self._encoding.table:
                continue
            table = self._patches.read(section.address, section.size)
            for at in range(0, section.size - 7, 8):
                entry = int.from_bytes(table[at : at + 8], "little")
                if near is not None and not entry <= near < entry + REACH:
                    continue
                region = module.region_at(entry)
                if region is None or entry + 16 > region.interval.end:
                    continue
                address = self._encoding.locate(entry, self._patches.read(entry, 16))
                found = None if address is None else module.symbol_at(address)
                if address is None or found is None:
                    continue
                code = self._patches.original(address, self._encoding.size)
                if self._encoding.idle(address, code, address_of_stub):
                    yield TraceSite(module.name, found[0], address - found[1], address)

    def inside(self, module: LoadedModule, address: int) -> bool:
        """Return whether an address lies in a site, behind its beginning."""
        return any(
            site.address < address < site.address + self._encoding.size
            for site in self.sites(module, address)
        )

    def matching(self, module: LoadedModule, pattern: str) -> list[TraceSite]:
        """Return the sites of functions whose name matches a pattern; PatchRefused without any."""
        sites = list(self.sites(module))
        found = [site for site in sites if fnmatchcase(site.function, pattern)]
        if not found:
            names = sorted(site.function for site in sites)
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            reason = f"no function matches {pattern!r}"
            if pattern in module.symbols:
                reason = "it has no call site for the tracer at its entry"
            hint = f"those that can be traced: {some}" if names else ""
            if not names:
                reason = "the module was built without call sites for the tracer"
            where = f"{module.name}:{pattern}"
            raise PatchRefused("trace", module.symbols.get(pattern, 0), where, reason, hint)
        return found

    # Tracing ---------------------------------------------------------------------------------

    def start(
        self,
        sites: Iterable[tuple[LoadedModule, TraceSite]],
        *,
        limit: int = LIMIT,
        on_entry: OnCall | None = None,
        on_exit: OnCall | None = None,
    ) -> Trace:
        """Trace functions until `Trace.stop`.

        Parameters
        ----------
        limit
            Calls to keep; further ones are counted only.
        on_entry, on_exit
            Called with each call; registers may be looked at through the CPU.

        Raises
        ------
        PatchRefused
            Somebody else holds a site, or the trampoline is out of its reach.
        """
        self._reap()
        wanted = {site.address: (module, site) for module, site in sites}
        trampolines = self._trampolines or self._make()
        enter = trampolines.address
        try:
            chosen = {at: site for at, (_, site) in wanted.items()}
            trace = Trace(self, chosen, limit=limit, on_entry=on_entry, on_exit=on_exit)
            trace.patches = self._point(
                "trace", ((module, site, enter) for module, site in wanted.values())
            )
        except BaseException:
            self._drop_unused()
            raise
        for at in wanted:
            self._active[at + self._encoding.size] = trace
        if not self._counting:
            self._counting = True
            for cpu in self._kernel.cpus:
                self._uncount.callback(cpu.each_instruction(partial(self._tick, cpu.number)))
        return trace

    def stop(self, trace: Trace) -> None:
        """Take a trace's changes back; a second time does nothing."""
        if not trace.patches:
            return
        self._patches.release(trace.patches)
        trace.patches = []
        self._active = {at: other for at, other in self._active.items() if other is not trace}
        self._drop_unused()
        self._reap()

    def _drop_unused(self) -> None:
        if self._active:
            return
        self._uncount.close()
        self._counting = False
        if self._trampolines is not None:
            # Calls under way still return through it.
            self._retired.append(self._trampolines)
            self._trampolines = None
        self._reap()

    def _reap(self) -> None:
        if any(self._running()):
            return
        for task in self._kernel.boot_tasks:
            self._stacks.pop(task, None)
        # What is left belongs to threads that wait, and will return some day.
        if not any(self._stacks.values()):
            for allocation in self._retired:
                self._patches.drop(allocation)
            self._retired.clear()
            if self._trampolines is None:
                self._own.clear()
                self._exits.clear()

    def _make(self) -> Allocation:
        """Make the two trampolines."""
        stubs = [self._kernel.address(name) for name in STUBS]
        size = self._encoding.code_size
        makers = (self._encoding.enter, self._encoding.exit)
        self._trampolines = self._code(list(zip(makers, stubs, strict=True)))
        start = self._trampolines.address
        for first, room in ((start, 2 * size), *((stub, SLOT) for stub in stubs)):
            self._own.update(range(first, first + room))
        self._exits.append(start + size)
        return self._trampolines

    def _code(self, wanted: list[tuple[Callable[[int, int], bytes], int]]) -> Allocation:
        """Return trampolines one behind the other: what makes each, and where it leads."""
        size = self._encoding.code_size

        def parts(start: int) -> Iterator[tuple[int, bytes]]:
            for index, (make, target) in enumerate(wanted):
                yield index * size, make(start + index * size, target)

        return self._patches.make(Consumer.FTRACE, size * len(wanted), 8, parts)

    def _point(
        self, what: str, wanted: Iterable[tuple[LoadedModule, TraceSite, int]]
    ) -> list[Claim]:
        """Make sites call trampolines, through the module's PLT slot where they must."""
        changes: dict[int, bytes] = {}
        for module, site, target in wanted:
            call = self._encoding.call(site.address, target)
            slot = None if call is not None else self._plt_slot(module, site.address)
            if slot is not None and self._plt is not None:
                entry = self._plt.encode(slot, target)
                if changes.setdefault(slot, entry) == entry:
                    call = self._encoding.call(site.address, slot)
            if call is None:
                reason = f"its trampoline at {target:#x} is out of reach"
                raise PatchRefused(what, site.address, self._patches.where(site.address), reason)
            changes[site.address] = call
        return self._patches.claim(what, "a tracer", changes.items())

    def _plt_slot(self, module: LoadedModule, address: int) -> int | None:
        region = module.region_at(address)
        for section in module.sections.values():
            near = section.size and module.region_at(section.address) is region
            if near and section.name in self._encoding.plt_sections:
                return section.address
        return None

    # What the trampolines call ---------------------------------------------------------------

    def _tick(self, number: int, address: int) -> None:
        if address not in self._own:
            self._clocks[number] += 1

    def begin(self) -> None:
        """Forget the calls of the task that now begins anew: a run that stopped left them."""
        if self._stacks:
            self._stacks.pop(self._kernel.current, None)

    def _frames(self) -> list[_Frame]:
        return self._stacks.setdefault(self._kernel.current, [])

    @property
    def _cpu(self) -> Cpu:
        return self._kernel.cpu

    def _place(self, place: Register | OnStack) -> int:
        assert isinstance(place, OnStack)
        return self._cpu.read(self._calling.stack_pointer) + place.offset & ADDRESS_MASK

    def _get(self, place: Register | OnStack) -> int:
        if isinstance(place, Register):
            return self._cpu.read(place.name) & ADDRESS_MASK
        return self._kernel.word(self._place(place))

    def _put(self, place: Register | OnStack, value: int) -> None:
        if isinstance(place, Register):
            self._cpu.write(place.name, value)
        else:
            self._kernel.store(self._place(place), value)

    def _frame_of(self, place: Register | OnStack) -> int:
        """Return what tells a call from others: where its return address is, or was, on the stack."""
        if isinstance(place, OnStack):
            return self._place(place)
        return self._cpu.read(self._calling.stack_pointer) & ADDRESS_MASK

    def entered(self) -> None:
        """Note a call and see to it that its return comes by."""
        trace = self._active.get(self._get(self._encoding.site_end))
        if trace is None:
            return  # stopped by its own handler
        site = trace.sites[self._get(self._encoding.site_end) - self._encoding.size]
        place, parent = self._frame_of(self._encoding.parent), self._get(self._encoding.parent)
        frames, tail = self._frames(), parent in self._exits
        # Frames below this one are of calls that never returned; one at the same place is
        # alive only if it called this function as the last thing it did.
        while frames and (frames[-1].place < place or (frames[-1].place == place and not tail)):
            frames.pop()
        call = None
        if trace.recorded < trace.limit:
            registers = tuple(self._cpu.read(r) & ADDRESS_MASK for r in self._calling.arguments)
            origin = frames[-1].parent if tail and frames else parent
            call = TracedCall(site, registers, origin)
            above = next((f.call for f in reversed(frames) if f.trace is trace), None)
            (trace.calls if above is None else above.children).append(call)
            trace.recorded += 1
        else:
            trace.dropped += 1
        frames.append(_Frame(trace, call, place, parent, self._clocks[self._cpu.number]))
        self._put(self._encoding.parent, self._exits[-1])
        if call is not None and trace.on_entry is not None:
            trace.on_entry(call)

    def left(self) -> None:
        """Note a return, and give the true return address back."""
        place = self._frame_of(self._encoding.returns_to)
        frames = self._frames()
        while frames and frames[-1].place < place:
            frames.pop()
        if not frames or frames[-1].place != place:
            pc = self._cpu.read(self._calling.program_counter)
            raise Fault(FaultKind.PANIC, pc, "ftrace_exit", reason="a return that nobody called")
        frame = frames.pop()
        self._put(self._encoding.returns_to, frame.parent)
        if frame.call is not None:
            frame.call.result = self._cpu.read(self._calling.result) & ADDRESS_MASK
            frame.call.instructions = self._clocks[self._cpu.number] - frame.began
            if frame.trace.on_exit is not None:
                frame.trace.on_exit(frame.call)

    # Replacing ---------------------------------------------------------------------------------

    def replace(self, functions: Iterable[tuple[LoadedModule, TraceSite, int]]) -> Replacement:
        """Let calls of functions go to others (addresses) until `Replacement.stop`.

        PatchRefused where somebody holds a site, or its trampoline is out of reach.
        """
        functions = list(functions)
        trampolines = self._code([(self._encoding.redirect, to) for _, _, to in functions])
        try:
            patches = self._point(
                "replace",
                (
                    (module, site, trampolines.address + index * self._encoding.code_size)
                    for index, (module, site, _) in enumerate(functions)
                ),
            )
        except BaseException:
            self._patches.drop(trampolines)
            raise
        return Replacement(self._patches, patches, trampolines)


class Replacement(UntilStopped):
    """Functions that are replaced, until `stop`; a context manager. Made by `Machine.replace`."""

    def __init__(self, patches: Patches, held: list[Claim], trampolines: Allocation) -> None:
        self._patches = patches
        self._made = trampolines
        self._held = held
        self._users: list[tuple[LoadedModule, str]] = []
        self.trampolines: Interval = trampolines.interval

    def hold(self, module: LoadedModule, user: str) -> None:
        """Keep a module that others are led to from being unloaded until `stop`."""
        module.users.add(user)
        self._users.append((module, user))

    def stop(self) -> None:
        """Let the functions be themselves again: every byte is as it was before."""
        if self._held:
            self._patches.release(self._held)
            self._held = []
            self._patches.drop(self._made)
            for module, user in self._users:
                module.users.discard(user)

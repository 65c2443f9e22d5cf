# SPDX-License-Identifier: GPL-2.0-or-later
"""Live patching: another CPU arrives at every phase and does the old thing or the new one.

What the new instruction does is known from running it; what its emulation does must be that.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator import PokeError, Site
from emulator.faults import BadCall, Fault, FaultKind
from machine.face import Machine
from machine.patching import LivePatchError, Phase, Way
from tests.archs.facts import facts
from tests.machine.snippets import code, put, snippet

OLD, CALLED, JUMPED = (1, 0), (1, 1), (2, 1)  # the result of "site", and how often 1: ran


class Place:
    """The snippet "site" in a machine of several CPUs; its NOP is what gets patched."""

    def __init__(self, arch, cpus=2):
        if arch.live_patch is None:
            pytest.skip(f"{arch.name} does not patch live")
        self.machine = Machine(arch, cpus=cpus)
        self.function = snippet(self.machine, "site")
        self.address = self.function + facts(arch).patch.site
        self.call, self.hop = code(arch, "call"), code(arch, "hop")
        self.nop = self.machine.read(self.address, len(self.call))
        self.cell = self.machine.alloc(8)

    def visit(self, cpu=1):
        """Call the function on a CPU; return its result and how often the tail ran."""
        self.machine.write(self.cell, bytes(8))
        result = self.machine.call(self.function, self.cell, cpu=cpu, instructions=1000)
        return result, self.machine.kernel.word(self.cell)

    def arrive(self):
        """Start a call on CPU 1 and let it go up to the site."""
        self.machine.write(self.cell, bytes(8))
        thread = self.machine.start(self.function, self.cell, cpu=1)
        while thread.pc != self.address:
            thread.step()
        return thread

    def finish(self, thread):
        """Let a call go on to its end; return as `visit`."""
        return thread.finish(instructions=1000), self.machine.kernel.word(self.cell)


@pytest.fixture
def place(arch):
    """Return the place to patch, on each architecture."""
    return Place(arch)


@pytest.fixture(scope="module")
def where(arch):
    """Return one place for many patches."""
    return Place(arch, cpus=3)


def refused(patch, *args, **kwargs):
    """Return the text of the LivePatchError that a patch raises."""
    with pytest.raises(LivePatchError) as caught:
        patch(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("arrives", ["calls", "stands there"])
def test_another_cpu_arrives_at_every_phase(place, arrives):
    """From the first phase on CPU 1 does the new thing, whether it ran the old one or waits there."""
    machine, live = place.machine, place.machine.arch.live_patch
    assert place.visit(0) == place.visit() == OLD
    for old, new, before, after in (
        (place.nop, place.call, OLD, CALLED),
        (place.call, place.hop, CALLED, JUMPED),
        (place.hop, place.nop, JUMPED, OLD),
    ):
        seen = []
        waiting = [place.arrive()] if arrives != "calls" else []

        def meet(phase, seen=seen, waiting=waiting):
            if phase is Phase.STOPPED:
                with pytest.raises(BadCall, match="stop_machine"):
                    place.visit()
                seen.append((phase, None))
            elif arrives == "calls":
                seen.append((phase, place.visit()))
            else:
                seen.append((phase, place.finish(waiting.pop())))
                waiting.append(place.arrive())

        if arrives == "calls":
            assert place.visit() == before
        machine.patch(place.address, new, expected=old, on_phase=meet)
        if waiting:
            waiting.pop().cancel()
        phases = {
            True: [Phase.BREAKPOINT, Phase.TAIL, Phase.DONE],
            False: [Phase.DONE] if live.concurrent(old, new) else [Phase.STOPPED, Phase.DONE],
        }[live.breakpoint is not None]
        assert [phase for phase, _ in seen] == phases
        assert {done for _, done in seen} - {None} == {after}
        assert machine.read(place.address, len(new)) == new
        assert place.visit(0) == place.visit() == after
    assert machine.breakpoints == {}
    machine.check()


@settings(max_examples=25, deadline=None)
@given(turns=st.lists(st.tuples(st.sampled_from([1, 2]), st.integers(1, 9)), max_size=40))
def test_no_interleaving_shows_anything_but_old_and_new(where, turns):
    """CPUs that call the function again and again, wherever they stand at each phase."""
    for thread in list(where.machine.threads.values()):
        thread.cancel()
    where.machine.patch(where.address, where.nop)
    cells = {cpu: where.machine.alloc(8) for cpu in (1, 2)}
    threads, begun, seen = {}, {}, []
    left = list(turns)

    def turn(phase):
        for cpu, count in left[:10] if phase is not Phase.STOPPED else ():
            thread = threads.get(cpu)
            if thread is None or thread.done:
                where.machine.write(cells[cpu], bytes(8))
                threads[cpu] = where.machine.start(where.function, cells[cpu], cpu=cpu)
                begun[cpu] = phase
            if threads[cpu].step(count):
                result = threads[cpu].result, where.machine.kernel.word(cells[cpu])
                seen.append((begun[cpu], result))
        del left[:10]

    turn(None)
    where.machine.patch(where.address, where.hop, expected=where.nop, on_phase=turn)
    for cpu, thread in threads.items():
        if not thread.done:
            result = thread.finish(instructions=1000), where.machine.kernel.word(cells[cpu])
            seen.append((begun[cpu], result))
    assert {result for _, result in seen} <= {OLD, JUMPED}
    # Who began after the first write meets the new instruction only.
    late = {Phase.BREAKPOINT, Phase.TAIL, Phase.DONE}
    assert {result for phase, result in seen if phase in late} <= {JUMPED}


def test_the_conditions_are_the_cpus(arch):
    """A breakpoint for Jcc goes where the instruction itself goes, for all flags; both lengths."""
    raw = code(arch, "flags")
    machine = Machine(arch, cpus=2)
    flags = [
        sum(bit for n, bit in enumerate((1, 4, 64, 128, 2048)) if k >> n & 1) for k in range(32)
    ]
    for condition in range(16):
        va = put(machine, raw)
        for size, jump in (
            (6, bytes((0x0F, 0x80 | condition, 6, 0, 0, 0))),
            (2, bytes((0x70 | condition, 10))),
        ):
            if size == 2:
                machine.patch(va + 2, b"\x66\x90", way=Way.STOP_MACHINE)
                machine.patch(va + 4, bytes.fromhex("0f1f4000"), way=Way.STOP_MACHINE)
            seen = {}

            def meet(phase, va=va, seen=seen):
                seen[phase] = [machine.call(va, word, cpu=1) for word in flags]

            machine.patch(va + 2, jump, on_phase=meet)
            # The last phase is the instruction itself.
            assert seen[Phase.BREAKPOINT] == seen[Phase.TAIL] == seen[Phase.DONE]
            assert set(seen[Phase.DONE]) == {1, 2}


def test_a_return_is_emulated(arch):
    """RET in the place of a NOP, filled up with INT3, returns from the first phase on."""
    code(arch, "flags")  # an architecture with that protocol
    machine = Machine(arch, cpus=2)
    va = put(machine, bytes.fromhex("b8070000000f1f440000b801000000c3"))
    seen = []
    new = bytes.fromhex("c3cccccccc")
    machine.patch(va + 5, new, on_phase=lambda _phase: seen.append(machine.call(va, cpu=1)))
    assert seen == [7, 7, 7]
    machine.patch(va + 5, bytes.fromhex("0f1f440000"), expected=new)
    assert machine.call(va, cpu=1) == 1


# What is not safe ------------------------------------------------------------------------------


def test_a_shortcut_is_refused_and_torn_when_forced(place):
    """Where a store may be met half done, nosync is refused by name; forced, CPU 1 meets the half."""
    machine, live = place.machine, place.machine.arch.live_patch
    granule = machine.arch.text_poke.granule
    if granule == len(place.nop):
        assert live.concurrent(place.nop, place.call)  # whole, and of the class that allows it
        pytest.skip(f"{machine.arch.name} stores an instruction at once")
    message = refused(machine.patch, place.address, place.call, way=Way.NOSYNC)
    assert live.rule in message
    assert f"{place.address:#x}" in message
    assert machine.read(place.address, len(place.nop)) == place.nop
    met = []

    def meet(phase):
        try:
            met.append(place.visit())
        except Fault as fault:
            met.append(fault.kind)

    machine.patch(place.address, place.call, way=Way.NOSYNC, force=True, on_phase=meet)
    assert len(met) == len(place.call) // granule + 1
    assert met[-1] == CALLED
    assert set(met) - {OLD, CALLED}  # an instruction that neither code has
    assert met[0] in (FaultKind.TRAP, FaultKind.FETCH, FaultKind.INSTRUCTION_LIMIT)


@pytest.mark.parametrize("way", Way)
def test_a_sequence_is_torn_by_whoever_stands_in_it(arch, way):
    """No way but to refuse: a CPU between two instructions would mix the old with the new."""
    machine = Machine(arch, cpus=2)
    va, new = snippet(machine, "pair"), code(arch, "other")
    old = machine.call(va, cpu=1)
    thread = machine.start(va, cpu=1)
    thread.step()
    assert va < thread.pc < va + len(new)
    assert "CPU 1 stands at" in refused(machine.patch, va, new, way=way)
    assert machine.call(va) == old
    if way is Way.BREAKPOINT:
        thread.cancel()
        message = refused(machine.patch, va, new, way=way)
        assert "no such protocol" in message or "can only emulate" in message
        return
    machine.patch(va, new, way=way, force=True)
    torn = thread.finish()
    assert machine.call(va, cpu=1) == 2 * old
    assert torn not in (old, 2 * old)


def test_one_instruction_for_one(arch):
    """A breakpoint over several instructions is refused: a CPU could stand between them."""
    raw = code(arch, "flags")
    machine = Machine(arch)
    va = put(machine, b"\x90" * 5 + raw)
    assert "the first has 1 bytes" in refused(machine.patch, va, bytes.fromhex("e900000000"))
    assert "can only emulate CALL, JMP" in refused(machine.patch, va + 7, bytes.fromhex("0f1f4000"))
    assert machine.read(va, 5) == b"\x90" * 5


def test_a_failed_patch_leaves_everything(place):
    """Wrong expectation, freed memory, an error at a phase: old bytes, no breakpoint left."""
    machine = place.machine
    with pytest.raises(PokeError, match="expected"):
        machine.patch(place.address, place.call, expected=place.hop)
    gone = snippet(machine, "site")
    machine.execmem.free(gone)
    with pytest.raises(PokeError, match="not in a finished allocation"):
        machine.patch(gone, place.call)

    def fail(phase):
        raise RuntimeError(phase.value)

    for phase in (None, Phase.DONE):
        with pytest.raises(RuntimeError):
            machine.patch(
                place.address,
                place.call,
                on_phase=lambda p, phase=phase: fail(p) if phase in (None, p) else None,
            )
        assert machine.read(place.address, len(place.nop)) == place.nop
        assert machine.breakpoints == {}
        assert place.visit() == place.visit(0) == OLD
    without = Machine(machine.arch, text_poke=False)
    with pytest.raises(PokeError, match="no text_poke"):
        without.patch(snippet(without, "site"), place.call)


def test_a_batch_shares_its_phases(place):
    """Many sites cost as many synchronisations as one."""
    machine = place.machine
    start = place.address - place.function
    sites = [(snippet(machine, "site") + start, place.call, place.nop) for _ in range(20)]
    costs = []
    for batch in (sites[:1], sites[1:]):
        before = machine.memory.events.copy()
        machine.patch_many([Site(*site) for site in batch])
        costs.append((machine.memory.events - before).icache_syncs)
    assert costs[0] == costs[1]
    for address, new, _ in sites:
        assert machine.read(address, len(new)) == new
    machine.patch_many([])

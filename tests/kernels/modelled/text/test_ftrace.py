# SPDX-License-Identifier: GPL-2.0-or-later
"""Tracing: the tree that the source implies, results as without, every byte given back."""

from __future__ import annotations

import random
import struct
from collections import Counter

import attrs
import pytest

import archs
from allocator.errors import PokeError
from allocator.types import MIB, PAGE_SIZE, Consumer, Interval, MemType
from emulator.faults import BadCall, Fault
from kernels.tracing import PatchRefused
from machine.arguments import Out
from machine.face import Machine
from samples import modules
from tests.support.modules import module as mini_module


def fib(n):
    """Return the tree of calls of the naive recursion: (n, result, children)."""
    children = [] if n < 2 else [fib(n - 1), fib(n - 2)]
    return n, n if n < 2 else sum(child[1] for child in children), children


def tree(call):
    """Return the same of a traced call."""
    return call.arguments[0], call.result, [tree(child) for child in call.children]


def test_the_tree_is_the_recursion(patchable, unchanged):
    """Arguments, results and nesting of a recursive function are those of its definition."""
    check = unchanged("patchable")
    with patchable.trace("patchable_fib") as trace:
        assert patchable.call("patchable_fib", 7) == 13
    (call,) = trace.calls
    assert tree(call) == fib(7)
    assert (trace.recorded, trace.dropped) == (41, 0)  # 2 * F(8) - 1 calls
    check()


def test_everything_at_once_changes_nothing(patchable, unchanged):
    """With every function traced, many arguments, two-register results and tail calls survive."""
    check = unchanged("patchable")
    weights = sum(n * (100 + n) for n in range(1, 11))
    with patchable.trace() as trace:
        assert patchable.call("patchable_sum", *range(101, 111)) == weights
        assert patchable.call("patchable_digits", 9876543210) == 45
        assert patchable.call("patchable_next", 20) == 42
    calls = [(depth, call.function) for depth, call in trace.walk()]
    assert calls == [
        (0, "patchable_sum"),
        (0, "patchable_digits"),
        *[(1, "patchable_divide")] * 10,
        (0, "patchable_next"),
        (1, "patchable_double"),
    ]
    assert [c.result for c in trace.calls] == [weights, 45, 42]
    check()


def counted(machine, call):
    """Return how many instructions a call takes, counted by the emulator's own hook."""
    count = 0

    def tick(_address):
        nonlocal count
        count += 1

    stop = machine.cpu.each_instruction(tick)
    try:
        call()
    finally:
        stop()
    return count


@pytest.mark.parametrize("n", [0, 1, 2, 9])
def test_durations_are_instructions(machine, patchable, n):
    """A call takes as many instructions traced as untraced, its call site left out."""
    whole = counted(machine, lambda: patchable.call("patchable_fib", n))
    (function,) = (s for s in machine.text.ftrace.sites(patchable.loaded) if "fib" in s.function)
    size = machine.arch.patching.ftrace.size

    def length():
        texts = machine.places.disassembler.all(
            machine.read(function.address, size), function.address
        )
        # As compiled, the site may call a function that returns at once.
        return len(texts) + (idle and texts[0][2].startswith("call"))

    idle = True
    before = length()
    with patchable.trace("patchable_fib") as trace:
        idle = False
        during = length()
        patchable.call("patchable_fib", n)
    inner = len(list(trace.walk())) - 1
    assert trace.calls[0].instructions == whole - before - inner * (before - during)


def test_patterns_choose_functions(machine, patchable):
    """Only functions that match are traced; a pattern for nothing is answered with what there is."""
    with patchable.trace("patchable_d[oi]*") as trace:
        patchable.call("patchable_digits", 321)
        patchable.call("patchable_next", 1)
        patchable.call("patchable_sum", *range(10))
    assert Counter(call.function for _, call in trace.walk()) == {
        "patchable_divide": 3,
        "patchable_digits": 1,
        "patchable_double": 1,
    }
    with pytest.raises(PatchRefused, match=r"no function matches 'nonesuch'.*patchable_"):
        patchable.trace("nonesuch")
    with pytest.raises(BadCall, match="no such module"):
        machine.trace("nonesuch")


def test_a_module_without_call_sites(machine):
    """A module that the compiler left no room in cannot be traced, and says so."""
    module = machine.load("sorting")
    with pytest.raises(PatchRefused, match="built without call sites"):
        module.trace()


def test_handlers_see_each_call(machine, patchable):
    """on_entry sees arguments, on_exit results, in the order of events; they may call the guest."""
    events = []

    def entry(call):
        events.append(("in", call.arguments[0], call.result))
        assert machine.call(patchable.symbols["patchable_triple"], 5) == 15

    with patchable.trace(
        "patchable_fib", on_entry=entry, on_exit=lambda c: events.append(("out", c.result))
    ):
        assert patchable.call("patchable_fib", 2) == 1
    ins = [("in", n, None) for n in (2, 1, 0)]
    assert sorted(e for e in events if e[0] == "in") == sorted(ins)
    assert events[0] == ins[0]
    assert events[-1] == ("out", 1)
    assert [e[0] for e in events] == ["in", "in", "out", "in", "out", "out"]


def test_a_handler_may_stop_the_trace(patchable, unchanged):
    """Calls under way still return properly when the trace is gone."""
    check = unchanged("patchable")
    trace = patchable.trace("patchable_*", on_entry=lambda call: trace.stop())
    assert patchable.call("patchable_fib", 6) == 8
    assert len(list(trace.walk())) == 1
    with patchable.trace("patchable_digits") as again:
        assert patchable.call("patchable_digits", 123) == 6
    assert len(again.calls) == 1
    check()


def test_a_run_that_stops_leaves_no_frames(machine, patchable, unchanged):
    """After a fault in the middle the next trace begins at depth 0 and returns are right."""
    check = unchanged("patchable")
    with patchable.trace() as trace:
        with pytest.raises(Fault):
            patchable.call("patchable_fib", 20, instructions=3000)
        stopped = len(list(trace.walk()))
        assert patchable.call("patchable_fib", 3) == 2
    assert stopped > 10
    assert trace.calls[0].result is None
    assert trace.calls[1].result == 2
    assert len(trace.calls) == 2
    check()


def test_every_task_has_a_shadow_stack(machine, patchable, unchanged):
    """A call on another task's stack in the middle of one leaves the first one's return alone."""
    check = unchanged("patchable")
    triple, task = patchable.symbols["patchable_triple"], machine.alloc(4096)
    stacks = [machine.memory.vmalloc(4 * PAGE_SIZE) for _ in range(2)]
    results = []

    def entry(call):
        for stack in stacks if call.function == "patchable_double" else ():
            top = stack + 4 * PAGE_SIZE
            results.append(machine.kernel.run_as(task, top, triple, [5], None))

    with patchable.trace(on_entry=entry) as trace:
        assert patchable.call("patchable_next", 20) == 42
    assert results == [15, 15]
    calls = [(depth, call.function, call.result) for depth, call in trace.walk()]
    assert sorted(calls) == [
        (0, "patchable_next", 42),
        (0, "patchable_triple", 15),
        (0, "patchable_triple", 15),
        (1, "patchable_double", 42),
    ]
    check()


def test_a_stopped_run_is_nobodys_parent(patchable):
    """After a fault in the middle a call from further down the stack stands at depth 0."""
    with patchable.trace("patchable_d*") as trace:
        with pytest.raises(Fault):
            patchable.call("patchable_digits", 10**15, instructions=60)
        assert patchable.call("patchable_op", 1) == 3
    assert [call.function for call in trace.calls] == ["patchable_digits", "patchable_double"]


def test_calls_beyond_the_limit_are_counted(patchable):
    """A trace keeps as many calls as asked for; the rest is counted, results stay right."""
    with patchable.trace("patchable_fib", limit=5) as trace:
        assert patchable.call("patchable_fib", 8) == 21
    assert (len(list(trace.walk())), trace.recorded, trace.dropped) == (5, 5, 62)


def test_two_traces_share_no_function(patchable, unchanged):
    """A second trace of a function is refused as a whole; of another function it nests."""
    check = unchanged("patchable")
    with patchable.trace("patchable_digits") as outer:
        with pytest.raises(PatchRefused, match="a tracer is there"):
            patchable.trace("patchable_*")
        with patchable.trace("patchable_divide") as inner:
            patchable.call("patchable_digits", 55)
    assert [len(trace.calls) for trace in (outer, inner)] == [1, 2]
    check()


def test_trampolines_come_from_execmem(machine, patchable):
    """While tracing there is one allocation more, the tracer's, executable and not writable."""
    before = machine.execmem.allocations()
    with patchable.trace():
        (made,) = (a for a in machine.execmem.allocations() if a not in before)
        assert (made.type, made.consumer) == (MemType.TEXT, Consumer.FTRACE)
        assert str(machine.memory.translate(made.address & -4096).prot) == "R-X"
        machine.check()
    assert machine.execmem.allocations() == before


def test_a_machine_that_cannot_poke(arch):
    """Without text_poke a trace is refused, and nothing stays allocated."""
    machine = Machine(arch, text_poke=False, root=modules.root(arch.name))
    module = machine.load("patchable")
    before = machine.execmem.allocations()
    with pytest.raises(PokeError, match="no text_poke"):
        module.trace()
    assert machine.execmem.allocations() == before


def test_unloading_a_traced_module(machine, patchable):
    """The trace of a module that goes away ends with it."""
    trace = patchable.trace()
    patchable.call("patchable_fib", 3)
    patchable.unload()
    other = machine.load("patchable")
    trace.stop()
    assert other.call("patchable_fib", 9) == 34
    machine.check()


def test_a_trampoline_out_of_reach(arch, unchanged, machine):
    """Beyond the branch's reach the module's PLT slot leads there; without one it is refused."""
    if not arch.patching.ftrace.plt_sections:
        pytest.skip(f"{arch.name} reaches every trampoline")
    module = machine.load("patchable")
    check = unchanged("patchable")
    start = machine.memory.address_map.vmalloc.start + 1024 * MIB
    far = machine.memory.vmalloc(PAGE_SIZE, within=Interval(start, start + 4 * PAGE_SIZE))
    assert abs(far - module.regions[MemType.TEXT].address) > 128 * MIB
    ftrace, triple = machine.text.ftrace, module.symbols["patchable_triple"]
    machine.write(far, arch.patching.ftrace.redirect(far, triple))
    machine.memory.set_memory_rox(far, PAGE_SIZE)
    sites = [(module.loaded, site, far) for site in ftrace.matching(module.loaded, "*_double")]
    slot = next(s for s in module.sections.values() if s.name in ftrace._encoding.plt_sections)
    held = ftrace._point("replace", sites)
    assert sorted(patch.address for patch in held) == sorted([slot.address, sites[0][1].address])
    assert module.call("patchable_next", 20) == 63
    machine.text.patches.release(held)
    assert module.call("patchable_next", 20) == 42
    ftrace._encoding = attrs.evolve(ftrace._encoding, plt_sections=())
    with pytest.raises(PatchRefused, match="out of reach"):
        ftrace._point("trace", sites)
    check()


def test_replaced_functions(machine, patchable, unchanged):
    """Calls of a replaced function go to the other one, from outside and from within."""
    check = unchanged("patchable")
    with machine.replace({"patchable:patchable_double": "patchable:patchable_triple"}):
        assert patchable.call("patchable_next", 20) == 63
        assert patchable.call("patchable_double", 4) == 12
        with pytest.raises(PatchRefused, match="a tracer is there"):
            patchable.trace("patchable_double")
    assert patchable.call("patchable_next", 20) == 42
    with pytest.raises(PatchRefused, match="no call site"):
        machine.replace({"patchable:__SCK__patchable_op": "patchable:patchable_double"})
    check()


def test_every_sample_that_has_no_site_is_said_to_have_none():
    """An image without tables gives no sites on any architecture."""
    for arch in archs.ALL:
        if arch.patch is None:
            continue
        machine = Machine(arch)
        module = machine.load(mini_module(arch.machine, undefined=()), init=False)
        assert list(machine.text.ftrace.sites(module.loaded)) == []


# Distribution modules --------------------------------------------------------------------------


def both_ways(machine, module, call):
    """Return what a call gives; assert that tracing the whole module changes nothing."""
    region = module.regions[MemType.TEXT]
    before, expected = machine.read(region.address, region.size), call()
    with module.trace() as trace:
        assert call() == expected
    assert machine.read(region.address, region.size) == before
    machine.check()
    return trace


def test_curve25519(arch, corpus):
    """The scalar multiplication is one call of the ladder, with the same point as result."""
    machine = Machine(arch, root=corpus)
    module = machine.load("libcurve25519-generic", init=False)
    secret, point = random.Random(1).randbytes(32), bytes([9]) + bytes(31)

    def call():
        out = Out(32)
        module.call("curve25519_generic", out, secret, point)
        return bytes(out)

    trace = both_ways(machine, module, call)
    assert trace.calls[0].function == "curve25519_generic"
    assert sum(c.instructions for c in trace.calls[0].children) < trace.calls[0].instructions


def test_lz4(arch, corpus):
    """Compressed data is the same bytes with every function of the compressor traced."""
    machine = Machine(arch, root=corpus)
    module = machine.load("lz4_compress", init=False)
    data = b"".join(b"%d bottles of beer, " % n for n in range(400))

    def call():
        out, work = Out(len(data) + 64), Out(1 << 15)
        size = module.call("LZ4_compress_default", data, out, len(data), len(out), work)
        return bytes(out)[:size]

    trace = both_ways(machine, module, call)
    assert [c.function for c in trace.calls] == ["LZ4_compress_default"]
    assert trace.calls[0].arguments[2] == len(data)


def test_ext4_helpers(arch, corpus):
    """ext4's hash of a name is the same with its nearly a thousand functions traced."""
    machine = Machine(arch, root=corpus)
    module = machine.load("ext4", init=False)
    assert len(list(machine.text.ftrace.sites(module.loaded))) > 900
    directory, info = machine.alloc(1024), machine.alloc(64)
    for version in (0, 1, 2, 3, 4, 5):
        # struct dx_hash_info: hash, minor_hash, hash_version, seed
        machine.write(info, struct.pack("<IIiIQ", 0, 0, version, 0, 0))

        def call():
            status = module.call("__ext4fs_dirhash", directory, b"a name", 6, info, returns="int")
            return status, machine.read(info, 8)

        trace = both_ways(machine, module, call)
        assert trace.calls[0].function == "__ext4fs_dirhash"

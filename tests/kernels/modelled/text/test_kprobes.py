# SPDX-License-Identifier: GPL-2.0-or-later
"""Probes: registers as they are, a guest that notices nothing, and places that are refused."""

from __future__ import annotations

import random
import struct
from collections import Counter
from itertools import pairwise

import pytest

from allocator.types import Consumer, MemType
from emulator.faults import BadCall, Fault, FaultKind
from kernels.tracing import PatchRefused
from loader.elfview import STT_FUNC
from machine.arguments import Out
from machine.face import Machine
from tests.archs.facts import facts
from tests.machine.snippets import snippet

NUMBERS = struct.pack("<12i", *random.Random(2).sample(range(-50, 50), 12))
BYTES = random.Random(1).randbytes(40)
CALLS = {
    "tables": [
        *(("tables_dispatch", op, 123456789, 37) for op in range(17)),
        ("tables_crc64", BYTES, 40),
        *(("tables_place", which, 77) for which in range(4)),
    ],
    "sorting": [("sorting_sort", NUMBERS, 12), ("sorting_bsearch", NUMBERS, 12, 7)],
    "checksums": [("checksums_crc32", BYTES, 40, 0), ("checksums_adler32", BYTES, 40)],
    "mathlib": [("mathlib_gcd", 1071, 462), ("mathlib_powmod", 3, 200, 1000003)],
    "patchable": [
        ("patchable_fib", 7),
        ("patchable_sum", *range(10)),
        ("patchable_digits", 9876543210),
        ("patchable_op", 3),
        ("patchable_op_tail", 3),
        ("patchable_likely",),
    ],
}


def instructions(machine, module):
    """Return the addresses of all instructions in functions of a module's core text."""
    found = set()
    symbols = module.loaded.view.symbols
    for index in (symbols["info"] & 0xF == STT_FUNC).nonzero()[0].tolist():
        start, size = int(module.loaded.linked.symbols[index]), int(symbols["size"][index])
        region = module.loaded.region_at(start)
        if size and region is not None and region.type is MemType.TEXT:
            code = machine.read(start, size)
            found.update(at for at, _, _ in machine.places.disassembler.all(code, start))
    return sorted(found)


@pytest.mark.parametrize("name", CALLS)
def test_probes_everywhere_change_nothing(machine, unchanged, name):
    """With a probe at every instruction that takes one, results and then all bytes are as before."""
    check = unchanged(name)
    module = machine.modules[name]
    expected = [module.call(*call) for call in CALLS[name]]
    executed = Counter()
    stop = machine.cpu.each_instruction(lambda at: executed.update([at]))
    for call in CALLS[name]:
        module.call(*call)
    stop()
    probes, refused = [], 0
    for address in instructions(machine, module):
        try:
            probes.append(machine.probe(address))
        except PatchRefused:
            refused += 1
    assert len(probes) > 8 * refused / (1 + 2 * (name == "patchable"))
    assert [module.call(*call) for call in CALLS[name]] == expected
    for probe in probes:
        assert len(probe.hits) == executed[probe.address]
        probe.remove()
    check()


def test_registers_at_a_hit(machine, patchable):
    """At a function's first instruction the registers are the arguments, the pc is the place."""
    calling = machine.arch.runs.calling
    arguments = [0x1111 * n for n in range(1, 11)]
    with patchable.probe("patchable_sum") as probe:
        patchable.call("patchable_sum", *arguments)
    (hit,) = probe.hits
    assert [hit.registers[r] for r in calling.arguments] == arguments[: len(calling.arguments)]
    assert hit.registers[calling.program_counter] == hit.address
    assert hit.address == patchable.symbols["patchable_sum"]
    assert probe.where == "patchable_sum+0x0 [patchable]"


def test_handlers_may_change_registers_and_call(machine, patchable):
    """A handler's writes are what the instruction finds; its own calls of the guest are apart."""
    first = machine.arch.runs.calling.arguments[0]

    def handler(hit):
        assert machine.call(patchable.symbols["patchable_triple"], 7) == 21
        machine.cpu.write(first, hit.registers[first] + 100)

    with patchable.probe("patchable_triple") as quiet, patchable.probe("patchable_double", handler):
        assert patchable.call("patchable_double", 1) == 202
        assert len(quiet.hits) == 1
    assert patchable.call("patchable_double", 1) == 2


def test_a_handler_may_remove_its_probe(patchable, unchanged):
    """A probe that goes at its first hit leaves the guest with the true instruction."""
    check = unchanged("patchable")
    probe = patchable.probe("patchable_fib", lambda hit: probe.remove())
    assert patchable.call("patchable_fib", 6) == 8
    assert len(probe.hits) == 1
    probe.remove()
    check()


def test_two_probes_at_one_place(patchable, unchanged):
    """Each of them sees the hits while it is there; the last one takes the breakpoint away."""
    check = unchanged("patchable")
    one, two = patchable.probe("patchable_double"), patchable.probe("patchable_double")
    patchable.call("patchable_double", 1)
    one.remove()
    patchable.call("patchable_double", 1)
    two.remove()
    patchable.call("patchable_double", 1)
    assert (len(one.hits), len(two.hits)) == (1, 2)
    check()


def test_slots_come_from_execmem(machine, patchable, unchanged):
    """An instruction that is executed elsewhere is so in text of the consumer kprobes."""
    check = unchanged("patchable")
    for address in instructions(machine, patchable):
        before = machine.execmem.allocations()
        try:
            probe = machine.probe(address)
        except PatchRefused:
            continue
        made = [a for a in machine.execmem.allocations() if a not in before]
        insn = machine.text.kprobes._armed[address].insn
        assert len(made) == (insn.simulate is None)
        assert all((a.type, a.consumer) == (MemType.TEXT, Consumer.KPROBES) for a in made)
        probe.remove()
    check()


def test_the_middle_of_an_instruction(machine, patchable):
    """An address between two instructions is refused, and the hint names where one begins."""
    starts = instructions(machine, patchable)
    function = patchable.symbols["patchable_sum"]
    inside = [a for a in starts if function <= a < function + 0x30]
    here = next(a for a, b in pairwise(inside) if b - a > 2)
    with pytest.raises(PatchRefused, match=r"middle of an instruction|no instruction") as caught:
        machine.probe(here + 2)
    assert f"{here:#x}" in str(caught.value) or "no instruction" in str(caught.value)


def test_what_the_kernel_rewrites_is_refused(machine, patchable):
    """Static branches and static calls take no probe."""
    for site in patchable.static_key("patchable_key").sites:
        with pytest.raises(PatchRefused, match="static branch"):
            machine.probe(site.code)
    for call in patchable.static_call("patchable_op").sites:
        with pytest.raises(PatchRefused, match="static call"):
            machine.probe(call.address)


def test_the_inside_of_a_call_site(machine, patchable):
    """Behind the beginning of a tracer's call site no probe is put."""
    size = machine.arch.patching.ftrace.size
    (site,) = (s for s in machine.text.ftrace.sites(patchable.loaded) if "fib" in s.function)
    step = machine.arch.text_poke.granule
    for offset in range(step, size, step):
        with pytest.raises(PatchRefused, match=r"call site|middle|no instruction"):
            machine.probe(site.address + offset)


def test_tracers_and_probes_share_no_bytes(machine, patchable, unchanged):
    """A traced entry takes no probe, a probed one no tracer."""
    check = unchanged("patchable")
    (site,) = (s for s in machine.text.ftrace.sites(patchable.loaded) if "fib" in s.function)
    with patchable.trace("patchable_fib"), pytest.raises(PatchRefused, match="a tracer is there"):
        machine.probe(site.address)
    with machine.probe(site.address), pytest.raises(PatchRefused, match="a probe is there"):
        patchable.trace("patchable_fib")
    check()


def test_places_that_are_no_code(machine, patchable):
    """Data, the kernel image, nothing at all and unknown names are refused each with its reason."""
    for address, reason in (
        (patchable.symbols["patchable_key"], "no function"),
        (machine.kernel.address("kfree"), "no module"),
        (0x1000, "no module"),
    ):
        with pytest.raises(PatchRefused, match=reason):
            machine.probe(address)
    for place in ("patchable:patchable_fob", "nonesuch:f", "patchable:patchable_fib+x"):
        with pytest.raises(BadCall):
            machine.probe(place)


def exclusive(machine, code):
    """Return a module-like function of code to probe, by replacing a sample's first bytes."""
    module = machine.load("patchable")
    start = module.symbols["patchable_sum"]
    machine.execmem.poke(start, bytes.fromhex(code))
    return start


def test_exclusive_sequences(machine):
    """Between a load-exclusive and its store nothing is probed; before and behind it is."""
    code = facts(machine.arch).patch.exclusive
    if code is None:
        pytest.skip(f"{machine.arch.name} has no exclusive sequences")
    start = exclusive(machine, code)
    for offset, reason in ((0, "exclusive"), (4, "between"), (8, "exclusive")):
        with pytest.raises(PatchRefused, match=reason):
            machine.probe(start + offset)
    machine.probe(start + 12).remove()


def test_a_fault_in_a_slot_is_told_of_the_place(machine, patchable):
    """What an instruction out of line does wrong is reported where it belongs."""
    start = patchable.symbols["patchable_sum"]
    machine.execmem.poke(start, bytes.fromhex(facts(machine.arch).patch.load))
    with patchable.probe("patchable_sum") as probe, pytest.raises(Fault) as caught:
        patchable.call("patchable_sum", 0x10)
    assert len(probe.hits) == 1
    assert caught.value.kind is FaultKind.READ
    assert (caught.value.pc, caught.value.address) == (start, 0x10)
    assert caught.value.where == "patchable_sum+0x0 [patchable]"


def test_a_limit_still_ends_a_loop(machine):
    """A probe in an endless loop does not make it endless for the machine."""
    machine.load("patchable")
    spin = snippet(machine, "spin")
    with pytest.raises(PatchRefused, match="no module"):
        machine.probe(spin)
    start = machine.modules["patchable"].symbols["patchable_sum"]
    machine.execmem.poke(start, machine.read(spin, machine.arch.text_poke.granule * 2)[:4])
    with machine.probe(start) as probe, pytest.raises(Fault) as caught:
        machine.call(start, instructions=500)
    assert caught.value.kind is FaultKind.INSTRUCTION_LIMIT
    assert 0 < len(probe.hits) <= 500


def test_unloading_a_probed_module(machine, patchable):
    """A probe ends with its module; one in the same place later is new."""
    old = patchable.probe("patchable_fib")
    patchable.unload()
    again = machine.load("patchable")
    with again.probe("patchable_fib") as new:
        assert again.call("patchable_fib", 2) == 1
    old.remove()
    assert (len(old.hits), len(new.hits)) == (0, 3)
    assert again.call("patchable_fib", 9) == 34
    machine.check()


def test_distribution_modules(arch, corpus):
    """The compressor gives the same bytes with a probe at every third instruction that it executes."""
    machine = Machine(arch, root=corpus)
    module = machine.load("lz4_compress", init=False)
    region = module.regions[MemType.TEXT]
    before = machine.read(region.address, region.size)
    data = b"".join(b"%d bottles of beer, " % n for n in range(40))

    def call():
        out, work = Out(len(data) + 64), Out(1 << 15)
        size = module.call("LZ4_compress_default", data, out, len(data), len(out), work)
        return bytes(out)[:size]

    expected = call()
    executed = Counter()
    stop = machine.cpu.each_instruction(lambda at: executed.update([at]))
    call()
    stop()
    places = sorted(at for at in executed if at in region.interval)
    probes, refused = [], 0
    for place in places[::3]:
        try:
            probes.append(machine.probe(place))
        except PatchRefused:
            refused += 1
    assert len(probes) > 60 > 6 * refused
    assert call() == expected
    for probe in probes:
        assert len(probe.hits) == executed[probe.address]
        probe.remove()
    assert machine.read(region.address, region.size) == before

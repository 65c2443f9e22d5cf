# SPDX-License-Identifier: GPL-2.0-or-later
"""text_poke as each architecture does it: by a CPU's stores through an alias in guest memory.

And each step left out: what then happens is what the step is there for.
"""

from __future__ import annotations

from itertools import product

import pytest

from allocator import AccessError, LifecycleError, PokeError, PokeStep, Prot, Site
from allocator.designs import DESIGNS
from allocator.types import LARGE_PAGE_SIZE, PAGE_SIZE, MemType, align_down, align_up
from emulator.faults import Fault, FaultKind
from machine.face import Machine
from samples import modules
from tests.machine.snippets import code, put, snippet

EVERY = 16  # bytes from poke to poke; a multiple of every granule


@pytest.fixture
def machine(arch):
    """Return a machine of two CPUs of each architecture that can poke."""
    if arch.text_poke is None:
        pytest.skip(f"{arch.name} has no text_poke")
    return Machine(arch, cpus=2)


def text(machine, size=5 * PAGE_SIZE):
    """Return finished text of its own pages that holds the numbers of its bytes."""
    contents = bytes(n % 251 for n in range(size))
    pending = machine.execmem.alloc(MemType.TEXT, size, align=PAGE_SIZE)
    pending.write(0, contents)
    return pending.finish().address, contents


# Pokes that are right ------------------------------------------------------------------------


SIZES = (1, 3, EVERY, PAGE_SIZE - 3, 2 * PAGE_SIZE, 3 * PAGE_SIZE + 5)
OFFSETS = (0, 1, 7, PAGE_SIZE - 1, PAGE_SIZE - 2, PAGE_SIZE - 6)


def test_a_cpu_stores_across_page_borders_and_at_odd_addresses(machine):
    """Whatever is whole granules is stored at any place; the leaf stays 2 MiB, the alias goes."""
    poke, memory = machine.arch.text_poke, machine.memory
    va, contents = text(machine)
    assert memory.translate(va).leaf == LARGE_PAGE_SIZE
    for n, (at, length) in enumerate(product(OFFSETS, SIZES)):
        offset, size = align_down(at, poke.granule), align_up(length, poke.granule)
        new = bytes((i + n) % 253 ^ 0xFF for i in range(size))
        events = memory.events.copy()
        machine.poke(va + offset, new, expected=contents[offset : offset + size], cpu=n % 2)
        contents = contents[:offset] + new + contents[offset + size :]
        assert machine.read(va, len(contents)) == contents
        assert memory.translate(va).leaf == LARGE_PAGE_SIZE
        cost = memory.events - events
        assert (cost.leaf_splits, cost.direct_map_splits, cost.pokes) == (0, 0, 1)
        touched = (offset + size - 1) // PAGE_SIZE - offset // PAGE_SIZE + 1
        assert cost.tlb_flushes == -(-touched // poke.pages) * (1 + poke.flush_first)
        assert not any(memory.page_table.leaves(poke.alias))
        assert not any(memory.poking_mm.leaves(poke.alias))
    machine.check()


def test_the_alias_is_where_the_record_says_and_never_executes(machine):
    """During a step the window is writable, not executable, and check() reports the alias."""
    va, _ = text(machine)
    poke, seen = machine.arch.text_poke, []

    def spy(mm, address, data):
        table = machine.memory.page_table if mm is None else mm
        prots = {leaf.prot for leaf in table.leaves(poke.alias)}
        with pytest.raises(AssertionError, match="writable and executable"):
            machine.check()
        seen.append((mm is not None, address, prots))
        machine.memory.physical.write(machine.memory.translate(va).address, data)

    machine.execmem.poke(va, bytes(EVERY), store=spy)
    assert seen == [(poke.private, poke.window, {Prot.RW})]
    machine.check()


def test_another_cpu_sees_a_fixmap_alias_and_not_a_private_one(machine):
    """While CPU 0 pokes, CPU 1 can store at a window in the fixmap; in a private mm it cannot."""
    va, _ = text(machine)
    store, window = snippet(machine, "store"), machine.arch.text_poke.window
    value = int.from_bytes(b"intruder", "little")

    def intrude(mm, address, data):
        machine._patcher.store(mm, address, data)
        machine.call(store, window + 64, value, cpu=1)

    if machine.arch.text_poke.private:
        with pytest.raises(Fault) as caught:
            machine.execmem.poke(va, bytes(EVERY), store=intrude)
        assert caught.value.address == window + 64
    else:
        machine.execmem.poke(va, bytes(EVERY), store=intrude)
        assert machine.read(va + 64, 8) == b"intruder"
    machine.check()


# Pokes that are refused ------------------------------------------------------------------------


def test_refused_pokes_change_nothing(machine):
    """Wrong expectation, broken granules, freed memory, beyond the end: an error, and no change."""
    va, contents = text(machine)
    gone, _ = text(machine)
    machine.execmem.free(gone)
    granule, end = machine.arch.text_poke.granule, va + len(contents)
    whole = bytes(EVERY)
    before = machine.memory.events.copy()
    refused = [
        (va, whole, whole, f"found {contents[:EVERY].hex()}, expected {whole.hex()}"),
        (gone, whole, None, "not in a finished allocation"),
        (end - granule, bytes(2 * granule), None, "reaches beyond"),
    ]
    if granule > 1:
        refused += [
            (va + granule // 2, whole, None, f"granules of {granule} bytes"),
            (va, bytes(granule // 2), None, f"granules of {granule} bytes"),
        ]
    for address, new, expected, reason in refused:
        with pytest.raises(PokeError, match=reason):
            machine.poke(address, new, expected=expected)
    assert machine.read(va, len(contents)) == contents
    assert machine.memory.events == before


def test_a_batch_is_synchronised_once(machine):
    """poke_many() writes many sites and makes each CPU fetch anew once."""
    va, contents = text(machine)
    sites = [
        (va + at, bytes(EVERY), contents[at : at + EVERY])
        for at in range(0, len(contents), 5 * EVERY)
    ]
    before = machine.memory.events.copy()
    machine.execmem.poke_many(sites)
    cost = machine.memory.events - before
    assert (cost.pokes, cost.icache_syncs) == (len(sites), 1)
    assert all(machine.read(address, EVERY) == bytes(EVERY) for address, _, _ in sites)
    with pytest.raises(PokeError, match="expected"):
        machine.execmem.poke_many([Site(va + EVERY, bytes(EVERY)), Site(va, b"x" * 16, b"y" * 16)])
    assert machine.read(va + EVERY, EVERY) == contents[EVERY : 2 * EVERY]


# Steps left out --------------------------------------------------------------------------------


def test_without_the_alias_the_store_faults(machine):
    """Text is read-only for the kernel too: a store to its own address is a fault."""
    va, contents = text(machine)
    with pytest.raises(Fault) as caught:
        machine.poke(va + EVERY, bytes(EVERY), omit={PokeStep.ALIAS})
    assert (caught.value.kind, caught.value.address) == (FaultKind.WRITE, va + EVERY)
    assert machine.read(va, len(contents)) == contents


def test_without_the_flush_the_next_poke_lands_in_the_page_before(machine):
    """The stale entry of the alias leads the second poke's stores to the first one's page.

    Where the alias is flushed when it is mapped, too, the second poke must leave that out as well.
    """
    va, contents = text(machine)
    other, new = va + 2 * PAGE_SIZE, bytes(EVERY)
    machine.poke(va, contents[:EVERY], omit={PokeStep.FLUSH})
    omit = {PokeStep.FLUSH} if machine.arch.text_poke.flush_first else set()
    with pytest.raises(PokeError, match="read back differ"):
        machine.poke(other, new, expected=machine.read(other, EVERY), omit=omit)
    assert machine.read(other, EVERY) == contents[2 * PAGE_SIZE :][:EVERY]
    assert machine.read(va, EVERY) == new
    # That poke flushed: the next one is right again.
    machine.poke(other, new)
    assert machine.read(other, EVERY) == new


def test_with_the_flush_only_the_stale_cpu_matters(machine):
    """The flush of one CPU does not clean another's TLB; one for all CPUs, or one's own first, does."""
    va, contents = text(machine)
    other = va + 2 * PAGE_SIZE
    machine.poke(va, contents[:EVERY], omit={PokeStep.FLUSH}, cpu=1)
    machine.poke(other, bytes(EVERY), cpu=0)
    if machine.arch.text_poke.broadcast or machine.arch.text_poke.flush_first:
        machine.poke(other, bytes(EVERY), cpu=1)
        assert machine.read(va, EVERY) == contents[:EVERY]
    else:
        with pytest.raises(PokeError, match="read back differ"):
            machine.poke(other, b"x" * EVERY, cpu=1)
        assert machine.read(va, EVERY) == b"x" * EVERY


def test_without_the_sync_cpus_run_what_they_had_translated(machine):
    """A CPU that ran the code before goes on with the old one until it is synchronised."""
    one, two = code(machine.arch, "one"), code(machine.arch, "two")
    va = put(machine, one)
    assert [machine.call(va, cpu=n) for n in (0, 1)] == [1, 1]
    machine.poke(va, two, expected=one, omit={PokeStep.SYNC})
    assert machine.read(va, len(two)) == two
    assert machine.call(va, cpu=1) == 1
    machine.cpus[1].sync_icache(va, va + len(two))
    assert machine.call(va, cpu=1) == 2
    machine.poke(va, one, expected=two)
    assert [machine.call(va, cpu=n) for n in (0, 1)] == [1, 1]


# Both flows ------------------------------------------------------------------------------------


def _watch(monkeypatch, table, machine):
    """Return the list that fills after every change: frames W and X, and is the window mapped."""
    memory, poke = machine.memory, machine.execmem.design.window or machine.arch.text_poke
    moments = []
    for name in ("map", "unmap", "protect", "change", "set_pte", "clear_pte", "collapse"):
        change = getattr(table, name)

        def watched(*args, change=change, **kwargs):
            found = change(*args, **kwargs)
            mapped = poke is not None and any(table.leaves(poke.alias))
            moments.append((memory.wx_aliases(), mapped))
            return found

        monkeypatch.setattr(table, name, watched)
    return moments


@pytest.mark.parametrize("design", sorted(DESIGNS))
def test_both_flows_end_alike_and_never_write_what_executes(arch, design, monkeypatch):
    """With and without text_poke: same bytes, same protection; no frame is W and X but in the alias.

    Looked at after every change of every page table, aliases included.
    """
    ends = []
    body = bytes(n % 251 for n in range(3 * PAGE_SIZE))
    for text_poke in (None, False):
        machine = Machine(arch, design=design, text_poke=text_poke)
        memory = machine.memory
        moments = _watch(monkeypatch, memory.page_table, machine)
        poking = _watch(monkeypatch, memory.poking_mm, machine)
        pending = machine.execmem.alloc(MemType.TEXT, len(body))
        va = pending.address
        for at in range(0, len(body), PAGE_SIZE):
            pending.write(at, body[at : at + PAGE_SIZE])
        pending.finish()
        assert moments
        # Never, at no two addresses, but while a poke has its window.
        assert all(mapped for found, mapped in moments + poking if found)
        assert memory.events.pokes or not any(mapped for _, mapped in moments + poking)
        assert memory.wx_aliases() == []
        ends.append((machine.read(va, len(body)), memory.translate(va).prot))
        with pytest.raises(LifecycleError):
            pending.write(0, b"x" * 4)
        with pytest.raises(AccessError):
            machine.write(va, b"x" * 4)
        machine.check()
    assert ends[0] == ends[1] == (body, Prot.RX)


def test_a_module_runs_by_both_flows(arch):
    """A real load ends in the same protections and computes the same, with text_poke and without."""
    loads = []
    for text_poke in (None, False):
        machine = Machine(arch, text_poke=text_poke)
        module = machine.load(modules.path(arch.name, "mathlib"))
        starts = {kind: region.address for kind, region in module.regions.items()}
        prots = {kind: machine.memory.translate(at).prot for kind, at in starts.items()}
        loads.append((prots, module.call("mathlib_gcd", 12, 18)))
        machine.check()
    assert loads[0] == loads[1]
    assert loads[0][1] == 6

# SPDX-License-Identifier: GPL-2.0-or-later
"""Workloads at scale, made small."""

from __future__ import annotations

from collections import Counter

import pytest

from allocator.designs import DESIGNS
from allocator.events import Step
from allocator.execmem import Execmem
from allocator.memory import KernelMemory
from allocator.physical import PhysicalMemory
from allocator.types import GIB, MIB, Interval
from allocator.workloads import (
    AT_SCALE,
    BranchReach,
    Runner,
    Workload,
    read_trace,
    scale,
    write_trace,
)
from allocator.workloads.operations import Alloc, Free, Load, Patch, Quiet, Unload
from allocator.workloads.table import debian
from tests.archs.facts import needs

ANYWHERE = BranchReach(direct=Interval(-(1 << 64), 1 << 64))


def runner(arch, *, design="strata", size=256 * MIB):
    """Return a runner over fresh memory of an architecture."""
    memory = KernelMemory(PhysicalMemory(size), arch.loads.address_map(None))
    execmem = Execmem(memory, trap=arch.loads.trap, text_poke=arch.text_poke, design=design)
    return Runner(execmem, ANYWHERE)


@pytest.fixture
def few(arch, monkeypatch):
    """Let the tree and the server of an architecture be a dozen modules."""
    needs(arch, "load")
    table = debian(arch.name)
    names = [name for name, module in table.items() if not module.depends][:12]
    small = {name: table[name] for name in names}
    monkeypatch.setattr(scale, "debian", lambda _arch: small)
    monkeypatch.setattr(scale, "named", lambda _names: lambda _arch: map(Load, small.values()))
    return small


def test_a_day_of_programs_ends_with_those_that_live(arch):
    """Every program comes once, goes at most once after it came, and about as many live as asked."""
    operations = list(scale.bpf_day(arch.name, programs=600, live=60))
    keys = Counter(one.key for one in operations if isinstance(one, Alloc))
    assert set(keys.values()) == {1}
    assert len(keys) == 600
    gone = [one.key for one in operations if isinstance(one, Free)]
    assert len(set(gone)) == len(gone)
    assert 20 < 600 - len(gone) < 120
    run = runner(arch)
    for operation in operations:
        run.step(operation)
    assert not run.failures
    assert len(run.execmem.allocations()) == 600 - len(gone)
    run.execmem.check()


def test_a_tree_comes_and_goes_without_a_trace(arch, few):
    """After the last round memory is as at the start; no chunk is pinned by what is gone."""
    operations = list(scale.tree_again(arch.name, times=3))
    kinds = Counter(map(type, operations))
    assert kinds == {Load: 3 * len(few), Unload: 3 * len(few), Quiet: 6}
    run = runner(arch)
    free = run.execmem.memory.physical.free_bytes
    for operation in operations:
        run.step(operation)
    assert not run.failures
    assert run.execmem.allocations() == []
    assert run.execmem.memory.physical.free_bytes == free
    events = run.execmem.memory.events
    assert events.chunks_returned == events.refills


def state(memory, design):
    """Return all that what comes next depends on: free frames in their order, tables, areas."""
    _, frames, _ = memory.physical.holds()
    order = [list(blocks) for blocks in frames]
    return (
        order,
        list(memory.free_space),
        list(memory.page_table.leaves()),
        [*design.free_intervals()],
    )


@pytest.mark.parametrize("design", DESIGNS)
def test_each_further_round_of_a_tree_is_the_second_again(arch, few, design):
    """Memory is as a round before, so that the same happens: nothing is worn out by rounds."""
    run = runner(arch, design=design)
    seen, counted = [], []
    for _ in range(4):
        before = run.execmem.memory.events.copy()
        for operation in scale.tree_again(arch.name, times=1):
            run.step(operation)
        seen.append(state(run.execmem.memory, run.execmem.design))
        counted.append(run.execmem.memory.events - before)
    assert seen[1] == seen[2] == seen[3]
    assert counted[2] == counted[3]


@pytest.mark.parametrize("design", ["vmalloc", "strata"])
def test_tracing_all_functions_writes_every_place(arch, few, design):
    """As many pokes as sites; a window is flushed once a batch, an alias at least once a site."""
    operations = list(scale.ftrace_all(arch.name, times=1))
    sites = sum(one.sites for one in operations if isinstance(one, Patch))
    batches = sum(isinstance(one, Patch) for one in operations)
    run = runner(arch, design=design)
    for operation in operations:
        run.step(operation)
    if arch.text_poke is None:
        assert len(run.failures) == batches
        return
    assert not run.failures
    steps = Counter()
    for flush, count in run.execmem.memory.flushes.items():
        steps[flush.step] += count
    if design == "strata":
        assert steps[Step.POKE] == batches
    else:
        assert steps[Step.POKE] >= sites
    run.execmem.check()


def test_live_patches_come_and_go(arch, few):
    """Half of them are taken back, with their trampolines."""
    operations = list(scale.live_patches(arch.name, patches=10, functions=2))
    kinds = Counter(map(type, operations))
    assert (kinds[Unload], kinds[Alloc], kinds[Free]) == (5, 20, 10)
    run = runner(arch, size=GIB)
    for operation in operations:
        run.step(operation)
    refused = sum(isinstance(one, Patch) for one in operations) * (arch.text_poke is None)
    assert len(run.failures) == refused
    run.execmem.check()


def test_a_trace_holds_patches_and_quiet(tmp_path, arch):
    """What is written is read again."""
    operations = (Patch("m", 7), Quiet())
    workload = Workload(name="w", arch=arch.name, operations=operations)
    write_trace(tmp_path / "w.jsonl", workload)
    assert read_trace(tmp_path / "w.jsonl") == workload


def test_what_is_at_scale_has_a_name_of_its_own():
    """The lookup knows both kinds, and neither hides the other."""
    assert len(scale.sources()) == len(scale.WORKLOADS) + len(AT_SCALE)
    assert all(source.title for source in AT_SCALE.values())

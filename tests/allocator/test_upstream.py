# SPDX-License-Identifier: GPL-2.0-or-later
"""Designs of later Linux: what they give back, what they need, and what they promise."""

from __future__ import annotations

import pytest

from allocator import DESIGNS, ExecmemError, MemType
from allocator.designs import UPSTREAM, known_designs
from allocator.types import MIB
from allocator.workloads import workload
from allocator.workloads.run import Runner
from archs import Arch
from execmem.comparing.compare import branch_reach, execmem_for
from tests.support import booted

LIVE = ("bbml2", "rox_rfc")


def test_they_can_be_named_and_are_no_default() -> None:
    """Nobody iterates over them: a table of all designs is what it was."""
    assert not set(UPSTREAM) & set(DESIGNS)
    assert set(UPSTREAM) < {known.name for known in known_designs()}


@pytest.mark.parametrize("design", UPSTREAM)
def test_a_design_is_refused_by_name_where_it_lacks_something(arch: Arch, design: str) -> None:
    """Only arm64 has CPUs that tell that they split leaves in use; others need not, or must not."""
    if design not in LIVE or arch.loads.address_map(None).live_splits:
        with execmem_for(arch, design).alloc(MemType.TEXT, 4096) as pending:
            pending.write(0, bytes(4096))
            assert pending.finish().size == 4096
        return
    with pytest.raises(ExecmemError, match=f"{design}.*FEAT_BBM level 2"):
        execmem_for(arch, design)


def test_arm64_has_what_they_need() -> None:
    """So that the test above executes both ways."""
    from archs import archs

    assert [a.name for a in archs() if a.loads.address_map(None).live_splits] == ["arm64"]


@pytest.mark.parametrize("design", UPSTREAM)
def test_a_server_keeps_every_invariant(arch: Arch, design: str) -> None:
    """Loads, unloads, and checks of everything on the way."""
    if design in LIVE and not arch.loads.address_map(None).live_splits:
        return
    execmem = execmem_for(arch, design)
    runner = Runner(execmem, branch_reach(arch))
    for number, operation in enumerate(workload("churn", arch.name).operations[:150]):
        runner.step(operation)
        if number % 50 == 0:
            execmem.check()
    execmem.check()
    assert not runner.failures


def run_middle_slice(arch: Arch, design: str) -> Runner:
    """Return what a design makes of a slice of 2 MiB that goes from the middle of a refill."""
    execmem = execmem_for(arch, design)
    runner = Runner(execmem, branch_reach(arch))
    for operation in workload("middle-slice", arch.name).operations:
        runner.step(operation)
    execmem.check()
    return runner


def test_a_refill_goes_as_a_whole_or_not_at_all(arch: Arch) -> None:
    """Linux before gives the slice back by itself; what lives in the refill stays in either case."""
    large = execmem_for(arch, "vmalloc").memory.large_size
    before, after = (run_middle_slice(arch, name) for name in ("rox_cache", "rox_cache_7x"))
    assert before.measure(itlb=False).free_mapped_bytes == 0
    assert after.measure(itlb=False).free_mapped_bytes == large
    for runner in (before, after):
        for held in runner.live.values():
            found = runner.execmem.memory.translate(held[MemType.TEXT].address)
            assert found is not None
            assert "X" in str(found.prot)
    for name in list(after.live):
        for allocation in after.live[name].values():
            after.execmem.free(allocation.address)
    assert after.execmem.report().free_mapped_bytes == 0


def test_a_refill_is_a_multiple_of_a_large_leaf(arch: Arch) -> None:
    """Also where there is no large leaf: then in pages, as vmalloc falls back to them."""
    execmem = execmem_for(arch, "rox_cache_7x", memory=64 * MIB)
    held = execmem.memory.physical.fragment()
    with execmem.alloc(MemType.TEXT, 4096) as pending:
        pending.write(0, bytes(4096))
        pending.finish()
    chunks = execmem.design.text.chunks  # type: ignore[attr-defined]
    mapped = sum(end - start for start, (end, _) in chunks.items())
    assert mapped == execmem.memory.large_size
    assert len(held)


def test_a_change_of_a_part_first_is_found() -> None:
    """The rule of bbml2: whoever breaks it makes the direct map of an area two things."""
    from archs import arch as arch_by_name

    execmem = execmem_for(arch_by_name("arm64"), "bbml2")
    with execmem.alloc(MemType.DATA, 4 * 4096) as pending:
        pending.write(0, bytes(4))
        data = pending.finish()
    execmem.check()
    execmem.memory.set_memory_ro(data.address, 4096)
    with pytest.raises(AssertionError, match="a change covered a part of it"):
        execmem.design.check([data])
    execmem.memory.set_memory_ro(data.address, data.reserved)
    execmem.design.check([data])


def test_a_kernel_before_it_loses_live_text() -> None:
    """Measured: Linux 7.2 unmaps what else lies in the area (find_vm_area of an address inside)."""
    from execmem.comparing.measured import KernelRunner

    found = [
        (name, folder)
        for name, folder, arch in booted.releases()
        if arch.name == "x86_64" and name.startswith("7.2")
    ]
    if not found:
        pytest.skip("no 7.2 for x86-64 among EXECMEM_KERNELS")
    name, folder = found[0]
    with booted.fresh(folder) as machine:
        measures = KernelRunner(machine).run(workload("middle-slice", "x86_64"))
    assert name.startswith("7.2")
    assert not measures.refused
    assert set(measures.unmapped) == {"last TEXT", "low TEXT", "high TEXT"}
    assert measures.leaves["TEXT"] == {"4KiB": 0, "2MiB": 0}

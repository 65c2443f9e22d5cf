# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine did to executable memory, recorded and run again."""

from __future__ import annotations

import json

import pytest

from allocator.types import Consumer, MemType
from allocator.workloads import Alloc, Free, Load, Runner, Seal, Settle, Unload, read_trace
from execmem import LoadError, Machine
from execmem.cli import main
from execmem.comparing.compare import branch_reach, execmem_for
from execmem.record import Recorder
from samples.modules import path, root

DESIGNS = ("vmalloc", "rox_cache", "per_type", "strata")


def state(execmem):
    """Return every allocation, and how memory is mapped.

    Addresses count where the rest of the kernel takes none: what it has in the vmalloc range
    is not executable memory, and so not in the record.
    """
    report = execmem.report()
    vmalloc = execmem.memory.address_map.vmalloc
    shared = [
        execmem.design.where(allocation.type, allocation.consumer).range.overlaps(vmalloc)
        for allocation in execmem.allocations()
    ]
    placed = zip(execmem.allocations(), shared, strict=True)
    return (
        [allocation for allocation, moves in placed if not moves],
        report.allocations,
        sum(shared),
        report.leaves,
        report.bytes,
        report.large_share,
        report.free_mapped_bytes,
    )


def replayed(trace, arch, design):
    """Run a workload on fresh memory of an architecture."""
    execmem = execmem_for(arch, design, memory=trace.memory)
    runner = Runner(execmem, branch_reach(arch))
    for operation in trace.operations:
        runner.step(operation)
    assert not runner.failures
    return execmem


@pytest.mark.parametrize("design", DESIGNS)
def test_a_recorded_machine_replays_to_the_same_memory(arch, design, tmp_path):
    """Every allocation lies at the same address, under the same leaves, after the same life."""
    machine = Machine(arch.name, root=root(arch.name), design=design)
    recorder = Recorder(machine)
    execmem = machine.execmem
    machine.load("mathuser")
    gone = machine.load("hello")
    coming = machine.load("checksums", init=False)
    machine.load("sealed")
    with pytest.raises(LoadError):
        machine.load("failing", error=5)
    small = [
        execmem.alloc(MemType.TEXT, 60, consumer=consumer, align=32).finish()
        for consumer in Consumer
    ]
    late = execmem.alloc(MemType.RO_AFTER_INIT, 100).finish()
    execmem.alloc(MemType.DATA, 5000).abandon()
    gone.unload()
    execmem.seal(late)
    execmem.free(small[1].address)
    machine.load("tables")
    recorder.save(tmp_path / "machine.jsonl")
    trace = read_trace(tmp_path / "machine.jsonl")
    assert state(execmem) == state(replayed(trace, arch, design))
    assert coming.state.value == "coming"
    kinds = [type(operation) for operation in trace.operations]
    assert kinds.count(Load) == 7  # mathlib came with mathuser, failing was undone
    assert [kinds.count(kind) for kind in (Unload, Seal, Settle)] == [2, 1, 0]
    assert (kinds.count(Alloc), kinds.count(Free)) == (len(small) + 2, 2)


def test_what_happens_between_load_and_settle_stays_between(arch):
    """An allocation made while init runs comes before the module settles."""
    machine = Machine(arch.name, root=root(arch.name))
    recorder = Recorder(machine)
    loaded = machine.loader.form(path(arch.name, "sealed").read_bytes(), "sealed.ko")
    machine.execmem.alloc(MemType.TEXT, 8, consumer=Consumer.KPROBES).finish()
    machine.loader.settle(loaded)
    trace = recorder.workload("init")
    assert [type(operation) for operation in trace.operations] == [Load, Alloc, Settle]
    assert trace.operations[0].module.name == "sealed"
    assert state(machine.execmem) == state(replayed(trace, arch, "strata"))


@pytest.mark.parametrize(
    "words",
    [
        ["load", "mathuser", "--init"],
        ["run", "mathuser"],
        ["run", "mathlib", "mathlib_gcd", "12", "18"],
    ],
)
def test_a_command_records_what_compare_replays(words, tmp_path, capsys):
    """`--record` writes a trace whose modules `execmem compare` loads again."""
    file = tmp_path / "t.jsonl"
    tree = ["--root", str(root("arm64")), "--arch", "arm64"]
    with pytest.raises(SystemExit) as ended:
        main([*words, *tree, "--record", str(file)])
    assert not ended.value.code
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["compare", "--workload", str(file), "--design", "default", "--json", "--check"])
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert (found["arch"], found["workload"]) == ("arm64", "t")
    assert found["modules"] == (2 if "mathuser" in words else 1)
    assert not found["failures"]


def test_a_trace_that_cannot_be_written_is_one_line(tmp_path, capsys):
    """The refusal names the file."""
    with pytest.raises(SystemExit) as ended:
        main(["load", str(path("arm64", "hello")), "--record", str(tmp_path)])
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert str(tmp_path) in err

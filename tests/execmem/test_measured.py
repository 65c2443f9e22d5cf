# SPDX-License-Identifier: GPL-2.0-or-later
"""Designs held to real kernels: the same modules, the same addresses, the same leaves.

A booted kernel loads modules and unloads every other one; a model of what it does is asked for the
same. Expected values are the kernel's own page tables. Needs EXECMEM_KERNELS.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import attrs
import pytest

from allocator.types import Consumer, align_down
from allocator.workloads import Alloc, Free, Load, Unload, Workload, workload
from allocator.workloads.sources import attach
from archs import Arch
from execmem.comparing.beside import ModelRun, modelled
from execmem.comparing.compare import measured
from execmem.comparing.madefile import Maker, written
from execmem.comparing.measured import KernelRunner
from execmem.comparing.measures import KernelMeasures
from loader.elf import parse
from machine.booted.attaching import Attaching
from machine.booted.programs import Programs
from tests.support import booted

LONG = bool(os.environ.get("EXECMEM_LONG"))
MODULES = 60 if LONG else 16
SLOTS = 20
# What a kernel of an architecture did with text since a version.
DESIGNS = (("x86_64", (6, 16), "rox_cache"), ("", (0, 0), "vmalloc"))

Found = tuple[KernelRunner, KernelMeasures]
_MADE: dict[Path, Found] = {}


def version(name: str) -> tuple[int, int]:
    """Return the version that a kernel's folder is named after."""
    major, minor = name.partition("-")[0].split(".")[:2]
    return int(major), int(minor)


def design_of(name: str, arch: Arch) -> str:
    """Return the design that a kernel has."""
    return next(d for a, since, d in DESIGNS if a in ("", arch.name) and version(name) >= since)


def attached() -> list[Alloc | Free]:
    """Return kprobes and ftrace users that come, of which half go."""
    come = [*attach(Consumer.KPROBES, range(SLOTS)), *attach(Consumer.FTRACE, range(4))]
    return [*come, *(Free(each.key) for each in come[::2] if isinstance(each, Alloc))]


def half_gone(arch: Arch) -> Workload:
    """Return loads of a server's modules, and the unloads of every other one."""
    whole = workload("server", arch.name)
    loads = [each for each in whole.operations if isinstance(each, Load)][:MODULES]
    gone = [Unload(each.module.name) for each in loads[::2]]
    return attrs.evolve(whole, operations=(*loads, *attached(), *gone))


@pytest.fixture(params=booted.some(), ids=lambda found: found[0])
def found(request: pytest.FixtureRequest) -> tuple[str, Found]:
    """Return what each kernel made of the modules; measured once for all tests of a process."""
    name, folder, arch = request.param
    if folder not in _MADE:
        with booted.fresh(folder) as machine:
            runner = KernelRunner(machine)
            _MADE[folder] = runner, runner.run(half_gone(arch))
    return name, _MADE[folder]


def run_of(name: str, found: Found) -> ModelRun:
    """Return what the kernel's own design makes of the same."""
    runner, kernel = found
    (run,) = modelled(runner, kernel, [design_of(name, runner.machine.arch)], cpus=1)
    return run


def test_every_region_lies_where_the_kernel_put_it(found: tuple[str, Found]) -> None:
    """Address by address, after half of the modules are gone again."""
    name, (runner, kernel) = found
    run = run_of(name, (runner, kernel))
    assert not kernel.refused
    assert kernel.modules == MODULES
    assert run.regions > MODULES
    assert run.same_place == run.regions
    assert run.same_order


def test_leaves_are_the_kernels(found: tuple[str, Found]) -> None:
    """By type and size."""
    name, (runner, kernel) = found
    run = run_of(name, (runner, kernel))
    assert any(kernel.leaves["TEXT"].values())
    for kind, sizes in kernel.leaves.items():
        assert {size: run.measures.leaves[kind][size] for size in sizes} == sizes


def test_the_direct_map_is_the_kernels(found: tuple[str, Found]) -> None:
    """With the frames that the kernel took, the same leaves are split, and no others."""
    name, (runner, kernel) = found
    run = run_of(name, (runner, kernel))
    assert run.same_frames
    assert run.measures.direct_map_before == kernel.direct_map_before
    assert run.measures.direct_map_after == kernel.direct_map_after
    assert run.measures.direct_map_splits == kernel.direct_map_splits


def test_flushes_are_the_kernels(found: tuple[str, Found]) -> None:
    """What it executed for memory of modules, within five in a hundred; of either kind."""
    name, (runner, kernel) = found
    run = run_of(name, (runner, kernel))
    flushes = kernel.flushes.values()
    assert run.pages == pytest.approx(sum(each.pages for each in flushes), rel=0.05)
    assert run.whole == pytest.approx(sum(each.whole for each in flushes), rel=0.05)
    (other,) = modelled(runner, kernel, ["strata"], cpus=1)
    assert other.whole != pytest.approx(run.whole, rel=0.05)


def test_another_design_puts_them_elsewhere(found: tuple[str, Found]) -> None:
    """So that the tests above can fail."""
    _, (runner, kernel) = found
    (run,) = modelled(runner, kernel, ["per_type"], cpus=1)
    assert run.same_place < run.regions // 2


def test_flushes_are_executed(found: tuple[str, Found]) -> None:
    """Loading changes protections, and unloading takes mappings away: both are flushed."""
    _, (_, kernel) = found
    for step in ("load", "unload"):
        assert kernel.flushes[step].total >= MODULES // 2
    protected = sum(len(o.module.regions) for o in kernel.asked.operations if isinstance(o, Load))
    assert kernel.flushes["load"].total > protected // 2


def test_made_files_are_of_the_sizes(found: tuple[str, Found]) -> None:
    """As our own loader lays them out: at least what was asked for, and not a page more."""
    _, (runner, _) = found
    machine = runner.machine
    maker = Maker.of(machine.kernel, machine.image)
    for operation in half_gone(machine.arch).operations:
        if isinstance(operation, Load):
            view = parse(maker.file(operation.module), "made.ko")
            made = {region.type: region.size for region in measured(view).regions}
            for region in operation.module.regions:
                assert region.size <= made[region.type] < region.size + 4096 + maker.size


def test_modules_are_written_for_a_real_machine(found: tuple[str, Found], tmp_path: Path) -> None:
    """As files that this kernel takes, and the commands of the workload in order."""
    _, (runner, _) = found
    machine = runner.machine
    whole = workload("middle-slice", machine.arch.name)
    lines = list(written(Maker.of(machine.kernel, machine.image), whole, tmp_path))
    assert len(lines) == len(whole.operations)
    for line, operation in zip(lines, whole.operations, strict=True):
        word, what = line.split()
        assert word == ("insmod" if isinstance(operation, Load) else "rmmod")
        name = Path(what).stem
        assert (tmp_path / f"{name}.ko").is_file()
    last = Path(lines[0].split()[1])
    with machine.fork():
        assert machine.load(last).regions


def test_the_command_line(capfd: Any, tmp_path: Path) -> None:
    """One document with both; what the kernel decides is refused by name."""
    from execmem.cli import main

    kernels = booted.some()
    if not kernels:
        pytest.skip("EXECMEM_KERNELS names no kernel")
    name, folder, arch = kernels[0]
    trace = tmp_path / "two.jsonl"
    from allocator.workloads import write_trace

    whole = half_gone(arch)
    write_trace(trace, attrs.evolve(whole, operations=whole.operations[:2]))
    words = ["compare", "--kernel", str(folder), "--workload", str(trace)]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--design", design_of(name, arch), "--json"])
    assert not ended.value.code
    document = json.loads(capfd.readouterr().out)
    assert document["measured"]["modules"] == 2
    assert document["runs"][0]["same_place"] == document["runs"][0]["regions"]
    for option in (["--arch", arch.name], ["--page-size", "16KiB"], ["--check"]):
        with pytest.raises(SystemExit) as ended:
            main([*words, *option])
        assert ended.value.code == 2
        assert option[0] in capfd.readouterr().err


@pytest.mark.parametrize("inside", [False, True])
def test_an_interrupt_leaves_what_was_measured(
    inside: bool, capfd: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Between two operations and in the middle of one: what was done is shown, and how far it came."""
    from allocator.workloads import write_trace
    from execmem.cli import main
    from execmem.terminal import Meter

    kernels = booted.some()
    if not kernels:
        pytest.skip("EXECMEM_KERNELS names no kernel")
    name, folder, arch = kernels[0]
    trace = tmp_path / "three.jsonl"
    whole = half_gone(arch)
    write_trace(trace, attrs.evolve(whole, operations=whole.operations[:3]))
    show, note, seen = Meter.show, KernelRunner._note, list[object]()

    def shown(meter: Meter, what: str, done: int, total: int | None = None) -> None:
        show(meter, what, done, total)
        if total == 3 and done == 2 and not inside:
            raise KeyboardInterrupt

    def noted(runner: KernelRunner, load: Any) -> None:
        note(runner, load)
        seen.append(load)
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Meter, "show", shown)
    if inside:
        monkeypatch.setattr(KernelRunner, "_note", noted)
    words = ["compare", "--kernel", str(folder), "--workload", str(trace), "--json"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--design", "vmalloc", "--design", "strata"])
    said = capfd.readouterr()
    assert ended.value.code == 130
    assert "2 of 3 operations and 0 of 2 designs are done" in said.err
    document = json.loads(said.out)
    found = document["measured"]
    assert (found["operations"], found["done"], found["interrupted"]) == (3, 2, True)
    assert found["modules"] == len(found["regions"]) == 2
    assert sum(found["leaves"]["TEXT"].values()) >= (2 if version(name) < (6, 16) else 1)
    assert not found["unmapped"]
    assert document["runs"] == []


def test_slots_and_trampolines_lie_where_the_kernel_put_them(found: tuple[str, Found]) -> None:
    """In the module window, at the model's address, and on the same leaves; what is lacking is named."""
    name, (runner, kernel) = found
    run = run_of(name, (runner, kernel))
    assert kernel.attached["kprobes"]["held"] == SLOTS // 2
    assert kernel.attached["kprobes"]["areas"]
    assert kernel.attached["ftrace"]["held"] in (0, 2)
    if not kernel.attached["ftrace"]["held"]:
        assert kernel.passed_over
        assert any("makes no trampolines" in note for note in kernel.notes)
    for who, held in kernel.attached.items():
        sizes = {size: count for size, count in held.items() if size.endswith("iB")}
        assert {size: run.consumers[who].get(size, 0) for size in sizes} == sizes
    if all(at in runner.window for at in kernel.areas.values()):
        assert run.same_areas == len(kernel.areas) >= 3
        (other,) = modelled(runner, kernel, ["per_type"], cpus=1)
        assert other.same_areas < len(kernel.areas)


def test_slots_hold_what_was_there(found: tuple[str, Found]) -> None:
    """The kernel copies the instruction that it puts a breakpoint on, and puts it back."""
    _, (runner, _) = found
    machine = runner.machine
    attaching = Attaching(machine.kernel)
    probe = attaching.probe()
    changed, slot = machine.read(probe.place, 4), machine.read(probe.code, 4)
    pages = attaching.pages()
    assert pages is None or align_down(probe.code, runner.page) in pages
    attaching.detach(probe)
    before = machine.read(probe.place, 4)
    assert slot[:2] == before[:2]
    assert changed != before


def test_programs_have_the_frames_that_the_kernel_took() -> None:
    """So that what they do to the direct map is the kernel's, too."""
    kernels = booted.some()
    if not kernels:
        pytest.skip("EXECMEM_KERNELS names no kernel")
    name, folder, arch = kernels[0]
    whole = workload("bpf", arch.name)
    operations = [each for each in whole.operations if isinstance(each, Alloc)][:8]
    with booted.fresh(folder) as machine:
        runner = KernelRunner(machine)
        kernel = runner.run(attrs.evolve(whole, operations=tuple(operations)))
        held = {
            key: machine.kernel.board.translate(frames.address)
            for key, frames in runner.area_frames.items()
        }
    assert kernel.programs["programs"] == len(held) == len(operations)
    for key, at in held.items():
        assert at is not None
        assert align_down(at, runner.page) == runner.area_frames[key].pages[0] + arch.boots.ram
    run = run_of(name, (runner, kernel))
    assert run.same_frames
    assert run.measures.direct_map_after == kernel.direct_map_after


def test_programs_are_where_the_kernel_says(found: tuple[str, Found]) -> None:
    """The kernel fills code that it takes away with traps, or unmaps it: so it was there."""
    _, (runner, _) = found
    kernel = runner.machine.kernel
    programs = Programs(kernel)
    wanted = (200, 900, 5000)
    loaded = [programs.load(size) for size in wanted]
    try:
        assert len({program.address for program in loaded}) == len(loaded)
        for program, size in zip(loaded, wanted, strict=True):
            assert program.size == pytest.approx(size, rel=0.05, abs=64)
    finally:
        code = [kernel.board.read(program.address, 64) for program in loaded]
        for program in loaded:
            programs.unload(program)
        runner.machine.sleep(0.1)
    for program, before in zip(loaded, code, strict=True):
        physical = kernel.board.translate(program.address)
        if physical is not None:
            after = kernel.board.read(program.address, 64)
            assert after != before
            assert after == after[:4] * 16

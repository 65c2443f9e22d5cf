# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that are put somewhere at random: where, what stays the same, and who cannot be."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import attrs
import pytest

from archs import Arch
from emulator.faults import BadCall
from execmem import Machine
from execmem.diffing.diff import compare_runs
from execmem.diffing.live import Recorder, record
from execmem.diffing.placement import place_runs
from kernels.booted.starting import Parameters, plan_of
from kernels.errors import BootFailed
from loader.depends import tree_of
from loader.errors import BadKernel
from loader.kernel.find import read_kernel
from machine.arguments import Out
from machine.booted.machine import BootedMachine
from tests.support import booted

# With EXECMEM_LONG every kernel, twice with one seed; else one of each architecture, once.
LONG = "EXECMEM_LONG" in os.environ
KERNELS = booted.releases()
CHOSEN = KERNELS if LONG else list({arch.name: (n, f, arch) for n, f, arch in KERNELS}.values())
some = pytest.mark.parametrize(
    ("folder", "arch"), [one[1:] for one in CHOSEN], ids=[one[0] for one in CHOSEN]
)


def moves(folder: Path) -> bool:
    """Return whether a kernel is built to be moved."""
    configs = [path.read_text() for path in folder.glob("boot/config*")]
    return any("CONFIG_RANDOMIZE_BASE=y" in config.splitlines() for config in configs)


@cache
def seeded(folder: Path, seed: int) -> BootedMachine:
    """Return a kernel that is where a seed puts it, or skip."""
    if not moves(folder):
        pytest.skip("it is not built to be moved")
    return BootedMachine(kernel=folder, kaslr=seed)


def at(machine: BootedMachine, name: str) -> int:
    """Return where the kernel itself says that a function of it is: as its kallsyms has it."""
    text, function = Out(128), machine.function(name)
    length = machine.call(machine.function("snprintf"), text, 128, "%ps %px", function, function)
    told, address = bytes(text)[:length].decode().split()
    assert told == name
    return int(address, 16)


@some
def test_a_kernel_runs_where_its_seed_puts_it(folder: Path, arch: Arch) -> None:
    """It is elsewhere than without one, by whole large pages, and says so; and it works."""
    machine, plain = seeded(folder, 1), booted.machine(folder)
    slide = at(machine, "kfree") - at(plain, "kfree")
    assert slide
    assert slide % (2 << 20) == 0
    assert machine.call(machine.function("crc32_le"), 0, b"abc", 3) == plain.call(
        plain.function("crc32_le"), 0, b"abc", 3
    )
    assert machine.syscall("getpid") == 1
    assert "nokaslr" not in machine.kernel.standing.started.board.wires.console.decode().split()
    with pytest.raises(BadCall, match="design: a booted kernel decides that itself"):
        Machine(kernel=folder, kaslr=1, design="vmalloc")
    del arch


@some
def test_every_byte_and_place_is_predicted_there(folder: Path, arch: Arch) -> None:
    """What modules become is predicted wherever the kernel is; modules are at random places, too."""
    machine = seeded(folder, 1)
    named = os.environ.get("EXECMEM_CORPUS", "").split(os.pathsep)
    tree = tree_of(machine.kernel.release, [folder, *map(Path, filter(None, named))])
    if tree is None:
        pytest.skip("no modules of it at hand")
    sized = {name: (tree.folder / path).stat().st_size for name, path in tree.files.items()}
    names = sorted(sized, key=lambda name: sized[name])
    modules = machine.kernel.modules
    with machine.fork():
        machine.tree = tree
        boot = record(Recorder(machine), names if LONG else names[:3])
    machine.tree = None
    modules.on_relocated = modules.before_init = None
    (run,) = compare_runs([boot])
    assert (run.equal, run.unexplained) == (True, 0), run.counts("differing")
    (placed,) = place_runs([boot])
    assert placed.regions == placed.equal > 3
    assert placed.slide != 0 or arch.boots.distance is None
    assert not boot.refusals


@some
def test_a_machine_in_a_file_is_where_its_seed_put_it(
    folder: Path, arch: Arch, tmp_path: Path
) -> None:
    """The seed belongs to what a saved machine is made of."""
    machine = seeded(folder, 1)
    machine.save(tmp_path / "machine")
    again = Machine.resume(tmp_path / "machine")
    assert again.function("kfree") == machine.function("kfree")
    assert again.syscall("getpid") == 1
    del arch


@some
def test_who_cannot_be_moved_says_so(folder: Path, arch: Arch) -> None:
    """A kernel without CONFIG_RANDOMIZE_BASE, or without relocations, is refused by name."""
    if not moves(folder):
        with pytest.raises(BootFailed, match=r"KASLR: .*CONFIG_RANDOMIZE_BASE"):
            BootedMachine(kernel=folder, kaslr=1)
    elif arch.boots.distance is not None:
        image = attrs.evolve(read_kernel(folder), behind=b"")
        with pytest.raises(BadKernel, match=r"relocations: .*vmlinux\.relocs"):
            plan_of(image, Parameters(kaslr=1))
    else:
        pytest.skip("it moves itself")


@pytest.mark.skipif(not LONG, reason="EXECMEM_LONG is not set: each is a boot")
@some
def test_seeds_decide_everything(folder: Path, arch: Arch) -> None:
    """Two seeds put kernel and modules elsewhere; one seed makes the same memory twice."""
    first, second = seeded(folder, 1), seeded(folder, 2)
    assert at(first, "kfree") != at(second, "kfree")
    again = BootedMachine(kernel=folder, kaslr=1, keep=False)
    assert again.kernel.standing.digest == first.kernel.standing.digest
    named = os.environ.get("EXECMEM_CORPUS", "").split(os.pathsep)
    tree = tree_of(first.kernel.release, [folder, *map(Path, filter(None, named))])
    if tree is not None:
        sized = {name: (tree.folder / path).stat().st_size for name, path in tree.files.items()}
        smallest = tree.folder / tree.files[min(sized, key=lambda name: sized[name])]
        away = []
        for machine in (first, second):
            with machine.fork():
                region = next(iter(machine.load(smallest).regions.values()))
                away.append(region.address - machine.function("kfree"))
        assert away[0] != away[1]
    del arch

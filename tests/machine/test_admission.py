# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel says of a module: taints, its log, notices, force, constructors, leaving."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import archs
from execmem.check.elfwriter import FUNC, LOCAL, A, Rela, Sec, Sym, W, X
from loader.checks import Refused
from loader.errors import ModuleInUse
from machine.face import Machine
from samples.modules import root
from tests.archs.facts import facts
from tests.support.checked import Offer, made, this_module, tree_magic, version_table

LAYOUT = {"module_layout": 1}


def constructed(machine: int, name: str, *, both: bool = False) -> bytes:
    """Return a module whose constructor and init write down that they ran, in order."""
    make, at = facts(machine).run.count
    first, second = make(1), make(2)
    step = len(first) + -len(first) % 16
    code = first.ljust(step, b"\0") + second
    relas = [
        Rela(at, facts(machine).link.abs64, "order"),
        Rela(step + at, facts(machine).link.abs64, "order"),
    ]
    pointer = [Rela(0, facts(machine).link.abs64, "first")]
    extra = [
        Sec(".text.count", code, A | X, align=16, relas=relas),
        Sec("order", bytes(8), A | W, align=8),
        Sec(name, bytes(8), A | W, align=8, relas=pointer),
        *[Sec(".ctors", bytes(8), A | W, align=8, relas=pointer)] * both,
    ]
    known = archs.by_machine(machine)
    assert known is not None
    at_init, at_exit = (known.loads.layouts.offset_of("module", n) for n in ("init", "exit"))
    this = Sec(
        ".gnu.linkonce.this_module",
        bytes(known.loads.layouts.size_of("module")),
        A | W,
        align=64,
        relas=[
            Rela(at_init, facts(machine).link.abs64, "second"),
            Rela(at_exit, facts(machine).link.abs64, "cleanup_module"),
        ],
    )
    symbols = [
        Sym("first", ".text.count", 0, 8, FUNC, LOCAL),
        Sym("second", ".text.count", step, 8, FUNC, LOCAL),
        Sym("order", "order", 0, 8),
    ]
    return made(machine, this=[this], extra=[*extra, version_table(LAYOUT)], symbols=symbols)


@pytest.mark.parametrize("name", [".ctors", ".init_array"])
@pytest.mark.parametrize("runs", [False, True])
def test_constructors(arch: archs.Arch, name: str, runs: bool) -> None:
    """They run before init where the kernel has CONFIG_CONSTRUCTORS, and not else."""
    machine = Machine(arch, constructors=runs)
    module = machine.load(constructed(arch.machine, name))
    order = int.from_bytes(machine.read(module.symbols["order"], 8), "little")
    assert order == ((0 * 2 + 1) * 2 + 2 if runs else 2)
    assert [n.code for n in machine.notices] == ["constructors"] * (not runs)
    assert module.report.notices == machine.notices


def test_taints_and_log(arch: archs.Arch) -> None:
    """What the kernel says of a module is in its log, marked; taints are the module's and all's."""
    machine = Machine(arch)
    module = machine.load(made(arch.machine, licence="x", tags=(), extra=[version_table(LAYOUT)]))
    assert (module.taints, module.report.taints, machine.taints) == ("PO", "PO", "PO")
    assert [line.text for line in module.report.log] == [
        "one: loading out-of-tree module taints kernel.",
        "one: module license 'x' taints kernel.",
        "Disabling lock debugging due to kernel taint",
        "one: module license taints kernel.",
    ]
    assert all(line.loading for line in machine.log)
    assert {line.level for line in machine.log} == {4}
    offset = arch.loads.layouts.offset_of("module", "taints")
    address = next(
        s.address for s in module.sections.values() if s.name == ".gnu.linkonce.this_module"
    )
    assert int.from_bytes(machine.read(address + offset, 8), "little") == 1 << 0 | 1 << 12
    module.unload()
    assert machine.taints == "PO"


def test_a_refusal_is_in_the_log(arch: archs.Arch) -> None:
    """The kernel's line is in the log; the module is not there, nor are its taints."""
    machine = Machine(arch)
    versions = [version_table(LAYOUT)]
    image = made(arch.machine, info=2, licence="x", extra=versions)
    with pytest.raises(Refused) as caught:
        machine.load(image)
    assert caught.value.errno == errno.ENOEXEC
    assert [line.text for line in machine.log] == ["Only one .modinfo section must exist."]
    assert (machine.modules, machine.taints, machine.notices) == ({}, "", ())


def test_dependencies_of_a_refused_module(arch: archs.Arch, tmp_path: Path) -> None:
    """What a refused module needed is gone again, though it could not be unloaded."""
    folder = tmp_path / "lib" / "modules" / "6.5.0-other"
    folder.mkdir(parents=True)
    magic = tree_magic(arch.machine, versions=False)
    lib = made(arch.machine, "lib", magic=magic, offers=[Offer("f", gpl=True)],
               this=[this_module(arch.machine, leave=False)])  # fmt: skip
    (folder / "lib.ko").write_bytes(lib)
    (folder / "one.ko").write_bytes(made(arch.machine, magic=magic, licence="x", uses=["f"]))
    (folder / "modules.dep").write_text("lib.ko:\none.ko: lib.ko\n")
    machine = Machine(arch, root=tmp_path)
    with pytest.raises(Refused, match="symbol 'f': is GPL-only") as caught:
        machine.load("one")
    assert caught.value.errno == errno.ENOENT
    assert machine.modules == {}
    assert "R" not in machine.taints


def test_force(arch: archs.Arch, tmp_path: Path) -> None:
    """What a module was built for does not count by force, which a parameter's name may be."""
    versions = [version_table({"module_layout": 0xDEADBEEF})]
    image = made(arch.machine, magic="6.12.999-other SMP x", extra=versions)
    machine = Machine(arch, root=root(arch.name))
    with pytest.raises(Refused, match="hint: --force") as caught:
        machine.load(image)
    assert caught.value.check == "vermagic"
    machine.force = True
    assert machine.force
    module = machine.load(image)
    assert "F" in module.taints
    assert [n.code for n in machine.notices] == ["built-for"]
    with pytest.raises(Exception, match="parameter 'force': unknown"):
        Machine(arch, force=True).load(image, force=1)
    assert "F" in Machine(arch, force=True).load(image).taints


def test_a_permanent_module(arch: archs.Arch) -> None:
    """With an init and no exit a module stays (EBUSY); force takes it out and taints the kernel."""
    machine = Machine(arch)
    versions = [version_table(LAYOUT)]
    this = [this_module(arch.machine, leave=False)]
    module = machine.load(made(arch.machine, this=this, extra=versions))
    with pytest.raises(ModuleInUse, match="permanent") as caught:
        module.unload()
    assert caught.value.errno == errno.EBUSY
    assert machine.taints == ""
    module.unload(force=True)
    assert (machine.modules, machine.taints) == ({}, "R")


def test_sample_modules_are_the_kernels_own(arch: archs.Arch) -> None:
    """They taint nothing, nothing is said about them, with their tree and without."""
    for machine in (Machine(arch, root=root(arch.name)), Machine(arch)):
        for name in ("mathlib", "mathuser", "hello"):
            path = root(arch.name) / "lib" / "modules" / "6.12.0-samples" / "kernel" / f"{name}.ko"
            machine.load(path)
        assert (machine.taints, machine.notices) == ("", ())
        assert not any(line.loading for line in machine.log)

# SPDX-License-Identifier: GPL-2.0-or-later
"""drgn on cores of stripped kernels, with our finders; what it reads is held to the guest itself.

Needs drgn, and EXECMEM_KERNELS.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loader.btf_records import Kind
from loader.errors import BadCore
from machine.booted.machine import BootedMachine
from tests.machine.test_cores import some_module
from tests.support import booted

drgn = pytest.importorskip("drgn")

from drgn.helpers.linux.module import for_each_module  # noqa: E402 -- where there is drgn
from drgn.helpers.linux.percpu import per_cpu  # noqa: E402
from drgn.helpers.linux.pid import find_task, for_each_task  # noqa: E402
from drgn.helpers.linux.printk import get_dmesg  # noqa: E402

from execmem import drgn as ours  # noqa: E402

KERNELS = booted.some()


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS] or None)
def machine(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return a machine of each architecture, with its modules at hand."""
    _, folder, _ = request.param
    root = booted.tree(folder)
    if root is None:
        pytest.skip("no modules of this kernel are at hand")
    with booted.fresh(folder, root) as found:
        yield found


def test_helpers_see_the_kernel(machine: BootedMachine, tmp_path: Path) -> None:
    """Modules, tasks, per-cpu variables, constants, functions and the log of a stripped kernel."""
    module, path = some_module(machine), tmp_path / "core"
    machine.core(path)
    prog: Any = ours.open_core(path, machine.image)
    assert prog["init_task"].comm.string_().startswith(b"swapper")
    assert prog["init_task"].pid.value_() == 0
    assert find_task(prog, 1).comm.string_() == b"init"
    assert b"kthreadd" in {task.comm.string_() for task in for_each_task(prog)}
    where = prog["init_task"].comm.address_ - prog["init_task"].address_
    assert where == machine.type("struct task_struct")["comm"].offset
    text = get_dmesg(prog).decode()  # as the console has it, whose first lines came before it
    assert machine.log[-1].text in text
    assert machine.kernel.release in text
    names = sorted(set(machine.functions) & {"schedule", "kfree", "vfree"})
    assert names
    for name in names:
        assert prog[name].address_ == machine.kernel.symbols[name] == prog.symbol(name).address
    assert prog["PIDTYPE_SID"].value_() == machine.type("enum pid_type").constant("PIDTYPE_SID")
    if "runqueues" not in machine.kernel.symbols:
        pytest.skip("its symbols are functions only (CONFIG_KALLSYMS_ALL)")
    assert per_cpu(prog["runqueues"], 0).cpu.value_() == 0
    assert [each.name.string_().decode() for each in for_each_module(prog)] == [module.name]
    name = next(iter(module.functions))
    symbol = prog.symbol(name)
    assert symbol.address == module.address_of(name)
    assert prog.symbol(symbol.address + 1).name == name
    types = machine.btf[module.name]
    for own in list(types.named(Kind.STRUCT))[:5]:
        kind = types.find(own, Kind.STRUCT)
        assert kind is not None
        theirs = prog.type(f"struct {own}")
        assert theirs.size == kind.size
        members = [(each.name or "", each.bit_offset) for each in theirs.members]
        assert members == [(each.name, each.offset) for each in kind.members]


def test_what_does_not_belong_together(machine: BootedMachine, tmp_path: Path) -> None:
    """A core of another kernel, of none, and a file that is no core: one line each."""
    path = tmp_path / "core"
    machine.core(path)
    others = [folder for name, folder, arch in booted.releases() if arch is machine.arch]
    other = next((f for f in others if machine.kernel.release not in str(list(f.rglob("*")))), None)
    if other is not None:
        with pytest.raises(BadCore, match=rf"of Linux {re.escape(machine.kernel.release)}, .* of "):
            ours.open_core(path, other)
    (tmp_path / "none").write_bytes(b"nothing")
    with pytest.raises(BadCore, match="is no ELF file"):
        ours.open_core(tmp_path / "none", machine.image)
    with pytest.raises(BadCore, match="has no VMCOREINFO"):
        ours.register(drgn.Program(), machine.image)
    prog = drgn.Program()
    prog.set_core_dump(str(path))
    mine = ours.register(prog, machine.image, variables={"linux_banner": "char [16]"})
    with pytest.raises(LookupError):
        prog["there_is_no_such_variable"]
    with pytest.raises(LookupError):
        prog.type("struct there_is_no_such_structure")
    if "linux_banner" in mine.symbols:
        assert prog["linux_banner"].string_().startswith(b"Linux version")

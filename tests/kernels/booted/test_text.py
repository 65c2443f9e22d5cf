# SPDX-License-Identifier: GPL-2.0-or-later
"""The text of kernels that boot here is that of the same kernels elsewhere.

What may differ: what the CPU's features decide, what the readme of the recordings excludes
(operands that memory's size decides, addresses of the hypervisor, which are random), and keys
that hardware or modules turn, each named here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest

from archs import Arch
from loader.depends import tree_of
from loader.errors import LoadError
from loader.files import ModuleFile, module_name
from machine.booted.account import account
from machine.booted.machine import BootedMachine
from tests.support import booted
from tests.support.kernel_text import RecordedText, compare

LONG = "EXECMEM_LONG" in os.environ
OFF = "mitigations=off"
DECIDED = (
    # What the CPU can do.
    "alternatives",
    "callback spectre_*",
    *("key have_*", "key sha*_x86", "key riscv_sstc_available", "key efficient_ffs_key"),
    # What the recordings' readme excludes.
    *("runtime constant", "hypervisor's address", "callback kvm_*"),
    # A local APIC, a timer that fires once, a performance counter, a GICv3: not in this computer.
    *("key apic_*", "key clocksource_read_inlined", "key hrtimer_highres_enabled_key"),
    *("key timers_*", "key kvm_arm_pmu_available", "key supports_deactivate_key"),
    # The same in a kernel that names no data.
    *("key kvm_vm_ioctl_check_extension", "key gic_handle_irq", "key gic_irq_domain_map"),
)
TURNED = {"key __perf_guest_*": "kvm_amd"}  # by the init of a module


def recordings() -> list[tuple[str, Path, RecordedText, Arch]]:
    """Return name, folder, recorded text and architecture of each kernel that has such."""
    named = os.environ.get("EXECMEM_ORACLE", "").split(os.pathsep)
    return [
        (name, folder, RecordedText(boot), arch)
        for name, folder, arch in booted.releases()
        for oracle in map(Path, filter(None, named))
        if (boot := oracle / name / "boot/base").joinpath("ktext.diff.xz").is_file()
    ]


RECORDED = recordings()


def started(folder: Path, recorded: RecordedText) -> BootedMachine:
    """Return the kernel as it was started there, or as other tests start it."""
    off = OFF in (recorded.folder / "cmdline").read_text()
    return BootedMachine(kernel=folder, command_line=OFF if LONG and off else "")


def load(machine: BootedMachine, recorded: RecordedText, folder: Path) -> list[str]:
    """Load the modules that were there, in their order, as far as their files are at hand.

    Returns the names of the others.
    """
    named = os.environ.get("EXECMEM_CORPUS", "").split(os.pathsep)
    tree = tree_of(machine.kernel.release, [folder, *map(Path, filter(None, named))])
    files = {} if tree is None else {n: tree.folder / f for n, f in tree.files.items()}
    files |= {module_name(path): path for path in recorded.folder.parents[1].glob("ko/*.ko*")}
    lines = (recorded.folder / "modules").read_text().splitlines()
    missing = []
    for name in (line.split()[0] for line in reversed(lines)):
        try:
            machine.insert(ModuleFile.read(files[name]))
        except (KeyError, LoadError):
            missing.append(name)
    return missing


@pytest.mark.parametrize(
    ("folder", "recorded", "arch"), [one[1:] for one in RECORDED], ids=[one[0] for one in RECORDED]
)
def test_a_kernels_text_is_the_recorded_one(
    folder: Path,
    recorded: RecordedText,
    arch: Arch,
    record_property: Callable[[str, object], None],
) -> None:
    """After the same modules every byte is the recorded one but for what is named here."""
    if not LONG and arch.boots.return_thunk:
        pytest.skip("EXECMEM_LONG is not set: mitigations decide much, so it is another boot")
    machine = started(folder, recorded) if LONG else booted.machine(folder)
    with machine.fork():
        features = account(machine).capabilities
        assert features is not None
        missing = load(machine, recorded, folder) if LONG else [*TURNED.values()]
        found = compare(machine, recorded, features)
    record_property(folder.name, (found.compared, dict(found.decided), missing))
    assert found.unexplained == []
    known = (*DECIDED, *(key for key, module in TURNED.items() if module in missing))
    assert [why for why in found.decided if not any(fnmatch(why, one) for one in known)] == []


def test_a_byte_of_the_text_that_is_another_is_told() -> None:
    """A byte that no table of the kernel has is not explained; what is compared is its memory."""
    for _, folder, recorded, arch in RECORDED:
        if arch.boots.return_thunk:
            continue
        machine = booted.machine(folder)
        at = machine.function("strlen")
        with machine.fork():
            machine.write(at + 3, bytes([machine.read(at + 3, 1)[0] ^ 1]))
            found = compare(machine, recorded, recorded.capabilities)
        assert (at + 3, "strlen") in [
            (one, name.removeprefix("__pi_")) for one, name in found.unexplained
        ]
        return
    pytest.skip("no kernel whose text was recorded")
